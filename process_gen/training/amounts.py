"""Counts what a batch holds (tokens, images, attention pairs), for rates and FLOP.

Only real content counts: no padding, no absent turn, no missing flow target, no
key that a query does not see. B rows, S turn slots, R trajectories.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.data import mix
from process_gen.models.content import token_count
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.visibility import seen_parts

Lengths = dict[str, jax.Array]


@functools.cache
def of_a_row(layout: Layout, trajectories: int = 1_000) -> dict[str, float]:
    """What a row of the paper's mix (`data.mix`) holds on average, by the names of `amounts`."""
    packed = list(mix.paper_loader(layout, trajectories))
    whole = Batch(**{name: np.concatenate([row[name] for row in packed]) for name in packed[0]})
    held = _held(layout, whole)
    # As with one row per device: no other row makes attention go back further than a row needs.
    held |= {"branch_turns": held["history_turns"]}
    return {name: value if name == "useful" else value / len(packed) for name, value in held.items()}


def of_a_full_row(layout: Layout) -> dict[str, float]:
    """The same of a row of trajectories of equal length in which every slot is full."""
    filled = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), Batch.spec(layout, 1))
    index = jnp.arange(layout.turns)[None] * layout.trajectories // layout.turns
    ends = jnp.diff(index, axis=1, append=index[:, -1:] + 1) > 0
    return _held(
        layout,
        filled.replace(
            prompt_index=index,
            is_first=jnp.roll(ends, 1, axis=1),
            is_last=ends,
            refines=jnp.zeros_like(ends),
            target=jnp.zeros_like(index),
        ),
    )


def _held(layout: Layout, batch: Batch) -> dict[str, float]:
    """`amounts` as Python numbers, without the prefix `batch/`."""
    found = jax.device_get(jax.jit(functools.partial(amounts, layout))(batch))
    return {name.removeprefix("batch/"): float(value) for name, value in found.items()}


def amounts(layout: Layout, batch: Batch) -> dict[str, jax.Array]:
    """What a batch holds, [] float32 each.

    Returns:
      batch/rows, batch/slots: rows, and the tokens that they have room for.
      batch/useful: the share of those tokens that hold something.
      batch/turns, batch/steps, batch/trajectories: turns, those that draft, and those that end a trajectory.
      batch/und_tokens, batch/gen_tokens: tokens of the two experts.
      batch/head_tokens: tokens whose logits a loss may read.
      batch/images, batch/flow_targets: clean images and noised copies, as latents.
      batch/vit_images: images that the ViT looks at.
      batch/attention_pairs: query and key pairs of the backbone, conditioning dropout aside.
      batch/history_turns: how many turns back each turn sees, summed over all turn slots.
      batch/branch_turns: the same if in each slot all rows went back as far as the one that sees farthest.
    """
    there = {"clean": batch.present & batch.has_image, "noised": batch.present & (batch.target >= 0)}
    turn = _lengths(layout.turn_segments, batch, there, batch.present)
    prompt = _lengths(layout.prompt_segments, batch, {"clean": batch.has_prompt_image}, 1)
    segments = (*layout.turn_segments, *layout.prompt_segments)

    def many(chosen: Sequence[Segment]) -> jax.Array:
        """Number of images; their tokens are either all there or all absent."""
        return sum((_total((turn | prompt)[s.name]) / s.tokens for s in chosen), jnp.zeros(()))

    images = many([s for s in segments if s.latents and s.kind == "clean"])
    targets = many([s for s in segments if s.kind == "noised"])
    vit_images = many([s for s in segments if s.vit])
    words = _total(sum(prompt[s.name].sum() for s in layout.prompt_segments if s.kind == "text"))
    scored = sum((_total(turn[s.name]) for s in layout.turn_segments if s.kind == "text"), jnp.zeros(()))
    turns, trajectories = _total(batch.present), _total(batch.is_last & batch.present)
    und = words + scored + 2 * (images + targets + vit_images) + layout.vit_tokens * vit_images
    gen = layout.latents * (images + targets)
    slots = batch.present.shape[0] * layout.row_tokens
    history, back = _history(layout, batch, turn)
    found = {
        "rows": batch.present.shape[0],
        "slots": slots,
        "useful": (und + gen) / slots,
        "turns": turns,
        "steps": _total(batch.present & ~batch.refines),
        "trajectories": trajectories,
        "und_tokens": und,
        "gen_tokens": gen,
        # Losses read all text tokens of turns, and the closing tokens of prompts and images.
        "head_tokens": scored + turns + trajectories,
        "images": images,
        "flow_targets": targets,
        "vit_images": vit_images,
        "attention_pairs": _pairs(layout, batch, turn, prompt, history),
        "history_turns": _total(back),
        "branch_turns": _total(back.max(0)) * back.shape[0],
    }
    return {f"batch/{name}": jnp.asarray(value, jnp.float32) for name, value in found.items()}


