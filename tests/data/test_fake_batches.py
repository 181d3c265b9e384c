import dataclasses

import numpy as np

from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.layout import Layout
from tests.data.fake import FIRST_WORD, IM_END, IM_START, empty_row, fake_batch

LAYOUT = Layout(image_size=(16, 16), latent_grid=(2, 2), turns=8, trajectories=3, corrections=2)


def test_a_fake_batch_has_the_shapes_and_types_of_the_spec():
    spec, batch = Batch.spec(LAYOUT, 4), Batch(**fake_batch(LAYOUT, 4))
    for name in Batch.__dataclass_fields__:
        expected, actual = getattr(spec, name), getattr(batch, name)
        assert (expected is None) == (actual is None), name
        if expected is None:
            continue
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), name
    assert set(empty_row(LAYOUT)) == {name for name, field in vars(spec).items() if field is not None}


def test_a_fake_batch_depends_on_its_arguments_only():
    first, again, other = (fake_batch(LAYOUT, 3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_equal(first, again)
    assert not np.array_equal(first["image"], other["image"])


def test_the_structure_of_a_fake_batch_is_valid():
    batch = fake_batch(LAYOUT, 64, seed=3, vocab=40)
    present, first, last, refines = (batch[name] for name in ("present", "is_first", "is_last", "refines"))
    before, after = (batch[f"{slot}_tokens"][..., 0] != PAD_ID for slot in ("before", "after"))
    assert present[:, 0].all() and first[:, 0].all()
    assert not (present[:, 1:] & ~present[:, :-1]).any(), "empty slots stand behind the filled ones"
    weights = [batch[name] for name in ("before_weight", "image_weight", "after_weight")]
    for flag in (first, last, refines, before, after, batch["target"] != 0, *(x != 0 for x in weights)):
        assert not (flag & ~present).any()
    np.testing.assert_array_equal((first.cumsum(1) - 1)[present], batch["prompt_index"][present])
    follows = np.concatenate([first[:, 1:] | ~present[:, 1:], np.ones((64, 1), bool)], 1)
    np.testing.assert_array_equal(last, follows & present)
    np.testing.assert_array_equal(present, batch["image"].any((-1, -2, -3)))
    corrected = np.concatenate([refines[:, 1:], np.zeros((64, 1), bool)], 1)
    assert not (refines & ~before).any(), "a refine turn has its instruction"
    assert not (refines & first).any(), "there is nothing to correct before the first draft"
    assert not (corrected & (~after | last)).any(), "what is corrected was inspected"
    runs = np.stack([refines[:, i : 6 + i].astype(int) for i in range(3)])
    assert runs.sum(0).max() == LAYOUT.corrections, "two corrections of a step occur, and never three"
    ends = present & ~corrected  # of steps
    for row, slot in np.argwhere(corrected):
        assert batch["target"][row, slot] == ends[row, slot:].argmax(), (
            "a wrong draft's is the last of its step"
        )
    assert (batch["target"][ends] <= 0).all()
    slips = present & (batch["target"] < 0)
    assert not (slips & last).any(), "the step after a slip repairs it"
    # Every case occurs.
    unlearned = present & (weights[0] == 0)
    for case in (slips, corrected, refines & after, present & ~after, present & ~before, ~present, unlearned):
        assert case.any()


def test_fake_texts_stand_in_brackets_and_below_the_vocabulary():
    batch = fake_batch(LAYOUT, 16, seed=4, vocab=40)
    for slot in ("prompt", "before", "after"):
        for text in batch[f"{slot}_tokens"].reshape(-1, getattr(LAYOUT, slot)):
            words = text[text != PAD_ID]
            if len(words):
                assert words[0] == IM_START and words[-1] == IM_END and len(words) >= 3
                assert (text[: len(words)] != PAD_ID).all(), "no padding inside a text"
                assert ((FIRST_WORD < words[1:-1]) | (words[1:-1] == 0)).all() and (words < 40).all()


def test_input_images_are_there_where_the_layout_has_room():
    layout = dataclasses.replace(LAYOUT, prompt_image=True, instruction=6)
    batch, spec = fake_batch(layout, 32, seed=5, vocab=40), Batch.spec(layout, 32)
    for name, value in batch.items():
        assert (value.shape, value.dtype) == (getattr(spec, name).shape, getattr(spec, name).dtype), name
    there = batch["has_prompt_image"]
    assert 0 < there.sum() < there.size
    np.testing.assert_array_equal(there, batch["prompt_image"].any((-1, -2, -3)))
    np.testing.assert_array_equal(there, (batch["instruction_tokens"] != PAD_ID).any(-1))
