"""The parts of a transformer layer.

B batch, L tokens, D width, N query heads, K key/value heads, H head, F hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Num

from process_gen.models import remat
from process_gen.models.adapters import Dense
from process_gen.models.config import LoraConfig, ModelConfig
from process_gen.models.partition import constrain

Rope = tuple[Float[jax.Array, "B L half"], Float[jax.Array, "B L half"]]
"""Cosine and sine of the rotary angles."""

NEGATIVE = -1e30  # finite: the softmax of a query that sees nothing is no NaN


def annotated(init: nn.initializers.Initializer, *axes: str | None) -> nn.initializers.Initializer:
    """An initializer whose parameter carries logical axis names."""
    return nn.with_logical_partitioning(init, axes)


def linear(
    features: int,
    axes: tuple[str, str],
    config: ModelConfig,
    bias: bool = False,
    scale: float = 1.0,
    adapters: bool = True,
) -> Dense:
    """Dense layer in the compute dtype, logical axes (input, output); `adapters` allows LoRA."""
    init = nn.initializers.zeros
    if scale:
        init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    return Dense(
        features,
        lora=config.lora if adapters else LoraConfig(),
        axes=axes,
        use_bias=bias,
        dtype=jnp.dtype(config.dtype),
        dot_general=None if config.remat == "dots" else _widening,  # `dots` finds plain products only
        kernel_init=annotated(init, *axes),
        bias_init=annotated(nn.initializers.zeros, axes[1]),
    )


def _widening(x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None) -> jax.Array:
    """`dot_general` of x [..., D] and a kernel [D, F], with a faster gradient on CPUs.

    Where F >= D the kernel's gradient is computed as x^T g, not as JAX's (g^T x)^T. XLA's CPU
    backend transposes the left factor, with all that is fused into it. Here that is x, which is
    smaller than g and shared by several kernels.
    """
    if kernel.shape[0] > kernel.shape[1]:
        return jax.lax.dot_general(x, kernel, dimensions, precision)
    return _product(x, kernel, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    return jnp.matmul(x, kernel, precision=precision)


def _product_forward(x, kernel, precision):
    return _product(x, kernel, precision), (x, kernel)


def _product_backward(precision, kept, g):
    x, kernel = kept
    tokens = tuple(range(x.ndim - 1))
    by_kernel = jax.lax.dot_general(x, g, ((tokens, tokens), ((), ())), precision)
    return jnp.matmul(g, kernel.T, precision=precision), by_kernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def stacked(body: Callable, config: ModelConfig, layers: int) -> Callable:
    """Runs `body(layer, carry, x) -> (carry, y)` once per layer: one scan over stacked parameters.

    `config.remat` says what the backward pass recomputes, `config.scan_unroll` how far to unroll.

    Returns:
      `run(layer, carry, xs) -> (carry, ys)`; every array of `xs` and `ys` has the layers first.
    """
    if config.remat != "none":
        body = nn.remat(_from_named(body), policy=remat.POLICIES[config.remat], prevent_cse=False)
    return nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=layers,
        unroll=min(config.scan_unroll, layers),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def _from_named(body: Callable) -> Callable:
    return lambda layer, carry, x: body(layer, remat.named(remat.INPUT, carry), x)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    config: ModelConfig
    axis: str = "norm"

    @nn.compact
    def __call__(self, x: Float[jax.Array, "*B D"]) -> Float[jax.Array, "*B D"]:
        scale = self.param("scale", annotated(nn.initializers.ones, self.axis), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.config.norm_eps)
        dtype = jnp.dtype(self.config.dtype)
        return y.astype(dtype) * jnp.broadcast_to(scale.astype(dtype), y.shape)


class Expert(nn.Module):
    """The weights of one modality in one layer: projections, norms and MLP."""

    config: ModelConfig

    def setup(self):
        c = self.config
        self.input_norm = RMSNorm(c)
        self.q_proj = linear(c.heads * c.head_dim, ("embed", "heads"), c, bias=c.qkv_bias)
        self.k_proj = linear(c.kv_heads * c.head_dim, ("embed", "kv_heads"), c, bias=c.qkv_bias)
        self.v_proj = linear(c.kv_heads * c.head_dim, ("embed", "kv_heads"), c, bias=c.qkv_bias)
        self.o_proj = linear(c.width, ("heads", "embed"), c, scale=1.0 / c.layers)
        self.q_norm = RMSNorm(c, axis="head_dim")
        self.k_norm = RMSNorm(c, axis="head_dim")
        self.post_attention_norm = RMSNorm(c)
        self.gate_proj = linear(c.mlp, ("embed", "mlp"), c)
        self.up_proj = linear(c.mlp, ("embed", "mlp"), c)
        self.down_proj = linear(c.width, ("mlp", "embed"), c, scale=1.0 / c.layers)

    def qkv(
        self, x: Float[jax.Array, "B L D"], rope: Rope
    ) -> tuple[Float[jax.Array, "B L N H"], Float[jax.Array, "B L K H"], Float[jax.Array, "B L K H"]]:
        """Rotated queries [B L N H], rotated keys and values [B L K H]."""
        c, y = self.config, self.input_norm(x)
        q = self.q_proj(y).reshape(*y.shape[:-1], c.heads, c.head_dim)
        k = self.k_proj(y).reshape(*y.shape[:-1], c.kv_heads, c.head_dim)
        v = self.v_proj(y).reshape(*y.shape[:-1], c.kv_heads, c.head_dim)
        q = constrain("queries", q, "rows", "tokens", "heads", None)
        k, v = (constrain("keys and values", x, "rows", "tokens", "kv_heads", None) for x in (k, v))
        # Named for remat before their norms: the backward pass of those needs the projections themselves.
        q, k, v = (remat.named(name, x) for name, x in zip(remat.QKV, (q, k, v), strict=True))
        return rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope), v

    def residual(
        self, x: Float[jax.Array, "B L D"], attended: Float[jax.Array, "B L NH"]
    ) -> Float[jax.Array, "B L D"]:
        """Adds attention's output [B L N*H] and the MLP to the residual stream."""
        x = x + self.o_proj(remat.named(remat.ATTENDED, attended))
        y = self.post_attention_norm(x)
        y = nn.silu(self.gate_proj(y)) * self.up_proj(y)
        return x + self.down_proj(constrain("MLP", y, "rows", "tokens", "mlp"))


