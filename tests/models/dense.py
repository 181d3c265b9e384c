"""The reference: a whole trajectory in one pass with an explicit mask.

Written from the description of who sees whom, token by token, without the
chunks, groups and memories of the scanned step.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models import vit
from process_gen.models.attention import attend_masked
from process_gen.models.context import Memory
from process_gen.models.unified import StepInputs, UnifiedModel
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.layout import Segment
from process_gen.trajectory.visibility import Chunk


@dataclasses.dataclass
class Piece:
    """One segment of the dense sequence: its content and where its results belong."""

    segment: Segment
    ids: int
    tokens: np.ndarray | None = None
    latents: jax.Array | None = None
    t: jax.Array | float = 0.0
    view_of: jax.Array | None = None
    hidden_from: tuple[str, ...] = ()


def _text(name: str, tokens: np.ndarray, start: int) -> tuple[Piece, int]:
    tokens = tokens[tokens != PAD_ID]
    return Piece(Segment(name, "text", len(tokens)), start, tokens=tokens), start + len(tokens)


def sequence(
    model: UnifiedModel, prompt: np.ndarray, steps: list[StepInputs]
) -> tuple[list[Piece], dict[str, int]]:
    """The pieces of one trajectory in logical order, and where each stops being visible (by name)."""
    layout, pieces, seen_until = model.layout, [], {}
    piece, at = _text("prompt", prompt, 0)
    pieces.append(piece)

    def image(name, kind, latents, t):
        pieces.append(Piece(layout.image_slot(name, kind), at, latents=latents, t=t))

    def clean(name, latents):
        """Latents, then ViT tokens with the next id; returns the id that follows."""
        image(name, "clean", latents, 0.0)
        if layout.vit_grid == (0, 0):
            return at + 1
        tokens = layout.vit_grid[0] * layout.vit_grid[1]
        pieces.append(Piece(Segment(f"{name}_vit", "clean", 2, vit=tokens), at + 1, view_of=latents))
        return at + 2

    for i, step in enumerate(steps):
        if (step.plan != PAD_ID).any():
            piece, at = _text(f"{i}.plan", np.asarray(step.plan), at)
            pieces.append(piece)
        for j in range(layout.sketch_copies):
            image(f"{i}.sketch_noised_{j}", "noised", step.sketch_noised[j], step.sketch_t[j])
        at = clean(f"{i}.sketch", step.sketch)
        for name in ("inspect", "refine"):
            if (getattr(step, name) != PAD_ID).any():
                piece, at = _text(f"{i}.{name}", np.asarray(getattr(step, name)), at)
                pieces.append(piece)
        refined = bool((step.refine != PAD_ID).any())
        if refined:
            for j in range(layout.refined_copies):
                image(f"{i}.refined_noised_{j}", "noised", step.refined_noised[j], step.refined_t[j])
            at = clean(f"{i}.refined", step.refined)
    if layout.context != "full":
        offset, ends = 0, {}
        for piece in pieces:
            offset += piece.segment.tokens
            ends[piece.segment.name.split(".")[0]] = offset  # where each step ends
        for piece in pieces[1:]:
            step, name = piece.segment.name.split(".")
            newest = "refined" if (steps[int(step)].refine != PAD_ID).any() else "sketch"
            carried = name in (newest, f"{newest}_vit") or (layout.context, name) == ("step", "plan")
            seen_until[piece.segment.name] = ends.get(str(int(step) + carried), offset)
    return pieces, seen_until


def dense_pass(
    model: UnifiedModel, params, prompt: np.ndarray, steps: list[StepInputs]
) -> dict[str, jax.Array]:
    """Hidden states of every segment by name, [tokens, D] without the batch axis.

    Of an image the two vision tokens come first, then its latent or ViT tokens.
    """
    pieces, seen_until = sequence(model, prompt, steps)
    chunk = Chunk([p.segment for p in pieces], seen_until)
    mask = np.array(chunk.mask)
    for i, step in enumerate(steps):  # conditioning dropout
        for copies, prefix in (
            (model.layout.sketch_copies, "sketch"),
            (model.layout.refined_copies, "refined"),
        ):
            for j in range(copies):
                asks = f"{i}.{prefix}_noised_{j}"
                if asks not in {p.segment.name for p in pieces}:
                    continue
                for key in pieces:
                    name = key.segment.name
                    if name == asks:
                        continue
                    newest = f"{i}.refine" if prefix == "refined" else f"{i}.plan"
                    if prefix == "sketch" and not (step.plan != PAD_ID).any():
                        newest = "prompt"
                    hide = (bool(step.hide_text) and name == newest) or (
                        bool(step.hide_images) and key.segment.kind == "clean"
                    )
                    if hide:
                        for rows in chunk.memory(asks):
                            for columns in chunk.memory(name):
                                mask[rows, columns] = False
    edges = np.asarray([model.ids.vision_start, model.ids.vision_end])
    tokens = np.concatenate([p.tokens if p.tokens is not None else edges for p in pieces])
    ids = np.concatenate(
        [p.ids + np.arange(p.segment.text) if p.tokens is not None else [p.ids] * 2 for p in pieces]
        + [[p.ids] * p.segment.vit for p in pieces if p.view_of is not None]
        + [[p.ids] * p.segment.latents for p in pieces if p.latents is not None]
    )
    latents = jnp.stack([p.latents for p in pieces if p.latents is not None])[None]
    t = jnp.stack([jnp.asarray(p.t, jnp.float32) for p in pieces if p.latents is not None])[None]

    views = [p.view_of for p in pieces if p.view_of is not None]

    def run(m: UnifiedModel):
        und = m.embed_text(jnp.asarray(tokens)[None])
        if views:
            patches = vit.to_patches(m.config, m.layout, jnp.stack(views)[None])
            und = jnp.concatenate([und, m.embed_views(patches)], axis=1)
        streams = {"und": und, "gen": m.embed_latents(latents, t)}
        empty = Memory.empty(m.config, 1, 0)
        attention = attend_masked(jnp.zeros((1, chunk.tokens, 0), bool), jnp.asarray(mask)[None])
        return m.run(chunk, streams, jnp.asarray(ids)[None], [empty], attention)[0]

    hidden = model.apply({"params": params}, method=run)
    both = jnp.concatenate([hidden["und"], hidden["gen"]], axis=1)[0]
    results = {}
    for p in pieces:
        rows = jnp.concatenate([both[s] for s in chunk.memory(p.segment.name)])
        results[p.segment.name] = rows
    return results
