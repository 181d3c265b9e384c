"""One optimizer step: unroll, losses, gradients, AdamW or Muon, EMA."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from process_gen.distributed import offload, sharding
from process_gen.losses import LossTable
from process_gen.models.autoencoder import random_weights
from process_gen.models.config import UnrollOptions
from process_gen.models.unified import UnifiedModel
from process_gen.training import scoring
from process_gen.training.amounts import amounts
from process_gen.training.norms import by_part
from process_gen.training.scoring import Given
from process_gen.training.trained import merged, trained
from process_gen.trajectory.batch import Batch


@flax.struct.dataclass
class TrainState:
    """Everything that a resumed run needs besides the data iterator.

    Attributes:
      step: [] int32, batches seen.
      params, ema: parameters, and the exponential moving average of those that are trained, float32.
      key: the run's key; each step folds its number into it.
      autoencoder: weights of the autoencoder, which stay as they are; None where it has none.
      networks: weights of the frozen networks that losses read, by name; None where none does.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    key: Any
    autoencoder: Any = None
    networks: Any = None

    @property
    def given(self) -> Given:
        """What the losses of the next batch need besides trained parameters."""
        return Given(self.step, self.autoencoder, self.networks)

    @property
    def average(self) -> Any:
        """All parameters, the trained ones replaced by their moving averages."""
        return merged(self.params, self.ema)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a train step is made of.

    Attributes:
      schedule: learning rate of a step, for the log.
      ema: decay of the moving average.
      ema_warmup: whether early steps use (1 + step) / (10 + step) where that is less: the average then
        spans the last tenth of the run at most, and forgets what it started from.
      accumulate: micro-batches of a step.
      freeze: patterns of the parameters that stay as they are, see `process_gen.training.trained`.
    """

    model: UnifiedModel
    losses: LossTable
    options: UnrollOptions
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    ema: float = 0.999
    accumulate: int = 1
    ema_warmup: bool = True
    freeze: tuple[str, ...] = ()


def init_state(recipe: Recipe, spec: Batch, key: jax.Array) -> TrainState:
    """The state before the first step, for batches of the shapes of `spec`.

    `params` keep the logical names of their axes; the other trees have none, and no frozen parameters.
    """
    init_key, run_key = jax.random.split(key)
    batch = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), spec)
    boxed = recipe.model.init(init_key, batch)["params"]
    whole = sharding.unbox(boxed)
    plain = trained(whole, recipe.freeze)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=boxed,
        ema=plain,
        opt_state=recipe.optimizer.init(plain),
        key=run_key,
        autoencoder=random_weights(recipe.model.config, jax.random.fold_in(init_key, 1)),
        networks=scoring.init_networks(recipe.losses.networks, whole, key),
    )


def make_train_step(
    recipe: Recipe, shardings: TrainState | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The pure train step: (state, batch) -> (state, metrics).

    Given the shardings of the state, gradients are sharded like the parameters as
    soon as they are computed, accumulated ones too, and arrays offloaded to host
    memory are on the devices for the update only.

    A step whose loss, gradient or update is not finite changes only the count of steps,
    so that its batch is not repeated, and has `metrics["finite"]` 0.
    """

    def like_params(tree: Any) -> Any:
        if shardings is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, trained(shardings.params, recipe.freeze))

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(state.key, state.step)
        gradients, sums, counts = _gradients(recipe, state, batch, key, like_params)
        state = state if shardings is None else offload.fetched(state, shardings)
        norm = optax.global_norm(gradients)
        loss = recipe.losses.total(sums, counts, state.step)
        before = trained(state.params, recipe.freeze)
        updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, before)
        update_norm = optax.global_norm(updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(update_norm)
        after = optax.apply_updates(before, updates)
        step = state.step + 1
        decay = ema_decay(recipe, step)
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, after)
        params = merged(state.params, after)
        new = state.replace(step=step, params=params, ema=ema, opt_state=opt_state)
        metrics = {
            "loss": loss,
            **recipe.losses.metrics(sums, counts, state.step),
            "grad_norm": norm,
            "update_norm": update_norm,
            "param_norm": optax.global_norm(params),
            "learning_rate": recipe.schedule(_updates(state)),
            "finite": finite.astype(jnp.float32),
            **by_part("grad_norm", gradients),
            **by_part("update_norm", updates),
            **amounts(recipe.model.layout, batch),
        }
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state.replace(step=step))
        return new if shardings is None else offload.sent_back(new, shardings), metrics

    return train_step


def ema_decay(recipe: Recipe, step: jax.Array | int) -> jax.Array | float:
    """The decay of the moving average after a step; steps count from 1."""
    return jnp.minimum(recipe.ema, (1.0 + step) / (10.0 + step)) if recipe.ema_warmup else recipe.ema


def _updates(state: TrainState) -> jax.Array:
    """How many updates the optimizer has made; its own count excludes steps that were not finite."""
    counts = optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")
    return counts[0][1] if counts else state.step


def _gradients(
    recipe: Recipe, state: TrainState, batch: Batch, key: jax.Array, like_params: Callable[[Any], Any]
):
    """Gradients of the total loss, and the sums and counts of its terms.

    Every term is divided by its count over the whole batch, so accumulated
    micro-batches give the gradient of the whole batch.
    """
    params, given = state.params, state.given
    if recipe.accumulate == 1:
        gradients, sums, counts = _micro(recipe, params, batch, key, None, given)
        return like_params(gradients), sums, counts
    micro = scoring.micro_batches(recipe, batch, key)

    def count(total, xs):
        return jax.tree.map(jnp.add, total, scoring.score_blank(recipe, given, *xs)[1]), None

    def accumulate(carry, xs):
        gradients, sums, _ = _micro(recipe, params, xs[0], xs[1], counts, given)
        total, sums = jax.tree.map(jnp.add, carry, (like_params(gradients), sums))
        return (like_params(total), sums), None

    no_sums, no_counts = scoring.zero_sums(recipe, given, micro)
    counts, _ = jax.lax.scan(count, no_counts, micro)
    start = (like_params(jax.tree.map(jnp.zeros_like, trained(params, recipe.freeze))), no_sums)
    (gradients, sums), _ = jax.lax.scan(accumulate, start, micro)
    return gradients, sums, counts


def _micro(recipe: Recipe, params: Any, batch: Batch, key: jax.Array, counts: dict | None, given: Given):
    def loss(part):
        sums, own = scoring.score(recipe, merged(params, part), given, batch, key)
        return recipe.losses.total(sums, own if counts is None else counts, given.step), (sums, own)

    gradients, (sums, own) = jax.grad(loss, has_aux=True)(trained(params, recipe.freeze))
    return gradients, sums, own