def _total(x: jax.Array) -> jax.Array:
    return x.sum().astype(jnp.float32)


def _lengths(
    segments: Sequence[Segment], batch: Batch, images: Mapping[str, jax.Array], texts: jax.Array | int
) -> Lengths:
    """Number of tokens without padding of every segment, [B, S] or [B, R] int32 by name.

    `images` says by kind of segment which images exist, `texts` which slots may have a text.
    """
    return {
        s.name: token_count(getattr(batch, f"{s.name}_tokens")) * texts
        if s.kind == "text"
        else s.tokens * images[s.kind]
        for s in segments
    }


def _pairs(layout: Layout, batch: Batch, turn: Lengths, prompt: Lengths, history: jax.Array) -> jax.Array:
    """Query and key pairs of prompts and turns; float32, since a batch may have more than 2^31."""
    inside = _inside(layout.turn_segments, turn) + _inside(layout.prompt_segments, prompt)
    prompts = sum(prompt.values())
    before = jnp.take_along_axis(prompts, batch.prompt_index, axis=1) + history
    queries = sum(turn.values())
    return inside + (queries.astype(jnp.float32) * before.astype(jnp.float32)).sum()


def _inside(segments: Sequence[Segment], lengths: Lengths) -> jax.Array:
    """Pairs inside chunks: texts are causal, a noised image is seen by itself alone."""
    pairs, seen = jnp.zeros(()), 0.0
    for s in segments:
        n = lengths[s.name].astype(jnp.float32)
        own = n * (n + 1) / 2 if s.kind == "text" else n * n
        pairs = pairs + (own + n * seen).sum()
        seen = seen if s.kind == "noised" else seen + n
    return pairs


def _history(layout: Layout, batch: Batch, turn: Lengths) -> tuple[jax.Array, jax.Array]:
    """Of every turn slot, [B, S] int32: tokens of earlier turns that it sees, and how far back it sees."""
    parts = {name: sum(turn[s.name] for s in part) for name, part in layout.visible_parts.items() if part}
    step = jnp.cumsum(~batch.refines & batch.present, axis=1)
    tokens, back = [], []
    for slot in range(layout.turns):
        window = slice(max(0, slot - layout.window), slot)
        earlier = (step[:, window], batch.refines[:, window])
        seen = seen_parts(layout.context, *earlier, step[:, slot], batch.refines[:, slot])
        same = batch.prompt_index[:, window] == batch.prompt_index[:, slot, None]
        same &= batch.present[:, window] & batch.present[:, slot, None]
        lengths = sum(parts[name][:, window] * (seen[name] & same) for name in parts)
        distance = jnp.arange(window.stop - window.start, 0, -1)
        tokens.append(lengths.sum(1))
        back.append((distance[None] * (lengths > 0)).max(1, initial=0))
    return jnp.stack(tokens, 1), jnp.stack(back, 1)
