import dataclasses

import numpy as np
import pytest

from process_gen.data.fake import FIRST_WORD, IM_END, IM_START, empty_row, fake_batch
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.layout import Layout

LAYOUT = Layout(image_size=(16, 16), latent_grid=(2, 2), steps=6, trajectories=3)


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
    assert not np.array_equal(first["sketch"], other["sketch"])


def test_the_structure_of_a_fake_batch_is_valid():
    batch = fake_batch(LAYOUT, 64, seed=3, vocab=40)
    present, reset, last, ok = (batch[name] for name in ("present", "reset", "last", "sketch_ok"))
    slots = ("plan", "inspect", "refine")
    planned, inspected, refined = (batch[f"{slot}_tokens"][..., 0] != PAD_ID for slot in slots)
    assert present[:, 0].all() and reset[:, 0].all()
    assert not (present[:, 1:] & ~present[:, :-1]).any(), "empty slots stand behind the filled ones"
    for flag in (reset, last, ok, planned, inspected, refined):
        assert not (flag & ~present).any()
    np.testing.assert_array_equal((reset.cumsum(1) - 1)[present], batch["prompt_index"][present])
    follows = np.concatenate([reset[:, 1:] | ~present[:, 1:], np.ones((64, 1), bool)], 1)
    np.testing.assert_array_equal(last, follows & present)
    assert not (refined & (ok | ~inspected)).any(), "a refined draft was wrong and was inspected"
    np.testing.assert_array_equal(refined, batch["refined"].any((-1, -2, -3)))
    slips = present & ~ok & ~refined
    assert not (slips & last).any(), "the step after a slip repairs it"
    # Every case occurs.
    for case in (slips, refined, present & ~inspected, present & ~planned, ~present):
        assert case.any()


def test_fake_texts_stand_in_brackets_and_below_the_vocabulary():
    batch = fake_batch(LAYOUT, 16, seed=4, vocab=40)
    for slot in ("prompt", "plan", "inspect", "refine"):
        for text in batch[f"{slot}_tokens"].reshape(-1, getattr(LAYOUT, slot)):
            words = text[text != PAD_ID]
            if len(words):
                assert words[0] == IM_START and words[-1] == IM_END and len(words) >= 3
                assert (text[: len(words)] != PAD_ID).all(), "no padding inside a text"
                assert ((FIRST_WORD < words[1:-1]) | (words[1:-1] == 0)).all() and (words < 40).all()


def test_a_vocabulary_without_words_is_refused():
    with pytest.raises(ValueError, match="more than 13 ids, got 13"):
        fake_batch(LAYOUT, 1, vocab=13)


def test_input_images_are_there_where_the_layout_has_room():
    layout = dataclasses.replace(LAYOUT, prompt_image=True, instruction=6)
    batch, spec = fake_batch(layout, 32, seed=5, vocab=40), Batch.spec(layout, 32)
    for name, value in batch.items():
        assert (value.shape, value.dtype) == (getattr(spec, name).shape, getattr(spec, name).dtype), name
    there = batch["has_prompt_image"]
    assert 0 < there.sum() < there.size
    np.testing.assert_array_equal(there, batch["prompt_image"].any((-1, -2, -3)))
    np.testing.assert_array_equal(there, (batch["instruction_tokens"] != PAD_ID).any(-1))
