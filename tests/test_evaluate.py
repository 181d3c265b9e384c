"""`python -m process_gen.evaluate`: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest
from evaluation.evaluation_fakes import TeacherSampler

from process_gen import evaluate as command
from process_gen.evaluate import run
from process_gen.evaluation import results, writing
from process_gen.evaluation.results import ResultsError
from process_gen.evaluation.tasks.scenes import GROUPS
from process_gen.sampling import SamplerConfig, SamplerError
from process_gen.weights import restore


@pytest.fixture
def restored(monkeypatch):
    """A checkpoint whose model is the teacher; collects how it was asked for."""
    asked = []

    def load_sampler(path, which, rows, tokenizer, config, mesh, dtype, **settings):
        asked.append((path, which))
        config = SamplerConfig.of({"mode": "plan_only", "flow_steps": 20}, **settings)
        level = {"photographs": None, "hung": "hung"}.get(path, "default")
        source = path if path and "/checkpoints/" in path else "the teacher"
        told = dict(level_name=level, config={"seed": 1}, source=source, digest="0")
        return TeacherSampler(config, rows, level or "default"), types.SimpleNamespace(**told)

    monkeypatch.setattr(restore, "load_sampler", load_sampler)
    return asked


def options(folder, **changes) -> types.SimpleNamespace:
    """The flags of a command, with some of them changed."""
    values = dict(
        workdir=None, which="ema", config=None, tokenizer=None, dtype=None, tasks=["scenes"], task_args=[],
        arms=[], arm_args=[], seeds=[], limit=0, per_group=0, stage="all", states="all", images=None,
        batch_size=64, mesh="", sampling=[], output_dir=str(folder), pictures=24,
        compare=[], allow=[], pool=[],
        coordinator=None, num_processes=None, process_id=None, forced=False,
    )  # fmt: skip
    return types.SimpleNamespace(**{**values, **changes})


def test_one_run_prints_the_tables_and_leaves_results_plots_and_page(restored, tmp_path):
    heard = []
    values = options(
        tmp_path, workdir="somewhere", arms=["process", "single_pass"], per_group=2, pictures=3,
        sampling=["flow_steps=7"],
    )  # fmt: skip
    printed = run(values, heard.append)
    assert restored == [("somewhere", "ema")]
    assert "position" in printed and "single_pass - process" in printed
    assert "scenes-single_pass" in (drawn := [line for line in heard if "trajectories" in line])[-1]
    assert drawn[-1].endswith("18 of 18 trajectories") and heard[-1] == "writing the page"
    process, single = results.load(tmp_path / "results.json")
    assert (process.arm, single.arm) == ("process", "single_pass")
    assert list(process.groups) == list(GROUPS) and process.scores["score"].mean == 1.0
    assert process.checkpoint["source"] == "the teacher" and process.settings["flow_steps"] == 7
    assert json.loads((tmp_path / "results.json").read_text())["config"] == {"seed": 1}
    page = (tmp_path / "index.html").read_text()
    for name in ("results.png", "cost.png", "index.html"):
        assert str(tmp_path / name) in printed and (tmp_path / name).stat().st_size > 1000
    assert page.count("<article") == 6
    links = [part.split('"')[0] for part in page.split('<a href="draws/')[1:]]
    assert links and all((tmp_path / "draws" / link).is_file() for link in links)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["arm"] for line in lines} == {"process", "single_pass"}
    assert sum(line["final"] for line in lines) == 36 < len(lines)


def test_the_mode_that_it_was_trained_for_is_judged_by_default(restored, tmp_path):
    run(options(tmp_path, per_group=1, pictures=0))
    assert [cell.arm for cell in results.load(tmp_path / "results.json")] == ["plan_only"]
    assert not (tmp_path / "index.html").exists()


def test_groups_are_those_of_the_level_that_was_trained_on(restored, tmp_path):
    told = dict(workdir="hung", per_group=1, pictures=0, task_args=["scenes.groups=six_objects"])
    run(options(tmp_path, arms=["process"], **told))
    assert list(results.load(tmp_path / "results.json")[0].groups) == ["six_objects"]
    with pytest.raises(ValueError, match="unknown group 'six_objects'; did you mean"):
        run(options(tmp_path, **told | {"workdir": "somewhere"}))


def test_stages_one_by_one_are_all_at_once(restored, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    told = dict(per_group=1, arms=["process", "steps=1"], seeds=["0", "1"], pictures=0)
    text = run(options(one, **told)).split("\n\n/")[0]
    for stage in ("images", "judge", "report"):
        last = run(options(other, stage=stage, **(told if stage == "images" else {"pictures": 0})))
    assert len(restored) == 2, "only the first stage loads the model"
    assert last.split("\n\n/")[0] == text
    with pytest.raises(ValueError, match="holds no images of such a task and arm"):
        run(options(other, stage="judge", arms=["plan_only"]))
    with pytest.raises(ValueError, match="has no images of seed 2: --stage=images draws them"):
        run(options(other, stage="report", seeds=["0", "2"]))
    run(options(other, stage="report", seeds=["1"], arms=["process"], pictures=0))
    (cell,) = results.load(other / "results.json")
    assert cell.seeds == [1] and {one.seed for one in cell.outcomes} == {1}


def test_words_that_the_model_does_not_know_are_a_warning(restored, tmp_path, capsys, monkeypatch):
    knows_circles = types.SimpleNamespace(unknown=lambda text: ["star"] if "star" in text else [])
    monkeypatch.setattr(TeacherSampler, "tokenizer", knows_circles)
    (tmp_path / "mine.txt").write_text("a red circle\na star\n")
    told = dict(tasks=["prompts"], task_args=[f"prompts.data={tmp_path / 'mine.txt'}"], pictures=0)
    run(options(tmp_path, workdir="photographs", **told))
    said = "1 of 2 prompts of prompts have words that are not in the vocabulary, such as 'star' in 'a star'"
    assert said in capsys.readouterr().err


def test_two_files_compare_and_runs_are_told_apart_by_what_differs(restored, tmp_path):
    for name in ("short", "long"):
        settings = ["flow_steps=5"] if name == "short" else []
        run(options(tmp_path / name, per_group=3, pictures=0, sampling=settings))
    paths = [str(tmp_path / name / "results.json") for name in ("short", "long")]
    with pytest.raises(ResultsError, match="flow_steps differ .5 and 20.; --allow=flow_steps"):
        run(options(tmp_path / "both", compare=paths))
    text = run(options(tmp_path / "both", compare=paths, allow=["flow_steps"]))
    assert "plan_only flow_steps=20 - plan_only flow_steps=5" in text
    assert (tmp_path / "both" / "comparison.png").exists()
    assert (tmp_path / "both" / "comparison.txt").read_text().strip() in text
    told = [{"id": "a", "results": f"{name}/results.json"} for name in ("short", "long")]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    of_sweep = dict(compare=[str(tmp_path / "results.jsonl")], allow=["flow_steps"])
    assert run(options(tmp_path / "both", **of_sweep)) == text
    with pytest.raises(ResultsError, match="lists no results of a sweep's cells"):
        run(options(tmp_path / "both", compare=[str(tmp_path / "short" / "results.jsonl")]))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ResultsError, match="no cell of the sweep has results yet"):
        run(options(tmp_path / "both", compare=[str(tmp_path / "empty.jsonl")]))
    with pytest.raises(ResultsError, match="same results file is given twice"):
        run(options(tmp_path / "both", compare=[paths[0], paths[0]]))
    with pytest.raises(ResultsError, match="nowhere.json"):
        run(options(tmp_path / "both", compare=[paths[0], "nowhere.json"]))


def test_steps_of_a_run_make_a_learning_curve(restored, tmp_path, monkeypatch):
    drawn, paths = [], []
    monkeypatch.setattr(
        writing.plots, "points", lambda series, path, *_: drawn.append((series, path)) or path
    )
    for step in (100, 300):
        folder = tmp_path / str(step)
        run(options(folder, workdir=f"runs/a/checkpoints/{step}", per_group=1, pictures=0))
        paths.append(str(folder / "results.json"))
    assert not drawn
    text = run(options(tmp_path / "both", compare=paths))
    assert "plan_only step=300 - plan_only step=100" in text
    costs, (learning, path) = drawn
    assert path.name == "comparison_learning.png" and str(path) in text and list(learning) == ["plan_only"]
    assert [(step, score.mean) for step, score in learning["plan_only"]] == [(100, 1.0), (300, 1.0)]
    assert list(costs[0]) == ["plan_only step=100", "plan_only step=300"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"arms": ["proces"]}, "unknown arm 'proces'; did you mean process"),
        ({"task_args": ["scenes.groups=colours"]}, "unknown group 'colours'; did you mean colors"),
        ({"task_args": ["scenes.split=held"]}, "unknown split 'held'; did you mean heldout"),
        ({"task_args": ["scenes.per_group=0"]}, "per_group must be at least 1"),
        ({"task_args": ["split=held"]}, "--task_args takes task.option=value, got 'split=held'"),
        ({"tasks": ["scene"]}, "unknown task 'scene'; did you mean scenes"),
        ({"stage": "images,judge"}, "unknown stage"),
        ({"seeds": ["one"]}, "--seeds takes whole numbers"),
        ({"allow": ["prompt"]}, "did you mean prompts"),
        (
            {"forced": True, "tasks": ["prompts"]},
            "--forced needs --tasks=scenes: other tasks have no teacher",
        ),
        ({"arm_args": ["x=1"]}, "--arm_args takes role.option=value, got 'x=1'"),
        ({"arm_args": ["plan.model=1"]}, "unknown role 'plan'; did you mean planner"),
        ({"sampling": ["3"]}, "--sampling takes key=value, got '3'"),
    ],
)
def test_flags_that_mean_nothing_name_what_is_known(restored, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(options(tmp_path / "new", **changes))
    assert not (tmp_path / "new").exists()


def test_sampler_settings_are_literals_or_words():
    read = dict(map(command._setting, ["flow_steps=10", "renorm=none", "interval=(0.2, 0.9)"]))
    assert read == {"flow_steps": 10, "renorm": "none", "interval": (0.2, 0.9)}


def test_unknown_sampler_settings_and_unwritable_folders_are_refused(restored, tmp_path):
    with pytest.raises(SamplerError, match="'flow_step'; did you mean flow_steps"):
        run(options(tmp_path / "new", sampling=["flow_step=3"]))
    with pytest.raises(ValueError, match="was not trained on scenes"):
        run(options(tmp_path / "new", workdir="photographs"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        run(options(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing was made for a run that failed"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"arms": ["proces"]}, "unknown arm 'proces'"),
        ({"which": "emma"}, "did you mean ema"),
        ({"batch_size": 0}, "rows must be at least 1"),
        ({"workdir": "/nowhere/run"}, "/nowhere/run"),
    ],
)
def test_bad_input_is_an_error_that_the_command_prints(changes, message, tmp_path):
    with pytest.raises(command.ERRORS, match=message):
        run(options(tmp_path, **changes))


def test_bad_input_exits_with_2_and_one_line(tmp_path):
    """One of them in a process of its own: what `cli.run` makes of it is the same for all."""
    arguments = [sys.executable, "-m", "process_gen.evaluate", "--which=emma", f"--output_dir={tmp_path}"]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 2, ended.stderr
    assert last.startswith("error: ") and "did you mean ema" in last and "Traceback" not in ended.stderr
