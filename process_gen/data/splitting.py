"""Trajectories that are longer than a row, in parts that fit one."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from process_gen.data.encode import encode_trajectory
from process_gen.data.tokenizers import Tokenizer
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Trajectory


def encode_parts(
    tokenizer: Tokenizer, layout: Layout, split: bool, trajectory: Trajectory
) -> list[dict[str, np.ndarray]]:
    """The arrays of a trajectory, or its parts where it is to be `split`; raises as `encode_trajectory`."""
    parts = split_trajectory(trajectory, layout) if split else [trajectory]
    return [encode_trajectory(tokenizer, layout, part) for part in parts]


def split_trajectory(trajectory: Trajectory, layout: Layout) -> list[Trajectory]:
    """A trajectory in parts that fit a row; alone where it fits already, or cannot be split.

    It can where the layout's context is `step` or `last`: a step sees nothing of those before the last one
    then. A part begins with the step before it, which is given and has no losses. What follows the last
    turn of a part but the last one stands in no row, so nothing learns to stop there (`Trajectory.ends`).
    """
    places = spans([step.turns for step in trajectory.steps], layout)
    if len(places) == 1:
        return [trajectory]
    found = []
    for first, given, stop in places:
        latents = trajectory.latents
        if latents is not None:
            latents = {**latents, "image": latents["image"][first:stop]}
        found.append(
            dataclasses.replace(
                trajectory,
                turns=trajectory.turns[first:stop],
                context_turns=given,
                latents=latents,
                ends=stop == len(trajectory.turns),
            )
        )
    return found


def spans(steps: Sequence[Sequence[Any]], layout: Layout) -> list[tuple[int, int, int]]:
    """Where the parts of a trajectory begin and end in its turns, and how many at its start are given.

    Args:
      steps: the turns of each step.
      layout: of a row.

    Returns:
      (first turn, turns that are given, turn after the last one) of each part; see `split_trajectory`.
    """
    ends = list(itertools.accumulate(map(len, steps)))
    whole = [(0, 0, ends[-1])]
    if ends[-1] <= layout.turns or layout.context == "full":
        return whole
    found, start = [], 0
    while start < len(steps):
        given = len(steps[start - 1]) if start else 0
        first = ends[start - 1] - given if start else 0
        stop = bisect.bisect_right(ends, first + layout.turns)
        if stop == start:  # a step and the one before it do not fit one row
            return whole
        found.append((first, given, ends[stop - 1]))
        start = stop
    return found
