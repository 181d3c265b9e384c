"""Images to latents and back, and latents to tokens and back.

Images are [B, H, W, 3] in [-1, 1], latents [B, h, w, C]; those of all S turn slots of
a row have an axis S after B. The autoencoder of the scenes is the identity: latents are pixels.
"""

from __future__ import annotations

from typing import Any

import einops
import jax
import jax.numpy as jnp

from process_gen.models import flux
from process_gen.models.config import ModelConfig
from process_gen.trajectory.layout import Layout


def _apply(config: ModelConfig, params: Any, method: str, *args: Any) -> jax.Array:
    """The autoencoder's `encode(images, key)` or `decode(latents)`; ValueError without its weights."""
    if config.autoencoder == "patches":
        return args[0]
    if params is None:
        raise ValueError("model.autoencoder 'flux' needs its published weights (ae.safetensors)")
    return flux.FluxAutoencoder(config.flux).apply({"params": params}, *args, method=method)


def random_weights(config: ModelConfig, key: jax.Array) -> Any:
    """Random weights of an autoencoder that has any, until published ones replace them; else None."""
    return flux.random_weights(config.flux, key) if config.autoencoder == "flux" else None


def geometry(config: ModelConfig) -> tuple[int, int]:
    """Pixels per latent along a side, and channels of a latent."""
    return (config.flux.factor, config.flux.z_channels) if config.autoencoder == "flux" else (1, 3)


def latent_shape(config: ModelConfig, image_size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Rows and columns of latent tokens of an image, and the values of one token.

    Raises:
      ValueError: the sides are not multiples of a token's side, or exceed the position table.
    """
    factor, channels = geometry(config)
    side = factor * config.latent_patch
    if image_size[0] % side or image_size[1] % side:
        raise ValueError(f"image sides {image_size} must be multiples of {side} for this model")
    grid = (image_size[0] // side, image_size[1] // side)
    if max(grid) > config.max_latent_side:
        raise ValueError(
            f"an image of {grid} latent tokens exceeds model.max_latent_side {config.max_latent_side}"
        )
    return grid, config.latent_patch**2 * channels


def to_floats(images: jax.Array) -> jax.Array:
    """uint8 images to [-1, 1], float32; images of floats as they are."""
    return images.astype(jnp.float32) / 127.5 - 1.0 if images.dtype == jnp.uint8 else images


def to_patches(images: jax.Array, side: int) -> jax.Array:
    """Images [..., H, W, C] in square patches, row by row, [..., N, side * side * C]."""
    return einops.rearrange(images, "... (r p) (c q) d -> ... (r c) (p q d)", p=side, q=side)


def to_tokens(
    config: ModelConfig, images: jax.Array, params: Any = None, key: jax.Array | None = None
) -> jax.Array:
    """Images [..., H, W, 3], uint8 or around [-1, 1], to latent tokens [..., N, values], float32.

    `params` are the weights of an autoencoder that has any; no gradient goes through it. Its latents are
    means, or with a `key` drawn from its distribution.
    """
    flat = to_floats(images).reshape(-1, *images.shape[-3:])
    latents = jax.lax.stop_gradient(_apply(config, params, "encode", flat, key))
    tokens = to_patches(latents, config.latent_patch)
    return tokens.reshape(*images.shape[:-3], *tokens.shape[1:])


def slots_to_tokens(
    config: ModelConfig, images: jax.Array, params: Any = None, key: jax.Array | None = None
) -> jax.Array:
    """`to_tokens` of images [B, S, H, W, 3]; slot by slot where there are weights, to save memory."""
    if params is None:
        return to_tokens(config, images)
    slots = jnp.moveaxis(images, 1, 0)
    keys = None if key is None else jax.random.split(key, len(slots))
    latents = jax.lax.map(lambda x: to_tokens(config, x[0], params, x[1]), (slots, keys))
    return jnp.moveaxis(latents, 0, 1)


def to_pixels(
    config: ModelConfig,
    layout: Layout,
    tokens: jax.Array,
    params: Any = None,
    window: tuple[int, int, int, int] | None = None,
) -> jax.Array:
    """Latent tokens [..., N, values] to images [..., H, W, 3] around [-1, 1], not clipped.

    `window`, (top row, left column, rows, columns) of the latent grid, decodes that part alone.

    Raises:
      ValueError: the window is not inside the grid.
    """
    rows, columns = layout.latent_grid
    if window is not None:
        top, left, height, width = window
        if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
            raise ValueError(
                f"window {window} is not inside the {rows} x {columns} latent tokens of an image"
            )
        grid = tokens.reshape(*tokens.shape[:-2], rows, columns, tokens.shape[-1])
        grid = grid[..., top : top + height, left : left + width, :]
        rows, columns, tokens = height, width, grid.reshape(*tokens.shape[:-2], -1, tokens.shape[-1])
    latents = einops.rearrange(
        tokens.reshape(-1, *tokens.shape[-2:]),
        "b (r c) (p q d) -> b (r p) (c q) d",
        r=rows,
        c=columns,
        p=config.latent_patch,
        q=config.latent_patch,
    )
    images = _apply(config, params, "decode", latents)
    return images.reshape(*tokens.shape[:-2], *images.shape[1:])


def to_images(config: ModelConfig, layout: Layout, tokens: jax.Array, params: Any = None) -> jax.Array:
    """Latent tokens [..., N, values] to uint8 images [..., H, W, 3]."""
    images = to_pixels(config, layout, tokens, params)
    return jnp.clip((images + 1.0) * 127.5, 0, 255).round().astype(jnp.uint8)
