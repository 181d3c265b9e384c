"""The loss curves of a run over all of its starts."""

from __future__ import annotations

import json

from process_gen.training import runlog


def test_the_losses_of_earlier_starts_are_taken_up_as_far_as_the_run_goes_on_from_them(tmp_path):
    path = tmp_path / runlog.LOSSES
    assert runlog.earlier_losses(path, 0) == []
    for step in (10, 20, 30):
        runlog._append(path, {"step": step, "losses": {"loss": step / 100, "loss/flow": float("nan")}})
    with path.open("a") as file:
        file.write('[]\n{"step": 5}\n{"step": 40, "lo')  # foreign, and cut off
    found = runlog.earlier_losses(path, 20)
    assert [(line["step"], line["losses"]["loss"]) for line in found] == [(10, 0.1), (20, 0.2)]
    runlog._append(path, {"step": 30, "losses": {"loss": 0.5}})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 30]
    assert runlog.earlier_losses(path, 0) == [] and path.read_text() == ""


def test_a_file_that_cannot_be_had_is_no_reason_to_stop(tmp_path):
    (tmp_path / runlog.LOSSES).mkdir()
    assert runlog.earlier_losses(tmp_path / runlog.LOSSES, 3) == []
    runlog._append(tmp_path / runlog.LOSSES, {"step": 1, "losses": {}})
