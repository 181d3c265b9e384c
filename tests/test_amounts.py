"""What a batch holds, against a count token by token."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from process_gen.amounts import amounts
from process_gen.data.fake import fake_batch
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.visibility import Chunk
from tests.models.dense import sequence
from tests.models.tiny import CONFIG, IDS, VIT, VOCAB, layout

KINDS = [dict(context=context) for context in ("full", "step", "last")] + [
    dict(vit_grid=VIT, steps=4),
    dict(vit_grid=VIT, context="step", sketch_copies=1, refined_copies=2),
]


def rows(count: int, seed: int, **changes) -> Batch:
    return Batch(**fake_batch(layout(**changes), count, seed, VOCAB))


def counted(batch: Batch, **changes) -> dict[str, float]:
    found = jax.jit(lambda batch: amounts(layout(**changes), batch))(batch)
    return {name.removeprefix("batch/"): float(value) for name, value in found.items()}


def by_hand(batch: Batch, **changes) -> dict[str, float]:
    """The same figures from the dense mask of every trajectory."""
    model, there = UnifiedModel(CONFIG, layout(**changes), IDS), layout(**changes)
    found = dict.fromkeys(("attention_pairs", "und_tokens", "gen_tokens", "views", "head_tokens"), 0.0)
    images = dict(sketch=None, refined=None)
    for kind in images.copy():
        copies = getattr(there, f"{kind}_copies")
        images |= {f"{kind}_noised": [None] * copies, f"{kind}_t": [0.0] * copies}
    for row in range(batch.present.shape[0]):
        for index in range(there.trajectories):
            mine = np.flatnonzero(batch.present[row] & (batch.prompt_index[row] == index))
            slots = {n: getattr(batch, f"{n}_tokens")[row] for n in ("plan", "inspect", "refine")}
            steps = [
                types.SimpleNamespace(**images, **{name: texts[s] for name, texts in slots.items()})
                for s in mine
            ]
            pieces, seen_until = sequence(model, batch.prompt_tokens[row, index], steps)
            segments = [p.segment for p in pieces]
            found["attention_pairs"] += Chunk(segments, seen_until).mask.sum()
            found["und_tokens"] += sum(s.text + s.vit for s in segments)
            found["gen_tokens"] += sum(s.latents for s in segments)
            found["views"] += sum(s.vit > 0 for s in segments)
            found["head_tokens"] += sum(s.text for s in segments[1:] if s.kind == "text")
            found["head_tokens"] += sum(s.latents > 0 for s in segments)
    ends = float((batch.last & batch.present).sum())
    found["head_tokens"] += ends
    return found | {"steps": float(batch.present.sum()), "trajectories": ends}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_amounts_are_those_of_the_dense_sequence(kind):
    batch = rows(3, seed=3, **kind)
    assert counted(batch, **kind) == by_hand(batch, **kind)


def test_prompts_with_an_image_and_an_instruction_count():
    changes = dict(prompt_image=True, instruction=4, vit_grid=VIT)
    batch = rows(2, seed=1, **changes)
    there = float(batch.has_prompt_image.sum())
    bare = batch.replace(
        has_prompt_image=np.zeros_like(batch.has_prompt_image),
        instruction_tokens=np.full_like(batch.instruction_tokens, -1),
    )
    rich, plain = counted(batch, **changes), counted(bare, **changes)
    words = float((batch.instruction_tokens != -1).sum())
    assert there > 0 and words > 0
    assert rich["views"] == plain["views"] + there
    assert rich["gen_tokens"] == plain["gen_tokens"] + layout().latents * there
    assert rich["und_tokens"] == plain["und_tokens"] + words + there * (2 + 2 + VIT[0] * VIT[1])
    assert rich["attention_pairs"] > plain["attention_pairs"]
    assert rich["head_tokens"] == plain["head_tokens"]
