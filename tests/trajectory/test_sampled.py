from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from process_gen.trajectory.markup import Malformed, write_refine
from process_gen.trajectory.sampled import SampledStep, SampledTrajectory
from process_gen.trajectory.stages import Mode, Plan

PLAN = "<ins>draw a circle</ins><des>one circle</des>"


def image(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def trajectory(*steps: SampledStep, **changes) -> SampledTrajectory:
    return SampledTrajectory("a circle", Mode.PROCESS, 3, steps, **{"stopped": "model", **changes})


def test_text_is_parsed_and_what_is_absent_stays_absent():
    step = SampledStep(PLAN, image(1), "fine", "<refine>move it</refine>", image(2))
    assert step.plan == Plan("draw a circle", "one circle")
    assert step.refine == "move it"
    assert SampledStep(sketch=image(1)).plan is None
    assert SampledStep(sketch=image(1)).refine is None


def test_malformed_text_is_a_value():
    step = SampledStep("draw", image(1), None, "<refine>move", image(2))
    assert isinstance(step.plan, Malformed) and step.plan.text == "draw"
    assert isinstance(step.refine, Malformed) and "never closed" in step.refine.reason


def test_the_final_image_is_the_newest_one_drawn():
    first, second = SampledStep(PLAN, image(1), refined=image(2)), SampledStep(PLAN)
    assert trajectory(first, second).image[0, 0, 0] == 2
    assert trajectory(first, SampledStep(PLAN, image(5))).image[0, 0, 0] == 5
    assert trajectory(second).image is None
    assert trajectory().image is None


def test_to_trajectory_keeps_stages_and_provenance():
    steps = (
        SampledStep(PLAN, image(1), "wrong place", write_refine("move it"), image(2)),
        SampledStep("<ins>broken", image(3), "fine"),
        SampledStep(PLAN),
    )
    sampled = trajectory(*steps, sampling_steps=24, seconds=0.5, verdict={"ok": True}, uid="x")
    result = sampled.to_trajectory()
    assert result.prompt == "a circle" and result.uid == "x"
    assert len(result.steps) == 2
    assert result.steps[0].plan == Plan("draw a circle", "one circle")
    assert result.steps[0].inspect == "wrong place"
    assert result.steps[0].refine.instruction == "move it"
    assert result.steps[0].image[0, 0, 0] == 2
    assert result.steps[1].plan is None and result.steps[1].refine is None
    assert result.image[0, 0, 0] == 3
    assert result.metadata == {
        "mode": "process",
        "seed": 3,
        "stopped": "model",
        "sampling_steps": 24,
        "seconds": 0.5,
        "verdict": {"ok": True},
    }


def test_a_malformed_refine_instruction_becomes_plain_text_that_can_be_written():
    step = SampledStep(PLAN, image(1), "wrong", "<refine>move <des>it", image(2)).to_step()
    assert step.refine.instruction == "move  it"
    assert write_refine(step.refine.instruction) == "<refine>move  it</refine>"


def test_nothing_drawn_is_no_trajectory():
    with pytest.raises(ValueError, match="no steps"):
        trajectory(SampledStep(PLAN)).to_trajectory()
    with pytest.raises(ValueError, match="without an image"):
        SampledStep(PLAN).to_step()


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_images_are_bytes_with_three_channels(wrong):
    with pytest.raises(ValueError, match="sketch must be"):
        SampledStep(sketch=wrong)


def test_only_the_model_or_the_cap_can_stop_it():
    with pytest.raises(ValueError, match="'model' or 'cap'"):
        trajectory(stopped="tired")


def test_a_verdict_can_be_added():
    judged = dataclasses.replace(trajectory(SampledStep(PLAN, image(1))), verdict={"ok": False})
    assert judged.verdict == {"ok": False} and judged.image[0, 0, 0] == 1
