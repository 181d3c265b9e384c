"""The faults: each function does one to a run, as often as asked, and checks what follows.

Every one returns how often it did what, or raises `Failed`.
"""

from __future__ import annotations

import collections
import functools
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
from etils import epath

from process_gen.checkpoints import load
from process_gen.checkpoints.errors import CheckpointCorrupt
from process_gen.checkpoints.store import CheckpointStore
from process_gen.distributed import lock
from process_gen.distributed.stopping import EXIT_CODE
from tests.fake_gcs import FakeGcs
from tests.faults.trainer import EVERY, STEPS, Bench, Failed, Trainer, check_same, contents, ended

Counts = dict[str, int]
LEAST, MIDDLE = EVERY, STEPS // 2


def reference(bench: Bench, hosts: int = 1) -> str:
    """The run that nothing happens to; it is made once."""
    run = f"reference_{hosts}"
    if STEPS not in bench.steps(run):
        bench.finish(run, hosts)
    return run


def _until(bench: Bench, run: str, step: int) -> Callable[[], bool]:
    return lambda: step in bench.steps(run)


def _expect(good: bool, what: str) -> None:
    if not good:
        raise Failed(what)


def kill(bench: Bench, times: int, seed: int = 0) -> Counts:
    """kill -9, every other time in the middle of a save; what is saved stays, and the end is the same."""
    draw = random.Random(seed)
    straight = reference(bench)
    counts = {"kills": 0, "during a save": 0, "left unfinished": 0, "runs to the end": 0}
    run = "kill_0"
    while counts["kills"] < times:
        before, in_save = bench.steps(run), counts["kills"] % 2 == 1
        trainer = bench.start(run)
        with ended([trainer]):
            if in_save:
                _wait_for_save(bench, run, trainer, draw.randrange(1, 4))
            elif counts["kills"] % 4 == 2:  # on the way to its first step
                time.sleep(draw.uniform(0.0, 5.0))
            else:
                step = draw.randrange(min(max(before, default=0), STEPS - 2), STEPS - 1)
                trainer.wait_until(functools.partial(trainer.is_past, step), pause=0.02)
                time.sleep(draw.uniform(0.0, 0.1))
            alive = trainer.process.poll() is None
        _expect(set(before) <= set(bench.steps(run)), f"{run}: a committed step is gone: {before}")
        if alive:
            counts["kills"] += 1
            counts["during a save"] += in_save
            counts["left unfinished"] += bool(bench.unfinished(run))
        if not alive or counts["kills"] == times:
            bench.finish(run)
            check_same(bench, run, straight)
            _expect(not bench.unfinished(run), f"{run}: an unfinished save is still there")
            counts["runs to the end"] += 1
            run = f"kill_{counts['runs to the end']}"
    return counts


def _wait_for_save(bench: Bench, run: str, trainer: Trainer, which: int) -> None:
    """Until the process is in the middle of its first, second, ... save."""
    for _ in range(which):
        trainer.wait_until(lambda: not bench.unfinished(run))
        trainer.wait_until(lambda: bench.unfinished(run))


def bucket(bench: Bench, times: int) -> Counts:
    """kill -9 of a run in a bucket, once after a save and once in the middle of one; the end is the same."""
    straight = contents(bench.folder / reference(bench), STEPS)
    counts = {"kills": 0, "left unfinished": 0, "runs to the end": 0}
    with FakeGcs() as gcs, mock.patch.dict(os.environ, gcs.environment):
        for number in range(times):
            run, workdir = f"bucket_{number}", f"gs://bucket/run_{number}"
            root = load.absolute(workdir) / load.FOLDER
            for there in (lambda root=root: load.steps(root), lambda root=root: load.unfinished(root)):
                trainer, before = bench.start(run, workdir=workdir), load.steps(root)
                with ended([trainer]):
                    _expect(trainer.wait_until(there, pause=0.02), f"{run}: {trainer.text()[-2000:]}")
                counts["kills"] += 1
                counts["left unfinished"] += bool(load.unfinished(root))
                _expect(set(before) <= set(load.steps(root)), f"{run}: a committed step is gone: {before}")
            bench.finish(run, workdir=workdir)
            here = contents(workdir, STEPS)
            odd = [name for name in straight if not np.array_equal(straight[name], here[name])]
            _expect(not odd and not load.unfinished(root), f"{run}: other arrays: {odd[:4]}")
            _expect(f"run_{number}/{lock.NAME}" not in gcs.names(), f"{run}: is still locked")
            counts["runs to the end"] += 1
    return counts


