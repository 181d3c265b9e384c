"""What every closing token predicts."""

import jax.numpy as jnp
import numpy as np

from process_gen.trajectory.batch import PAD_ID as PAD
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import ControlIds, follows, labels, next_tokens
from process_gen.trajectory.layout import Layout

IDS = ControlIds(
    end_of_text=2, im_start=3, im_end=4, vision_start=5, vision_end=6, ins=7, refine=11, des=9, des_end=10
)
LAYOUT = Layout(
    image_size=(8, 8),
    latent_grid=(1, 1),
    latent_values=1,
    prompt=4,
    before=4,
    after=4,
    turns=5,
    trajectories=2,
)
same = np.testing.assert_array_equal
TEXT, ABSENT = [3, 20, 4, PAD], [PAD] * 4
DRAFT, BARE, REFINE = (False, True), (False, False), (True, True)
"""Whether a turn refines, and whether a text stands before its image."""


def batch(*trajectories):
    """One row; a trajectory is a list of (kind, whether it is inspected)."""
    spec = Batch.spec(LAYOUT, 1)
    fields = {name: np.zeros(x.shape, x.dtype) for name, x in vars(spec).items() if x is not None}
    for name in ("prompt_tokens", "before_tokens", "after_tokens"):
        fields[name][:] = PAD
    slot = 0
    for index, turns in enumerate(trajectories):
        fields["prompt_tokens"][0, index] = TEXT
        fields["is_first"][0, slot] = fields["is_last"][0, slot + len(turns) - 1] = True
        for (refines, before), after in turns:
            fields["present"][0, slot], fields["refines"][0, slot] = True, refines
            fields["prompt_index"][0, slot] = index
            fields["before_tokens"][0, slot] = TEXT if before else ABSENT
            fields["after_tokens"][0, slot] = TEXT if after else ABSENT
            slot += 1
    return Batch(**{name: jnp.asarray(value) for name, value in fields.items()})


def test_a_process_trajectory_learns_when_to_refine_go_on_and_stop():
    """An inspected and corrected draft, a slip, and a draft that ends the trajectory."""
    rows = batch([(DRAFT, 1), (REFINE, 0), (DRAFT, 0), (DRAFT, 1)])
    found = labels(rows, IDS)
    same(found["prompt_end"][0], [IDS.ins, PAD])
    same(found["before"][0, 0], [20, 4, IDS.vision_start, PAD])
    same(found["before"][0, 1], [20, 4, IDS.vision_start, PAD])
    same(found["image_end"][0], [IDS.im_start, IDS.ins, IDS.ins, IDS.im_start, PAD])
    same(found["after"][0, 0], [20, 4, IDS.refine, PAD])
    same(found["after"][0, 3], [20, 4, IDS.end_of_text, PAD])
    for name, absent in (("before", [4]), ("after", [1, 2, 4])):
        assert (found[name][0, jnp.asarray(absent)] == PAD).all()
    same(follows(rows, IDS)[0], [IDS.refine, IDS.ins, IDS.ins, IDS.end_of_text, PAD])


def test_nobody_learns_what_follows_where_a_trajectory_goes_on_in_another_row():
    rows = batch([(DRAFT, 1), (DRAFT, 0)], [(DRAFT, 0), (DRAFT, 1)])
    rows = rows.replace(is_last=jnp.zeros_like(rows.is_last))
    found = labels(rows, IDS)
    same(found["image_end"][0], [IDS.im_start, PAD, IDS.ins, IDS.im_start, PAD])
    same(found["after"][0, [0, 3], 2], [IDS.ins, PAD])


def test_two_corrections_of_a_draft_ask_for_one_after_the_other():
    found = labels(batch([(DRAFT, 1), (REFINE, 1), (REFINE, 1), (DRAFT, 0)]), IDS)
    same(found["after"][0, :3, 2], [IDS.refine, IDS.refine, IDS.ins])
    same(found["image_end"][0], [IDS.im_start, IDS.im_start, IDS.im_start, IDS.end_of_text, PAD])
    same(found["before"][0, :4, 2], [IDS.vision_start] * 4)


def test_without_an_inspection_the_image_decides_what_follows():
    found = labels(batch([(DRAFT, 0), (REFINE, 0), (REFINE, 0)], [(BARE, 0), (BARE, 0)]), IDS)
    assert (found["after"] == PAD).all()
    same(found["image_end"][0], [IDS.refine, IDS.refine, IDS.end_of_text, IDS.vision_start, IDS.end_of_text])
    same(found["prompt_end"][0], [IDS.ins, IDS.vision_start])


def test_an_inspection_before_a_draft_without_a_plan_opens_its_image():
    found = labels(batch([(BARE, 1), (BARE, 1)]), IDS)
    same(found["after"][0, :2, 2], [IDS.vision_start, IDS.end_of_text])
    assert (found["before"] == PAD).all()


def test_the_baselines_open_an_image_and_stop():
    single = labels(batch([(BARE, 0)]), IDS)
    same(single["prompt_end"][0], [IDS.vision_start, PAD])
    same(single["image_end"][0], [IDS.end_of_text, PAD, PAD, PAD, PAD])
    assert all((single[name] == PAD).all() for name in ("before", "after"))
    planned = labels(batch([(DRAFT, 0)], [(BARE, 0)]), IDS)
    same(planned["prompt_end"][0], [IDS.ins, IDS.vision_start])
    same(planned["image_end"][0], [IDS.end_of_text] * 2 + [PAD] * 3)


def test_what_follows_does_not_look_into_the_next_trajectory():
    """A draft that is corrected stands right behind one that ends."""
    found = labels(batch([(DRAFT, 0)], [(DRAFT, 1), (REFINE, 0)]), IDS)
    same(found["image_end"][0], [IDS.end_of_text, IDS.im_start, IDS.end_of_text, PAD, PAD])


def test_labels_do_not_depend_on_weights():
    """Words that are not to be learned weigh nothing; what closes them is asked all the same."""
    rows = batch([(DRAFT, 1), (REFINE, 1), (DRAFT, 0)])
    weights = {name: getattr(rows, name) + 1 for name in ("before_weight", "image_weight", "after_weight")}
    found, weighted = labels(rows, IDS), labels(rows.replace(**weights), IDS)
    for name, value in found.items():
        same(value, weighted[name])


def test_a_full_slot_still_closes():
    tokens = jnp.asarray([[3, 20, 21, 4], [3, 4, PAD, PAD]])
    same(next_tokens(tokens, 9), [[20, 21, 4, 9], [4, 9, PAD, PAD]])
