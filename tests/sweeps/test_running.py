"""Running cells: side by side, killed and resumed, shared by processes, failed, taken over."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from process_gen import sweep as command
from process_gen.distributed import lock
from process_gen.sweeps import running
from process_gen.sweeps.cells import Cell

ROOT, HERE = pathlib.Path(__file__).parents[2], pathlib.Path(__file__).parent
SWEEP = """
COMMAND = ("tiny_command", "--seconds={seconds}")
def get_hyper(hyper): return hyper.product([hyper.sweep("seed", range({count})), {more}])
"""


@pytest.fixture
def box(tmp_path):
    """A sweep of cells that take a moment, started and ended as a user does."""
    started = []

    class Box:
        file, workdir = tmp_path / "mine.py", tmp_path / "sweep"

        def write(self, count: int, seconds: float, more: str = "") -> list[Cell]:
            self.file.write_text(SWEEP.format(count=count, seconds=seconds, more=more))
            return command.load_sweep(str(self.file))

        def start(self, *words: str) -> subprocess.Popen:
            environment = os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}"}
            line = ["-m", "process_gen.sweep", f"--config={self.file}", f"--workdir={self.workdir}", *words]
            process = subprocess.Popen(
                [sys.executable, *line], env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            started.append(process)
            return process

        def run(self, *words: str, code: int = 0) -> str:
            process = self.start(*words)
            out, err = process.communicate(timeout=60)
            assert process.returncode == code, err
            return out + err

        def notes(self, cell: Cell) -> list[list[str]]:
            """`began` or `ended`, process and time, in the order of writing."""
            path = cell.folder(self.workdir) / "notes"
            return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

        def counts(self, cell: Cell) -> collections.Counter:
            return collections.Counter(note[0] for note in self.notes(cell))

    yield Box()
    for process in started:
        process.kill()
        process.communicate()


def wait_for(true, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_a_failed_cell_is_reported_and_the_rest_is_run_once(box):
    cells = box.write(2, 0, 'hyper.sweep("code", [0, 3])')
    said = box.run("--parallel=2", code=1)
    sweep = running.Sweep(cells, box.workdir)
    assert [sweep.state(cell) for cell in cells] == ["done", "failed"] * 2
    failed, done = sweep.outcome(cells[1]), sweep.outcome(cells[0])
    assert failed["code"] == 3 and failed["tail"] == ["seed 0"] and failed["seconds"] > 0
    assert done["command"] == ["python", *cells[0].python_args(box.workdir)] and done["code"] == 0
    assert f"failed: {cells[1].folder(box.workdir)}/log.txt: seed 0" in said and "4 of 4" not in said
    results = [json.loads(line) for line in (box.workdir / "results.jsonl").read_text().splitlines()]
    assert [one["settings"] for one in results] == [{"seed": 0, "code": 0}, {"seed": 1, "code": 0}]
    assert (box.workdir / results[0]["results"]).is_file()
    box.run(code=1)  # nothing is repeated
    assert [box.counts(cell)["began"] for cell in cells] == [1, 1, 1, 1]
    box.run("--retry", code=1)  # but what failed, when asked for
    assert [box.counts(cell)["began"] for cell in cells] == [1, 2, 1, 2]
    box.run("--jobs=claim")  # launchers need not start it again
    assert len(box.run("--jobs=print").splitlines()) == 2
    assert not list(box.workdir.rglob(lock.NAME))


@pytest.mark.parametrize("round_", range(5))
def test_killed_at_any_moment_no_cell_is_repeated_or_lost(box, round_):
    cells = box.write(6, 0.3, "[{}]")
    first = box.start("--parallel=3")
    manifest = box.workdir / "manifest.json"
    wait_for(manifest.exists)
    time.sleep(random.Random(round_).uniform(0, 1.5))
    first.kill()
    first.communicate()
    done = {cell.id for cell in cells if (cell.folder(box.workdir) / "done.json").exists()}
    box.run("--parallel=6")
    for cell in cells:
        notes = box.notes(cell)
        assert notes[-1][0] == "ended"
        assert box.counts(cell)["began"] == 1 if cell.id in done else box.counts(cell)["began"] <= 2
        processes = [process for process, _ in itertools.groupby(note[1] for note in notes)]
        assert len(processes) == len(set(processes))  # never two at a time
    assert len((box.workdir / "results.jsonl").read_text().splitlines()) == 6


def test_processes_that_share_a_folder_run_no_cell_twice(box):
    cells = box.write(12, 0.2, "[{}]")
    shared = [box.start("--jobs=claim", "--parallel=2") for _ in range(3)]
    for process in shared:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert all(box.counts(cell) == {"began": 1, "ended": 1} for cell in cells)
    assert not list(box.workdir.rglob(lock.NAME))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_commands_and_gives_the_claims_up(box, number):
    cells = box.write(3, 30, "[{}]")
    process = box.start("--parallel=2")
    wait_for(lambda: sum(box.counts(cell)["began"] for cell in cells) == 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75 and f"stopped: {number.name} was received" in err
    sweep = running.Sweep(cells, box.workdir)
    assert [sweep.state(cell) for cell in cells] == ["open"] * 3
    assert not any(pathlib.Path(f"/proc/{box.notes(cell)[0][1]}").exists() for cell in cells[:2])


def test_a_second_signal_ends_a_command_that_does_not_listen(box):
    (cell,) = box.write(1, 30, 'hyper.fixed("deaf", True)')
    process = box.start()
    wait_for(lambda: box.counts(cell)["began"] == 1)
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.terminate()
    assert process.wait(20) == 75
    assert not pathlib.Path(f"/proc/{box.notes(cell)[0][1]}").exists()
    assert running.Sweep([cell], box.workdir).state(cell) == "open"


def test_what_a_killed_sweep_left_running_is_ended_before_its_cell_is_run_again(box):
    (cell,) = box.write(1, 30, "[{}]")
    first = box.start()
    wait_for(lambda: box.counts(cell)["began"] == 1)
    first.kill()
    left = box.notes(cell)[0][1]
    assert pathlib.Path(f"/proc/{left}").exists()
    second = box.start()
    wait_for(lambda: box.counts(cell)["began"] == 2)
    owner = lock.Owner(**json.loads((box.workdir / "claims" / cell.id / "running.json").read_text()))
    assert str(owner.pid) == box.notes(cell)[1][1] != left
    assert lock._started(int(left)) == ""  # ended, or a zombie
    second.terminate()
    assert second.wait(20) == 75


def test_a_claim_of_a_host_that_went_silent_is_taken_over_and_that_of_a_living_one_is_left(box, monkeypatch):
    cells = box.write(2, 0, "[{}]")
    sweep = running.Sweep(cells, box.workdir)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.5)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{HERE}")
    other = dataclasses.replace(lock.Owner.me("a cell of a sweep"), host="elsewhere")
    claim = sweep._claim(cells[0])
    claim.mkdir(parents=True)
    (claim / lock.NAME).write_text(json.dumps(dataclasses.asdict(other)))
    mine = lock.hold(sweep._claim(cells[1]), "a cell of another sweep")
    with mine:
        assert [sweep.state(cell) for cell in cells] == ["claimed", "claimed"]
        sweep.run(2, wait=False)
        assert [sweep.state(cell) for cell in cells] == ["done", "claimed"]
    sweep = running.Sweep(cells, box.workdir)
    sweep.run(2)
    assert [sweep.state(cell) for cell in cells] == ["done", "done"]
    assert box.counts(cells[0])["began"] == 1


def test_a_cell_is_a_job_of_one_process_with_a_gpu_of_its_own(monkeypatch):
    of_a_launcher = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_STEP_NODELIST")
    of_a_launcher += ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "MEGASCALE_COORDINATOR_ADDRESS")
    for name in of_a_launcher:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    found = [running.environment(slot, 4) for slot in range(4)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in found] == ["4", "5", "6", "7"]
    assert not set(of_a_launcher) & set(found[0])
    assert running.environment(0, 1)["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    monkeypatch.setenv("SLURM_LOCALID", "2")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "4(x2)")
    assert running.environment(0, 1)["CUDA_VISIBLE_DEVICES"] == "6"
