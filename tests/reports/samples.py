"""Sampled trajectories for the tests of this room, hostile ones among them."""

from __future__ import annotations

import numpy as np

from process_gen.trajectory.sampled import SampledStep, SampledTrajectory
from process_gen.trajectory.stages import Mode

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(1)">',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</style><style>@import url(https://evil.example/x.css)</style>",
    "</title></h2></article><iframe src=https://evil.example></iframe>",
    "a red\0 circle",
    "left \u202eof\u202c \u2066a\u2069 \u200fsquare",
    "\x1b[31mred\x07",
    "lone \ud800 surrogate, \ufeffmark, line\u2028end",
    "<!-- <svg/onload=alert(1)>",
    "&lt;script&gt;",
)


def image(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def plan(instruction: str, description: str = "the scene") -> str:
    return f"<ins>{instruction}</ins><des>{description}</des>"


def process(**changes) -> SampledTrajectory:
    """Three steps: accepted, refined, and one whose texts are malformed."""
    steps = (
        SampledStep(plan("draw a red circle"), image(1), "the circle is right"),
        SampledStep(
            plan("add a square"), image(2), "the square is red", "<refine>make it blue</refine>", image(3)
        ),
        SampledStep("<ins>add a", image(4), "odd", "<refine>move", image(5)),
    )
    verdict = {
        "ok": False,
        "constraints": [
            {"text": "a red circle", "ok": True, "reason": ""},
            {"text": "a blue square", "ok": False, "reason": "the square is green"},
        ],
        "group": "two_objects",
    }
    fields = {
        "prompt": "a red circle left of a blue square",
        "mode": Mode.PROCESS,
        "seed": 7,
        "steps": steps,
        "stopped": "model",
        "sampling_steps": 72,
        "seconds": 1.25,
        "verdict": verdict,
    }
    return SampledTrajectory(**{**fields, **changes})


def single_pass() -> SampledTrajectory:
    return SampledTrajectory(
        "three squares", Mode.SINGLE_PASS, 7, (SampledStep(sketch=image(9)),), "cap", 24, 0.3
    )


def hostile(text: str) -> SampledTrajectory:
    """The text in every place where a user or a model can put one."""
    verdict = {"ok": False, "constraints": [{"text": text, "ok": False, "reason": text}, text], text: text}
    steps = (
        SampledStep(plan(text, text), image(1), text, f"<refine>{text}</refine>", image(2)),
        SampledStep(text, image(3), text, text, image(4)),
    )
    return SampledTrajectory(text, Mode.PROCESS, 0, steps, "cap", verdict=verdict)
