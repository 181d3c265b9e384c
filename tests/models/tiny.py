"""A tiny float32 model and packed rows for contract tests."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models.autoencoder import random_weights
from process_gen.models.config import FluxConfig, ModelConfig, VitConfig
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout
from tests.data.fake import fake_batch

IDS = ControlIds(
    end_of_text=2, im_start=3, im_end=4, vision_start=5, vision_end=6, ins=7, refine=11, des=9, des_end=10
)
VOCAB = 32
CONFIG = ModelConfig(
    vocab_size=VOCAB,
    width=16,
    layers=2,
    mlp=24,
    heads=2,
    kv_heads=1,
    head_dim=8,
    rope_theta=100.0,
    image_rope=1,
    latent_patch=4,
    max_latent_side=4,
    prediction="velocity",
    attention="dense",
    vit=VitConfig(width=12, layers=2, mlp=20, heads=2, patch=3, max_side=4),
)
FLUX = dataclasses.replace(
    CONFIG,
    autoencoder="flux",
    flux=FluxConfig(ch=32, ch_mult=(1, 1), res_blocks=1, z_channels=4),
    latent_patch=2,
)
"""The same behind an autoencoder with weights."""
VIT = (2, 3)
"""A grid of ViT tokens, whose pictures (6 x 9 pixels) are neither as large nor as square as the images."""


def layout(**changes) -> Layout:
    """Slots of a few tokens, images of 2 x 2 latent tokens."""
    fields = dict(
        image_size=(8, 8),
        latent_grid=(2, 2),
        latent_values=48,
        prompt=6,
        before=7,
        after=5,
        turns=5,
        trajectories=2,
        copies=2,
        corrections=2,
    )
    return Layout(**fields | changes)


def make_batch(rows: int, seed: int = 0, **changes) -> Batch:
    """Packed rows with several trajectories, slips, corrections and empty slots."""
    return jax.tree.map(jnp.asarray, Batch(**fake_batch(layout(**changes), rows, seed, VOCAB)))


@functools.cache
def make_model(attention: str = "dense", layers: int = 2, **changes) -> tuple[UnifiedModel, dict]:
    """The model and parameters with enough spread that nothing is trivially zero."""
    config = dataclasses.replace(CONFIG, attention=attention, layers=layers)
    model = UnifiedModel(config, layout(**changes), IDS)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), make_batch(1, **changes)))["params"]
    rng = np.random.default_rng(0)

    def draw(path, x):
        """Scales near 1, biases near 0, tables of deviation 1, kernels that keep that of their input."""
        name, noise = path[-1].key, rng.standard_normal(x.shape).astype(np.float32)
        if name in ("scale", "bias"):
            return (name == "scale") + 0.1 * noise
        return noise / np.sqrt(x.shape[-2]) if name == "kernel" else noise

    return model, jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, shapes))


@functools.cache
def make_flux() -> tuple[UnifiedModel, dict]:
    """A model behind an autoencoder with random weights, and those."""
    weights = jax.jit(lambda: random_weights(FLUX, jax.random.key(0)))()
    return UnifiedModel(FLUX, layout(latent_values=16), IDS), weights
