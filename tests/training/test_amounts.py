"""What a batch holds, against a count token by token."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from process_gen.data.packing import packing_stats
from process_gen.models.content import ChunkInputs, prompt_inputs
from process_gen.training.amounts import amounts
from process_gen.trajectory.batch import Batch
from tests.data.fake import fake_batch
from tests.models.dense import row_mask, row_parts, sees
from tests.models.tiny import VIT, VOCAB, layout

KINDS = [dict(context=context, turns=7) for context in ("full", "step", "last")] + [
    dict(vit_grid=VIT, turns=6),
    dict(vit_grid=VIT, context="step", copies=1, corrections=3, turns=8, trajectories=1),
    dict(context="last", corrections=1, after=0),
    dict(prompt_image=True, instruction=4, vit_grid=VIT),
]


def rows(count: int, seed: int, **changes) -> Batch:
    return Batch(**fake_batch(layout(**changes), count, seed, VOCAB))


def counted(batch: Batch, **changes) -> dict[str, float]:
    found = jax.jit(lambda batch: amounts(layout(**changes), batch))(batch)
    return {name.removeprefix("batch/"): float(value) for name, value in found.items()}


def by_hand(batch: Batch, **changes) -> dict[str, float]:
    """The same figures from the dense mask of every row."""
    there, names = layout(**changes), ("attention_pairs", "und_tokens", "gen_tokens", "head_tokens")
    images = ("images", "flow_targets", "vit_images")
    found = dict.fromkeys((*names, *images, "history_turns"), 0.0)
    backs = np.zeros(batch.present.shape)
    segments = {s.name: s for s in (*there.prompt_segments, *there.turn_segments)}
    for b in range(batch.present.shape[0]):
        row = jax.tree.map(lambda x, b=b: x[b], batch)
        prompts = prompt_inputs(
            row.prompt_tokens, instruction=row.instruction_tokens, has_image=row.has_prompt_image
        )
        turns = ChunkInputs(row.present, texts={"before": row.before_tokens, "after": row.after_tokens})
        trajectories = row_parts(there, row, prompts, turns)
        mask = row_mask(there, trajectories)
        for parts in trajectories:
            for part in parts:
                if part.kind == "noised" and row.target[part.turn] < 0:
                    part.there[:] = False  # a flow target of nothing
                found["attention_pairs"] += mask[part.at[part.there]].sum()
                segment = segments[part.name]
                if part.kind == "text":
                    found["und_tokens"] += part.there.sum()
                    found["head_tokens"] += part.there.sum() * (part.of != "prompt")
                elif part.there.all():
                    found["und_tokens"] += segment.text + segment.vit
                    found["gen_tokens"] += segment.latents
                    found["vit_images"] += segment.vit > 0
                    found["flow_targets"] += part.kind == "noised"
                    found["images"] += segment.latents > 0 and part.kind == "clean"
                seen = [
                    key.turn
                    for key in parts
                    if key.turn >= 0 and key.there.any() and sees(there, parts, part, key)
                ]
                if part.turn >= 0 and seen:
                    backs[b, part.turn] = max(backs[b, part.turn], part.turn - min(seen))
    ends = float((batch.is_last & batch.present).sum())
    slots = batch.present.shape[0] * there.row_tokens
    turns = float(batch.present.sum())
    return found | {
        "rows": batch.present.shape[0],
        "slots": slots,
        "useful": pytest.approx((found["und_tokens"] + found["gen_tokens"]) / slots),
        "turns": turns,
        "steps": float((batch.present & ~batch.refines).sum()),
        "trajectories": ends,
        "head_tokens": found["head_tokens"] + turns + ends,
        "history_turns": backs.sum(),
        "branch_turns": backs.max(0).sum() * len(backs),
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_amounts_are_those_of_the_dense_rows(kind):
    batch = rows(3, seed=3, **kind)
    assert counted(batch, **kind) == by_hand(batch, **kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_the_useful_share_is_that_of_the_packing_report(kind):
    batch = fake_batch(layout(**kind), 4, 5, VOCAB)
    report = packing_stats([batch], layout(**kind))
    assert counted(Batch(**batch), **kind)["useful"] == pytest.approx(report.useful, abs=1e-6)


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
    assert rich["vit_images"] == plain["vit_images"] + there
    assert rich["images"] == plain["images"] + there
    assert rich["gen_tokens"] == plain["gen_tokens"] + layout().latents * there
    assert rich["und_tokens"] == plain["und_tokens"] + words + there * (2 + 2 + VIT[0] * VIT[1])
    assert rich["attention_pairs"] > plain["attention_pairs"]
    assert rich["head_tokens"] == plain["head_tokens"]


def test_flow_targets_of_nothing_are_waste():
    batch = rows(2, seed=1)
    wrong = batch.replace(target=np.where(batch.is_first, -1, batch.target))
    lost = float((batch.is_first & batch.present & (batch.target >= 0)).sum()) * layout().copies
    before, after = counted(batch), counted(wrong)
    assert lost > 0 and after["flow_targets"] == before["flow_targets"] - lost
    assert after["gen_tokens"] == before["gen_tokens"] - lost * layout().latents
    assert after["useful"] < before["useful"] and after["head_tokens"] == before["head_tokens"]
