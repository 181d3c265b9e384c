"""Small random trajectories, a tokenizer of their language, and ways to compare them."""

from __future__ import annotations

import numpy as np
import pytest

from process_gen.data.tokenizers import SentencePieceTokenizer
from process_gen.data.train_tokenizer import train
from process_gen.trajectory.stages import Plan, Refinement, Step, Trajectory

TEXTS = ("a red circle", "draw a blue square.", "the circle should be left of the square", "a star in b2")


@pytest.fixture(scope="session")
def toy_tokenizer():
    return SentencePieceTokenizer(train(TEXTS))


@pytest.fixture(scope="session")
def make_trajectory():
    return _random_trajectory


@pytest.fixture(scope="session")
def assert_same_trajectory():
    return _assert_same_trajectory


def _random_trajectory(seed: int, steps: int | None = None, image_size=(8, 8)) -> Trajectory:
    """Draws a trajectory of one to four steps: inspected, refined, slipping or silent."""
    rng = np.random.default_rng(seed)

    def image():
        return rng.integers(0, 256, (*image_size, 3), np.uint8)

    def step():
        kind = rng.choice(["silent", "inspected", "refined", "slip"])
        return Step(
            sketch=image(),
            plan=Plan(TEXTS[1], TEXTS[int(rng.integers(4))]),
            inspect=TEXTS[2] if kind in ("inspected", "refined") else None,
            refine=Refinement(TEXTS[1], image()) if kind == "refined" else None,
            sketch_ok=kind not in ("refined", "slip"),
            plan_ok=bool(rng.random() < 0.7),
        )

    count = steps or int(rng.integers(1, 5))
    return Trajectory(TEXTS[seed % 4], tuple(step() for _ in range(count)), f"toy-{seed}", {"seed": seed})


def _assert_same_trajectory(actual: Trajectory, expected: Trajectory) -> None:
    assert (actual.prompt, actual.uid) == (expected.prompt, expected.uid)
    assert dict(actual.metadata) == dict(expected.metadata)
    assert len(actual.steps) == len(expected.steps)
    for a, b in zip(actual.steps, expected.steps, strict=True):
        assert (a.plan, a.inspect, a.sketch_ok, a.plan_ok) == (b.plan, b.inspect, b.sketch_ok, b.plan_ok)
        np.testing.assert_array_equal(a.sketch, b.sketch)
        assert (a.refine is None) == (b.refine is None)
        if a.refine is not None:
            assert a.refine.instruction == b.refine.instruction
            np.testing.assert_array_equal(a.refine.image, b.refine.image)
