"""launch/recipe.py: stages in order, each once, by the hosts that it is for."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SPEC = importlib.util.spec_from_file_location("launch_recipe", LAUNCH / "recipe.py")
SPEC.loader.exec_module(recipe := importlib.util.module_from_spec(SPEC))

# Stands for Python: `--part=stages` lists what $STAGES says; every other command is noted.
STAND_IN = """#!{python}
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
told = dict(word.lstrip("-").partition("=")[::2] for word in words[2:])
folder = pathlib.Path(os.environ["FOLDER"])
if told.get("part") == "stages":
    folder.mkdir(exist_ok=True)
    (folder / "stages.json").write_text(os.environ["STAGES"])
    sys.exit(0)
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps([words[1], words[2:], os.environ.get("JAX_NUM_PROCESSES")]) + "\\n")
if "deaf" in told:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "sleep" in told:
    time.sleep(float(told["sleep"]))
sys.exit(int(os.environ.get("CODE_" + told.get("name", ""), 0)))
"""


def stage(name, everyone=False, key="k", **flags):
    words = [f"--{flag}={value}" for flag, value in {"name": name, **flags}.items()]
    return {"name": name, "command": "train", "flags": words, "everyone": everyone, "key": key}


@pytest.fixture
def box(tmp_path):
    """Starts the launcher; further variables as keywords."""
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "SLURM"))}
    folder = tmp_path / "work"

    def start(stages, *flags, **variables):
        ours = {"PYTHON": str(python), "FOLDER": str(folder), "NOTES": str(tmp_path / "notes")}
        return subprocess.Popen(
            [
                sys.executable,
                str(LAUNCH / "recipe.py"),
                "cpu",
                "--config=x.py",
                f"--workdir={folder}",
                *flags,
            ],
            env={**kept, **ours, "STAGES": json.dumps(stages), **variables},
            stderr=subprocess.PIPE,
            text=True,
        )

    def notes():
        path = tmp_path / "notes"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return start, notes, folder


def names(notes):
    return [words[0].removeprefix("--name=") for _, words, _ in notes]


def test_stages_run_in_order_and_once(box):
    start, notes, folder = box
    stages = [stage("one"), stage("two"), stage("three")]
    for _ in range(2):
        process = start(stages)
        _, text = process.communicate(timeout=60)
        assert process.returncode == 0, text
    assert names(notes()) == ["one", "two", "three"] and text.count("done before") == 3
    assert json.loads((folder / "stages" / "two.json").read_text())["seconds"] >= 0
    stages[2]["key"] = "another"
    assert start(stages).wait(60) == 0 and names(notes())[3:] == ["three"]


@pytest.mark.parametrize("code", [2, 75, 1])
def test_a_stage_that_does_not_end_well_ends_the_recipe_and_is_run_again(box, code):
    start, notes, _ = box
    stages = [stage("one"), stage("two"), stage("three")]
    assert start(stages, CODE_two=str(code)).wait(60) == code
    assert names(notes()) == ["one", "two"]
    assert start(stages).wait(60) == 0 and names(notes())[2:] == ["two", "three"]


def test_a_signal_reaches_the_stage_and_ends_with_75(box):
    start, notes, folder = box
    process = start([stage("one", sleep=30), stage("two")])
    deadline = time.monotonic() + 30
    while not notes() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert names(notes()) == ["one"] and not (folder / "stages" / "one.json").exists()


def test_a_signal_that_comes_too_late_for_a_stage_begins_no_other(box):
    start, notes, folder = box
    stages = [stage("one", sleep=3, deaf=1), stage("two")]
    process = start(stages)
    deadline = time.monotonic() + 30
    while not notes() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75 and names(notes()) == ["one"]
    assert start(stages).wait(30) == 0 and names(notes()) == ["one", "two"]


def test_hosts_do_not_wait_for_one_that_has_failed(box):
    start, notes, _ = box
    stages = [stage("one", sleep=0)]

    def wait_for_first(**variables):
        host = start(stages, JAX_PROCESS_ID="1", **variables)
        assert any("waits for the first host" in line for line in host.stderr)
        return host

    for code in (2, 3):  # the second time there is a note of the first
        hosts = [wait_for_first(), start(stages, JAX_PROCESS_ID="0", CODE_one=str(code))]
        assert [host.wait(60) for host in hosts] == [code, code]
    waiting = wait_for_first()
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(30) == 75


def test_a_host_that_comes_after_the_failure_ends_as_well(box, monkeypatch):
    start, _, folder = box
    (folder / "stages").mkdir(parents=True)
    (folder / "stages" / "one.ended").write_text("3\n")
    monkeypatch.setattr(recipe, "PATIENCE_SECONDS", 0.5)
    known = recipe.failures(folder)
    assert known and recipe.wait_for(folder, stage("one"), known, []) == 3
    assert start([stage("one", sleep=0)], JAX_PROCESS_ID="0").wait(60) == 0
    assert not recipe.failures(folder), "the first host begins anew"


def test_other_hosts_do_what_is_for_all_and_wait_for_the_rest(box):
    start, notes, folder = box
    stages = [stage("one", sleep=1), stage("two", everyone=True, sleep=5), stage("three")]
    hosts = [
        start(stages, JAX_PROCESS_ID=str(i), JAX_NUM_PROCESSES="2", JAX_COORDINATOR_ADDRESS="x:1")
        for i in range(2)
    ]
    assert [host.wait(90) for host in hosts] == [0, 0]
    found = notes()
    assert sorted(names(found)) == ["one", "three", "two", "two"] and names(found)[0] == "one"
    of = {name: processes for name, (_, _, processes) in zip(names(found), found, strict=True)}
    assert of == {"one": None, "two": "2", "three": None}


def test_a_workdir_is_required():
    done = subprocess.run(
        [sys.executable, str(LAUNCH / "recipe.py"), "cpu", "--config=x"], capture_output=True
    )
    assert done.returncode == 2 and b"--workdir=FOLDER is required" in done.stderr
    done = subprocess.run([sys.executable, str(LAUNCH / "recipe.py")], capture_output=True)
    assert done.returncode == 2 and b"usage" in done.stderr
