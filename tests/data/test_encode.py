import dataclasses

import numpy as np
import pytest

from process_gen.data.encode import encode_trajectory
from process_gen.data.errors import BadTrajectory, SlotOverflow, TooLong
from process_gen.trajectory.batch import PAD_ID, PROMPT_FIELDS, Batch
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Plan, Trajectory, Turn, draft, refinement, targets_of, turn_fields
from tests.data.conftest import random_trajectory

IMAGE = np.full((8, 8, 3), 9, np.uint8)
LAYOUT = Layout(image_size=(8, 8), latent_grid=(2, 2), turns=4)


def encode_prompt(tokenizer, layout: Layout, text: str) -> np.ndarray:
    return encode_trajectory(tokenizer, layout, Trajectory(text, (draft(IMAGE),)))["prompt_tokens"]


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <refine> circle", "the prompt must not contain the token <refine>"),
        ("a <|im_end|>", r"the prompt must not contain the token <\|im_end\|>"),
        ("a circle \ud83d", r"the prompt holds an unpaired surrogate, '\\ud83d', behind 'a circle '"),
    ],
)
def test_a_prompt_is_text_and_nothing_else(toy_tokenizer, text, message):
    with pytest.raises(BadTrajectory, match=message):
        encode_prompt(toy_tokenizer, LAYOUT, text)
    with pytest.raises(BadTrajectory, match=f"trajectory 'toy-7': {message}"):
        encode_trajectory(toy_tokenizer, LAYOUT, Trajectory(text, (draft(IMAGE),), "toy-7"))
    message = message.replace("the prompt ", "the text after the prompt's image ", 1)
    with pytest.raises(BadTrajectory, match=f"trajectory 'toy-7': {message}"):
        encode_trajectory(toy_tokenizer, SHOWN, _with_input(instruction=text))


def test_a_prompt_fills_its_slot_and_one_token_more_says_how_many_fit(toy_tokenizer):
    fits = LAYOUT.prompt - 2
    assert encode_prompt(toy_tokenizer, LAYOUT, " ".join(["circle"] * fits)).min() > PAD_ID
    with pytest.raises(SlotOverflow, match=r"the prompt has 39 tokens, 38 fit \(layout.prompt = 40"):
        encode_prompt(toy_tokenizer, LAYOUT, " ".join(["circle"] * (fits + 1)))


@pytest.mark.parametrize("seed", [11, 3, 5])
def test_a_trajectory_fills_the_fields_of_a_batch(toy_tokenizer, seed):
    trajectory = random_trajectory(seed, steps=3, twice=0.5)
    turns = trajectory.turns
    layout = dataclasses.replace(LAYOUT, turns=len(turns), corrections=2)
    arrays = encode_trajectory(toy_tokenizer, layout, trajectory)
    spec = Batch.spec(layout, 1)
    assert set(arrays) == {name for name, field in vars(spec).items() if field is not None}
    for name, value in arrays.items():
        expected = getattr(spec, name)
        assert value.dtype == expected.dtype, name
        assert value.shape == expected.shape[2 if name in PROMPT_FIELDS else 1 :], name
    assert arrays["present"].all()
    assert arrays["is_first"].tolist() == [True] + [False] * (len(turns) - 1)
    assert arrays["is_last"].tolist() == [False] * (len(turns) - 1) + [True]
    for index, turn in enumerate(turns):
        assert toy_tokenizer.decode(arrays["before_tokens"][index]) == (turn.before or "")
        assert toy_tokenizer.decode(arrays["after_tokens"][index]) == (turn.after or "")
        np.testing.assert_array_equal(arrays["image"][index], turn.image)
        assert arrays["refines"][index] == turn.refines
        for field in turn_fields("weight"):
            assert arrays[field.name][index] == getattr(turn, field.name)
        target = arrays["target"][index]
        assert targets_of(turns)[index] == (index + target if target >= 0 else -1)


def test_a_correction_gives_the_draft_its_target(toy_tokenizer):
    """Offsets: to itself, over two corrections to the last one, and none where that one is wrong too."""
    right, wrong = dict(image_ok=True), dict(image_ok=False)
    layout = dataclasses.replace(LAYOUT, turns=9, corrections=2)

    def offsets(*turns):
        made = [draft(IMAGE, **how) if kind == "d" else refinement(IMAGE, "a", **how) for kind, how in turns]
        return encode_trajectory(toy_tokenizer, layout, Trajectory("a", tuple(made)))["target"].tolist()

    assert offsets(("d", right)) == [0]
    assert offsets(("d", wrong), ("d", right)) == [-1, 0]
    assert offsets(("d", wrong), ("r", wrong), ("r", right), ("d", right)) == [2, 1, 0, 0]
    assert offsets(("d", wrong), ("r", right), ("r", wrong), ("d", wrong), ("r", right)) == [-1, 0, -1, 1, 0]


def _one_turn(*more: Turn, **fields) -> Trajectory:
    return Trajectory("a red circle", (draft(np.zeros((8, 8, 3), np.uint8), **fields), *more), uid="toy-7")


