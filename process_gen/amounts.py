"""How much a batch holds: what the speed of a run is counted in, and its FLOP.

Only what is really there counts: no padding, no absent step, no key that a
query does not see. B rows, S step slots, R trajectories.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from process_gen.models.unified import token_count
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.layout import Layout, Segment


def amounts(layout: Layout, batch: Batch) -> dict[str, jax.Array]:
    """What a batch holds, [] float32 each.

    Returns:
      batch/steps, batch/trajectories: step slots that are filled, trajectories that end in one of them.
      batch/und_tokens, batch/gen_tokens: tokens of the two experts.
      batch/head_tokens: tokens whose logits a loss may read.
      batch/views: images that the ViT looks at.
      batch/attention_pairs: query and key pairs of the backbone, conditioning dropout aside.
    """
    step, prompt = _step_lengths(layout, batch), _prompt_lengths(layout, batch)
    segments = (*layout.step_segments, *layout.prompt_segments)
    # How often each segment is there, texts token by token.
    count = {
        s.name: _total((step | prompt)[s.name]) / (1 if s.kind == "text" else s.tokens) for s in segments
    }
    text = sum(count[s.name] for s in segments if s.kind == "text")
    images = sum(count[s.name] for s in segments if s.latents)
    views = sum(count[s.name] for s in segments if s.vit)
    trajectories = _total(batch.last & batch.present)
    found = {
        "steps": _total(batch.present),
        "trajectories": trajectories,
        "und_tokens": text + 2 * (images + views) + layout.vit_tokens * views,
        "gen_tokens": layout.latents * images,
        # Losses read every text of a step, and what opens next after each prompt and image.
        "head_tokens": sum(count[s.name] for s in layout.step_segments if not s.vit) + trajectories,
        "views": views,
        "attention_pairs": _pairs(layout, batch, step, prompt),
    }
    return {f"batch/{name}": jnp.asarray(value, jnp.float32) for name, value in found.items()}


def _total(x: jax.Array) -> jax.Array:
    return x.sum().astype(jnp.float32)


def _step_lengths(layout: Layout, batch: Batch) -> dict[str, jax.Array]:
    """Tokens of every segment of the steps that are there, [B, S] int32 by name."""
    refines = (token_count(batch.refine_tokens) > 0) & batch.present
    lengths = {}
    for s in layout.step_segments:
        if s.kind == "text":
            lengths[s.name] = token_count(getattr(batch, f"{s.name}_tokens")) * batch.present
        else:
            lengths[s.name] = s.tokens * (refines if s.name.startswith("refined") else batch.present)
    return lengths


def _prompt_lengths(layout: Layout, batch: Batch) -> dict[str, jax.Array]:
    """Tokens of every segment of the prompts, [B, R] int32 by name."""
    return {
        s.name: token_count(getattr(batch, f"{s.name}_tokens"))
        if s.kind == "text"
        else s.tokens * batch.has_prompt_image
        for s in layout.prompt_segments
    }


def _pairs(
    layout: Layout, batch: Batch, step: dict[str, jax.Array], prompt: dict[str, jax.Array]
) -> jax.Array:
    """Query and key pairs of prompts and steps; float32, since a batch may have more than 2^31."""
    inside = _inside(layout.step_segments, step) + _inside(layout.prompt_segments, prompt)
    prompts = sum(prompt.values())
    before = jnp.take_along_axis(prompts, batch.prompt_index, axis=1) + _history(layout, batch, step)
    queries = sum(step.values())
    return inside + (queries.astype(jnp.float32) * before.astype(jnp.float32)).sum()


def _inside(segments: tuple[Segment, ...], lengths: dict[str, jax.Array]) -> jax.Array:
    """Pairs inside chunks: texts are causal, a noised image is seen by itself alone."""
    pairs, seen = jnp.zeros(()), 0.0
    for s in segments:
        n = lengths[s.name].astype(jnp.float32)
        own = n * (n + 1) / 2 if s.kind == "text" else n * n
        pairs = pairs + (own + n * seen).sum()
        seen = seen if s.kind == "noised" else seen + n
    return pairs


def _history(layout: Layout, batch: Batch, step: dict[str, jax.Array]) -> jax.Array:
    """Tokens of earlier steps that each step sees, [B, S] int32."""
    parts = {name: sum(step[s.name] for s in part) for name, part in layout.visible_parts.items()}
    if layout.context == "full":
        written = functools.reduce(jnp.add, parts.values())
        before = jnp.cumsum(written, axis=1) - written
        return before - jax.lax.cummax(jnp.where(batch.reset, before, 0), axis=1)
    newest = jnp.where(parts["refined"] > 0, parts["refined"], parts["sketch"])
    kept = newest + parts["plan"] if layout.context == "step" else newest
    return jnp.where(batch.reset, 0, jnp.pad(kept, ((0, 0), (1, 0)))[:, :-1])
