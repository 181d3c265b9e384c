"""The weights that ship with the package draw what they are asked for."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from process_gen.checkpoints.errors import CheckpointError
from process_gen.checkpoints.shipped import SHIPPED, shipped_weights
from process_gen.evaluation import results
from process_gen.evaluation.results import Cell
from process_gen.scenes import judge, read_request
from process_gen.weights.restore import load_model, load_sampler

ROOT = pathlib.Path(__file__).parents[1]
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
    """What the command finds; it draws for longer than it compiles, so it gets better code than tests do."""
    folder = tmp_path_factory.mktemp("shipped")
    command = [
        sys.executable, "-m", "process_gen.evaluate", "--arms=process", f"--per_group={PER_GROUP}",
        f"--task_args=scenes.groups={','.join(AT_LEAST)}", "--batch_size=24", "--pictures=0",
        f"--output_dir={folder}",
    ]  # fmt: skip
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = results.load(folder / "results.json")
    return found


def test_the_shipped_weights_are_small():
    assert sum(pathlib.Path(shipped_weights(name)).stat().st_size for name in SHIPPED) <= 8 * 2**20


def test_weights_that_ship_are_asked_for_by_name_unless_there_is_such_a_folder(tmp_path, monkeypatch):
    model = load_model("hung")
    assert model.level_name == "hung" and model.source == shipped_weights("hung")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hung").mkdir()
    with pytest.raises(CheckpointError, match="hung"):
        load_model("hung")


def test_the_shipped_weights_of_hung_draw_what_is_asked_for():
    sampler, _ = load_sampler("hung", rows=1)
    prompt = "a red star and a blue square on the left of the star"
    (one,) = sampler.sample([prompt], seed=0)
    assert one.stopped == "model" and judge(read_request(prompt, "hung"), one.image).correct


@pytest.mark.slow
@pytest.mark.parametrize("group", AT_LEAST)
def test_the_shipped_weights_draw_held_out_prompts(cell, group):
    right = sum(one.ok for one in cell.of_group(group))
    wrong = [(one.input, one.failures) for one in cell.of_group(group) if not one.ok]
    assert right >= AT_LEAST[group], f"{right} of {PER_GROUP} right; wrong: {wrong}"


@pytest.mark.slow
def test_the_shipped_weights_go_through_the_process(cell):
    counts, means = cell.counted, cell.means()
    assert counts["malformed_plans"] == counts["unread"] == 0
    assert 1 < means["steps"] < 5 and means["stopped_by_cap"] < 0.1


@pytest.mark.slow
def test_the_inspection_of_the_shipped_weights_objects_where_something_is_wrong(cell):
    counts = cell.counted
    assert counts["caught"] >= 6 and counts["caught"] > counts["false_alarms"], counts
    assert counts["fixed"] >= 1, counts
