"""The vision transformer of the understanding side: images to tokens of the `und` stream.

SigLIP 2 (arXiv 2502.14786) as BAGEL keeps it (arXiv 2505.14683): a linear patch
embedding, learned positions that are looked up on the grid, pre-norm blocks,
a last norm; then a connector into the backbone's width, which adds a fixed 2-D
position table of its own. All patches of an image see each other, and nothing else.

B images or rows, S turn slots, N latent tokens, V values of a latent token, P patches, U values of
a patch, D width of the ViT, W width of the backbone.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from process_gen.models import autoencoder, kernels
from process_gen.models.config import ModelConfig
from process_gen.models.layers import annotated, linear, stacked
from process_gen.models.positions import grid_places, sincos_table, table_rows
from process_gen.trajectory.layout import Layout


def check(config: ModelConfig, layout: Layout) -> None:
    """Checks that the model can make the ViT tokens that the layout asks for.

    Raises:
      ValueError: the model has no ViT, or tables too small for the grid.
    """
    if not layout.vit_tokens:
        return
    if config.vit is None:
        raise ValueError(
            f"layout.vit_grid is {layout.vit_grid}, but the model has no ViT (model.vit is None): choose a "
            "model.size that has one, or layout.vit_grid=(0, 0)"
        )
    if max(layout.vit_grid) > config.vit.max_side:
        raise ValueError(
            f"layout.vit_grid {layout.vit_grid} exceeds model.vit.max_side {config.vit.max_side}"
        )


def reshaped(
    config: ModelConfig, layout: Layout, image_size: tuple[int, int], grid: tuple[int, int] | None = None
) -> Layout:
    """The layout for images of another size, `image_size` being height and width in pixels.

    `grid` is rows and columns of their ViT tokens; by default in the aspect ratio of the image, at
    most as many tokens as before.

    Raises:
      ValueError: the model cannot hold such images.
    """
    latent_grid, _ = autoencoder.latent_shape(config, image_size)
    grid = grid or grid_of(image_size, layout.vit_tokens)
    layout = dataclasses.replace(layout, image_size=image_size, latent_grid=latent_grid, vit_grid=grid)
    check(config, layout)
    return layout


def grid_of(image_size: tuple[int, int], tokens: int) -> tuple[int, int]:
    """Rows and columns in the aspect ratio of an image, at most `tokens` in all; (0, 0) for none."""
    if not tokens:
        return 0, 0
    ratio = image_size[0] / image_size[1]
    rows = min(max(1, round(math.sqrt(tokens * ratio))), tokens)
    return rows, max(1, min(tokens // rows, round(rows / ratio)))


def views(config: ModelConfig, layout: Layout, images: jax.Array, latents: jax.Array) -> jax.Array | None:
    """The ViT's patches of images in context, [B, (S,) P, U]; None without ViT tokens in the layout.

    Where latents are pixels they are cut from the `latents` [B, (S,) N, V], with any noise on
    those, else from the images [B, (S,) height, width, 3].
    """
    if not layout.vit_tokens:
        return None
    if config.autoencoder == "patches":
        pixels = autoencoder.to_pixels(config, layout, latents)
        return patches_of(config, layout, jnp.clip(pixels, -1.0, 1.0))
    if images.ndim == 4:
        return patches_of(config, layout, images)
    slots = jnp.moveaxis(images, 1, 0)  # slot by slot: resized images in float32 take far more memory
    return jnp.moveaxis(jax.lax.map(lambda x: patches_of(config, layout, x), slots), 0, 1)


def patches_of(config: ModelConfig, layout: Layout, images: jax.Array) -> jax.Array:
    """Cuts images [..., height, width, 3], uint8 or around [-1, 1], into patches [..., P, U] for the ViT.

    An image is resized to `layout.vit_grid` patches (bicubic, antialiased)
    where it has another size, then clipped to [-1, 1]; a patch is flattened as
    (row, column, channel).
    """
    (rows, columns), side = layout.vit_grid, config.vit.patch
    pixels = autoencoder.to_floats(images).reshape(-1, *images.shape[-3:])
    size = (pixels.shape[0], rows * side, columns * side, pixels.shape[3])
    if pixels.shape != size:
        pixels = jnp.clip(jax.image.resize(pixels, size, method="cubic"), -1.0, 1.0)
    patches = autoencoder.to_patches(pixels, side)
    return patches.reshape(*images.shape[:-3], *patches.shape[1:])


def _layer_norm(config: ModelConfig) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=config.vit.norm_eps,
        dtype=jnp.dtype(config.dtype),
        scale_init=annotated(nn.initializers.ones, "norm"),
        bias_init=annotated(nn.initializers.zeros, "norm"),
    )


class VitLayer(nn.Module):
    """One pre-norm block: full attention, then an MLP; every projection has a bias."""

    config: ModelConfig

    def setup(self):
        c, vit = self.config, self.config.vit
        self.layer_norm1 = _layer_norm(c)
        self.q_proj = linear(vit.width, ("embed", "heads"), c, bias=True)
        self.k_proj = linear(vit.width, ("embed", "heads"), c, bias=True)
        self.v_proj = linear(vit.width, ("embed", "heads"), c, bias=True)
        self.out_proj = linear(vit.width, ("heads", "embed"), c, bias=True, scale=1.0 / vit.layers)
        self.layer_norm2 = _layer_norm(c)
        self.fc1 = linear(vit.mlp, ("embed", "mlp"), c, bias=True)
        self.fc2 = linear(vit.width, ("mlp", "embed"), c, bias=True, scale=1.0 / vit.layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, P, D] to [B, P, D]."""
        y, heads = self.layer_norm1(x), self.config.vit.heads
        q, k, v = (
            project(y).reshape(*y.shape[:-1], heads, y.shape[-1] // heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = kernels.full(self.config.attention, q, k, v)
        x = x + self.out_proj(attended.reshape(x.shape))
        return x + self.fc2(nn.gelu(self.fc1(self.layer_norm2(x)), approximate=True))


class Vit(nn.Module):
    """Patch embedding, learned positions, stacked and scanned blocks, and the last norm."""

    config: ModelConfig
    grid: tuple[int, int]

    def setup(self):
        c, vit = self.config, self.config.vit
        self.patch_embedding = linear(vit.width, ("patch", "embed"), c, bias=True)
        table_init = annotated(nn.initializers.normal(1.0), "position", "embed")
        self.position_embedding = self.param("position_embedding", table_init, (vit.max_side**2, vit.width))
        self.layers = VitLayer(c)
        self.post_layernorm = _layer_norm(c)

    def __call__(self, patches: jax.Array) -> jax.Array:
        """Patches [B, P, patch * patch * 3] of the grid to features [B, P, D]."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        positions = self.position_embedding[table_rows(self.grid, c.vit.max_side)].astype(dtype)
        x = self.patch_embedding(patches.astype(dtype)) + positions[None]

        def body(layer, carry, _):
            return layer(carry), None

        x, _ = stacked(body, c, c.vit.layers)(self.layers, x, None)
        return self.post_layernorm(x)


class Connector(nn.Module):
    """An MLP of two layers into the backbone's width, plus a fixed 2-D position table."""

    config: ModelConfig
    grid: tuple[int, int]

    def setup(self):
        c = self.config
        self.fc1 = linear(c.width, ("embed", "mlp"), c, bias=True)
        self.fc2 = linear(c.width, ("mlp", "embed"), c, bias=True)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Features [B, P, D] to tokens of the backbone [B, P, W]."""
        x = self.fc2(nn.gelu(self.fc1(features), approximate=True))
        table = sincos_table(self.config.width, grid_places(self.grid))
        return x + jnp.asarray(table, x.dtype)[None]
