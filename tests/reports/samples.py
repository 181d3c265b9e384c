"""Sampled trajectories for the tests of this room, hostile ones among them."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Mode, Turn

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


def read_png(path: str | os.PathLike[str]) -> np.ndarray:
    """[height, width, 3] uint8."""
    with Image.open(path, formats=("PNG",)) as file:
        return np.asarray(file.convert("RGB"))


def plan(instruction: str, description: str = "the scene") -> str:
    return f"<ins>{instruction}</ins><des>{description}</des>"


def fix(picture: np.ndarray, before: str, after: str | None = None) -> Turn:
    """A refine turn of any text."""
    return Turn(picture, before, after, refines=True)


def process(**changes) -> SampledTrajectory:
    """Three steps: accepted, refined, and one whose texts are malformed."""
    turns = (
        Turn(image(1), plan("draw a red circle"), "the circle is right"),
        Turn(image(2), plan("add a square"), "the square is red"),
        fix(image(3), "<refine>make it blue</refine>"),
        Turn(image(4), "<ins>add a", "odd"),
        fix(image(5), "<refine>move"),
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
        "turns": turns,
        "stopped": "model",
        "sampling_steps": 72,
        "seconds": 1.25,
        "verdict": verdict,
        "doubts": (0.125, 1.0),
    }
    return SampledTrajectory(**{**fields, **changes})


def corrected_twice(**changes) -> SampledTrajectory:
    """A draft without an inspection, then one that is corrected twice and inspected each time."""
    turns = (
        Turn(image(1), plan("draw a ring")),
        Turn(image(2), plan("add a star"), "the star is red"),
        fix(image(3), "<refine>make the star blue</refine>", "the ring is gone"),
        fix(image(4), "<refine>draw the ring again</refine>", "now all is there"),
    )
    return process(**{"turns": turns, "verdict": None, **changes})


def single_pass() -> SampledTrajectory:
    return SampledTrajectory(
        "three squares",
        (Turn(image(9)),),
        mode=Mode.SINGLE_PASS,
        seed=7,
        stopped="cap",
        sampling_steps=24,
        seconds=0.3,
    )


def hostile(text: str) -> SampledTrajectory:
    """The text in every place where a user or a model can put one."""
    verdict = {"ok": False, "constraints": [{"text": text, "ok": False, "reason": text}], text: text}
    turns = (
        Turn(image(1), plan(text, text), text),
        fix(image(2), f"<refine>{text}</refine>", text),
        Turn(image(3), text, text),
        fix(image(4), text),
    )
    return SampledTrajectory(text, turns, stopped="cap", verdict=verdict)
