"""Where evaluators plug in.

An evaluator takes a predict function and options from the config

    @registry.register("my_benchmark")
    def my_benchmark(predict, *, per_group=4, ...):
        trajectories = predict(prompts, seeds)   # one SampledTrajectory each, in order
        yield "my_benchmark/score", 0.5          # a number
        yield "my_benchmark/samples", picture    # [H, W, 3] uint8

and yields names with numbers and pictures. The training loop hands both to its
metric writers; offline the same function runs on any checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.common.names import check_name
from process_gen.trajectory.sampled import SampledTrajectory

Predict = Callable[[Sequence[str], Sequence[int]], Sequence[SampledTrajectory]]
"""Prompts and seeds -> one trajectory each, in order."""

Finding = tuple[str, float | np.ndarray]
Evaluator = Callable[..., Iterator[Finding]]

_EVALUATORS: dict[str, Evaluator] = {}


def register(name: str) -> Callable[[Evaluator], Evaluator]:
    """Adds an evaluator under `name`; registering a name again replaces it."""

    def add(function: Evaluator) -> Evaluator:
        _EVALUATORS[name] = function
        return function

    return add


def get_evaluator(name: str) -> Evaluator:
    """The evaluator called `name`; KeyError with the nearest names otherwise."""
    return _EVALUATORS[check_name(name, _EVALUATORS, "evaluator", KeyError)]


def run(
    predict: Predict, table: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Runs every evaluator of a table (name -> options).

    Returns:
      Numbers and pictures, each by name.
    """
    chosen = [(get_evaluator(name), options) for name, options in table.items()]
    numbers, pictures = {}, {}
    for evaluator, options in chosen:
        for name, value in evaluator(predict, **options):
            (pictures if isinstance(value, np.ndarray) else numbers)[name] = value
    return numbers, pictures
