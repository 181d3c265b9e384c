"""A sampled trajectory is a trajectory, and how it came to be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from process_gen.trajectory.markup import Malformed
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Mode, Plan, Trajectory, Turn, draft, refinement

PLAN = "<ins>draw a circle</ins><des>one circle</des>"


def image(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def trajectory(*turns: Turn, **changes) -> SampledTrajectory:
    return SampledTrajectory("a circle", turns or (Turn(image(1), PLAN),), **{"seed": 3, **changes})


def test_it_is_a_trajectory_with_the_same_steps():
    turns = (
        Turn(image(1), PLAN, "wrong place"),
        refinement(image(2), "move it"),
        Turn(image(3), "<ins>broken", "fine"),
        Turn(image(4), "<refine>broken", refines=True),
    )
    sampled = trajectory(*turns, uid="x", sampling_steps=24, seconds=0.5, given=1, verdict={"ok": True})
    assert isinstance(sampled, Trajectory) and sampled.prompt == "a circle" and sampled.uid == "x"
    first, second = sampled.steps
    assert (first.plan, first.inspect, first.refine) == (
        Plan("draw a circle", "one circle"),
        "wrong place",
        "move it",
    )
    assert first.image[0, 0, 0] == 2 and sampled.image[0, 0, 0] == 4
    assert isinstance(second.plan, Malformed) and isinstance(second.refine, Malformed)
    assert (sampled.mode, sampled.seed, sampled.stopped, sampled.given) == (Mode.PROCESS, 3, "model", 1)


def test_nothing_drawn_is_no_trajectory():
    with pytest.raises(ValueError, match="no turns"):
        SampledTrajectory("a", ())
    with pytest.raises(ValueError, match="begins with a refine turn"):
        trajectory(refinement(image(1), "a"))


def test_a_verdict_can_be_added():
    judged = dataclasses.replace(trajectory(draft(image(1))), verdict={"ok": False})
    assert judged.verdict == {"ok": False} and judged.image[0, 0, 0] == 1