def stop(bench: Bench, times: int, hosts: int = 1) -> Counts:
    """SIGTERM to one process: all save the same step and end with the documented code."""
    straight = reference(bench, hosts)
    for number in range(times):
        run = f"stop_{hosts}_{number}"
        trainers = bench.start_hosts(run, hosts) if hosts > 1 else [bench.start(run)]
        with ended(trainers):
            _expect(trainers[0].wait_until(_until(bench, run, LEAST)), f"{run}: {trainers[0].text()[-2000:]}")
            trainers[-1].send(signal.SIGTERM)
            codes = [trainer.wait() for trainer in trainers]
        _expect(codes == [EXIT_CODE] * hosts, f"{run}: exit codes {codes}: {trainers[0].text()[-2000:]}")
        saved = {
            int(step) for t in trainers for step in re.findall(r"stopped: step (\d+) is saved", t.text())
        }
        _expect(saved == {bench.steps(run)[-1]}, f"{run}: told of {saved}, saved {bench.steps(run)[-1]}")
        _expect(max(saved) < STEPS, f"{run}: the signal came too late")
        bench.finish(run, hosts)
        check_same(bench, run, straight)
    return {"signals": times, f"exit code {EXIT_CODE}": times * hosts, "resumed bit for bit": times}


def stop_hosts(bench: Bench, times: int) -> Counts:
    """The same with two processes."""
    return stop(bench, times, hosts=2)


def lose_host(bench: Bench, times: int) -> Counts:
    """kill -9 of one of two processes: the other ends by itself, not with 0, and both go on together."""
    straight = reference(bench, 2)
    slowest = 0.0
    for number in range(times):
        run, victim = f"lost_{number}", (number + 1) % 2
        trainers = bench.start_hosts(run)
        with ended(trainers):
            _expect(trainers[0].wait_until(_until(bench, run, LEAST)), f"{run}: {trainers[0].text()[-2000:]}")
            trainers[victim].send(signal.SIGKILL)
            started = time.monotonic()
            code = trainers[1 - victim].wait(300.0)  # JAX gives a silent host 100 seconds
            slowest = max(slowest, time.monotonic() - started)
        _expect(code != 0, f"{run}: the survivor ended with 0")
        bench.finish(run, 2)
        check_same(bench, run, straight)
    return {"killed": times, "resumed bit for bit": times, "slowest end, seconds": round(slowest)}


MARKS = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Orbax's own marks of a finished save; nothing that is read depends on them."""


def damage(bench: Bench, times: int) -> Counts:
    """Every file of the newest step flipped in one bit, cut off and deleted; `times` is of whole runs."""
    straight = reference(bench)
    counts = {"files": 0, "damages": 0, "fell back": 0, "harmless": 0, "runs to the end": 0}
    whole, folder = bench.folder / straight / "checkpoints", bench.folder / "damage" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(whole / str(STEPS - EVERY), folder / str(STEPS - EVERY), dirs_exist_ok=True)
    names = sorted(p.relative_to(whole / str(STEPS)) for p in (whole / str(STEPS)).rglob("*") if p.is_file())
    for name in names:
        counts["files"] += 1
        for bad in (_flipped, _cut, None):
            shutil.copytree(whole / str(STEPS), folder / str(STEPS), dirs_exist_ok=True)
            path = folder / str(STEPS) / name
            good = path.read_bytes()
            path.unlink() if bad is None else path.write_bytes(bad(good))
            counts["damages"] += 1
            with CheckpointStore(str(folder.parent)) as store:
                newest = store.newest_whole_step()
            if newest == STEPS:
                _expect(name.name in MARKS, f"damage to {name} was not noticed")
                counts["harmless"] += 1
            else:
                _expect(newest == STEPS - EVERY, f"took step {newest} after damage to {name}")
                _expect((folder.parent / "quarantine").is_dir(), f"{name}: nothing was set aside")
                counts["fell back"] += 1
                shutil.rmtree(folder.parent / "quarantine")
    for number in range(times):
        run = f"damaged_{number}"
        shutil.copytree(bench.folder / straight, bench.folder / run)
        largest = max((bench.folder / run / "checkpoints" / str(STEPS)).rglob("*"), key=_size)
        largest.write_bytes(_flipped(largest.read_bytes()))
        bench.finish(run)
        check_same(bench, run, straight)
        counts["runs to the end"] += 1
    shutil.rmtree(folder / str(STEPS - EVERY))
    broken = folder / str(STEPS) / next(name for name in names if name.name not in MARKS)
    shutil.copytree(whole / str(STEPS), folder / str(STEPS), dirs_exist_ok=True)
    broken.unlink()
    try:
        with CheckpointStore(str(folder.parent)) as store:
            store.newest_whole_step()
    except CheckpointCorrupt:
        return counts
    raise Failed("no whole step was left, and nothing was said")


