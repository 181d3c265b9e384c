"""Attention kernels that never hold all scores in memory.

    splash    Pallas kernels for TPUs (`jax.experimental.pallas.ops.tpu.splash_attention`)
    cudnn     fused attention on NVIDIA GPUs (`jax.nn.dot_product_attention`)
    blocked   plain XLA, some queries at a time, recomputed in the backward pass

`splash` and `blocked` (`run`) need no mask matrix, only a vector of visible keys. Either all
queries see all visible keys, or they are causal after a context: each sees the context and
the keys up to its own. `cudnn` (`run_masked`) takes an explicit mask.

B rows, N query heads, K key/value heads, L queries, M keys, H head.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from process_gen.models import partition
from process_gen.models.layers import NEGATIVE


def run(
    kernel: str, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, before: int | None = None
) -> jax.Array:
    """Grouped-query attention, softmax in float32, by `blocked` or `splash`.

    On a mesh rows, heads and queries are sharded; a device holds all keys and
    values that its queries need.

    Args:
      q, k, v: [B, N, L, H], [B, K, M, H], [B, K, M, H].
      visible: [B, M] bool, keys that are present and may be seen.
      before: None if every query sees every visible key; else query i sees the
        visible ones among the first `before + i + 1`.

    Returns:
      [B, N, L, H]; zeros where a query sees nothing.
    """
    # Queries that see nothing get 0 and no gradient, whatever the kernel computes for them.
    first = jnp.where(visible.any(1), jnp.argmax(visible, axis=1), visible.shape[1])[:, None]
    last, step = (visible.shape[1] - 1, 0) if before is None else (before, 1)
    sees = (first <= (last + step * jnp.arange(q.shape[2]))[None])[:, None, :, None]
    mesh, shards, length = partition.mesh(), partition.shards("tokens"), q.shape[2]
    multiple, call = (LANES, _splash) if kernel == "splash" else (1, _blocked)
    q = _padded(q * q.shape[-1] ** -0.5, multiple * shards, 2)
    if kernel == "splash":
        known = splash_kernel(q.shape[2], k.shape[2], before, shards, partition.platform() != "tpu")
    else:  # the last key that each query sees, [L]
        known = None if before is None else np.arange(q.shape[2], dtype=np.int32) + before
    if mesh is not None:
        queries, keys = _specs(q, k)
        if kernel != "splash":
            known_spec = None if known is None else P(queries[2])
        elif known.fwd_mask_info.q_sequence is None:
            known_spec = jax.tree.map(lambda _: P(), known)
        else:
            known_spec = known.manual_sharding_spec(NamedSharding(mesh, P(None, queries[2])))
        specs = (known_spec, queries, keys, keys, P(keys[0]))
        call = jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=queries, check_vma=False)
    return jnp.where(sees, call(known, q, k, v, visible)[:, :, :length], 0)


def _specs(q: jax.Array, k: jax.Array) -> tuple[P, P]:
    """Partition specs of queries and of keys."""
    keys = partition.spec("attention", k.shape, ("rows", "kv_heads", None, None))
    return P(*keys[:2], partition.split("attention", "tokens", q.shape[2]), None), keys


def full(config_attention: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention without any mask: q, k, v and the result are [B, L, N, H]."""
    if config_attention == "dense":
        return jax.nn.dot_product_attention(q, k, v)
    kernel = choose(config_attention, q.shape[-1], str(q.dtype))
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    rows, keys = k.shape[0], k.shape[2]
    if kernel == "cudnn":
        out = run_masked(q, k, v, jnp.ones((rows, q.shape[2], keys), bool))
    else:
        out = run(kernel, q, k, v, jnp.ones((rows, keys), bool))
    return jnp.moveaxis(out, 1, 2)


FLASH = {"tpu": "splash", "cuda": "cudnn", "gpu": "cudnn"}
"""The kernel that `flash` names, by platform; `blocked` on others."""

AMPERE = 8.0
"""Least compute capability for cuDNN's fused attention: a T4, with 7.5, has none."""


