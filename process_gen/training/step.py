"""One optimizer step: unroll and losses (`scoring.score`), gradients, AdamW or Muon, EMA."""

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
      params, ema: all parameters, and the exponential moving average of the trained ones, float32.
      opt_state: of the trained parameters.
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
        """What the losses of the next batch need besides parameters."""
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
    params = sharding.unbox(boxed)
    trained_params = trained(params, recipe.freeze)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=boxed,
        ema=trained_params,
        opt_state=recipe.optimizer.init(trained_params),
        key=run_key,
        autoencoder=random_weights(recipe.model.config, jax.random.fold_in(init_key, 1)),
        networks=scoring.init_networks(recipe.losses.networks, params, key),
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

    def shard(gradients: Any) -> Any:
        if shardings is None:
            return gradients
        return jax.lax.with_sharding_constraint(gradients, trained(shardings.params, recipe.freeze))

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(state.key, state.step)
        gradients, sums, counts = _batch_gradients(recipe, state, batch, key, shard)
        state = state if shardings is None else offload.fetched(state, shardings)
        grad_norm = optax.global_norm(gradients)
        loss = recipe.losses.total(sums, counts, state.step)
        old = trained(state.params, recipe.freeze)
        updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, old)
        update_norm = optax.global_norm(updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
        new = optax.apply_updates(old, updates)
        step = state.step + 1
        decay = ema_decay(recipe, step)
        ema = jax.tree.map(lambda average, x: decay * average + (1 - decay) * x, state.ema, new)
        params = merged(state.params, new)
        new_state = state.replace(step=step, params=params, ema=ema, opt_state=opt_state)
        metrics = {
            "loss": loss,
            **recipe.losses.metrics(sums, counts, state.step),
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "param_norm": optax.global_norm(params),
            "learning_rate": recipe.schedule(_update_count(state)),
            "finite": finite.astype(jnp.float32),
            **by_part("grad_norm", gradients),
            **by_part("update_norm", updates),
            **amounts(recipe.model.layout, batch),
        }
        new_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new_state, state.replace(step=step))
        return new_state if shardings is None else offload.sent_back(new_state, shardings), metrics

    return train_step


def ema_decay(recipe: Recipe, step: jax.Array | int) -> jax.Array | float:
    """The decay of the moving average after a step; steps count from 1."""
    return jnp.minimum(recipe.ema, (1.0 + step) / (10.0 + step)) if recipe.ema_warmup else recipe.ema


def _update_count(state: TrainState) -> jax.Array:
    """How many updates the optimizer has made; its own count excludes steps that were not finite."""
    counts = optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")
    return counts[0][1] if counts else state.step


def _batch_gradients(recipe: Recipe, state: TrainState, batch: Batch, key: jax.Array, shard: Callable):
    """Gradients of the total loss, and the sums and counts of its terms.

    Every term is divided by its count over the whole batch, so accumulated
    micro-batches give the gradient of the whole batch.
    """
    if recipe.accumulate == 1:
        gradients, sums, counts = _gradients(recipe, state, batch, key)
        return shard(gradients), sums, counts
    micro = scoring.micro_batches(recipe, batch, key)

    def add_counts(total, xs):
        return jax.tree.map(jnp.add, total, scoring.score(recipe, None, state.given, *xs)[1]), None

    def add_gradients(carry, xs):
        gradients, sums, _ = _gradients(recipe, state, *xs, counts)
        total, sums = jax.tree.map(jnp.add, carry, (shard(gradients), sums))
        return (shard(total), sums), None

    no_sums, no_counts = scoring.zero_sums(recipe, state.given, micro)
    counts, _ = jax.lax.scan(add_counts, no_counts, micro)
    no_gradients = shard(jax.tree.map(jnp.zeros_like, trained(state.params, recipe.freeze)))
    (gradients, sums), _ = jax.lax.scan(add_gradients, (no_gradients, no_sums), micro)
    return gradients, sums, counts


def _gradients(recipe: Recipe, state: TrainState, batch: Batch, key: jax.Array, counts: dict | None = None):
    """Gradients, sums and counts of one micro-batch; its sums are divided by `counts`, by default its own."""

    def loss(part):
        sums, own = scoring.score(recipe, merged(state.params, part), state.given, batch, key)
        return recipe.losses.total(sums, own if counts is None else counts, state.step), (sums, own)

    gradients, (sums, own) = jax.grad(loss, has_aux=True)(trained(state.params, recipe.freeze))
    return gradients, sums, own
