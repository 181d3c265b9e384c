"""The shapes of a model's parameters, without a layout, a batch or memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from process_gen.models import vit
from process_gen.models.autoencoder import geometry
from process_gen.models.config import FluxConfig, ModelConfig
from process_gen.models.flux import FluxAutoencoder
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout

_IDS = ControlIds(end_of_text=2, im_start=3, im_end=4, vision_start=5, vision_end=6, ins=7, refine=8)


def model_spec(config: ModelConfig, with_vit: bool = True) -> Any:
    """The parameters that `UnifiedModel.init` makes, as boxed `jax.ShapeDtypeStruct`, with logical axes.

    Args:
      config: sizes.
      with_vit: whether the layout would make room for ViT tokens; only then there are weights for them.
    """
    layout = Layout(
        image_size=(8, 8),
        latent_grid=(1, 1),
        latent_values=config.latent_patch**2 * geometry(config)[1],
        steps=1,
        trajectories=1,
    )
    model, key = UnifiedModel(config, layout, _IDS), jax.random.key(0)
    params = jax.eval_shape(model.init, key, Batch.spec(layout, 1))["params"]
    if with_vit and config.vit is not None:
        patches = jax.ShapeDtypeStruct((1, 1, config.vit.patch**2 * 3), jnp.float32)
        features = jax.ShapeDtypeStruct((1, 1, config.vit.width), jnp.float32)
        tower, connector = vit.Vit(config, (1, 1)), vit.Connector(config, (1, 1))
        params = dict(params)
        params["vit"] = jax.eval_shape(tower.init, key, patches)["params"]
        params["connector"] = jax.eval_shape(connector.init, key, features)["params"]
    return params


def autoencoder_spec(config: FluxConfig) -> Any:
    """The parameters of a FLUX autoencoder, as `jax.ShapeDtypeStruct`."""
    image = jax.ShapeDtypeStruct((1, config.factor, config.factor, config.in_channels), jnp.float32)
    return jax.eval_shape(FluxAutoencoder(config).init, jax.random.key(0), image)["params"]
