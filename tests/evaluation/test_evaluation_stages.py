"""Images, verdicts, report: each stage takes up what is on disk, and nothing is done twice."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import numpy as np
import pyarrow.parquet as parquet
import pytest
from evaluation_fakes import CHECKPOINT, TeacherSampler, ask, canvas, evaluated, sampled, spoiled
from PIL import Image

from process_gen.distributed import lock, stopping
from process_gen.distributed.stopping import Stopped
from process_gen.evaluation import judging, pipeline
from process_gen.evaluation.arms import make_arm
from process_gen.evaluation.stages import evaluate
from process_gen.evaluation.tasks import TASKS
from process_gen.evaluation.tasks.base import Doc, Judgement, Task, TaskError, Unjudged
from process_gen.reports.files import ReportError
from process_gen.trajectory.stages import Trajectory, Turn


class Killed(Exception):
    """In place of a signal."""


def killed_after(calls: int):
    """A progress function that ends the work at its so many-th call."""
    left = iter(range(calls))

    def show(text):
        if next(left, None) is None:
            raise Killed

    return show


def drawn(folder):
    (path,) = folder.glob("draws/*/trajectories.jsonl")
    return [json.loads(line)["uid"] for line in path.read_text().splitlines()]


def test_a_killed_run_draws_and_judges_the_rest_and_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "_EVERY", 0)
    sampler, kills = TeacherSampler(rows=4), 0
    for calls in (0, 1, 2, 0, 3, 7):
        with pytest.raises(Killed):
            evaluated(tmp_path, sampler, per_group=2, show=killed_after(calls))
        kills += 1
    (cell,), _ = evaluated(tmp_path, sampler, per_group=2)
    assert kills == 6 and len(cell.outcomes) == 18 and cell.missing == 0
    assert len(drawn(tmp_path)) == len(set(drawn(tmp_path))) == 18
    (path,) = tmp_path.glob("draws/*/verdicts/*.jsonl")
    keys = [judging.key_of(row) for row in judging.read_verdicts(path)]
    assert len(keys) == len(set(keys)), "no image was judged twice"
    asked = len(sampler.asked)
    again, _ = evaluated(tmp_path, sampler, per_group=2)
    assert len(sampler.asked) == asked and again[0].to_json() == cell.to_json()


@pytest.mark.parametrize("stage", ["all", "images", "judge", "report"])
def test_a_folder_is_of_one_evaluation_at_a_time(tmp_path, stage):
    with (
        lock.hold(tmp_path, "an evaluation"),
        pytest.raises(lock.Occupied, match="an evaluation is going on"),
    ):
        evaluated(tmp_path, per_group=1, stage=stage)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_that_may_wait_comes_after_the_other(tmp_path):
    said = []

    def show(text):
        said.append(text)
        raise stopping.Stopped(text)

    with lock.hold(tmp_path, "an evaluation"), pytest.raises(stopping.Stopped):
        evaluated(tmp_path, per_group=1, wait=True, show=show)
    assert said == ["waiting for another evaluation"]


def test_a_report_ends_where_it_is_told_to_and_is_made_again(tmp_path):
    (cell,), text = evaluated(tmp_path, per_group=1)
    heard = []
    evaluated(tmp_path, per_group=1, stage="report", show=heard.append)
    assert len(heard) >= 3 and heard[0].endswith("adding up")
    for calls in range(len(heard)):
        with pytest.raises(Killed):
            evaluated(tmp_path, per_group=1, stage="report", show=killed_after(calls))
    assert evaluated(tmp_path, per_group=1, stage="report")[1] == text


def test_an_unfinished_line_is_judged_again(tmp_path):
    (cell,), _ = evaluated(tmp_path, per_group=1)
    (path,) = tmp_path.glob("draws/*/verdicts/*.jsonl")
    path.write_bytes(path.read_bytes()[:-40])
    evaluated(tmp_path, per_group=1, stage="judge")
    (again,), _ = evaluated(tmp_path, per_group=1, stage="report")
    assert again.to_json() == cell.to_json()
    path.write_bytes(path.read_bytes() + b'{"uid": 1}\n')
    with pytest.raises(TaskError, match=r"jsonl:\d+ is no verdict"):
        evaluated(tmp_path, per_group=1, stage="report")


def test_images_are_told_apart_by_everything_that_matters(tmp_path):
    sampler, folders = TeacherSampler(), []
    variants = [
        (sampler, {}, CHECKPOINT),
        (sampler.with_config(flow_steps=3), {}, CHECKPOINT),
        (sampler, {"level": "default", "split": "train"}, CHECKPOINT),
        (sampler, {}, CHECKPOINT | {"digest": "1"}),
        (sampler.with_config(max_steps=1), {}, CHECKPOINT),
    ]
    for one, options, checkpoint in variants:
        asked, _ = ask(options=options, sampler=one, checkpoint=checkpoint, per_group=1)
        folders.append((asked.place, tuple(draw.uid for draw in asked.wanted)))
    assert len(set(folders)) == len(variants)
    same, _ = ask("best_of=3", per_group=1)
    assert same.place == folders[0][0] and len(same.wanted) == 27
    assert {draw.uid for draw in same.wanted} > set(folders[0][1]), "arms share what is drawn"


def test_only_options_that_are_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "one.json", "two.json"):
        (tmp_path / name).mkdir()
    asked, _ = ask(options={"split": "train"}, per_group=1)
    assert asked.options["split"] == "train"
    monkeypatch.setenv("HOME", f"{tmp_path}/home")
    given = {"data": "one.json:two.json", "split": "train", "detector": "facebook/x", "cache": "~/answers"}
    given |= {"question": "Is it train:{prompt}?"}
    changed = {"data": f"{tmp_path}/one.json:{tmp_path}/two.json", "cache": f"{tmp_path}/home/answers"}
    assert pipeline._absolute(given) == given | changed


def test_best_of_takes_what_its_inspections_or_the_judge_like_best(tmp_path):
    def spoil(index, trajectory):
        """Of four candidates the last is right and not corrected, the first is wrong."""
        candidate = index % 4
        turn = dataclasses.replace(trajectory.turns[0], before=None, after=None)
        image = trajectory.image * (candidate in (1, 3))
        turns = (dataclasses.replace(turn, image=image),)
        if candidate < 3:
            turns += (dataclasses.replace(turn, image=image, refines=True, before="<refine>x</refine>"),)
        return dataclasses.replace(trajectory, turns=turns)

    sampler = TeacherSampler(spoil=spoil)
    arms = ("best_of=4", "best_of_judge=4", "process")
    (own, judge, process), _ = evaluated(tmp_path, sampler, arms=arms, per_group=1)
    assert {one.uid.split("_")[-2] for one in own.outcomes} == {"3"}
    assert {one.uid.split("_")[-2] for one in judge.outcomes} == {"1"}
    assert {one.uid.split("_")[-2] for one in process.outcomes} == {"0"}
    assert (own.wanted, process.wanted) == (36, 9) and process.scores["score"].mean == 0
    assert own.means()["sampling_steps"] == 4 * process.means()["sampling_steps"], "all of them were drawn"


@pytest.mark.parametrize(
    "name, message",
    [
        ("proces", "unknown arm 'proces'; did you mean process"),
        ("steps", "arm 'steps' needs a number, as steps=4"),
        ("best_of=0", "arm 'best_of=0' needs a number"),
        ("process=3", "arm 'process=3' takes no value"),
        ("process+plan_only", "sets mode twice"),
        ("best_of=2+best_of_judge=4", "sets candidates, choose twice"),
        ("planner=scenes+planner=chat", "sets planner twice"),
        ("rewritten=gone.jsonl", "arm 'rewritten=gone.jsonl': there is no file gone.jsonl"),
    ],
)
def test_arms_that_cannot_be_name_what_is_wrong(name, message):
    with pytest.raises(TaskError, match=message):
        make_arm(name)


def test_rewritten_prompts_and_plain_ones_never_share_verdicts(tmp_path):
    path = tmp_path / "long.jsonl"
    docs = ask(per_group=1)[0].docs
    path.write_text("\n".join(json.dumps({"doc_id": d.doc_id, "prompt": "a red circle"}) for d in docs))
    arms = ("process", f"rewritten={path}")
    (plain, rewritten), _ = evaluated(tmp_path / "out", arms=arms, per_group=1)
    assert plain.scores["score"].mean == 1 > rewritten.scores["score"].mean
    assert not {one.uid for one in plain.outcomes} & {one.uid for one in rewritten.outcomes}


def test_reading_changes_nothing_and_final_states_alone_tell_nothing_of_the_way(tmp_path):
    (cell,), _ = evaluated(tmp_path, per_group=1, states="final")
    assert cell.states == {} and cell.counted["drafts"] > len(cell.outcomes)
    (path,) = tmp_path.glob("draws/*/trajectories.jsonl")
    part = path.with_suffix(".1.jsonl")  # of a host that is still drawing
    part.write_bytes(path.read_bytes()[:100])
    before = path.read_bytes()
    evaluated(tmp_path, per_group=1, stage="report")
    assert path.read_bytes() == before and part.stat().st_size == 100


def test_rewritten_prompts_are_drawn_and_judged_by_the_original(tmp_path):
    sampler, path, options = TeacherSampler(), tmp_path / "long.jsonl", {"groups": "colors"}
    asked, _ = ask(options=options, per_group=2)
    lines = [{"doc_id": doc.doc_id, "prompt": f"a {doc.input.split(' ', 1)[1]}"} for doc in asked.docs]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    (cell,), _ = evaluated(tmp_path, sampler, arms=(f"rewritten={path}",), per_group=2, options=options)
    assert {prompt for prompt, _ in sampler.asked} == {line["prompt"] for line in lines}
    assert [one.input for one in cell.outcomes] == [doc.input for doc in asked.docs]
    path.write_text('{"doc_id": "colors 0"}')
    with pytest.raises(TaskError, match="long.jsonl, line 1: an object with"):
        make_arm(f"rewritten={path}")
    path.write_text(json.dumps(lines[0]))
    with pytest.raises(TaskError, match="no rewritten prompt for doc_id 'colors 1'"):
        evaluated(tmp_path, sampler, arms=(f"rewritten={path}",), per_group=2, options=options)


# ------------------------------------------------------- a task of somebody else


class Picky:
    """Has no verdict on every third image that it is shown, the first time."""

    name, revision, protocol, workers = "picky", "1", "colours", 1  # which image is the third must be sure

    def __init__(self):
        self.shown = []

    def __call__(self, doc, image):
        self.shown.append(doc.doc_id)
        if len(self.shown) % 3 == 0 and self.shown.count(doc.doc_id) == 1:
            raise Unjudged("cannot say", raw="hm")
        return Judgement(float(image.mean() > 0), details={"mean": float(image.mean())}, raw="yes")


JUDGE = Picky()


@dataclasses.dataclass(frozen=True)
class Colours(Task):
    """Two groups of prompts, images in a folder of each."""

    name = "colours"
    version = "3"
    images: int = 2

    def docs(self):
        return [Doc(f"{group}/{n}", f"a red circle {n}", group) for group in "ab" for n in range(3)]

    def judge(self):
        return JUDGE

    def formulas(self, groups):
        return {"plain": {group: 1 / len(groups) for group in groups}, "only a": {"a": 1.0}}

    def place(self, doc, index):
        return f"{doc.doc_id}_{index}.png"


@pytest.fixture
def colours(monkeypatch):
    monkeypatch.setitem(TASKS, "colours", Colours)
    JUDGE.shown.clear()


def put(folder, doc, index, value):
    path = folder / f"{doc}_{index}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def test_images_of_another_program_are_judged_by_layout(tmp_path, colours):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for doc, index, value in [("a/0", 0, 9), ("a/0", 1, 0), ("a/2", 0, 9), ("b/1", 0, 0)]:
        put(theirs, doc, index, value)
    asked = pipeline.ask_foreign("colours", {}, str(theirs), 0, 0)
    _, written, (cell,) = evaluate([(asked, None)], ours, pictures=0)
    assert cell.arm == "images" and cell.unjudged == 1 and cell.missing == 8
    _, written, (cell,) = evaluate([(asked, None)], ours, pictures=0)
    assert cell.unjudged == 0 and len(JUDGE.shown) == 5, "only what had no verdict is asked again"
    assert cell.scores["plain"].mean == pytest.approx((2 / 3 + 0) / 2)
    assert cell.scores["only a"].mean == pytest.approx(2 / 3)
    assert cell.means() == {} and cell.states == {}
    rows = parquet.read_table(ours / "results.parquet").to_pylist()
    assert [(row["doc_id"], row["score"]) for row in rows if row["index"] == 1] == [("a/0", 0.0)]
    assert json.loads(rows[0]["details"])["mean"] >= 0 and rows[0]["resps"] == '"yes"'
    (theirs / "a" / "1_0.png").write_text("no image")
    with pytest.raises(TaskError, match="cannot read the image .*1_0.png"):
        evaluate([(asked, None)], ours, pictures=0)
    put(theirs, "a/1", 0, 9)
    put(theirs, "b/1", 0, 9)
    _, _, (cell,) = evaluate([(asked, None)], ours, pictures=0)
    assert cell.groups["b"].mean == 1, "another image under the same name is judged again"
    with pytest.raises(TaskError, match="there is no folder .*gone"):
        pipeline.ask_foreign("colours", {}, str(tmp_path / "gone"), 0, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match="holds no image where colours looks for one"):
        empty = pipeline.ask_foreign("colours", {}, str(tmp_path / "empty"), 0, 0)
        evaluate([(empty, None)], ours, pictures=0)


def test_layouts_hold_the_final_images_of_every_seed(tmp_path, colours, monkeypatch):
    monkeypatch.setattr(JUDGE, "protocol", "other")
    asked, sampler = ask(task="colours", seeds=(0, 4), limit=2)
    monkeypatch.setattr(TeacherSampler, "draw", draw_plain)
    _, written, (cell,) = evaluate([(asked, sampler)], tmp_path, pictures=0, warm=False)
    found = sorted("/".join(path.parts[-3:]) for path in tmp_path.rglob("layout/*/*/*/*.png"))
    names = [f"seed_{seed}/{group}/0_{index}.png" for seed in (0, 4) for group in "ab" for index in (0, 1)]
    assert found == names
    assert {path.name for path in written} >= {"seed_0", "seed_4", "results.json"}
    assert cell.wanted == 8 and len(cell.outcomes) + cell.unjudged == 8


def draw_plain(self, index, prompt, seed):
    return sampled(Trajectory(prompt, (Turn(canvas("red circle b2")),)), self.config.mode, seed)


def test_later_stages_need_neither_model_nor_flags(tmp_path):
    sampler = spoiled("colors", per_group=1)
    evaluated(tmp_path, sampler, arms=("process", "steps=2"), per_group=1, stage="images")
    cells = pipeline.remembered(tmp_path)
    assert [one.arm for one in cells] == ["process", "steps=2"] and cells[1].settings["max_steps"] == 2
    evaluated(tmp_path, arms=("process",), per_group=1, stage="images")
    assert len(pipeline.remembered(tmp_path)) == 2, "the same cell is remembered once"
    (tmp_path / pipeline.CELLS).write_text("[1]")
    with pytest.raises(TaskError, match="is no list of cells"):
        pipeline.remembered(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    evaluated(tmp_path, per_group=1)
    (path,) = tmp_path.glob("draws/*/settings.json")
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"digest": "other"}))
    with pytest.raises(ReportError, match="digest 'other', not '0'"):
        evaluated(tmp_path, per_group=1)


class Paid:
    """Takes a while over each image, and cannot go on at the fourth."""

    name, revision, protocol, workers = "paid", "1", "colours", 4

    def __init__(self, fails: bool):
        self.fails, self.shown = fails, []

    def __call__(self, doc, image):
        self.shown.append(doc.doc_id)
        if self.fails and len(self.shown) == 4:
            raise TaskError("no key")
        time.sleep(0.05)
        return Judgement(1.0)


def forty(folder):
    """Images to judge."""
    fields = {"final": True, "seed": 0, "index": 0}
    for number in range(40):
        put(folder, f"{number}", 0, 9)
        doc, path = Doc(str(number), "x", "a"), folder / f"{number}_0.png"
        yield judging.State((str(number), 0, "final"), doc, path, path.name, fields)


@pytest.mark.parametrize("again", [True, False])
def test_a_signal_is_heard_while_a_judge_is_silent(tmp_path, monkeypatch, again):
    monkeypatch.setattr(judging, "_WITHOUT_NEWS", 0.1)
    answer, judge = threading.Event(), Paid(False)

    class Silent:
        name, revision, protocol, workers = "silent", "1", "colours", 2

        def __call__(self, doc, image):
            judge.shown.append(doc.doc_id)
            answer.wait(20)
            return Judgement(1.0)

    def show(text):
        if not again:  # then what is under way is waited for
            answer.set()
        raise Stopped("SIGTERM was received", again)

    path, start = tmp_path / "verdicts" / "silent.jsonl", time.monotonic()
    with pytest.raises(Stopped):
        judging.judge_states(Silent(), forty(tmp_path), path, show=show)
    assert time.monotonic() - start < 10
    written = len(list(judging.read_verdicts(path)))
    assert written == 0 if again else 2 <= written <= 4
    answer.set()


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_under_way_is_written_before_the_work_ends(tmp_path, fails, monkeypatch):
    monkeypatch.setattr(judging, "_EVERY", 0)
    states = list(forty(tmp_path))
    judge, path = Paid(fails), tmp_path / "verdicts" / "paid.jsonl"
    with pytest.raises(TaskError if fails else Killed):
        judging.judge_states(judge, states, path, show=print if fails else killed_after(2))
    written = [row["doc_id"] for row in judging.read_verdicts(path)]
    assert len(judge.shown) < 40 and len(written) == len(judge.shown) - fails
    judging.judge_states(Paid(False), states, path)
    assert len(judging.judged(path)) == 40 == len(list(judging.read_verdicts(path)))
