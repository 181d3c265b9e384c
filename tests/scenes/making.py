"""What tests of this room begin with: a scene in a few words, and trajectories of the teacher."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from process_gen.scenes import Request, Scene, categories, get_level, sample_request, teach
from process_gen.scenes.graph import make_object
from process_gen.trajectory.stages import Trajectory


def scene(*things: str, level: str = "default") -> Scene:
    """Things as "red circle a1"."""
    words = (thing.split() for thing in things)
    return Scene(tuple(make_object(get_level(level), shape, colour, cell) for colour, shape, cell in words))


def lessons(
    level: str, count: int, seed: int = 0, split: str = "train", **odds: float
) -> Iterator[tuple[Request, Trajectory]]:
    """Requests of all categories in turn, and what the teacher makes of them."""
    rng, names = np.random.default_rng(seed), categories(level)
    for index in range(count):
        request = sample_request(rng, level, names[index % len(names)], split)
        yield request, teach(request, rng, **odds)