@pytest.mark.parametrize(
    ("slot", "trajectory"),
    [
        ("before", _one_turn(plan=Plan("a red circle", "circle " * 50))),
        ("before", _one_turn(refinement(IMAGE, "circle " * 50))),
        ("after", _one_turn(inspect="circle " * 50)),
        ("after", _one_turn(refinement(IMAGE, "circle", "circle " * 50))),
    ],
)
def test_an_overflow_names_the_trajectory_and_the_slot(toy_tokenizer, slot, trajectory):
    text = {"before": r"text before an image \(a plan or a refine instruction\)", "after": "inspection"}[slot]
    room = getattr(LAYOUT, slot)
    message = rf"trajectory 'toy-7': the {text} has \d+ tokens, {room - 2} fit \(layout.{slot} = {room},"
    with pytest.raises(SlotOverflow, match=message):
        encode_trajectory(toy_tokenizer, LAYOUT, trajectory)


def test_a_layout_without_a_slot_leaves_inspections_out_and_refuses_plans(toy_tokenizer):
    bare = dataclasses.replace(LAYOUT, after=0)
    for trajectory in (_one_turn(), _one_turn(inspect="circle " * 50)):
        assert encode_trajectory(toy_tokenizer, bare, trajectory)["after_tokens"].shape == (1, 0)
    bare = dataclasses.replace(LAYOUT, before=0)
    with pytest.raises(SlotOverflow, match=r"the text before an image .* tokens"):
        encode_trajectory(toy_tokenizer, bare, _one_turn(plan=Plan("a", "circle")))


def test_what_does_not_fit_the_layout_is_named(toy_tokenizer):
    five = Trajectory("a", (draft(IMAGE),) * 5, "toy-1")
    with pytest.raises(TooLong, match=r"'toy-1': 5 turns, a row has 4 turn slots \(layout.turns\)") as info:
        encode_trajectory(toy_tokenizer, LAYOUT, five)
    assert (info.value.turns, info.value.slots) == (5, 4)
    with pytest.raises(BadTrajectory, match="'toy-7': a step is corrected 2 times, set layout.corrections=2"):
        encode_trajectory(toy_tokenizer, LAYOUT, _one_turn(*[refinement(IMAGE, "circle")] * 2))
    with pytest.raises(BadTrajectory, match=r"'toy-1': an image is uint8\[4, 4, 3\], .* uint8\[8, 8, 3\]"):
        encode_trajectory(toy_tokenizer, LAYOUT, random_trajectory(1, steps=1, image_size=(4, 4)))
    for turn, message in (
        (Turn(IMAGE, "<ins>a <des> b</ins><des>c</des>"), "the text of a plan is malformed: <des> inside"),
        (Turn(IMAGE, "a", refines=True), "the text of a refine instruction is malformed: expected <refine>"),
        (Turn(IMAGE, None, "<refine>x"), "an inspection must not contain the token <refine>"),
        (Turn(IMAGE, None, "\ud83d"), "an inspection holds an unpaired surrogate"),
        (Turn(IMAGE, "<refine>\ud83d</refine>", refines=True), "a text before an image holds an unpaired"),
    ):
        with pytest.raises(BadTrajectory, match=f"'toy-7': {message}"):
            encode_trajectory(toy_tokenizer, LAYOUT, _one_turn(turn))


SHOWN = dataclasses.replace(LAYOUT, prompt_image=True, instruction=9)


def _with_input(prompt="", instruction="a blue star", image=IMAGE) -> Trajectory:
    return dataclasses.replace(_one_turn(), prompt=prompt, instruction=instruction, prompt_image=image)


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
    arrays = encode_trajectory(toy_tokenizer, SHOWN, _one_turn())
    assert not arrays["has_prompt_image"] and not arrays["prompt_image"].any()
    with pytest.raises(BadTrajectory, match="'toy-7': the prompt is empty"):
        encode_trajectory(toy_tokenizer, SHOWN, _with_input("", ""))


def test_an_input_image_needs_its_place_in_the_layout(toy_tokenizer):
    with pytest.raises(BadTrajectory, match="'toy-7': its prompt holds an image, set layout.prompt_image"):
        encode_trajectory(toy_tokenizer, LAYOUT, _with_input())
    with pytest.raises(BadTrajectory, match="'toy-7': its prompt holds a text after its image, set"):
        encode_trajectory(toy_tokenizer, dataclasses.replace(SHOWN, instruction=0), _with_input())
    with pytest.raises(
        SlotOverflow, match=r"the prompt's image has 8 tokens, 7 fit \(layout.instruction = 9"
    ):
        encode_trajectory(toy_tokenizer, SHOWN, _with_input("", " ".join(["circle"] * 8)))
    with pytest.raises(BadTrajectory, match=r"'toy-7': an image is uint8\[4, 4, 3\]"):
        encode_trajectory(toy_tokenizer, SHOWN, _with_input(image=IMAGE[:4, :4]))
