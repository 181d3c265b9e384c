"""The FLUX.1 autoencoder: images to latents of an eighth of their sides, and back.

Residual blocks at falling resolution, one attention over all places in the
middle, then mean and log-variance; the decoder runs the other way, with one
more block per level. Weights are published and frozen: they are a tree of
their own, `{"encoder": ..., "decoder": ...}`, and no part of the trained ones.

In float32 it asks for all of it (`Precision.HIGHEST`): by default TPUs round the
factors of a product to bfloat16, and NVIDIA GPUs to TF32. A TPU then takes six passes
instead of one, an H100 seven times as long. Encoding an image of 512 x 512 pixels is
1% of the useful FLOP of its turn in the 7B, so that is some 5% of a train step; images
encoded ahead of time (`data.latents`) pay it once.

B images, H W pixels, h w places of a latent (H = factor * h), C channels.
"""

from __future__ import annotations

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from process_gen.models.config import FluxConfig

GROUPS = 32
NORM_EPS = 1e-6


def _precisely(dtype: str) -> contextlib.AbstractContextManager:
    """Products and convolutions inside are those of float32 where the numbers are."""
    exact = jnp.dtype(dtype) == jnp.float32
    return jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()


def _norm(dtype: jnp.dtype) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=GROUPS, epsilon=NORM_EPS, dtype=dtype, use_fast_variance=False)


def _conv(channels: int, dtype: jnp.dtype) -> nn.Conv:
    return nn.Conv(channels, (3, 3), padding=1, dtype=dtype)


class ResBlock(nn.Module):
    """Two convolutions around a shortcut, which is a matrix where the channels change."""

    inputs: int
    outputs: int
    dtype: jnp.dtype

    def setup(self):
        self.norm1, self.conv1 = _norm(self.dtype), _conv(self.outputs, self.dtype)
        self.norm2, self.conv2 = _norm(self.dtype), _conv(self.outputs, self.dtype)
        if self.inputs != self.outputs:
            self.nin_shortcut = nn.Dense(self.outputs, dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv1(nn.silu(self.norm1(x)))
        y = self.conv2(nn.silu(self.norm2(y)))
        return y + (x if self.inputs == self.outputs else self.nin_shortcut(x))


class Attention(nn.Module):
    """One head as wide as the channels, over all places of an image."""

    channels: int
    dtype: jnp.dtype

    def setup(self):
        self.norm = _norm(self.dtype)
        self.q, self.k, self.v, self.proj_out = (nn.Dense(self.channels, dtype=self.dtype) for _ in range(4))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(x).reshape(x.shape[0], -1, 1, self.channels)
        attended = jax.nn.dot_product_attention(self.q(y), self.k(y), self.v(y))
        return x + self.proj_out(attended.reshape(x.shape))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    channels: int
    dtype: jnp.dtype

    def setup(self):
        self.block_1 = ResBlock(self.channels, self.channels, self.dtype)
        self.attn_1 = Attention(self.channels, self.dtype)
        self.block_2 = ResBlock(self.channels, self.channels, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution, and the way to the next one.

    `resample` is `down` (a convolution of stride 2 over an image padded on the
    right and at the bottom), `up` (nearest neighbours, then a convolution) or
    nothing.
    """

    inputs: int
    outputs: int
    blocks: int
    resample: str
    dtype: jnp.dtype

    def setup(self):
        self.block = [
            ResBlock(self.outputs if i else self.inputs, self.outputs, self.dtype) for i in range(self.blocks)
        ]
        if self.resample == "down":
            self.downsample = nn.Conv(
                self.outputs, (3, 3), strides=2, padding=((0, 1), (0, 1)), dtype=self.dtype
            )
        elif self.resample == "up":
            self.upsample = _conv(self.outputs, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.block:
            x = block(x)
        if self.resample == "down":
            return self.downsample(x)
        if self.resample == "up":
            return self.upsample(x.repeat(2, axis=1).repeat(2, axis=2))
        return x


class Encoder(nn.Module):
    """Images [B, H, W, C] to means and log-variances [B, h, w, 2 C]."""

    config: FluxConfig
    dtype: jnp.dtype

    def setup(self):
        c, last = self.config, len(self.config.ch_mult) - 1
        widths = [c.ch * mult for mult in c.ch_mult]
        self.conv_in = _conv(c.ch, self.dtype)
        self.down = [
            Level(before, after, c.res_blocks, "down" if i < last else "", self.dtype)
            for i, (before, after) in enumerate(zip([c.ch, *widths], widths, strict=False))
        ]
        self.mid = Middle(widths[-1], self.dtype)
        self.norm_out, self.conv_out = _norm(self.dtype), _conv(2 * c.z_channels, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(nn.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents [B, h, w, C] to images [B, H, W, C]; `up` counts from the highest resolution."""

    config: FluxConfig
    dtype: jnp.dtype

    def setup(self):
        c = self.config
        widths = [c.ch * mult for mult in c.ch_mult]
        self.conv_in = _conv(widths[-1], self.dtype)
        self.mid = Middle(widths[-1], self.dtype)
        self.up = [
            Level(before, after, c.res_blocks + 1, "up" if i else "", self.dtype)
            for i, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        ]
        self.norm_out, self.conv_out = _norm(self.dtype), _conv(c.out_channels, self.dtype)

    def __call__(self, z: jax.Array) -> jax.Array:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(nn.silu(self.norm_out(x)))


class FluxAutoencoder(nn.Module):
    """The parameters, and images to scaled latents and back.

    Attributes:
      config: sizes.
      dtype: of the computation; means and log-variances come in float32.
    """

    config: FluxConfig
    dtype: str = "float32"

    def setup(self):
        self.encoder = Encoder(self.config, jnp.dtype(self.dtype))
        self.decoder = Decoder(self.config, jnp.dtype(self.dtype))

    def moments(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in [-1, 1] to means, then log-variances, [B, h, w, 2 C] float32, not scaled.

        Raises:
          ValueError: the sides are no multiples of the factor.
        """
        factor = self.config.factor
        if images.shape[1] % factor or images.shape[2] % factor:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels do not divide by {factor}: "
                "resize or crop them first"
            )
        with _precisely(self.dtype):
            return self.encoder(images).astype(jnp.float32)

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images to scaled latents [B, h, w, C] float32: the mean, or with a key a sample."""
        mean, log_variance = jnp.split(self.moments(images), 2, axis=-1)
        if key is not None:
            mean = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        return self.config.scale * (mean - self.config.shift)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Scaled latents [B, h, w, C] to images around [-1, 1], float32, not clipped."""
        with _precisely(self.dtype):
            return self.decoder(latents / self.config.scale + self.config.shift).astype(jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Touches every parameter; `init` calls it."""
        return self.decode(self.encode(images))
