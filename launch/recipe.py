#!/usr/bin/env python3
"""Runs the recipe of the paper stage by stage; a stage that was interrupted resumes.

    launch/recipe.py cpu --config=configs/recipe/paper.py:scenes --workdir=runs/recipe
    PROCESSES=8 launch/recipe.py gpu --config=configs/recipe/paper.py:bagel_7b --workdir=/shared/a

Subset 1, phase 1, self-sampling, subsets 2 and 3, phase 2, scores: `process_gen.recipe --part=stages`
lists the commands. A finished stage is marked by a file in WORKDIR/stages, and runs again only if something
that it depends on has changed.

On several hosts start the same line, with a shared workdir. All hosts train, sample and evaluate together;
the other stages run on the first host (JAX_PROCESS_ID or SLURM_PROCID is 0), while the others wait for its
mark, or for its note of a failure. With PROCESSES=N a stage of several processes is started N times on this
host (launch/host.py).

The exit code is that of the first stage that failed: 75 if it was stopped (start the same line again, as
launch/restart.sh does), 2 if a flag or the config is wrong.
"""

from __future__ import annotations

import argparse
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
"""Seconds between checks for the mark of the first host."""
PATIENCE_SECONDS = 600.0
"""Seconds for which a failure note that was there at the start is taken for one of an earlier run."""


def say(text: str) -> None:
    """Prints a line to stderr, among those of the stages."""
    print(f"launch/recipe.py: {text}", file=sys.stderr, flush=True)


def is_first() -> bool:
    """Whether this is the first host, or the only one."""
    return int(os.environ.get("JAX_PROCESS_ID") or os.environ.get("SLURM_PROCID") or 0) == 0


def workdir_of(arguments: list[str]) -> pathlib.Path | None:
    """The absolute folder that `--workdir` names; None without the flag."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir", "-workdir")
    workdir = parser.parse_known_args(arguments)[0].workdir
    return pathlib.Path(os.path.expanduser(workdir)).absolute() if workdir else None


def command(platform: str, everyone: bool, flags: list[str]) -> list[str]:
    """The command that starts a stage on this host; `everyone`: whether all hosts run the stage."""
    processes = os.environ.get("PROCESSES", "1")
    if everyone and processes != "1":
        return [sys.executable, str(HERE / "host.py"), platform, processes, *flags]
    return [str(HERE / "run.sh"), platform, *flags]


def run(words: list[str], module: str, alone: bool, told: list[int]) -> int:
    """Runs a stage and passes the signals in `told` on to it, to which handlers append meanwhile.

    Returns:
      Its exit code; 75 if this script was told to stop and a signal ended it, 128 plus the signal otherwise.
    """
    if told:
        return STOPPED
    env = {**os.environ, "COMMAND": module}
    if alone:  # must not join the other processes of the job
        of_a_launcher = ("JAX_COORD", "JAX_NUM_PROC", "JAX_PROCESS_ID", "SLURM_", "OMPI_", "PMI")
        env = {name: value for name, value in env.items() if not name.startswith(of_a_launcher)}
    process = subprocess.Popen(words, env=env, start_new_session=True)
    passed_on = 0
    while (code := process.poll()) is None:
        for number in told[passed_on:]:
            process.send_signal(number)
            passed_on += 1
        time.sleep(0.1)
    return STOPPED if told and code < 0 else 128 - code if code < 0 else code


def mark_of(folder: pathlib.Path, stage: dict) -> pathlib.Path:
    """The path of the file that marks a stage as done."""
    return folder / "stages" / f"{stage['name']}.json"


def is_done(folder: pathlib.Path, stage: dict) -> bool:
    """Whether a stage is marked as done with its present key, so that what it depends on is the same."""
    try:
        return json.loads(mark_of(folder, stage).read_text()).get("key") == stage["key"]
    except (OSError, ValueError, AttributeError):
        return False


def write(path: pathlib.Path, text: str) -> None:
    """Writes a mark or a note atomically."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(text + "\n")
    draft.replace(path)


def failures(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    """The failure notes of the first host, with their modification times in ns."""
    found = {}
    for path in (folder / "stages").glob("*.ended"):
        with contextlib.suppress(OSError):
            found[path] = path.stat().st_mtime_ns
    return found


def wait_for(folder: pathlib.Path, stage: dict, known: dict[pathlib.Path, int], told: list[int]) -> int:
    """Waits until the first host has done a stage.

    `known` are the failure notes that this host found at its start. They may be of an earlier run, since the
    first host deletes those only at its own start, or of this run; after `PATIENCE_SECONDS` they count.

    Returns:
      0 when the stage is done, the exit code of the first host if it failed, 75 if this host was stopped.
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
    """Runs the stages that are not done, until one fails or a signal says to stop. Returns the exit code."""
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.append(number))
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
                if is_first():  # a note for the hosts that wait
                    write(mark_of(folder, stage).with_suffix(".ended"), f"{code}")
                return code
        if is_first():
            done = {**stage, "seconds": round(time.monotonic() - began, 1)}
            write(mark_of(folder, stage), json.dumps(done, indent=1))
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
