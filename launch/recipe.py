#!/usr/bin/env python3
"""The recipe of the paper, stage by stage, each of which goes on where it was cut off.

    launch/recipe.py cpu --config=configs/recipe/paper.py:scenes --workdir=runs/recipe
    PROCESSES=8 launch/recipe.py gpu --config=configs/recipe/paper.py:bagel_7b --workdir=/shared/a

Subset 1, phase 1, self-sampling, subsets 2 and 3, phase 2, scores: `process_gen.recipe --part=stages`
says what is run. A stage that is done is marked in WORKDIR/stages and not run again, unless something that it
depends on has changed.

Several hosts start the same line, on a workdir that all of them see. Training and sampling is done by all of
them together; the rest is done by the first one (JAX_PROCESS_ID, SLURM_PROCID), and the others wait for its
mark, or for its note that it has ended otherwise. With PROCESSES=N a stage of several processes is started N
times on this host (launch/host.py).

The exit code is that of the first stage that did not end well: 75 where it was stopped (start the same line
again, as launch/restart.sh does), 2 where something is wrong with what was asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

STOPPED, REFUSED = 75, 2  # as in env.sh
HERE = pathlib.Path(__file__).parent.resolve()
WAIT_SECONDS = 1.0
"""Between two looks for the mark of another host."""
PATIENCE_SECONDS = 600.0
"""How long a note that was there at the start may be one of an earlier run."""


def say(text: str) -> None:
    """A line between those of the stages."""
    print(f"launch/recipe.py: {text}", file=sys.stderr, flush=True)


def is_first() -> bool:
    """Whether this is the first host, or the only one."""
    return int(os.environ.get("JAX_PROCESS_ID") or os.environ.get("SLURM_PROCID") or 0) == 0


def workdir_of(arguments: list[str]) -> pathlib.Path | None:
    """The folder that `--workdir` names."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "workdir":
            return pathlib.Path(os.path.expanduser(value if equals else following)).absolute()
    return None


def command(platform: str, everyone: bool, flags: list[str]) -> list[str]:
    """What starts a stage on this host."""
    processes = os.environ.get("PROCESSES", "1")
    if everyone and processes != "1":
        return [sys.executable, str(HERE / "host.py"), platform, processes, *flags]
    return [str(HERE / "run.sh"), platform, *flags]


class Told:
    """What signals to stop have come; while one is entered they also go on to the processes of `running`."""

    def __init__(self):
        self.signals: list[int] = []
        self.running: list[subprocess.Popen] = []

    def __bool__(self) -> bool:
        return bool(self.signals)

    def __enter__(self) -> Told:
        self._before = {one: signal.signal(one, self._hear) for one in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        self.signals.append(number)
        for process in self.running:
            process.send_signal(number)


def run(words: list[str], module: str, alone: bool, told: Told) -> int:
    """Runs a stage and hands signals on; returns its exit code, 75 for one that a signal ended."""
    if told:
        return STOPPED
    env = {**os.environ, "COMMAND": module}
    if alone:  # a command of one process, whoever else is there
        env = {
            name: value for name, value in env.items() if not name.startswith(("JAX_COORD", "JAX_NUM_PROC"))
        }
        env.pop("JAX_PROCESS_ID", None)
    process = subprocess.Popen(words, env=env, start_new_session=True)
    told.running.append(process)
    for number in told.signals:  # before it was there
        process.send_signal(number)
    code = process.wait()
    told.running.remove(process)
    return STOPPED if told and code < 0 else 128 - code if code < 0 else code


def mark_of(folder: pathlib.Path, stage: dict) -> pathlib.Path:
    """The file that says that a stage is done."""
    return folder / "stages" / f"{stage['name']}.json"


def is_done(folder: pathlib.Path, stage: dict) -> bool:
    """Whether a stage is done, as it is to be done now."""
    try:
        return json.loads(mark_of(folder, stage).read_text()).get("key") == stage["key"]
    except (OSError, ValueError, AttributeError):
        return False


def mark(folder: pathlib.Path, stage: dict, seconds: float) -> None:
    """Notes that a stage is done."""
    path = mark_of(folder, stage)
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({**stage, "seconds": round(seconds, 1)}, indent=1) + "\n")
    draft.replace(path)


def failures(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    """The notes of stages that did not end well on the first host, and when they were written."""
    found = {}
    for path in (folder / "stages").glob("*.ended"):
        with contextlib.suppress(OSError):
            found[path] = path.stat().st_mtime_ns
    return found


def note_failure(folder: pathlib.Path, stage: dict, code: int) -> None:
    """Tells the hosts that wait for a stage with which exit code it has ended."""
    path = mark_of(folder, stage).with_suffix(".ended")
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(f"{code}\n")
    draft.replace(path)


def wait_for(folder: pathlib.Path, stage: dict, known: dict[pathlib.Path, int], told: Told) -> int:
    """Waits for the mark of the first host; returns 0, or the exit code with which it has ended instead.

    `known` are the notes that this host found when it began: of earlier runs, which the first host takes away
    as it begins, or of this one, where the first host has failed before this one was there.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_done(folder, stage):
        if told:
            return STOPPED
        for path, when in failures(folder).items():
            if known.get(path) != when or time.monotonic() > end:
                return int(path.read_text() or 1)
        time.sleep(WAIT_SECONDS)
    return 0


def main(platform: str, arguments: list[str]) -> int:
    """Runs the stages that are not done; a signal to stop is heard from here to the end."""
    with Told() as told:
        return run_stages(platform, arguments, told)


def run_stages(platform: str, arguments: list[str], told: Told) -> int:
    """The same, until `told` to stop."""
    folder = workdir_of(arguments)
    if folder is None:
        say("--workdir=FOLDER is required")
        return REFUSED
    known = failures(folder)
    if is_first():
        for path in known:
            path.unlink(missing_ok=True)
    code = run(command(platform, False, ["--part=stages", *arguments]), "recipe", True, told)
    if code or told:
        return code or STOPPED
    stages = json.loads((folder / "stages.json").read_text())
    for number, stage in enumerate(stages, 1):
        name = f"stage {number} of {len(stages)}, {stage['name']}"
        if is_done(folder, stage):
            say(f"{name}: done before")
            continue
        began = time.monotonic()
        if is_first() or stage["everyone"]:
            say(f"{name}: begins")
            words = command(platform, stage["everyone"], stage["flags"])
            code = run(words, stage["command"], not stage["everyone"], told)
            if code:
                say(f"{name}: ended with exit code {code}")
                if is_first():
                    note_failure(folder, stage, code)
                return code
        if is_first():
            mark(folder, stage, time.monotonic() - began)
        else:
            say(f"{name}: waits for the first host")
            if code := wait_for(folder, stage, known, told):
                say(f"{name}: ended with exit code {code} on the first host")
                return code
        say(f"{name}: done in {time.monotonic() - began:,.0f} s")
        if told:
            return STOPPED
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        say("usage: launch/recipe.py cpu|gpu|tpu|tpu_slices --config=... --workdir=...")
        sys.exit(REFUSED)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
