"""The FLUX.1 autoencoder: images to latents of an eighth of their sides, and back.

Residual blocks at falling resolution, one attention over all places in the
middle, then mean and log-variance; the decoder runs the other way, with one
more block per level. The weights are published and frozen: a tree of their own,
`{"encoder": ..., "decoder": ...}`, apart from the trained parameters.

It computes in full float32 (`Precision.HIGHEST`): by default TPUs round the
factors of a product to bfloat16, and NVIDIA GPUs to TF32. A TPU then takes six passes
instead of one, an H100 seven times as long. Encoding an image of 512 x 512 pixels is
1% of the useful FLOP of its turn in the 7B, so that is some 5% of a train step; images
encoded ahead of time (`data.latents`) pay it once.

B images, H W pixels, h w places of a latent (H = factor * h), C channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from process_gen.models.config import FluxConfig


def _norm(name: str) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=32, epsilon=1e-6, use_fast_variance=False, name=name)


def _conv(name: str, channels: int) -> nn.Conv:
    return nn.Conv(channels, (3, 3), padding=1, name=name)


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a 1 x 1 projection where the channels change."""

    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _conv("conv1", self.outputs)(nn.silu(_norm("norm1")(x)))
        y = _conv("conv2", self.outputs)(nn.silu(_norm("norm2")(y)))
        if x.shape[-1] != self.outputs:
            x = nn.Dense(self.outputs, name="nin_shortcut")(x)
        return y + x


class Attention(nn.Module):
    """One head as wide as the channels, over all places of an image."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        y = _norm("norm")(x).reshape(x.shape[0], -1, 1, channels)
        q, k, v = (nn.Dense(channels, name=name)(y) for name in "qkv")
        attended = jax.nn.dot_product_attention(q, k, v)
        return x + nn.Dense(channels, name="proj_out")(attended.reshape(x.shape))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ResBlock(x.shape[-1], name="block_1")(x)
        x = Attention(name="attn_1")(x)
        return ResBlock(x.shape[-1], name="block_2")(x)


class Level(nn.Module):
    """The blocks of one resolution, and the way to the next one.

    `resample` is `down` (a convolution of stride 2 over an image padded on the
    right and at the bottom), `up` (nearest neighbours, then a convolution) or
    nothing.
    """

    outputs: int
    blocks: int
    resample: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.blocks):
            x = ResBlock(self.outputs, name=f"block_{i}")(x)
        if self.resample == "down":
            return nn.Conv(self.outputs, (3, 3), 2, padding=((0, 1), (0, 1)), name="downsample")(x)
        if self.resample == "up":
            return _conv("upsample", self.outputs)(x.repeat(2, axis=1).repeat(2, axis=2))
        return x


class Encoder(nn.Module):
    """Images [B, H, W, C] to means and log-variances [B, h, w, 2 C]."""

    config: FluxConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, last = self.config, len(self.config.ch_mult) - 1
        x = _conv("conv_in", c.ch)(x)
        for i, mult in enumerate(c.ch_mult):
            x = Level(c.ch * mult, c.res_blocks, "down" if i < last else "", name=f"down_{i}")(x)
        x = Middle(name="mid")(x)
        return _conv("conv_out", 2 * c.z_channels)(nn.silu(_norm("norm_out")(x)))


class Decoder(nn.Module):
    """Latents [B, h, w, C] to images [B, H, W, C]; `up` counts from the highest resolution."""

    config: FluxConfig

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        c = self.config
        x = Middle(name="mid")(_conv("conv_in", c.ch * c.ch_mult[-1])(z))
        for i, mult in reversed(list(enumerate(c.ch_mult))):
            x = Level(c.ch * mult, c.res_blocks + 1, "up" if i else "", name=f"up_{i}")(x)
        return _conv("conv_out", c.out_channels)(nn.silu(_norm("norm_out")(x)))


class FluxAutoencoder(nn.Module):
    """The parameters, and images to scaled latents and back, in float32."""

    config: FluxConfig

    def setup(self):
        self.encoder, self.decoder = Encoder(self.config), Decoder(self.config)

    def moments(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in [-1, 1] to means, then log-variances, [B, h, w, 2 C] float32, not scaled."""
        with jax.default_matmul_precision("highest"):
            return self.encoder(images.astype(jnp.float32))

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images to scaled latents [B, h, w, C] float32: the mean, or with a key a sample."""
        mean, log_variance = jnp.split(self.moments(images), 2, axis=-1)
        if key is not None:
            mean = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        return self.config.scale * (mean - self.config.shift)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Scaled latents [B, h, w, C] to images around [-1, 1], float32, not clipped."""
        with jax.default_matmul_precision("highest"):
            return self.decoder(latents.astype(jnp.float32) / self.config.scale + self.config.shift)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Touches every parameter; `init` calls it."""
        return self.decode(self.encode(images))


def random_weights(config: FluxConfig, key: jax.Array) -> dict:
    """Draws initial weights: `{"encoder": ..., "decoder": ...}`."""
    image = jnp.zeros((1, config.factor, config.factor, config.in_channels))
    return FluxAutoencoder(config).init(key, image)["params"]
