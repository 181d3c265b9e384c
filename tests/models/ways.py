"""Every way to compute attention, wherever the tests run."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.models import kernels
from process_gen.models.attention import RowMasks, row_attention
from process_gen.models.content import ChunkInputs
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.visibility import Chunk
from tests.models.dense import Places, row_mask, row_parts
from tests.models.tiny import CONFIG, make_batch

WAYS = ("blocked", "splash", "cudnn")
"""The kernels; those of TPUs are interpreted elsewhere."""


@contextlib.contextmanager
def using(kernel):
    """The config for `kernel`, wherever it runs; JAX's own attention in the place of cuDNN's.

    Yields:
      The config, and the numbers of queries and keys that cuDNN would have been called with.
    """
    lengths, plain = [], jax.nn.dot_product_attention

    def attention(q, k, v, *args, implementation, **kwargs):
        assert implementation == "cudnn"
        lengths.append((q.shape[1], k.shape[1]))
        return plain(q, k, v, *args, implementation="xla", **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "choose", lambda *args: kernel)
        patch.setattr(jax.nn, "dot_product_attention", attention)
        yield dataclasses.replace(CONFIG, attention="dense" if kernel is None else "flash"), lengths
    if kernel == "cudnn":
        assert lengths and not any(length % 2 for pair in lengths for length in pair), "it takes even lengths"


def attended_rows(config, slots: Layout, masks: RowMasks, q, k, v) -> jax.Array:
    """[B, L, N * H] of rows of turns; q, k, v are [B, L, heads, H], in the order of `dense.Places`."""
    cut = Places(slots).und
    streams = ({"und": x[:, :cut], "gen": x[:, cut:]} for x in (q, k, v))
    chunks = (Chunk(x) for x in (slots.prompt_segments, slots.turn_segments))
    out = row_attention(config, slots, *chunks, masks)(*streams, ())
    return jnp.concatenate([out["und"], out["gen"]], axis=1)


def rows_of_turns(slots: Layout, rows: int, rng: np.random.Generator):
    """[B, L] which tokens are there, the masks that `row_attention` takes, and the explicit one [B, L, L]."""
    batch = jax.tree.map(np.asarray, make_batch(rows, seed=5, **dataclasses.asdict(slots)))
    last = np.arange(slots.turns) == slots.turns - 1
    batch = batch.replace(present=batch.present & ~(last & (np.arange(rows) % 2 == 0)[:, None]))
    names = [s.name for s in slots.state_slots("image")]
    keep = {name: rng.random(batch.present.shape) < 0.8 for name in names}
    prompts = ChunkInputs(np.ones(batch.prompt_tokens.shape[:2], bool), texts={"prompt": batch.prompt_tokens})
    texts = {"before": batch.before_tokens, "after": batch.after_tokens}
    turns = ChunkInputs(batch.present, texts=texts, keep=keep)
    places, there, explicit = Places(slots), [], []
    for b in range(rows):
        row = row_parts(slots, *jax.tree.map(lambda x, b=b: x[b], (batch, prompts, turns)))
        explicit.append(row_mask(slots, row))
        there.append(np.zeros(places.tokens, bool))
        for part in (part for parts in row for part in parts):
            there[-1][part.at] = part.there
    there = np.stack(there)

    def of(owner, count, segments):
        """[B, slots, tokens in packed order]."""
        names = [s.name for s in segments]
        at = [
            [w[owner, i, n] for w in (places.text, places.vit, places.latents) for n in names]
            for i in range(count)
        ]
        return jnp.asarray(np.stack([there[:, np.concatenate(x)] for x in at], axis=1))

    masks = RowMasks(
        of("prompt", slots.trajectories, slots.prompt_segments),
        of("turn", slots.turns, slots.turn_segments),
        *(jnp.asarray(x) for x in (batch.prompt_index, batch.present, batch.refines)),
    )
    return jnp.asarray(there), masks, jnp.asarray(np.stack(explicit))
