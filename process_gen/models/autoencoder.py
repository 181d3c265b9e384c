"""Images to latents and back, and latents to tokens and back.

An autoencoder has `encode(images)`, which draws latents where it is given a key,
and `decode(latents)`, with images [B, H, W, 3] in [-1, 1] and latents
[B, h, w, C], a `factor` H / h and a number of `channels`. The scenes member is
the identity: latents are pixels.
"""

from __future__ import annotations

from typing import Any, Protocol

import einops
import jax
import jax.numpy as jnp

from process_gen.models.config import FluxConfig, ModelConfig
from process_gen.models.flux import FluxAutoencoder
from process_gen.trajectory.layout import Layout


class Autoencoder(Protocol):
    """What the model asks of an autoencoder."""

    factor: int
    channels: int

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array: ...

    def decode(self, latents: jax.Array) -> jax.Array: ...


class PixelAutoencoder:
    """The identity: latents are the pixels themselves."""

    factor = 1
    channels = 3

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        del key  # there is nothing to draw
        return images

    def decode(self, latents: jax.Array) -> jax.Array:
        return latents


class FrozenFlux:
    """The FLUX autoencoder with its weights."""

    def __init__(self, config: FluxConfig, params: Any):
        self.factor, self.channels = config.factor, config.z_channels
        self._module, self._variables = FluxAutoencoder(config), {"params": params}

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return self._module.apply(self._variables, images, key, method="encode")

    def decode(self, latents: jax.Array) -> jax.Array:
        return self._module.apply(self._variables, latents, method="decode")


def make_autoencoder(config: ModelConfig, params: Any = None) -> Autoencoder:
    """The autoencoder that the config names; `params` are the weights of one that has any.

    Raises:
      ValueError: an unknown name, or weights are missing.
    """
    if config.autoencoder == "patches":
        return PixelAutoencoder()
    if config.autoencoder != "flux":
        raise ValueError(f"unknown model.autoencoder {config.autoencoder!r}; known: 'patches', 'flux'")
    if params is None:
        raise ValueError("model.autoencoder 'flux' needs its published weights (ae.safetensors)")
    return FrozenFlux(config.flux, params)


def random_weights(config: ModelConfig, key: jax.Array) -> Any:
    """Random weights of an autoencoder that has any, for published ones to take their place; else None."""
    if config.autoencoder != "flux":
        return None
    image = jnp.zeros((1, config.flux.factor, config.flux.factor, config.flux.in_channels))
    return FluxAutoencoder(config.flux).init(key, image)["params"]


def geometry(config: ModelConfig) -> tuple[int, int]:
    """Pixels per latent along a side, and channels of a latent."""
    if config.autoencoder == "flux":
        return config.flux.factor, config.flux.z_channels
    return PixelAutoencoder.factor, PixelAutoencoder.channels


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


def to_tokens(
    config: ModelConfig, images: jax.Array, params: Any = None, key: jax.Array | None = None
) -> jax.Array:
    """Images [..., H, W, 3], uint8 or around [-1, 1], to latent tokens [..., N, values], float32.

    `params` are the weights of an autoencoder that has any; no gradient goes through it. Its latents are
    means, or with a `key` drawn from its distribution.
    """
    autoencoder = make_autoencoder(config, params)
    flat = to_floats(images).reshape(-1, *images.shape[-3:])
    tokens = einops.rearrange(
        jax.lax.stop_gradient(autoencoder.encode(flat, key)),
        "b (r p) (c q) d -> b (r c) (p q d)",
        p=config.latent_patch,
        q=config.latent_patch,
    )
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


def to_pixels(config: ModelConfig, layout: Layout, tokens: jax.Array, params: Any = None) -> jax.Array:
    """Latent tokens [..., N, values] to images [..., H, W, 3] around [-1, 1], not clipped."""
    autoencoder, (rows, columns) = make_autoencoder(config, params), layout.latent_grid
    flat = tokens.reshape(-1, *tokens.shape[-2:])
    latents = einops.rearrange(
        flat,
        "b (r c) (p q d) -> b (r p) (c q) d",
        r=rows,
        c=columns,
        p=config.latent_patch,
        q=config.latent_patch,
    )
    images = autoencoder.decode(latents)
    return images.reshape(*tokens.shape[:-2], *images.shape[1:])


def to_images(config: ModelConfig, layout: Layout, tokens: jax.Array, params: Any = None) -> jax.Array:
    """Latent tokens [..., N, values] to uint8 images [..., H, W, 3]."""
    images = to_pixels(config, layout, tokens, params)
    return jnp.clip((images + 1.0) * 127.5, 0, 255).round().astype(jnp.uint8)