def choose(name: str, head_dim: int, dtype: str) -> str:
    """Resolves a kernel name (`flash`: by platform); `blocked`, with a warning, where it cannot run."""
    platform = partition.platform()
    wanted = FLASH.get(platform, "blocked") if name == "flash" else name
    obstacle = None
    if wanted == "splash" and platform != "tpu":
        obstacle = f"its kernels run on TPUs, this is for {platform}"
    elif wanted == "splash" and _splash_module() is None:
        obstacle = f"JAX {jax.__version__} has no such module"
    elif wanted == "cudnn" and platform != "cuda":
        obstacle = f"it runs on NVIDIA GPUs, this is for {platform}"
    elif wanted == "cudnn" and (capability := partition.compute_capability() or AMPERE) < AMPERE:
        obstacle = f"it takes GPUs of compute capability {AMPERE} or more, this one has {capability}"
    elif wanted == "cudnn" and (head_dim % 8 or head_dim > 128):
        obstacle = f"it takes heads of a multiple of 8 up to 128, these have {head_dim}"
    elif wanted == "cudnn" and dtype not in ("bfloat16", "float16"):
        obstacle = f"it takes bfloat16, this is {dtype}"
    _report(name, wanted, obstacle)
    return "blocked" if obstacle else wanted


@functools.cache
def _report(name: str, wanted: str, obstacle: str | None) -> None:
    """Logs each choice once, however often it is made."""
    if obstacle:
        logging.warning("attention %s: blocked instead of %s, because %s", name, wanted, obstacle)
    else:
        logging.info("attention %s: %s", name, wanted)


def _padded(x: jax.Array, multiple: int, axis: int) -> jax.Array:
    """Pads an axis with zeros at its end to a multiple."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths)


# ---------------------------------------------------------------------- blocked

_SCORES = 1 << 21
"""Most scores of one head of a row that are in memory at a time."""


def _blocked(
    last: jax.Array | None, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array
) -> jax.Array:
    (b, n, length, h), (_, heads, keys, _) = q.shape, k.shape
    count = -(-length // max(1, _SCORES // max(1, keys)))
    block = -(-length // count)
    q = _padded(q.reshape(b, heads, n // heads, length, h), block, 3)
    xs = [jnp.moveaxis(q.reshape(*q.shape[:3], -1, block, h), 3, 0)]
    if last is not None:
        xs.append(_padded(jnp.asarray(last), block, 0).reshape(-1, block))

    def one(xs):
        q, *bounds = xs
        scores = jnp.einsum("bkglh,bkmh->bkglm", q, k, preferred_element_type=jnp.float32)
        seen = visible[:, None, None, None]
        for bound in bounds:
            seen = seen & (jnp.arange(keys)[None] <= bound[:, None])[None, None, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, NEGATIVE), axis=-1)
        return jnp.einsum("bkglm,bkmh->bkglh", weights.astype(v.dtype), v)

    out = jax.lax.map(jax.checkpoint(one, prevent_cse=False), tuple(xs))
    return jnp.moveaxis(out, 0, 3).reshape(b, n, -1, h)[:, :, :length]


# ----------------------------------------------------------------------- splash


@functools.cache
def _splash_module() -> Any:
    """JAX's splash attention, imported on first use; None in versions without it: it is experimental."""
    try:
        return importlib.import_module("jax.experimental.pallas.ops.tpu.splash_attention")
    except ImportError:
        return None


LANES = 128
BLOCK_Q, BLOCK_KV = 512, 1024
"""Largest blocks of queries and of keys in a splash kernel."""


