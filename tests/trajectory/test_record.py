"""A trajectory as one JSON object: what is written is what is read."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from process_gen.trajectory.record import (
    SAMPLED_KEYS,
    TURN_KEYS,
    RecordError,
    to_json,
    trajectory_from_json,
    trajectory_to_json,
    turn_to_json,
)
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import (
    TURN_FIELDS,
    Mode,
    Plan,
    Trajectory,
    Turn,
    draft,
    refinement,
    targets_of,
)

IMAGE = np.zeros((4, 6, 3), np.uint8)
PLAN = Plan("draw a circle", "one circle")


def through_json(trajectory, prompt_image=None):
    """The record of a trajectory, after its object has been a line of text."""
    paths = [f"images/{i}.png" for i in range(len(trajectory.turns))]
    return trajectory_from_json(json.loads(json.dumps(trajectory_to_json(trajectory, paths, prompt_image))))


TURNS = [
    draft(IMAGE),
    draft(IMAGE, PLAN),
    draft(IMAGE, PLAN, "fine", image_ok=False, before_weight=0.0, image_weight=0.5, after_weight=2.0),
    draft(IMAGE, Plan("", ""), ""),
    Turn(IMAGE, "<ins>a</ins> <des>b</des>"),  # a plan, but not as it is written
    Turn(IMAGE, "<ins>draw"),
    Turn(IMAGE, "", "<|im_end|> what a model wrote"),
    refinement(IMAGE, "move it", "fine now"),
    refinement(IMAGE, ""),
    Turn(IMAGE, refines=True),
    Turn(IMAGE, "<refine>move <des>it", refines=True, image_ok=False),
    Turn(IMAGE, "<ins>a</ins><des>b</des>", refines=True),
    Turn(IMAGE, "<refine>a</refine>"),
]


@pytest.mark.parametrize("turn", TURNS, ids=range(len(TURNS)))
def test_every_turn_comes_back(turn):
    record = through_json(Trajectory("a circle", (draft(IMAGE), turn)))
    found = record.turns[1]
    assert (found.image, found.image_field) == ("images/1.png", "turns[1].image")
    back = Turn(IMAGE, **found.fields)
    for field in TURN_FIELDS:
        assert field.type == "image" or getattr(back, field.name) == getattr(turn, field.name), field.name


def test_a_draft_before_a_correction_keeps_its_verdict():
    for ok in (True, False):
        record = through_json(Trajectory("a", (draft(IMAGE, image_ok=ok), refinement(IMAGE, "b"))))
        assert Turn(IMAGE, **record.turns[0].fields).image_ok is ok
    handmade = {"prompt": "a", "turns": [{"image": "a"}, {"image": "b", "refine": "c"}, {"image": "d"}]}
    found = [turn.fields.get("image_ok", True) for turn in trajectory_from_json(handmade).turns]
    assert found == [False, True, True], "what is corrected was wrong, where nothing else is said"


def test_a_turn_is_written_in_plain_words():
    assert turn_to_json(draft(IMAGE, PLAN, "fine"), "a.png") == {
        "instruction": "draw a circle",
        "description": "one circle",
        "image": "a.png",
        "inspect": "fine",
        "image_ok": True,
    }
    assert turn_to_json(refinement(IMAGE, "move it", before_weight=np.float32(0.5)), "b.png") == {
        "refine": "move it",
        "image": "b.png",
        "image_ok": True,
        "before_weight": 0.5,
    }
    assert turn_to_json(Turn(IMAGE, "<refine>a", refines=True), "c.png") == {
        "before": "<refine>a",
        "refines": True,
        "image": "c.png",
        "image_ok": True,
    }
    assert {"image", "refines", "before", "image_ok", "before_weight"} < set(
        TURN_KEYS
    ) and "after" not in TURN_KEYS


def test_a_trajectory_and_its_input_image_come_back():
    trajectory = Trajectory(
        "like this", (draft(IMAGE),), "x", {"n": np.int64(3), "of": {"b", "a"}}, IMAGE, "make it red"
    )
    record = through_json(trajectory, "in.png")
    assert (record.prompt, record.prompt_image, record.instruction) == ("like this", "in.png", "make it red")
    assert (record.uid, record.metadata, record.sampled) == ("x", {"n": 3, "of": ["a", "b"]}, {})
    plain = trajectory_to_json(Trajectory("a", (draft(IMAGE),)), ["a.png"])
    assert plain == {"prompt": "a", "turns": [{"image": "a.png", "image_ok": True}]}


def test_how_a_trajectory_was_sampled_comes_back():
    how = dict(
        mode=Mode.PLAN_ONLY,
        seed=3,
        stopped="cap",
        given=1,
        sampling_steps=24,
        seconds=0.5,
        verdict={"ok": np.bool_(True), "constraints": ({"text": "a", "ok": True, "reason": ""},)},
        doubts=(0.25, 1.0),
    )
    assert tuple(how) == SAMPLED_KEYS
    record = through_json(SampledTrajectory("a circle", (draft(IMAGE),), "x", {"mode": "mine"}, **how))
    wanted = how | {
        "mode": "plan_only",
        "verdict": {"ok": True, "constraints": [{"text": "a", "ok": True, "reason": ""}]},
    }
    assert record.sampled == wanted and record.metadata == {"mode": "mine"}
    silent = through_json(SampledTrajectory("a circle", (draft(IMAGE),)))
    assert not {"verdict", "doubts"} & silent.sampled.keys() and silent.sampled["seed"] == 0


def test_what_cannot_be_written_says_so():
    for value in ({"x": object()}, float("nan")):
        with pytest.raises(ValueError, match="object has no place in a record|not JSON compliant"):
            to_json(value)


def test_unknown_fields_are_kept_and_named_once(caplog):
    for key, nearest in (("verdikt", "verdict"), ("turn", "turns"), ("sampling_step", "sampling_steps")):
        for _ in range(2):
            found = trajectory_from_json({"prompt": "a", "turns": [{"image": "a", f"{key}_": 2}], key: 1})
        assert found.metadata == {key: 1, "turn_fields": [{f"{key}_": 2}]}
        assert (
            caplog.text.count(f"unknown field '{key}' of line is kept and not used; did you mean {nearest}")
            == 1
        )
    steps = {"prompt": "a", "steps": [{"sketch": "a", "own": 1, "refine": "b", "refined": "c"}]}
    assert trajectory_from_json(steps).metadata["turn_fields"] == [{"own": 1}, {}]


def test_bytes_of_an_unknown_field_are_not_kept():
    line = {"prompt": "a", "turns": [{"image": "a.png"}], "thing": {"bytes": b"x", "path": "p"}}
    assert trajectory_from_json(line).metadata["thing"] == {"path": "p"}
    assert trajectory_from_json(line | {"verdict": {"by": b"x"}}).sampled["verdict"] == {"by": b"x"}


def test_provenance_ends_up_in_the_metadata():
    given = {"source": "mine", "licence": "CC0", "author": "human"}
    found = trajectory_from_json({"prompt": "a", "turns": [{"image": "a", "sha256": "0f"}], **given})
    assert found.metadata == given and found.turns[0].sha256 == "0f"
    with pytest.raises(RecordError, match="author must be one of human, model, teacher, got 'me'"):
        trajectory_from_json({"prompt": "a", "turns": [{"image": "a"}], "author": "me"})


def test_images_may_be_bytes():
    turns = [{"image": {"bytes": b"abc", "path": None}}, {"image": {"bytes": None, "path": "b.png"}}]
    found = trajectory_from_json({"prompt": "a", "image": b"x", "instruction": "b", "turns": turns})
    assert [turn.image for turn in found.turns] == [b"abc", "b.png"] and found.prompt_image == b"x"


def test_a_correction_of_words_alone_ends_a_trajectory():
    turns = (draft(IMAGE, inspect="it floats"), refinement(None, "put it down"))
    trajectory = Trajectory("a", turns)
    record = trajectory_from_json(trajectory_to_json(trajectory, ["a.png", None]))
    assert record.turns[1].image is None
    assert trajectory.image is IMAGE and trajectory.steps[0].refined is None
    assert targets_of(turns) == [0, -1]
    assert targets_of((dataclasses.replace(turns[0], image_ok=False), turns[1])) == [-1, -1]
    for wrong in (
        {"turns": [{"image": "a"}, {"refine": "b"}, {"image": "c"}]},
        {"turns": [{"image": "a"}, {"refine": "b", "inspect": "c"}]},
        {"turns": [{}]},
    ):
        with pytest.raises(RecordError, match="image is missing"):
            trajectory_from_json({"prompt": "a", **wrong})
    with pytest.raises(ValueError, match="without an image is not its last one"):
        Trajectory("a", (*turns, draft(IMAGE)))
    with pytest.raises(ValueError, match="only a refine turn without an inspection may lack its image"):
        draft(None)