def rotate(x: Float[jax.Array, "B L heads H"], rope: Rope) -> Float[jax.Array, "B L heads H"]:
    """Rotary embedding of halves: x [B L heads H], rope = cos, sin of [B L H/2]."""
    cos, sin = (part[:, :, None].astype(x.dtype) for part in rope)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rope_angles(
    config: ModelConfig,
    positions: Int[jax.Array, "B L"],
    rows: Num[jax.Array, " L"],
    columns: Num[jax.Array, " L"],
) -> Float[jax.Array, "B L half"]:
    """Angles [B L H/2] of tokens with 1-D `positions` [B L] at `rows`, `columns` [L] of an image.

    Pairs: first those of the 1-D position, then `image_rope` of the row, then as many of the column.
    """
    spatial = config.image_rope
    pairs = config.head_dim // 2
    temporal = pairs - 2 * spatial
    frequencies = config.rope_theta ** (-jnp.arange(temporal) / temporal)
    angles = [positions[..., None].astype(jnp.float32) * frequencies[None, None]]
    if spatial:
        frequencies = jnp.pi * config.image_rope_theta ** (-jnp.arange(spatial) / spatial)
        shape = (*positions.shape, spatial)
        for place in (rows, columns):
            angles.append(jnp.broadcast_to(place[None, :, None] * frequencies[None, None], shape))
    return jnp.concatenate(angles, axis=-1)


def rope_of(angles: Float[jax.Array, "B L half"]) -> Rope:
    """Cosine and sine of `angles` [B L H/2], computed once for all layers.

    On CPUs a loop computes them: XLA fuses anything else into each layer and so computes it again
    there, a tenth of a small model's train step.
    """

    def kept(x):
        cos_sin = jax.lax.map(
            lambda is_sin: jnp.where(is_sin, jnp.sin(x), jnp.cos(x)), jnp.array([False, True])
        )
        return cos_sin[0], cos_sin[1]

    return jax.lax.platform_dependent(angles, cpu=kept, default=lambda x: (jnp.cos(x), jnp.sin(x)))
