"""The reference of attention: all scores and one explicit mask, differentiated by JAX.

B batch, L queries, M keys, N query heads, K key/value heads, H head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from process_gen.models.layers import NEGATIVE


def attend(
    q: Float[jax.Array, "B N L H"],
    k: Float[jax.Array, "B K M H"],
    v: Float[jax.Array, "B K M H"],
    mask: Bool[jax.Array, "B L M"],
) -> Float[jax.Array, "B N L H"]:
    """Grouped-query attention with an explicit mask, softmax in float32.

    Args:
      q: [B, N, L, H]; k, v: [B, K, M, H].
      mask: [B, L, M] bool, which keys a query sees.

    Returns:
      [B, N, L, H].
    """
    (b, n, length, h), kv = q.shape, k.shape[1]
    q = (q * h**-0.5).reshape(b, kv, n // kv, length, h)
    scores = jnp.einsum("bkglh,bkmh->bkglm", q, k, preferred_element_type=jnp.float32)
    scores = scores + jnp.where(mask, 0.0, NEGATIVE)[:, None, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkglm,bkmh->bkglh", weights, v).reshape(b, n, length, h)
