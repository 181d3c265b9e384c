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
from process_gen.trajectory.batch import PAD_ID, PROMPT_FIELDS, Batch
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Plan, Refinement, Step, Trajectory

LAYOUT = Layout(image_size=(8, 8), latent_grid=(2, 2), steps=4)


def test_a_prompt_stands_in_brackets_and_is_padded(toy_tokenizer):
    tokens = encode_prompt(toy_tokenizer, LAYOUT, "a red circle")
    assert tokens.shape == (LAYOUT.prompt,) and tokens.dtype == np.int32
    assert tokens[0] == toy_tokenizer.im_start and tokens[4] == toy_tokenizer.im_end
    assert toy_tokenizer.decode(tokens) == "a red circle"
    assert (tokens[5:] == PAD_ID).all()


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_prompt_is_refused(toy_tokenizer, text):
    with pytest.raises(ValueError, match="the prompt is empty"):
        encode_prompt(toy_tokenizer, LAYOUT, text)


def test_a_prompt_fills_its_slot_and_one_token_more_says_how_many_fit(toy_tokenizer):
    fits = LAYOUT.prompt - 2
    assert encode_prompt(toy_tokenizer, LAYOUT, " ".join(["circle"] * fits)).min() > PAD_ID
    with pytest.raises(SlotOverflow, match=r"text has 39 tokens, 38 fit \(layout.prompt = 40") as info:
        encode_prompt(toy_tokenizer, LAYOUT, " ".join(["circle"] * (fits + 1)))
    assert (info.value.slot, info.value.needed, info.value.fits) == ("prompt", fits + 1, fits)


def test_a_trajectory_fills_the_fields_of_a_batch(toy_tokenizer, make_trajectory):
    trajectory = make_trajectory(11, steps=3)
    arrays = encode_trajectory(toy_tokenizer, LAYOUT, trajectory)
    spec = Batch.spec(dataclasses.replace(LAYOUT, steps=3), 1)
    assert set(arrays) == {name for name, field in vars(spec).items() if field is not None}
    for name, value in arrays.items():
        expected = getattr(spec, name)
        assert value.dtype == expected.dtype, name
        assert value.shape == expected.shape[2 if name in PROMPT_FIELDS else 1 :], name
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
        assert arrays["plan_ok"][index] == step.plan_ok


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


SHOWN = dataclasses.replace(LAYOUT, prompt_image=True, instruction=9)
IMAGE = np.full((8, 8, 3), 9, np.uint8)


def _with_input(prompt="", instruction="a blue star", image=IMAGE) -> Trajectory:
    return dataclasses.replace(_one_step(), prompt=prompt, instruction=instruction, prompt_image=image)


def test_a_prompt_may_hold_an_image_between_two_texts(toy_tokenizer):
    arrays = encode_trajectory(toy_tokenizer, SHOWN, _with_input("a red circle"))
    assert toy_tokenizer.decode(arrays["prompt_tokens"]) == "a red circle"
    assert toy_tokenizer.decode(arrays["instruction_tokens"]) == "a blue star"
    assert arrays["has_prompt_image"] and (arrays["prompt_image"] == 9).all()
    spec = Batch.spec(SHOWN, 1)
    for name in PROMPT_FIELDS[:4]:
        wanted = getattr(spec, name)
        assert (arrays[name].shape, arrays[name].dtype) == (wanted.shape[2:], wanted.dtype)


def test_either_text_around_an_input_image_may_be_absent(toy_tokenizer):
    arrays = encode_trajectory(toy_tokenizer, SHOWN, _with_input())
    assert (arrays["prompt_tokens"] == PAD_ID).all()
    assert arrays["instruction_tokens"][0] == toy_tokenizer.im_start
    arrays = encode_trajectory(toy_tokenizer, SHOWN, _with_input("a red circle", ""))
    assert (arrays["instruction_tokens"] == PAD_ID).all() and arrays["has_prompt_image"]
    arrays = encode_trajectory(toy_tokenizer, SHOWN, _one_step())
    assert not arrays["has_prompt_image"] and not arrays["prompt_image"].any()
    with pytest.raises(BadTrajectory, match="'toy-7': the prompt is empty"):
        encode_trajectory(toy_tokenizer, SHOWN, _with_input("", ""))


def test_an_input_image_needs_its_place_in_the_layout(toy_tokenizer):
    with pytest.raises(BadTrajectory, match="'toy-7': its prompt holds an image, set layout.prompt_image"):
        encode_trajectory(toy_tokenizer, LAYOUT, _with_input())
    with pytest.raises(BadTrajectory, match="'toy-7': its prompt holds a text after its image, set"):
        encode_trajectory(toy_tokenizer, dataclasses.replace(SHOWN, instruction=0), _with_input())
    with pytest.raises(SlotOverflow, match=r"instruction text has 8 tokens, 7 fit \(layout.instruction = 9"):
        encode_trajectory(toy_tokenizer, SHOWN, _with_input("", " ".join(["circle"] * 8)))
    with pytest.raises(BadTrajectory, match=r"'toy-7': an image is uint8\[4, 4, 3\]"):
        encode_trajectory(toy_tokenizer, SHOWN, _with_input(image=IMAGE[:4, :4]))
