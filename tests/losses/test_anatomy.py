"""What is said of the tokens of a row is what is trained."""

import collections

import jax
import numpy as np
import pytest

from process_gen.losses import LossTable
from process_gen.losses.anatomy import HEADERS, anatomy, lines
from process_gen.models.config import UnrollOptions
from process_gen.models.inputs import make_inputs
from process_gen.models.unroll import blank_outputs
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import labels
from tests.models.dense import row_parts, sees
from tests.models.tiny import IDS, VIT, make_batch, make_model

PLAIN = UnrollOptions(drop_text=0.0, drop_images=0.0)
TABLE = LossTable(
    {
        f"{stage}_{loss}": dict(loss=loss, stage=stage, weight=1.0)
        for stage, loss in (
            *((stage, "text_cross_entropy") for stage in ("plan", "inspect", "refine")),
            *((stage, "decision_cross_entropy") for stage in ("plan", "sketch", "inspect", "refine")),
            *((stage, "flow_mse") for stage in ("sketch", "refine")),
        )
    }
)
KINDS = {
    "step": dict(context="step"),
    "last": dict(context="last"),
    "full, ViT, input images": dict(context="full", vit_grid=VIT, prompt_image=True, instruction=5),
}


def one_row(batch: Batch, row: int) -> Batch:
    return jax.tree.map(lambda x: x[row : row + 1], batch)


def a_row_without_its_last_image(batch: Batch) -> Batch:
    ends = batch.is_last & batch.refines
    target = np.where(ends, -1, batch.target)
    after = np.where(np.asarray(ends)[..., None], -1, batch.after_tokens)
    return batch.replace(has_image=batch.has_image & ~ends, target=target, after_tokens=after)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_see_what_the_reference_mask_says_and_stand_where_it_says(kind):
    (model, _), batch = make_model(**KINDS[kind]), make_batch(4, seed=3, **KINDS[kind])
    for row in range(4):
        mine = one_row(batch, row)
        inputs = make_inputs(model, mine, jax.random.key(0), PLAIN)
        given = jax.tree.map(lambda x: np.asarray(x)[0], (mine, inputs.prompts, inputs.turns))
        for prompt, parts in enumerate(row_parts(model.layout, *given)):
            found = anatomy(model.layout, mine, TABLE, IDS, prompt)
            by_name = {(part.turn, part.name): part for part in parts}
            places = collections.Counter()
            for i, token in enumerate(found.tokens):
                part = by_name[token.turn, token.segment]
                text = part.kind == "text"
                assert token.position == part.positions[places[token.turn, token.segment] if text else 0]
                places[token.turn, token.segment] += 1
                for j, key in enumerate(found.tokens):
                    other = by_name[key.turn, key.segment]
                    if other is part:
                        assert found.sees[i, j] == (j <= i or not text)
                    else:
                        earlier = parts.index(other) < parts.index(part)
                        assert found.sees[i, j] == (earlier and sees(model.layout, parts, part, other))
            for part in parts:
                count = sum(t.count for t in found.tokens if (t.turn, t.segment) == (part.turn, part.name))
                if part.kind != "noised":  # those without a target are left out
                    assert count == part.there.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_of_the_tokens_are_those_of_the_table(kind):
    (model, _), batch = make_model(**KINDS[kind]), make_batch(6, seed=3, **KINDS[kind])
    batch = a_row_without_its_last_image(batch)
    for row in range(6):
        mine = one_row(batch, row)
        outputs = blank_outputs(model, mine, jax.random.key(0), PLAIN)
        _, wanted = TABLE.terms(outputs, mine, labels(mine, IDS), jax.random.key(0))
        found = collections.Counter(dict.fromkeys(wanted, 0.0))
        for prompt in range(model.layout.trajectories):
            for token in anatomy(model.layout, mine, TABLE, IDS, prompt).tokens:
                for name, weight in token.losses.items():
                    found[name] += weight * token.count
        assert dict(found) == pytest.approx({name: float(count) for name, count in wanted.items()})


def test_the_table_names_every_token():
    class Words:
        end_of_text, im_start, im_end = IDS.end_of_text, IDS.im_start, IDS.im_end
        vision_start, vision_end = IDS.vision_start, IDS.vision_end

        def decode(self, ids):
            return f"<{ids[0]}>"

    model, _ = make_model(**KINDS["step"])
    found = anatomy(model.layout, make_batch(1, seed=3, **KINDS["step"]), TABLE, IDS)
    rows = list(lines(found, Words()))
    assert len(rows) == len(found.tokens) and all(len(row) == len(HEADERS) for row in rows)
    assert rows[0][:7] == (0, "prompt", "prompt", "", "<im_start>", 0, "0")
    assert any("4 latents" in row for row in rows) and any("flow_mse" in row[-1] for row in rows)
    last = max(i for i, t in enumerate(found.tokens) if t.segment == "prompt")
    assert rows[last][7] in (f"<{IDS.ins}>", "<vision_start>")
