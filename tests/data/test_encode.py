import dataclasses

import numpy as np
import pytest

from process_gen.data.encode import (
    BadTrajectory,
    SlotOverflow,
    TooManySteps,
    encode_prompt,
    encode_trajectory,
)
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Plan, Refinement, Step, Trajectory

LAYOUT = Layout(image_size=(8, 8), latent_grid=(2, 2), steps=4)


def test_a_prompt_stands_in_brackets_and_is_padded(toy_tokenizer):
    tokens = encode_prompt(toy_tokenizer, LAYOUT, "a red circle")
    assert tokens.shape == (LAYOUT.prompt,) and tokens.dtype == np.int32
    assert tokens[0] == toy_tokenizer.im_start and tokens[4] == toy_tokenizer.im_end
    assert toy_tokenizer.decode(tokens) == "a red circle"
    assert not tokens[5:].any()


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_prompt_is_refused(toy_tokenizer, text):
    with pytest.raises(ValueError, match="the prompt is empty"):
        encode_prompt(toy_tokenizer, LAYOUT, text)


def test_a_prompt_fills_its_slot_and_one_token_more_says_how_many_fit(toy_tokenizer):
    fits = LAYOUT.prompt - 2
    assert encode_prompt(toy_tokenizer, LAYOUT, " ".join(["circle"] * fits)).all()
    with pytest.raises(SlotOverflow, match=r"text has 39 tokens, 38 fit \(layout.prompt = 40") as info:
        encode_prompt(toy_tokenizer, LAYOUT, " ".join(["circle"] * (fits + 1)))
    assert (info.value.slot, info.value.needed, info.value.fits) == ("prompt", fits + 1, fits)


def test_a_trajectory_fills_the_fields_of_a_batch(toy_tokenizer, make_trajectory):
    trajectory = make_trajectory(11, steps=3)
    arrays = encode_trajectory(toy_tokenizer, LAYOUT, trajectory)
    spec = Batch.spec(dataclasses.replace(LAYOUT, steps=3), 1)
    assert set(arrays) == set(Batch.__dataclass_fields__)
    for name, value in arrays.items():
        expected = getattr(spec, name)
        assert value.dtype == expected.dtype, name
        assert value.shape == expected.shape[2 if name == "prompt_tokens" else 1 :], name
    assert arrays["reset"].tolist() == [True, False, False]
    assert arrays["last"].tolist() == [False, False, True]
    for index, step in enumerate(trajectory.steps):
        plan = toy_tokenizer.decode(arrays["plan_tokens"][index])
        assert plan == f"<ins>{step.plan.instruction}</ins><des>{step.plan.description}</des>"
        assert toy_tokenizer.decode(arrays["inspect_tokens"][index]) == (step.inspect or "")
        np.testing.assert_array_equal(arrays["sketch"][index], step.sketch)
        refined = step.refine.image if step.refine else np.zeros((8, 8, 3))
        np.testing.assert_array_equal(arrays["refined"][index], refined)
        assert arrays["sketch_ok"][index] == step.sketch_ok


def _one_step(**fields) -> Trajectory:
    return Trajectory("a red circle", (Step(np.zeros((8, 8, 3), np.uint8), **fields),), uid="toy-7")


@pytest.mark.parametrize(
    ("slot", "fields"),
    [
        ("plan", {"plan": Plan("a red circle", "circle " * 50)}),
        ("inspect", {"inspect": "circle " * 50}),
        ("refine", {"refine": Refinement("circle " * 50, np.zeros((8, 8, 3), np.uint8))}),
    ],
)
def test_an_overflow_names_the_trajectory_and_the_stage(toy_tokenizer, slot, fields):
    message = rf"trajectory 'toy-7': the {slot} text has \d+ tokens, \d+ fit"
    with pytest.raises(SlotOverflow, match=message) as info:
        encode_trajectory(toy_tokenizer, LAYOUT, _one_step(**fields))
    assert (info.value.uid, info.value.slot, info.value.fits) == ("toy-7", slot, getattr(LAYOUT, slot) - 2)


def test_what_does_not_fit_the_layout_is_named(toy_tokenizer, make_trajectory):
    with pytest.raises(TooManySteps, match="'toy-1': 5 steps, a row has 4"):
        encode_trajectory(toy_tokenizer, LAYOUT, make_trajectory(1, steps=5))
    with pytest.raises(BadTrajectory, match=r"'toy-1': an image is uint8\[4, 4, 3\], .* uint8\[8, 8, 3\]"):
        encode_trajectory(toy_tokenizer, LAYOUT, make_trajectory(1, image_size=(4, 4)))
    with pytest.raises(BadTrajectory, match="'toy-7': .* must not contain the token <des>"):
        encode_trajectory(toy_tokenizer, LAYOUT, _one_step(plan=Plan("a <des> b", "c")))
    with pytest.raises(BadTrajectory, match="'toy-7': an inspection must not contain the token <refine>"):
        encode_trajectory(toy_tokenizer, LAYOUT, _one_step(inspect="<refine>x"))