def _flipped(data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    changed[len(data) // 2] ^= 4
    return bytes(changed)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _size(path) -> int:
    return path.stat().st_size if path.is_file() else 0


def full_disk(bench: Bench, times: int) -> Counts:
    """Writes that fail half way, and a disk that has no room for another step."""
    straight = reference(bench)
    counts = {"failed writes": 0, "no room": 0, "resumed bit for bit": 0}
    newest = bench.folder / straight / "checkpoints" / str(STEPS)
    sizes = [_size(p) for p in newest.rglob("*")]
    for number in range(times):
        run = f"full_{number}"
        trainer = bench.start(run, largest_file=max(sizes) // 2)
        with ended([trainer]):
            code = trainer.wait()
        _expect(
            code == 2 and "could not be saved" in trainer.text(), f"{run}: {code} {trainer.text()[-2000:]}"
        )
        _expect("nothing has been saved yet" in trainer.text(), f"{run}: the last good step is not named")
        _expect(not bench.steps(run) and not bench.unfinished(run), f"{run}: something half-written is left")
        counts["failed writes"] += 1
        bench.finish(run)
        check_same(bench, run, straight)
        counts["resumed bit for bit"] += 1
    run = "small"
    (bench.folder / run).mkdir()
    room = f"size={int(3.5 * sum(sizes)) + (2 << 20)}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", room, "tmpfs", str(bench.folder / run)]).returncode:
        return counts  # not allowed to mount
    try:
        trainer = bench.start(run)
        with ended([trainer]):
            code = trainer.wait()
        found, text = bench.steps(run), trainer.text()
        _expect(code == 2 and bool(found), f"{run}: exit code {code}, steps {found}: {text[-2000:]}")
        _expect(f"the last good one is step {found[-1]}" in text, f"{run}: {text[-2000:]}")
        _expect(not bench.unfinished(run), f"{run}: something half-written is left")
        contents(bench.folder / run, found[-1])
        counts["no room"] += 1
    finally:
        subprocess.run(["umount", str(bench.folder / run)], check=True)
    return counts


def nan_batch(bench: Bench, times: int) -> Counts:
    """Batches whose loss is not a number: the parameters stay, are saved, and the next start goes on."""
    del times  # the data decides
    run, stops = "poisoned", 0
    while STEPS not in bench.steps(run):
        trainer = bench.start(run, "tests/faults/poisoned.py")
        with ended([trainer]):
            code = trainer.wait()
        if code:
            _expect(code == 2 and "no finite" in trainer.text(), f"{run}: {code} {trainer.text()[-2000:]}")
            stops += 1
        _expect(stops <= 2 * STEPS, f"{run}: does not get on")
    _expect(stops > 0, "no batch was poisoned: the test shows nothing")
    for step in bench.steps(run):
        for name, x in contents(bench.folder / run, step).items():
            if np.issubdtype(x.dtype, np.floating):
                _expect(bool(np.isfinite(x).all()), f"step {step}: {name} is not finite")
    return {"stops": stops, "steps saved, all finite": len(bench.steps(run))}


def bad_record(bench: Bench, times: int) -> Counts:
    """A damaged record ends the run by name; with the record repaired it goes on."""
    del times
    straight, run = reference(bench), "record"
    data = bench.folder / "broken_data"
    shutil.copytree(bench.folder / "data", data)
    (record,) = data.rglob("*train*.array_record*")
    good = record.read_bytes()
    written = np.flatnonzero(np.frombuffer(good, np.uint8))  # the file is padded with zeros
    bad = bytearray(good)
    bad[written[len(written) // 2]] ^= 4
    record.write_bytes(bad)
    trainer = bench.start(run, data__data_dir=str(data))
    with ended([trainer]):
        code = trainer.wait()
    _expect(code == 2 and "damaged" in trainer.text(), f"exit code {code}: {trainer.text()[-2000:]}")
    record.write_bytes(good)
    bench.finish(run, data__data_dir=str(data))
    check_same(bench, run, straight)
    return {"named": 1, "resumed bit for bit": 1}


def changed_config(bench: Bench, times: int) -> Counts:
    """Keys that do not exist, values that would make it another run, and values that may change."""
    del times
    straight = reference(bench)
    shutil.copytree(bench.folder / straight, bench.folder / "changed")
    refused = {
        "train__stepps": (50, "did you mean config.train.steps"),
        "layout__copies": (2, "config.layout.copies"),
        "train__batch_size": (8, "config.train.batch_size"),
        "seed": (1, "config.seed"),
        "model__size": ("scenes_s", "config.model.size"),
    }
    for key, (value, words) in refused.items():
        trainer = bench.start("changed", **{key: value})
        with ended([trainer]):
            code = trainer.wait()
        _expect(code == 2 and words in trainer.text(), f"{key}: exit code {code}: {trainer.text()[-2000:]}")
    more = {"train__steps": STEPS + EVERY, "optimizer__learning_rate": 5e-4, "train__log_every": 2}
    bench.finish("changed", **more)
    _expect(bench.steps("changed")[-1] == STEPS + EVERY, "a longer run did not go on")
    return {"refused by name": len(refused), "went on": 1}


def local_tier(bench: Bench, times: int) -> Counts:
    """Two processes with a disk each are killed, lose a file, then a disk: the newest whole step is taken."""
    counts: collections.Counter[str] = collections.Counter()
    for number in range(times):
        counts += _with_local_disks(bench, f"tier_{number}", bench.folder / f"disk_{number}")
    return dict(counts)


def _with_local_disks(bench: Bench, run: str, disk: pathlib.Path) -> collections.Counter[str]:
    shared, near = 16, 3
    settings = dict(train__local_dir=str(disk), train__local_every=near, train__checkpoint_every=shared)

    log = bench.folder / f"{run}.0.log"

    def starts() -> list[tuple[str, str]]:
        text = log.read_text(errors="replace") if log.exists() else ""
        return re.findall(r"resumed from step (\d+) of (\S+)", text)

    def killed_after(step: int, fresh: bool = False) -> None:
        """Starts both, and kills them once both have the step; `fresh` where it has to come back first."""
        before = len(starts())
        trainers = bench.start_hosts(run, **settings)
        with ended(trainers):
            if fresh:
                _expect(trainers[0].wait_until(lambda: len(starts()) > before), f"{run}: nothing resumed")
            there = trainers[0].wait_until(lambda: min(map(max, _local_steps(disk))) >= step)
            _expect(there, f"{run}: {trainers[0].text()[-2000:]}")

    def resumed() -> tuple[bool, int]:
        step, place = starts()[-1]
        return str(disk) in place, int(step)

    killed_after(shared + near)
    for after in (shared + 2 * near, shared + 3 * near):
        newest = min(map(max, _local_steps(disk)))
        killed_after(after, fresh=True)
        _expect(resumed() == (True, newest), f"{run}: went on from {resumed()}, not from local step {newest}")
    broken = min(map(max, _local_steps(disk)))
    file = max(_local_files(disk, 1, broken), key=_size)
    file.write_bytes(_flipped(file.read_bytes()))
    killed_after(broken, fresh=True)
    local, step = resumed()
    _expect(local and step < broken, f"{run}: local step {broken} is broken, went on from {local, step}")
    shutil.rmtree(next(disk.glob("*/process_1")))
    bench.finish(run, 2, **settings)
    local, step = resumed()
    _expect(not local and step % shared == 0, f"{run}: a disk was gone, went on from {local, step}")
    check_same(bench, run, reference(bench, 2))
    found = {"kills": 4, "resumed from local disks": 3, "from the shared folder": 1, "runs to the end": 1}
    return collections.Counter(found)


def _local_steps(disk: pathlib.Path) -> list[list[int]]:
    """What each of two processes has on its disk; 0 stands for nothing."""
    roots = [next(disk.glob(f"*/process_{index}/checkpoints"), None) for index in range(2)]
    return [[0, *(load.steps(epath.Path(root)) if root else ())] for root in roots]


def _local_files(disk: pathlib.Path, process: int, step: int) -> list[pathlib.Path]:
    return [p for p in disk.glob(f"*/process_{process}/checkpoints/{step}/params/**/*") if p.is_file()]


def other_mesh(bench: Bench, times: int) -> Counts:
    """The second half of a run on another mesh, and on two processes: equal to 1e-5."""
    del times
    straight = reference(bench)
    wanted = contents(bench.folder / straight, STEPS)
    meshes = {"mesh_fsdp": dict(devices=4, mesh__fsdp=2), "mesh_hosts": dict(hosts=2)}
    worst = 0.0
    for run, settings in meshes.items():
        shutil.copytree(bench.folder / straight, bench.folder / run)
        for step in bench.steps(run):
            if step > MIDDLE:
                shutil.rmtree(bench.folder / run / "checkpoints" / str(step))
        bench.finish(run, **settings)
        found = contents(bench.folder / run, STEPS)
        for name, x in wanted.items():
            if name.startswith("params/"):
                error = float(np.abs(found[name] - x).max() / max(np.abs(x).max(), 1e-12))
                worst = max(worst, error)
                _expect(error <= 1e-5, f"{run}: {name} differs by {error:.1e}")
    return {"meshes": len(meshes), "largest error, 1e-9": round(worst * 1e9)}


CASES: dict[str, Callable[[Bench, int], Counts]] = {
    "kill": kill,
    "bucket": bucket,
    "stop": stop,
    "stop_hosts": stop_hosts,
    "lose_host": lose_host,
    "damage": damage,
    "full_disk": full_disk,
    "nan_batch": nan_batch,
    "bad_record": bad_record,
    "changed_config": changed_config,
    "other_mesh": other_mesh,
    "local_tier": local_tier,
}
