"""The weights that ship with the package draw what they are asked for."""

from __future__ import annotations

import pathlib

import pytest

from process_gen.evaluate import evaluate
from process_gen.evaluation import pipeline
from process_gen.evaluation.results import Cell
from process_gen.weights.restore import load_sampler, shipped_weights

PER_GROUP = 24
AT_LEAST = {
    "single_object": 21,
    "two_object": 21,
    "counting": 21,
    "colors": 21,
    "position": 20,
    "color_attr": 21,
    "three_objects": 13,
    "four_objects": 11,
}
"""Right images of 24 held-out prompts; a few below what was measured, for other machines' rounding."""


@pytest.fixture(scope="module")
def cell(tmp_path_factory) -> Cell:
    sampler, restored = load_sampler(None, rows=24)
    options = {"level": restored.level_name, "groups": ",".join(AT_LEAST), "per_group": PER_GROUP}
    checkpoint = {"source": restored.source, "which": "ema", "digest": restored.digest}
    asked = pipeline.ask(sampler, "scenes", options, "process", checkpoint=checkpoint)
    _, _, (found,) = evaluate([asked], tmp_path_factory.mktemp("shipped"), pictures=0, warm=False)
    return found


def test_the_shipped_weights_are_small():
    assert pathlib.Path(shipped_weights()).stat().st_size <= 8 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("group", AT_LEAST)
def test_the_shipped_weights_draw_held_out_prompts(cell, group):
    right = sum(one.ok for one in cell.of_group(group))
    wrong = [(one.input, one.failures) for one in cell.of_group(group) if not one.ok]
    assert right >= AT_LEAST[group], f"{right} of {PER_GROUP} right; wrong: {wrong}"


@pytest.mark.slow
def test_the_shipped_weights_go_through_the_process(cell):
    counts, means = cell.counted, cell.means()
    assert counts.malformed_plans == counts.unread == 0
    assert 1 < means["steps"] < 5 and means["stopped_by_cap"] < 0.1


@pytest.mark.slow
def test_the_inspection_of_the_shipped_weights_objects_where_something_is_wrong(cell):
    counts = cell.counted
    assert counts.caught >= 6 and counts.caught > counts.false_alarms, counts
    assert counts.fixed >= 1, counts
