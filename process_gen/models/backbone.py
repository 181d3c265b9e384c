"""The Mixture-of-Transformers backbone over a chunk of tokens, or over whole rows.

Two dense blocks, one per modality, share attention (BAGEL, arXiv 2505.14683,
section 2). B batch, L tokens of the chunk (T of the understanding side:
vocabulary tokens, then ViT tokens; then G latent tokens), C tokens of the
context, D width, K key/value heads, H head.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from process_gen.models.attention import Attention, KVPairs
from process_gen.models.config import ModelConfig
from process_gen.models.layers import Expert, RMSNorm, rope_angles, rope_of, stacked
from process_gen.models.partition import constrain


class MoTLayer(nn.Module):
    """One layer: two experts around one shared attention."""

    config: ModelConfig

    def setup(self):
        self.und = Expert(self.config)
        self.gen = Expert(self.config)

    def __call__(self, streams, context, ropes, attention):
        """As `Backbone`, but takes cos and sin by stream, and one layer's context, [B K C H] each.

        Returns:
          streams, and the chunk's keys and values [B L K H], those of `und` first.
        """
        experts = {"und": self.und, "gen": self.gen}
        # The chunk has `und` tokens first; a scan returns its carry with sorted keys, `gen` first.
        names = [name for name in experts if name in streams]
        parts = {name: experts[name].qkv(streams[name], ropes[name]) for name in names}
        q, k, v = ({name: part[i] for name, part in parts.items()} for i in range(3))
        attended = attention(q, k, v, context)
        out = {}
        for name in names:
            x = experts[name].residual(streams[name], attended[name])
            out[name] = constrain(f"{name} tokens", x, "rows", "tokens", None)
        return out, tuple(jnp.concatenate([x[name] for name in names], axis=1) for x in (k, v))


class Backbone(nn.Module):
    """Stacked, scanned layers and the final norm of each modality."""

    config: ModelConfig

    def setup(self):
        self.layers = MoTLayer(self.config)
        self.norms = {"und": RMSNorm(self.config), "gen": RMSNorm(self.config)}

    def __call__(
        self,
        streams: Mapping[str, jax.Array],
        positions: Mapping[str, jax.Array],
        places: tuple[jax.Array, jax.Array],
        context: KVPairs,
        attention: Attention,
        keep_kv: bool = True,
    ) -> tuple[dict[str, jax.Array], tuple[jax.Array, jax.Array] | None]:
        """Runs tokens through all layers, after a context.

        Args:
          streams: {"und": [B T D], "gen": [B G D]}; a chunk of one modality names only that one.
          positions: rotary positions per stream, [B T] and [B G].
          places: row and column of every latent token, [G] each.
          context: pairs of keys and values, [layers B K C H] each.
          attention: see `models.attention`.
          keep_kv: whether the keys and values are returned.

        Returns:
          Hidden states after the final norms, and the chunk's keys and values
          [layers B L K H], or None.
        """
        c = self.config
        ropes = {}
        for name, x in streams.items():
            rows, columns = places if name == "gen" else (jnp.zeros(x.shape[1]),) * 2
            ropes[name] = rope_of(rope_angles(c, positions[name], rows, columns))

        def body(layer, carry, layer_context):
            layer_context = jax.tree.map(
                lambda x: constrain("a context", x, "rows", "kv_heads", None, None), layer_context
            )
            out, kv = layer(carry, layer_context, ropes, attention)
            return out, kv if keep_kv else None

        hidden, kv = stacked(body, c, c.layers)(self.layers, dict(streams), context)
        return {name: self.norms[name](x) for name, x in hidden.items()}, kv
