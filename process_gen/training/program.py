"""The train step jitted for a mesh, which `train` runs and `compile` measures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from process_gen.distributed import offload as offloading
from process_gen.distributed import sharding
from process_gen.experiment import builders, tuning
from process_gen.models import partition
from process_gen.models.outputs import REFERENCE
from process_gen.models.unified import UnifiedModel
from process_gen.training import scoring
from process_gen.training.scoring import Given
from process_gen.training.step import Recipe, TrainState, init_state, make_train_step
from process_gen.trajectory.batch import Batch


def build_recipe(config: ConfigDict, model: UnifiedModel) -> Recipe:
    """What the train step of a config is made of; ConfigError where losses or optimizer cannot work."""
    optimizer, schedule = builders.build_optimizer(config)
    return Recipe(
        model,
        builders.build_losses(config),
        builders.build_unroll_options(config),
        optimizer,
        schedule,
        ema=config.optimizer.ema,
        accumulate=config.train.accumulate,
        ema_warmup=config.optimizer.ema_warmup,
        freeze=tuning.freeze_patterns(config, model.config),
    )


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """A recipe on a mesh, for batches of a given size.

    Attributes:
      mesh: the devices, which need not be there until `create_state`.
      spec: shapes and dtypes of a batch of all hosts together.
      offload: what of the state waits in host memory between steps (`offload.PARTS`).
    """

    recipe: Recipe
    mesh: Mesh
    spec: Batch
    offload: str = "none"

    @classmethod
    def of(cls, config: ConfigDict, model: UnifiedModel, mesh: Mesh) -> TrainProgram:
        """The train step of a config.

        Raises:
          ConfigError: the losses or the optimizer cannot work; a loss is named with what is wrong with it.
          MeshError: the batch or the heads do not split over the mesh, or the devices cannot offload.
        """
        rows, sizes, offload = config.train.batch_size, model.config, config.train.offload
        sharding.heads_divide({"model.kv_heads": sizes.kv_heads, "model.heads": sizes.heads}, mesh)
        sharding.rows_divide(rows, mesh)
        offloading.check_host_memory(offload, mesh)
        shown = config.train.own.share > 0  # the model's own images replace some of the context
        spec = Batch.spec(model.layout, rows, bool(config.data.latents), shown)
        recipe = build_recipe(config, model)
        with builders.as_config_error():
            scoring.check(recipe, spec)
        return cls(recipe, mesh, spec, offload)

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step, with the logical axes of its parameters."""
        return init_state(self.recipe, self.spec, key)

    def create_state(self, key: jax.Array) -> TrainState:
        """The state before the first step, created in its shardings: no device ever holds a full copy.

        Registered networks are made on every host and outside of jit, as their `init` may read a file.
        """
        shardings = self.shardings
        registered = [name for name in self.recipe.losses.networks if name != REFERENCE]

        def init(key: jax.Array) -> TrainState:
            state = sharding.unbox(self.init(key))
            return state.replace(networks=_without(state.networks, registered))

        jit_shardings = shardings.replace(networks=_without(shardings.networks, registered))
        state = jax.jit(init, out_shardings=jit_shardings)(key)
        if not registered:
            return state
        networks = dict(state.networks or {})
        made = scoring.init_networks(self.recipe.losses.networks, {}, key)
        for name in registered:
            # Copies: the train step donates its state, and `init` may return arrays that others hold.
            copy = jax.tree.map(_copied, made[name])
            networks[name] = jax.device_put(copy, shardings.networks[name])
        return state.replace(networks=networks)

    def with_reference(self, state: TrainState) -> TrainState:
        """The state with its parameters as the frozen reference, where a loss reads one."""
        if REFERENCE not in self.recipe.losses.networks:
            return state
        copy = jax.tree.map(jnp.copy, state.params)
        return state.replace(networks={**state.networks, REFERENCE: copy})

    @functools.cached_property
    def abstract(self) -> tuple[TrainState, Batch]:
        """What the step takes, as `jax.ShapeDtypeStruct` with shardings."""
        state = sharding.abstract_state(self.init, jax.random.key(0), mesh=self.mesh)
        state = offloading.rest_on_host(state, self.offload)
        rows = sharding.batch_sharding(self.mesh)
        return state, jax.tree.map(lambda x: x.update(sharding=rows), self.spec)

    @property
    def shardings(self) -> Any:
        """A `NamedSharding` for every array of the state."""
        return jax.tree.map(lambda x: x.sharding, self.abstract[0])

    def placed(self, rows: Mapping[str, Any]) -> Batch:
        """The global batch on the mesh, from this host's rows, fields of a `Batch`."""
        return sharding.shard_batch(Batch(**rows), self.mesh, self.spec.present.shape[0])

    def jit(self, function: Callable[..., Any], **options: Any) -> Any:
        """`jax.jit` of a function whose activations are sharded over the mesh."""
        return jax.jit(partition.on_mesh(self.mesh, sharding.ACTIVATION_RULES)(function), **options)

    def compiled(self) -> Any:
        """`step`, compiled now; it takes what `abstract` describes."""
        return self.step.lower(*self.abstract).compile()

    @functools.cached_property
    def losses(self) -> Any:
        """Jitted: (parameters, given, batch, key) -> sums and counts of the losses, by `undisturbed`."""

        def losses(params: Any, given: Given, batch: Batch, key: jax.Array):
            return scoring.score_in_parts(self.undisturbed, params, given, batch, key)

        return self.jit(losses, out_shardings=sharding.replicated(self.mesh))

    @property
    def undisturbed(self) -> Recipe:
        """The recipe with nothing dropped from the context, and no noise on it."""
        options = dataclasses.replace(
            self.recipe.options,
            **dict.fromkeys(("drop_text", "drop_images", "drop_latents", "drop_vit", "context_noise"), 0.0),
            sample_latents=False,
        )
        return dataclasses.replace(self.recipe, options=options)

    @functools.cached_property
    def step(self) -> Any:
        """The jitted step: (state, batch) -> (state, metrics); the state is donated, its shardings stay."""
        one_place = self.mesh.size == 1 and self.offload == "none"
        step = make_train_step(self.recipe, None if one_place else self.shardings)
        return self.jit(
            step,
            in_shardings=(self.shardings, sharding.batch_sharding(self.mesh)),
            out_shardings=(self.shardings, sharding.replicated(self.mesh)),
            donate_argnums=0,
        )


def _copied(x: jax.Array) -> Any:
    """A copy in this host's memory; random keys as they are."""
    is_key = isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return x if is_key else np.array(x)


def _without(networks: dict[str, Any] | None, names: Sequence[str]) -> dict[str, Any] | None:
    """The networks but those `names`; None if none are left."""
    return {name: x for name, x in (networks or {}).items() if name not in names} or None
