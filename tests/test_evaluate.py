"""`python -m process_gen.evaluate`: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import types

import numpy as np
import pytest
from evaluation.evaluation_fakes import teacher

from process_gen import evaluate as command
from process_gen.evaluate import compare, evaluate, run, write_results
from process_gen.evaluation.benchmark import GROUPS, make_benchmark
from process_gen.evaluation.results import Results, ResultsError
from process_gen.sampling import Progress, SamplerConfig, SamplerError


@dataclasses.dataclass(frozen=True)
class TeacherSampler:
    """Samples what the teacher draws, one round after another, as a sampler does."""

    config: SamplerConfig = SamplerConfig()
    rows: int = 32

    def with_config(self, **changes):
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    def stream(self, prompts, seeds):
        drawn = list(enumerate(teacher(self.config.mode)(prompts, seeds)))
        for done in range(self.rows, len(drawn) + self.rows, self.rows):
            finished = tuple(drawn[done - self.rows : done])
            yield Progress(min(done, len(drawn)), len(drawn), done, finished)


@pytest.fixture
def restored(monkeypatch):
    """A checkpoint whose model is the teacher; collects how it was asked for."""
    asked = []

    def load_sampler(path, which, rows, mesh=None, **settings):
        asked.append((path, which))
        config = SamplerConfig.of({"mode": "plan_only", "flow_steps": 20}, **settings)
        level = None if path == "photographs" else "default"
        checkpoint = types.SimpleNamespace(level_name=level, config={"seed": 1}, source="the teacher")
        return TeacherSampler(config, rows), checkpoint

    monkeypatch.setattr(command, "load_sampler", load_sampler)
    return asked


def options(**changes) -> types.SimpleNamespace:
    """The flags of a command, with some of them changed."""
    values = dict(
        workdir=None, which="ema", modes=[], groups=[], split="heldout", per_group=40, seed=0, batch_size=64,
        mesh="", sampling=[], output_dir=None, pictures=24, compare=[],
    )  # fmt: skip
    return types.SimpleNamespace(**{**values, **changes})


def test_one_run_prints_the_tables_and_leaves_results_plot_and_page(restored, tmp_path):
    heard = []
    modes = ("process", "single_pass")
    values = options(
        workdir="somewhere", modes=modes, per_group=2, output_dir=str(tmp_path), pictures=3,
        sampling=["flow_steps=7"],
    )  # fmt: skip
    printed = run(values, heard.append)
    assert restored == [("somewhere", "ema")]
    assert "position" in printed and "single_pass - process" in printed
    assert heard[-1] == "single_pass: 18 of 18 prompts"
    found = Results.load(tmp_path / "results.json")
    assert list(found.modes) == list(modes)
    assert all(list(scores.groups) == list(GROUPS) for scores in found.modes.values())
    assert all(scores.score.mean == 1.0 for scores in found.modes.values())
    assert found.checkpoint["source"] == "the teacher" and found.config == {"seed": 1}
    assert found.sampler["flow_steps"] == 7 and found.sampler["rows"] == 64 and "mode" not in found.sampler
    for name in ("results.png", "index.html"):
        assert str(tmp_path / name) in printed and (tmp_path / name).stat().st_size > 1000
    lines = (tmp_path / "trajectories.jsonl").read_text().splitlines()
    assert [json.loads(line)["uid"] for line in lines][::3] == ["process_000", "single_pass_000"]


def test_the_mode_that_it_was_trained_for_is_judged_by_default(restored, tmp_path):
    run(options(per_group=1, output_dir=str(tmp_path), pictures=0))
    assert list(Results.load(tmp_path / "results.json").modes) == ["plan_only"]
    assert not (tmp_path / "index.html").exists()


def test_two_files_compare_and_runs_are_told_apart_by_folder(tmp_path):
    benchmark = make_benchmark(per_group=3)
    for run_name in ("short", "long"):
        write_results(evaluate(TeacherSampler(), benchmark), tmp_path / run_name, pictures=0)
    paths = [str(tmp_path / name / "results.json") for name in ("short", "long")]
    text, written = compare(paths, tmp_path / "both")
    assert "long/results: process - short/results: process" in text
    assert [path.name for path in written] == ["comparison.png", "comparison.txt"]
    assert run(options(compare=paths, output_dir=str(tmp_path / "both"))).startswith(text)
    write_results(evaluate(TeacherSampler(), make_benchmark(per_group=3, seed=1)), tmp_path / "other", 0)
    text, _ = compare([paths[0], str(tmp_path / "other" / "results.json")], tmp_path / "both")
    assert "no paired difference" in text
    with pytest.raises(ResultsError, match="same results file is given twice"):
        compare([paths[0], paths[0]], tmp_path / "both")
    with pytest.raises(ResultsError, match="nowhere.json"):
        compare([paths[0], "nowhere.json"], tmp_path / "both")


def test_both_modes_answer_the_same_prompts_with_the_same_seeds():
    found = evaluate(TeacherSampler(), make_benchmark(per_group=2), ["process", "plan_only"])
    tasks = [[(one.prompt, one.seed) for one in scores.outcomes] for scores in found.modes.values()]
    assert tasks[0] == tasks[1] and found.modes["plan_only"].means()["steps"] == 1
    assert len(np.unique([seed for _, seed in tasks[0]])) == 18


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"modes": ["proces"]}, "unknown mode 'proces'; did you mean process"),
        ({"groups": ["colours"]}, "unknown group 'colours'; did you mean colors"),
        ({"split": "held"}, "unknown split 'held'; did you mean heldout"),
        ({"per_group": 0}, "per_group must be at least 1"),
        ({"sampling": ["3"]}, "--sampling takes key=value, got '3'"),
    ],
)
def test_flags_that_mean_nothing_name_what_is_known(restored, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(options(**changes, output_dir=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_sampler_settings_are_literals_or_words():
    read = dict(map(command._setting, ["flow_steps=10", "renorm=none", "interval=(0.2, 0.9)"]))
    assert read == {"flow_steps": 10, "renorm": "none", "interval": (0.2, 0.9)}


def test_unknown_sampler_settings_and_unwritable_folders_are_refused(restored, tmp_path):
    with pytest.raises(SamplerError, match="'flow_step'; did you mean flow_steps"):
        run(options(output_dir=str(tmp_path / "new"), sampling=["flow_step=3"]))
    with pytest.raises(ValueError, match="was not trained on scenes"):
        run(options(workdir="photographs", output_dir=str(tmp_path / "new")))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        run(options(output_dir=str(tmp_path / "file")))
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing was made for a run that failed"


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--modes=proces", "unknown mode 'proces'"),
        ("--which=emma", "did you mean ema"),
        ("--batch_size=0", "rows must be at least 1"),
        ("--workdir=/nowhere/run", "/nowhere/run"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(flag, message, tmp_path):
    arguments = [sys.executable, "-m", "process_gen.evaluate", flag, f"--output_dir={tmp_path}"]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 2, ended.stderr
    assert last.startswith("error: ") and message in last and "Traceback" not in ended.stderr
