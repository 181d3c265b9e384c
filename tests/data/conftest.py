"""Small random trajectories, a tokenizer of their language, and ways to compare them."""

from __future__ import annotations

import numpy as np
import pytest

from process_gen.data.tokenizers import SentencePieceTokenizer
from process_gen.trajectory.stages import TURN_FIELDS, Plan, Trajectory, Turn, draft, refinement
from tests.data.train_tokenizer import train

TEXTS = ("a red circle", "draw a blue square.", "the circle should be left of the square", "a star in b2")


@pytest.fixture(scope="session")
def toy_tokenizer():
    return SentencePieceTokenizer(train(TEXTS))


def random_trajectory(seed: int, steps: int | None = None, image_size=(8, 8), twice=0.0) -> Trajectory:
    """Draws a trajectory of one to four steps: inspected, refined, slipping or silent.

    `twice` is how often a correction is inspected and corrected once more.
    """
    rng = np.random.default_rng(seed)

    def image():
        return rng.integers(0, 256, (*image_size, 3), np.uint8)

    def step() -> list[Turn]:
        kind = rng.choice(["silent", "inspected", "refined", "slip"])
        plan = Plan(TEXTS[1], TEXTS[int(rng.integers(4))])
        turns = [
            draft(
                image(),
                plan,
                TEXTS[2] if kind in ("inspected", "refined") else None,
                image_ok=kind not in ("refined", "slip"),
                before_weight=float(rng.random() < 0.7),
            )
        ]
        if kind == "refined":
            if rng.random() < twice:
                turns.append(refinement(image(), TEXTS[0], TEXTS[2], image_ok=False, after_weight=0.5))
            turns.append(refinement(image(), TEXTS[1]))
        return turns

    count = steps or int(rng.integers(1, 5))
    turns = tuple(turn for _ in range(count) for turn in step())
    return Trajectory(TEXTS[seed % 4], turns, f"toy-{seed}", {"seed": seed})


def assert_same_trajectory(actual: Trajectory, expected: Trajectory) -> None:
    assert (actual.prompt, actual.instruction) == (expected.prompt, expected.instruction)
    assert actual.uid == expected.uid and dict(actual.metadata) == dict(expected.metadata)
    assert len(actual.turns) == len(expected.turns)
    for a, b in zip(actual.turns, expected.turns, strict=True):
        for field in TURN_FIELDS:
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)
    assert (actual.prompt_image is None) == (expected.prompt_image is None)
    if expected.prompt_image is not None:
        np.testing.assert_array_equal(actual.prompt_image, expected.prompt_image)
