"""Turns, the steps that they group into, and which image a flow target shows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from process_gen.trajectory.markup import SPECIAL_TOKENS, Malformed
from process_gen.trajectory.stages import (
    TURN_FIELDS,
    Plan,
    Trajectory,
    Turn,
    draft,
    refinement,
    steps_of,
    targets_of,
)

PLAN = Plan("draw a circle", "one circle")


def image(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def test_the_table_of_fields_is_that_of_a_turn():
    fields = {field.name: field for field in dataclasses.fields(Turn)}
    assert {field.name for field in TURN_FIELDS} == set(fields) - {"extra"}
    for field in TURN_FIELDS:
        assert field.type == "image" or fields[field.name].default == field.default, field.name


def test_a_turn_says_what_its_text_is():
    first, correction = draft(image(1), PLAN, "fine"), refinement(image(2), "move it")
    assert (first.refines, correction.refines) == (False, True)
    assert (first.plan, first.instruction, first.after) == (PLAN, None, "fine")
    assert (correction.plan, correction.instruction, correction.after) == (None, "move it", None)
    assert first.before == "<ins>draw a circle</ins><des>one circle</des>"
    assert correction.before == "<refine>move it</refine>"
    assert draft(image(1)).plan is None and Turn(image(1), refines=True).instruction is None


def test_malformed_text_is_a_value():
    plan, instruction = Turn(image(1), "draw").plan, Turn(image(2), "<refine>move", refines=True).instruction
    assert isinstance(plan, Malformed) and plan.text == "draw"
    assert isinstance(instruction, Malformed) and "never closed" in instruction.reason


@pytest.mark.parametrize("token", (*SPECIAL_TOKENS, "\ud83d"))
def test_texts_that_people_write_hold_no_special_tokens_nor_halves_of_characters(token):
    for make in (
        lambda text: draft(image(1), Plan(text, "a")),
        lambda text: draft(image(1), PLAN, text),
        lambda text: refinement(image(1), text),
        lambda text: refinement(image(1), "a", text),
    ):
        with pytest.raises(ValueError, match="must not contain the token|holds an unpaired surrogate"):
            make(f"a {token} b")


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_images_are_bytes_with_three_channels(wrong):
    with pytest.raises(ValueError, match=r"an image must be \[height, width, 3\] uint8, got \["):
        Turn(wrong)


def test_a_step_is_a_draft_and_what_corrects_it():
    turns = (
        draft(image(0), PLAN, "no"),
        refinement(image(1), "once", "still no"),
        refinement(image(2), "twice"),
        draft(image(3)),
    )
    trajectory = Trajectory("a", turns)
    first, second = trajectory.steps
    assert first.turns == turns[:3] and second.turns == turns[3:] and steps_of(turns)[0].draft is turns[0]
    assert (first.plan, first.inspect, first.refine) == (PLAN, "no", "once")
    assert [x[0, 0, 0] for x in (first.sketch, first.refined, first.image)] == [0, 2, 2]
    assert second.refine is None and second.refined is None and second.image[0, 0, 0] == 3
    assert trajectory.image[0, 0, 0] == 3 and trajectory.corrections == 2
    assert Trajectory("a", turns[3:]).corrections == 0


def test_the_target_of_a_wrong_image_is_what_its_step_comes_to():
    right, wrong = dict(image_ok=True), dict(image_ok=False)

    def targets(*turns):
        made = [
            draft(image(0), **how) if kind == "d" else refinement(image(0), "a", **how) for kind, how in turns
        ]
        return targets_of(made)

    assert targets(("d", right), ("d", wrong), ("d", right)) == [0, -1, 2], "a slip has none"
    assert targets(("d", wrong), ("r", right), ("d", right)) == [1, 1, 2]
    assert targets(("d", right), ("r", right)) == [0, 1], "a right draft is its own, corrected or not"
    assert targets(("d", wrong), ("r", wrong), ("r", right)) == [2, 2, 2], "over two corrections"
    assert targets(("d", wrong), ("r", right), ("r", wrong)) == [-1, 1, -1], "the last one is what counts"
    assert targets(("d", wrong), ("d", wrong), ("r", right)) == [-1, 2, 2], "and of its own step"


def test_what_is_no_trajectory_is_refused():
    with pytest.raises(ValueError, match="'x' has no turns"):
        Trajectory("a", (), "x")
    with pytest.raises(ValueError, match="'x' begins with a refine turn: there is nothing to correct"):
        Trajectory("a", (refinement(image(1), "b"),), "x")
