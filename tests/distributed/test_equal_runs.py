"""One training, however many devices and processes; `equal_runs.py` has more ways and more steps."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.distributed.equal_runs import WAYS, differences, train

STEPS = 6
TOLERANCE = 1e-5
HELD_OUT = {"eval.losses_every": STEPS, "eval.loss_batches": 2}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run on one device, with checkpoints in its middle and at its end: its folder and its losses."""
    workdir = tmp_path_factory.mktemp("equal") / "one"
    overrides = {"train.checkpoint_every": STEPS // 2, **HELD_OUT}
    return workdir, train(workdir, STEPS, 1, 1, overrides)


@pytest.mark.long
def test_four_processes_with_every_kind_of_axis(one):
    workdir, losses = one
    processes, devices, overrides = WAYS["four processes, 2 fsdp x 2 tensor x 2 context"]
    other = workdir.parent / "four"
    assert train(other, STEPS, processes, devices, overrides) == pytest.approx(losses, rel=TOLERANCE)
    assert max(differences(workdir, other).values()) < TOLERANCE


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_and_judge_at_the_end(one):
    workdir, losses = one
    other = workdir.parent / "two"
    shutil.copytree(workdir, other)
    shutil.rmtree(other / "checkpoints" / str(STEPS))
    overrides = {"mesh.data": 1, "mesh.fsdp": 2, "mesh.dcn.data": 2, "eval.final_per_group": 1, **HELD_OUT}
    held_out = json.loads((workdir / "held_out.json").read_text())
    assert len(held_out) == 2  # at the start and at the end
    resumed = train(other, STEPS, 2, 2, overrides)
    assert resumed == pytest.approx(losses[STEPS // 2 :], rel=TOLERANCE)
    assert max(differences(workdir, other).values()) < TOLERANCE
    assert json.loads((other / "held_out.json").read_text())[-1] == pytest.approx(held_out[-1], rel=TOLERANCE)
    assert (other / "evaluation" / "results.json").is_file()
