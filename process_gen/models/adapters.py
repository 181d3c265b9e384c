"""Low-rank adapters (LoRA, arXiv 2106.09685): a branch beside the kernel of a dense layer."""

from __future__ import annotations

import flax.linen as nn
import jax

from process_gen.models.config import LoraConfig

LORA = ("lora_a", "lora_b")
"""Names of the two matrices of an adapter, beside the kernel that they are for."""


class Dense(nn.Dense):
    """A dense layer that adds a low-rank adapter to its kernel where `lora` says so.

    Attributes:
      lora: which kernels have adapters, and of what rank; A [D, r] starts as PEFT draws it, B [r, F] at 0.
      axes: logical axes (input, output).
    """

    lora: LoraConfig = LoraConfig()
    axes: tuple[str, str] = ("embed", "embed")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., F]."""
        y = super().__call__(x)
        if not self.lora.adapts("/".join((*self.path, "kernel"))):
            return y
        rank, (first, last), dtype = self.lora.rank, self.axes, self.dtype
        drawn = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # within 1 / sqrt(D)
        zeros = nn.initializers.zeros
        a = self.param(LORA[0], nn.with_logical_partitioning(drawn, (first, "lora")), (x.shape[-1], rank))
        b = self.param(LORA[1], nn.with_logical_partitioning(zeros, ("lora", last)), (rank, self.features))
        return y + self.lora.scale * (x.astype(dtype) @ a.astype(dtype) @ b.astype(dtype))
