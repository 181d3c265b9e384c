"""The ledger of wall time: categories add up, and go on over restarts."""

from __future__ import annotations

import json

import pytest

from process_gen.training import goodput
from process_gen.training.goodput import FILE, Goodput


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def start(folder, clock) -> Goodput:
    return Goodput(folder, clock=clock)


def spent(ledger: Goodput) -> dict[str, float]:
    ledger.scalars()
    return {name: seconds for name, seconds in ledger.seconds.items() if seconds}


def test_time_is_in_one_category_at_a_time(tmp_path, clock):
    ledger = start(tmp_path / "run", clock)
    clock.now += 5
    ledger.enter("compile")
    clock.now += 10
    ledger.enter("steps")
    clock.now += 20
    with ledger.spending("save"):
        clock.now += 3
    clock.now += 2
    ledger.idle(4)
    assert spent(ledger) == {"init": 5, "compile": 10, "steps": 18, "save": 3, "data": 4}
    shares = ledger.scalars()
    assert shares["goodput"] == 18 / 40 and shares["goodput/compile"] == 0.25
    assert sum(share for name, share in shares.items() if "/" in name) == pytest.approx(1)
    assert not (tmp_path / "run" / FILE).exists()


def test_a_killed_run_loses_the_steps_after_its_checkpoint(tmp_path, clock):
    first = start(tmp_path, clock)
    first.resumed(0)
    first.enter("steps")
    for step in range(1, 10):
        clock.now += 10
        first.reached(step)
        if step == 4:
            first.saved(step)
    written = json.loads((tmp_path / FILE).read_text())
    assert (written["starts"], written["step"]) == (1, 8)  # step 9 was too soon after it
    clock.now += 103
    second = start(tmp_path, clock)
    clock.now += 2
    second.resumed(4)
    assert spent(second) == {"init": 2, "steps": 40, "lost": 40, "down": 10 + 103}
    assert second.starts == 2 and second.step == 4
    assert sum(second.seconds.values()) == clock.now - 1000


def test_lost_steps_are_estimated_where_the_checkpoint_was_not_noted(tmp_path, clock):
    first = start(tmp_path, clock)
    first.enter("steps")
    clock.now += 100
    first.reached(10)
    first.write()
    second = start(tmp_path, clock)
    second.resumed(6)
    assert spent(second) == {"steps": 60, "lost": 40}


def test_time_after_a_planned_end_is_no_loss(tmp_path, clock):
    first = start(tmp_path, clock)
    first.enter("steps")
    clock.now += 50
    first.reached(5)
    first.write(done=True)
    clock.now += 10_000
    second = start(tmp_path, clock)
    second.resumed(5)
    assert spent(second) == {"steps": 50} and "2 starts" in second.table()


def test_leaving_the_block_writes(tmp_path, clock):
    with pytest.raises(KeyError), start(tmp_path, clock):
        clock.now += 1
        raise KeyError
    assert json.loads((tmp_path / FILE).read_text())["seconds"]["init"] == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"seconds": 3}', '{"starts": "x"}'])
def test_a_broken_file_costs_the_account_and_not_the_run(tmp_path, clock, text):
    (tmp_path / FILE).write_text(text)
    assert start(tmp_path, clock).starts == 1


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, clock):
    (tmp_path / "file").write_text("")
    start(tmp_path / "file" / "run", clock).write()


def test_only_the_lead_writes(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(goodput.hosts, "is_lead", lambda: False)
    start(tmp_path, clock).write()
    assert not (tmp_path / FILE).exists()
