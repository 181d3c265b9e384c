"""Folders that grow: nothing is lost and nothing doubled, wherever a run was cut off."""

import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from process_gen.data.formats.opening import open_stored
from process_gen.recipe.building import check_prompts
from process_gen.recipe.filling import Candidate, fill
from process_gen.recipe.making import Made
from process_gen.recipe.output import SampleFolder, read_lines
from process_gen.recipe.parts import Later, RecipeError, Skip
from process_gen.recipe.prompts import FilePrompts
from process_gen.reports.files import ReportError
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import draft, refinement

ROOT = pathlib.Path(__file__).parents[2]
ABOUT = {"source": "test", "author": "teacher", "licence": "CC0"}


def made(number, kind="a"):
    image = np.full((32, 32, 3), number, np.uint8)
    wrong = draft(image, Plan("add it", "it"), "no", image_ok=False, before_weight=0.0, image_weight=0.0)
    return Made(kind, f"prompt {number}", (wrong, refinement(None, "make it so")))


def candidates(make=made, **told):
    for number in itertools.count():
        yield Candidate(f"c-{number:04d}", lambda number=number: make(number), **told)


def growing(folder, **settings):
    return SampleFolder(folder, settings, ABOUT)


def listed(folder):
    return [line["uid"] for line in read_lines(folder / "trajectories.jsonl")]


def test_a_file_of_prompts_may_grow_and_not_change(tmp_path):
    with contextlib.closing(growing(tmp_path / "out")) as folder:
        fill(folder, {"a": 3}, candidates(), 1)
    path = tmp_path / "prompts.txt"
    with contextlib.closing(growing(tmp_path / "out")) as folder:
        path.write_text("".join(f"prompt {n}\n" for n in range(5)))
        check_prompts(folder, FilePrompts(str(path)))
        path.write_text("prompt 0\na new one\nprompt 1\nprompt 2\n")
        with pytest.raises(RecipeError, match="prompt 2 of config.prompts was 'prompt 1' .* at the end"):
            check_prompts(folder, FilePrompts(str(path)))


def test_samples_are_read_back_as_they_were_made(tmp_path):
    with contextlib.closing(growing(tmp_path)) as folder:
        filled = fill(folder, {"a": 3}, candidates(), 2)
    assert filled.counts == {"a": 3} and filled.made == 3 and not filled.missing
    source = open_stored(tmp_path, (32, 32))
    assert len(source) == 3
    turns = source[1].turns
    assert turns[0].before_weight == turns[0].image_weight == 0 and not turns[0].image_ok
    assert turns[1].image is None and turns[1].instruction == "make it so"
    assert source[1].metadata["author"] == "teacher" and source[1].metadata["licence"] == "CC0"


def test_a_run_goes_on_where_it_was_and_grows_with_its_quotas(tmp_path):
    def some(number):
        if number % 3 == 0:
            raise Skip("a third", f"{number}")
        return made(number)

    for count in (4, 4, 9):
        with contextlib.closing(growing(tmp_path)) as folder:
            fill(folder, {"a": count}, candidates(some), 1)
    assert listed(tmp_path) == [f"c-{n:04d}" for n in range(14) if n % 3]
    assert [line["detail"] for line in read_lines(tmp_path / "rejected.jsonl")] == ["0", "3", "6", "9", "12"]


def test_prompts_without_end_of_which_nothing_becomes_end_the_work(tmp_path):
    def none(number):
        raise Skip("no way", f"{number}")

    with contextlib.closing(growing(tmp_path)) as folder:
        with pytest.raises(RecipeError, match=r"20 candidates in a row became no sample .*: no way \(19\)"):
            fill(folder, {"a": 3}, candidates(none), 1, patience=20)
        assert fill(folder, {"a": 3}, itertools.islice(candidates(none), 60), 1).missing == {"a": 3}


def test_quotas_are_kept_by_kind(tmp_path):
    def kinds():
        for number in range(40):
            kind = "ab"[number % 4 == 0]
            yield Candidate(f"c-{number}", lambda n=number, kind=kind: made(n, kind), kind * (number < 20))

    with contextlib.closing(growing(tmp_path)) as folder:
        filled = fill(folder, {"a": 3, "b": 12}, kinds(), 3)
    assert filled.counts == {"a": 3, "b": 10} and filled.missing == {"b": 2}
    assert folder.rejected["quota is full: a"] > 0


def test_an_unfinished_line_is_made_again(tmp_path):
    with contextlib.closing(growing(tmp_path)) as folder:
        fill(folder, {"a": 3}, candidates(), 1)
    path = tmp_path / "trajectories.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with contextlib.closing(growing(tmp_path)) as folder:
        assert folder.counts == {"a": 2}
        fill(folder, {"a": 3}, candidates(), 1)
    assert path.read_bytes() == whole
    path.write_bytes(whole + b"{}\n")
    with pytest.raises(ReportError, match="trajectories.jsonl:4 is not a JSON record"):
        growing(tmp_path)


def test_a_folder_that_was_made_otherwise_is_refused(tmp_path):
    growing(tmp_path, seed=2).close()  # nothing is made yet
    with contextlib.closing(growing(tmp_path, seed=0)) as folder:
        fill(folder, {"a": 1}, candidates(), 1)
    with pytest.raises(ReportError, match="were made with seed 0, not 1: choose another folder"):
        growing(tmp_path, seed=1)
    for broken in ("{", "[]"):
        (tmp_path / "settings.json").write_text(broken)
        with pytest.raises(ReportError, match="settings.json is broken .*: choose another folder"):
            growing(tmp_path, seed=0)


def test_the_first_problem_ends_the_work_after_what_is_under_way(tmp_path):
    def some(number):
        if number == 2:
            raise ValueError("gone")
        time.sleep(0.05)
        if number == 3:
            raise Later("busy")
        return made(number)

    with contextlib.closing(growing(tmp_path)) as folder, pytest.raises(ValueError, match="gone"):
        fill(folder, {"a": 50}, candidates(some), 2)
    assert set(listed(tmp_path)) >= {"c-0000", "c-0001"}


@pytest.mark.slow
def test_kills_lose_nothing_and_double_nothing(tmp_path):
    command = [
        sys.executable, "-m", "process_gen.recipe", "--config=configs/recipe/paper.py:debug_symbolic",
        "--config.multi_turn.samples=600", f"--workdir={tmp_path / 'killed'}", "--part=multi_turn",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    path, draw, kills = tmp_path / "killed" / "multi_turn" / "trajectories.jsonl", random.Random(0), 0
    for want in (60, 200, 400):
        process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.read_bytes().count(b"\n") >= want:
                break
            time.sleep(0.01)
        time.sleep(draw.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, timeout=300)
    whole = [one.replace("killed", "whole") for one in command]
    subprocess.run(whole, cwd=ROOT, env=env, check=True, capture_output=True, timeout=300)
    assert path.read_bytes() == (tmp_path / "whole" / "multi_turn" / "trajectories.jsonl").read_bytes()
    assert len({json.loads(line)["uid"] for line in path.read_bytes().splitlines()}) == 600
    images = {one.relative_to(tmp_path / "killed") for one in (tmp_path / "killed").rglob("*.png")}
    assert images == {one.relative_to(tmp_path / "whole") for one in (tmp_path / "whole").rglob("*.png")}
