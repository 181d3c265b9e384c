"""The shapes of a model's parameters, from its config alone; nothing is allocated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from process_gen.models import flux
from process_gen.models.autoencoder import geometry
from process_gen.models.config import FluxConfig, ModelConfig
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout

_IDS = ControlIds(*range(9))
"""Any ids will do: no parameter depends on them."""


@functools.cache
def model_spec(config: ModelConfig, with_vit: bool = True) -> Any:
    """The parameters of `UnifiedModel.init`, as boxed `jax.ShapeDtypeStruct`; cached, so do not change them.

    `with_vit`: whether the layout has room for ViT tokens; without, there are no weights for them.
    """
    return jax.eval_shape(_init(config, with_vit), jax.random.key(0))


def initial(config: ModelConfig, names: frozenset[str], seed: int) -> dict[str, Any]:
    """Draws the parameters `names` (`a/b/c`) as `UnifiedModel.init` does: a nested dict of NumPy arrays."""

    def some(key: jax.Array) -> dict[str, jax.Array]:
        params = flatten_dict(nn.meta.unbox(_init(config, True)(key)), sep="/")
        return {name: params[name] for name in sorted(names)}

    drawn = jax.device_get(jax.jit(some)(jax.random.key(seed)))  # XLA drops what is not asked for
    return unflatten_dict(drawn, sep="/")


def _init(config: ModelConfig, with_vit: bool) -> Callable[[jax.Array], dict[str, Any]]:
    layout = Layout(
        image_size=(8, 8),
        latent_grid=(1, 1),
        latent_values=config.latent_patch**2 * geometry(config)[1],
        vit_grid=(1, 1) if with_vit and config.vit is not None else (0, 0),
        turns=1,
        trajectories=1,
    )
    model, batch = UnifiedModel(config, layout, _IDS), Batch.spec(layout, 1)

    def init(key: jax.Array) -> dict[str, Any]:
        return model.init(key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch))["params"]

    return init


@functools.cache
def autoencoder_spec(config: FluxConfig) -> Any:
    """The parameters of a FLUX autoencoder, as `jax.ShapeDtypeStruct`."""
    return jax.eval_shape(functools.partial(flux.random_weights, config), jax.random.key(0))
