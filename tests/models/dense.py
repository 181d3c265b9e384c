"""The reference: whole rows in one pass with one explicit mask.

Written from the description of who sees whom (`process_gen.trajectory.visibility`), part
by part of a row, without the chunks, windows and caches of the turns.

B rows, L tokens of a row, S turn slots, R prompts of a row, J noised copies, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models.content import ChunkInputs
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.layout import Layout


class Places:
    """Where the tokens of a row stand: vocabulary and ViT tokens of prompts and turns, then all latents.

    Attributes:
      text, vit, latents: by (prompt or turn, slot, segment), the indices of its tokens in the row.
      und: tokens that are no latents.
      tokens: all of them.
    """

    def __init__(self, layout: Layout):
        self.text, self.vit, self.latents = {}, {}, {}
        slots = [("prompt", r, layout.prompt_segments) for r in range(layout.trajectories)]
        slots += [("turn", s, layout.turn_segments) for s in range(layout.turns)]
        self.tokens = 0
        for owner, slot, segments in slots:
            for found, size in ((self.text, "text"), (self.vit, "vit")):
                for s in segments:
                    found[owner, slot, s.name] = self._next(getattr(s, size))
        self.und = self.tokens
        for owner, slot, segments in slots:
            for s in segments:
                self.latents[owner, slot, s.name] = self._next(s.latents)

    def _next(self, count: int) -> np.ndarray:
        self.tokens += count
        return np.arange(self.tokens - count, self.tokens)

    def __call__(self, *name: Any) -> np.ndarray:
        """All tokens of a segment."""
        return np.concatenate([self.text[name], self.vit[name], self.latents[name]])


@dataclasses.dataclass
class Part:
    """A segment that stands in the row.

    Attributes:
      name, kind: of the segment.
      of: the part of a prompt or turn that it belongs to: `prompt`, `before`, `noised`, `image` or `after`.
      step, turn: which one of the trajectory, and of the slots of the row; -1 of a prompt.
      at: where its tokens stand.
      there: which of them are no padding and were not dropped.
      positions: their rotary positions.
    """

    name: str
    kind: str
    of: str
    step: int
    turn: int
    at: np.ndarray
    there: np.ndarray
    positions: np.ndarray


def row_parts(layout: Layout, batch: Batch, prompts: ChunkInputs, turns: ChunkInputs) -> list[list[Part]]:
    """The parts of one row in logical order by trajectory; arguments of that row, without axis B."""
    return [_trajectory(layout, batch, prompts, turns, r) for r in range(layout.trajectories)]


def _trajectory(layout: Layout, batch: Batch, prompts: ChunkInputs, turns: ChunkInputs, r: int) -> list[Part]:
    places, position, step = Places(layout), 0, -1
    segments = [("prompt", r, -1, s, prompts) for s in layout.prompt_segments]
    for slot in np.flatnonzero(batch.present & (batch.prompt_index == r)):
        step += not batch.refines[slot]
        segments += [("turn", slot, step, s, turns) for s in layout.turn_segments]
    parts = []
    for owner, slot, step, s, content in segments:
        at = places(owner, slot, s.name)
        if s.kind == "text":
            there, positions = content.texts[s.name][slot] != PAD_ID, position + np.arange(s.text)
            position += int(there.sum())
        else:
            exists, keep = (
                s.name not in names or bool(names[s.name][slot]) for names in (content.exists, content.keep)
            )
            there = np.full(len(at), exists and keep)
            positions = np.full(len(at), position)
            position += exists and s.kind == "clean"
        of = "noised" if s.kind == "noised" else s.name.removesuffix("_vit")
        of, turn = ("prompt", -1) if owner == "prompt" else (of, slot)
        parts.append(Part(s.name, s.kind, of, step, turn, at, there, positions))
    return parts


def sees(layout: Layout, parts: list[Part], query: Part, key: Part) -> bool:
    """Whether tokens of one part see those of an earlier part of their trajectory."""
    if key.kind == "noised":
        return False
    if key.of == "prompt" or key.turn == query.turn or key.step == query.step or layout.context == "full":
        return True
    if key.step < query.step - 1:
        return False
    newest = max(part.turn for part in parts if part.step == key.step)
    carried = key.of == "image" and key.turn == newest
    return carried or (layout.context == "step" and key.of == "before")


def row_mask(layout: Layout, row: list[list[Part]]) -> np.ndarray:
    """[L, L] bool: may query (row) see key (column)?"""
    total = Places(layout).tokens
    mask = np.zeros((total, total), bool)
    for parts in row:
        for i, query in enumerate(parts):
            own = np.ones((len(query.at), len(query.at)), bool)
            own = np.tril(own) if query.kind == "text" else own
            mask[np.ix_(query.at, query.at)] = own & query.there[None]
            for key in parts[:i]:
                if sees(layout, parts, query, key):
                    mask[np.ix_(query.at, key.at)] = key.there[None]
    return mask


def describe(model: UnifiedModel, batch: Batch, prompts: ChunkInputs, turns: ChunkInputs) -> dict[str, Any]:
    """What the dense pass reads besides contents: mask, positions, tokens, and which ones close what."""
    layout, places = model.layout, Places(model.layout)
    batch, prompts, turns = jax.tree.map(np.asarray, (batch, prompts, turns))
    rows, edges = [], (model.ids.vision_start, model.ids.vision_end)
    for b in range(batch.present.shape[0]):
        row = row_parts(layout, *jax.tree.map(lambda x, b=b: x[b], (batch, prompts, turns)))
        positions, tokens = np.zeros(places.tokens, np.int32), np.zeros(places.tokens, np.int32)
        for part in (part for parts in row for part in parts):
            positions[part.at] = part.positions
        texts = prompts.texts | turns.texts
        for (_, slot, name), at in places.text.items():
            tokens[at] = np.maximum(texts[name][b, slot], 0) if name in texts else edges
        there = [[part for part in parts if part.there.any()] for parts in row]
        prompt_end = [_end([part for part in parts if part.of == "prompt"]) for parts in there]
        images = [
            [p for parts in there for p in parts if (p.of, p.turn) == ("image", s)]
            for s in range(layout.turns)
        ]
        rows.append(
            dict(
                mask=row_mask(layout, row),
                positions=positions,
                tokens=tokens[: places.und],
                prompt_end=np.asarray(prompt_end),
                image_end=np.asarray([_end(image) for image in images]),
            )
        )
    return {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}


def _end(parts: list[Part]) -> int:
    """Where the last token with a vocabulary id stands; anywhere if there is none."""
    if not parts:
        return 0
    # Of an image the two vision tokens come first.
    return int(parts[-1].at[1] if parts[-1].kind != "text" else parts[-1].at[parts[-1].there][-1])


def dense_turns(
    model: UnifiedModel, params: Any, prompts: ChunkInputs, turns: ChunkInputs, row: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What `run_turns` gives, in one pass over all tokens of a row; `row` is from `describe`."""
    layout, places = model.layout, Places(model.layout)
    width, (rows, slots) = model.config.width, turns.present.shape
    noised = [f"noised_{j}" for j in range(layout.copies)]
    x_t, t = (jnp.stack([x[name] for name in noised], axis=2) for x in (turns.latents, turns.times))
    image = turns.latents["image"]
    pictures = [jnp.concatenate([x_t, image[:, :, None]], 2).reshape(rows, -1, *image.shape[2:])]
    times = [jnp.concatenate([t, jnp.zeros((rows, slots, 1))], 2).reshape(rows, -1)]
    patches = [turns.vit["image_vit"]]
    if layout.prompt_image:
        pictures = [prompts.latents["prompt_image"], *pictures]
        patches = [prompts.vit["prompt_image_vit"], *patches]
        times = [jnp.zeros(pictures[0].shape[:2]), *times]

    def attention(q, k, v, context):
        del context
        whole = [jnp.concatenate([x["und"], x["gen"]], axis=1) for x in (q, k, v)]
        out = jax.nn.dot_product_attention(*whole, mask=row["mask"][:, None])
        out = out.reshape(*out.shape[:2], -1)
        return {"und": out[:, : places.und], "gen": out[:, places.und :]}

    def run(m: UnifiedModel) -> dict[str, jax.Array]:
        und = m.embed_text(row["tokens"])
        if layout.vit_tokens:
            vit = np.concatenate(list(places.vit.values()))
            und = und.at[:, vit].set(m.embed_vit(jnp.concatenate(patches, axis=1)))
        gen = m.embed_latents(jnp.concatenate(pictures, axis=1), jnp.concatenate(times, axis=1))
        positions = {"und": row["positions"][:, : places.und], "gen": row["positions"][:, places.und :]}
        return m.run_backbone({"und": und, "gen": gen}, positions, (), attention, keep_kv=False)[0]

    hidden = model.apply({"params": params}, method=run)
    both = jnp.concatenate([hidden["und"], hidden["gen"]], axis=1)

    def of_turns(name: str, where: dict) -> jax.Array:
        """[B, S, tokens, D]."""
        return jnp.stack([both[:, where["turn", s, name]] for s in range(slots)], axis=1)

    def at(index: jax.Array) -> jax.Array:
        return jnp.take_along_axis(both, index[..., None], axis=1)

    texts = {
        n: of_turns(n, places.text) if getattr(layout, n) else both[:, None, :0] for n in ("before", "after")
    }
    latents = jnp.concatenate([of_turns(name, places.latents) for name in noised], axis=2)
    velocity = model.apply(
        {"params": params},
        latents.reshape(rows * slots, -1, width),
        *(x.reshape(rows * slots, *x.shape[2:]) for x in (x_t, t)),
        method="to_velocity",
    )
    outputs = texts | {
        "image_end": at(row["image_end"]),
        "noised_end": jnp.stack([of_turns(name, places.text)[:, :, 1] for name in noised], axis=2),
        "velocity": velocity.reshape(x_t.shape),
    }
    return at(row["prompt_end"]), outputs