def key_block(keys: int) -> int:
    """The size of splash's key blocks for `keys` keys: equal blocks, multiples of `LANES`."""
    return _round_up(-(-keys // -(-keys // BLOCK_KV)), LANES)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@functools.cache
def splash_kernel(queries: int, keys: int, before: int | None, shards: int, interpret: bool = False) -> Any:
    """Makes the splash kernel of one shape; it computes its masks on the fly instead of storing them."""
    splash_lib, own = _splash_module(), queries // shards
    block_q = next(b for b in range(BLOCK_Q, 0, -LANES) if own % b == 0)
    block_kv = key_block(keys)
    keys = _round_up(keys, block_kv)
    if before is None:  # the same for every shard
        mask, shards = splash_lib.FullMask((own, keys)), 1
    else:
        mask = splash_lib.CausalMask((queries, keys), offset=before)
    with jax.core.eval_context():  # not traced: its tables are constants that every program can use
        kernel = splash_lib.make_splash_mqa(
            splash_lib.MultiHeadMask([mask]),
            block_sizes=splash_lib.BlockSizes(
                block_q=block_q,
                block_kv=block_kv,
                block_q_dkv=block_q,
                block_kv_dkv=block_kv,
                block_q_dq=block_q,
                block_kv_dq=block_kv,
            ),
            head_shards=1,
            q_seq_shards=shards,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


def _splash(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    (b, n, length, h), heads = q.shape, k.shape[1]
    block_kv = kernel.kwargs["block_sizes"].block_kv
    q, k, v = (_padded(x, LANES, 3) for x in (q, k, v))
    k, v = (_padded(x, block_kv, 2) for x in (k, v))
    ids = _padded(visible.astype(jnp.int32), block_kv, 1)
    asks = jnp.ones(length, jnp.int32)  # a query sees the keys whose segment id equals its own

    kernel = _skip_unseen_blocks(kernel, length, ids.any(0))

    def row(q, k, v, ids):
        segments = _splash_module().SegmentIds(asks, ids)
        return jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(q, k, v)

    out = jax.vmap(row)(q.reshape(b, heads, n // heads, length, -1), k, v, ids)
    return out.reshape(b, n, length, -1)[..., :h]


def _skip_unseen_blocks(kernel: Any, queries: int, seen: jax.Array) -> Any:
    """Makes a kernel that neither fetches nor computes key blocks without any key in `seen` [M] bool.

    In the first turns of a row most of the history is empty. Its blocks are marked in the tables
    by which the kernels already skip blocks above the diagonal of a causal mask. All rows of a
    device share these tables.
    """
    sizes = kernel.kwargs["block_sizes"]
    there = seen.reshape(-1, sizes.block_kv).any(1)
    shape = (queries // sizes.block_q, there.size)

    def info(known: Any, axis: int) -> Any:
        """New tables of one kernel; its inner loop goes over `axis`: 0 query blocks, 1 key blocks."""
        if known.block_mask is None:
            runs = jnp.broadcast_to(there[None], shape)
        elif known.block_mask.shape[1:] == shape:
            runs = (known.block_mask[0] > 0) & there[None]
        else:  # a shrunk table, which lacks the blocks that no query ever sees
            return known
        runs = runs.at[:, 0].set(runs[:, 0] | ~runs.any(1))  # a softmax over no block at all is NaN
        place = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        newest = jax.lax.cummax(jnp.where(runs, place, -1), axis=axis)
        first = jnp.argmax(runs, axis=axis, keepdims=True).astype(jnp.int32)
        fetched = jnp.where(newest < 0, first, newest)  # a block that repeats is not fetched again
        return known._replace(block_mask=runs.astype(jnp.int32)[None], data_next=fetched[None])

    infos = (info(kernel.fwd_mask_info, 1), info(kernel.dq_mask_info, 1), info(kernel.dkv_mask_info, 0))
    return type(kernel)(*infos, **kernel.kwargs)


# ------------------------------------------------------------------------ cudnn


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Takes q [B N L H] scaled, L even; pads keys to an even number, which the gradient needs."""
    k, v, mask = (_padded(x, 2, 2) for x in (k, v, mask))
    attend = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation="cudnn")
    q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q, k, v))
    return jnp.moveaxis(attend(q, k, v, mask=mask[:, None]), 2, 1)


def run_masked(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`run` by cuDNN, with an explicit mask [B, L, M] bool, for any lengths."""
    sees, mesh, length = mask.any(2), partition.mesh(), q.shape[2]
    multiple = 2 * partition.shards("tokens")
    q, mask = _padded(q * q.shape[-1] ** -0.5, multiple, 2), _padded(mask, multiple, 1)
    call = _cudnn
    if mesh is not None:
        queries, keys = _specs(q, k)
        specs = (queries, keys, keys, P(keys[0], queries[2], None))
        call = jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=queries, check_vma=False)
    return jnp.where(sees[:, None, :, None], call(q, k, v, mask)[:, :, :length], 0)
