"""GenEval as a task: prompts, layout there and back, and the judge with detectors of known answers."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from process_gen.evaluation.geneval import files, prompts
from process_gen.evaluation.geneval.decision import Detection, Options
from process_gen.evaluation.options import TaskError
from process_gen.evaluation.statistics import score_interval
from process_gen.evaluation.tasks import make_task
from process_gen.evaluation.tasks.base import Doc, Judgement, Row
from process_gen.evaluation.tasks.geneval import DetectorJudge, Geneval

IMAGE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture
def metadata(tmp_path: pathlib.Path) -> pathlib.Path:
    return files.write_metadata(
        tmp_path / "metadata.jsonl", prompts.sample_prompts(["person", "dog", "cup"], each=4)
    )


@pytest.fixture
def task(metadata) -> Geneval:
    return make_task("geneval", {"metadata": str(metadata)})


def _laid_out(task: Geneval, root: pathlib.Path, number: int = 3) -> pathlib.Path:
    image = root / "image.png"
    Image.fromarray(IMAGE).save(image)
    drawn = [(doc, index, image) for doc in task.docs()[:number] for index in range(task.images)]
    task.lay_out(root / "images", drawn)
    return root / "images"


def test_prompts_are_the_lines_of_the_file(task, metadata):
    docs, lines = task.docs(), [json.loads(line) for line in metadata.read_text().splitlines()]
    assert [doc.target for doc in docs] == lines and docs[0].doc_id == "00000"
    assert [(doc.input, doc.group) for doc in docs] == [(line["prompt"], line["tag"]) for line in lines]
    assert task.formulas(["colors", "counting"]) == {"score": {"colors": 0.5, "counting": 0.5}}
    assert task.judge() is None and task.images == 4
    with pytest.raises(TaskError, match="geneval needs metadata=FILE"):
        make_task("geneval", {}).docs()


def test_the_layout_is_the_official_one_and_read_back(task, tmp_path):
    root = _laid_out(task, tmp_path)
    names = ["00000", "00001", "00002", "evaluation_metadata.jsonl"]
    assert sorted(path.name for path in root.iterdir()) == names
    assert json.loads((root / "00001" / "metadata.jsonl").read_text()) == task.docs()[1].target
    found = [(doc.doc_id, i, path.relative_to(root).as_posix()) for doc, i, path in task.read_layout(root)]
    assert found == [(f"{n:05d}", i, f"{n:05d}/samples/{i:04d}.png") for n in range(3) for i in range(4)]


def test_a_folder_belongs_to_the_prompt_that_its_metadata_name(task, tmp_path):
    root = _laid_out(task, tmp_path, 2)
    (root / "00000").rename(root / "00900")
    assert {doc.doc_id for doc, _, _ in task.read_layout(root)} == {"00000", "00001"}
    Image.fromarray(IMAGE).save(root / "00900" / "samples" / "0009.png")
    with pytest.raises(TaskError, match="has more than 4 images; give geneval.images=N"):
        list(task.read_layout(root))
    foreign = dict(task.docs()[0].target) | {"prompt": "a photo of a unicorn"}
    files.write_metadata(root / "00001" / "metadata.jsonl", [foreign])
    with pytest.raises(TaskError, match="00001: 'a photo of a unicorn' is not in .*metadata.jsonl"):
        list(task.read_layout(root))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match="holds no image where geneval looks"):
        list(task.read_layout(tmp_path / "empty"))


class _Finds:
    """A detector and a classifier that say what they are told to."""

    name, revision, classes = "known", "1", ("person", "dog", "cup")

    def __init__(self, found: list[Detection]):
        self.found, self.asked = found, []

    def detect(self, image: np.ndarray) -> list[Detection]:
        return self.found

    def __call__(self, image: np.ndarray, cls: str, found: list[Detection]) -> list[str]:
        self.asked += [one.box for one in found]
        return [one.color for one in found]


def test_the_judge_asks_for_colours_of_what_is_judged_alone(task):
    doc = next(doc for doc in task.docs() if doc.group == "colors")
    (clause,) = doc.target["include"]
    right = Detection(clause["class"], 0.9, (0, 0, 8, 8), color=clause["color"])
    wrong = Detection(clause["class"], 0.95, (9, 9, 18, 18), color="none")
    both = _Finds([right, wrong])
    judgement = DetectorJudge(both, both)(doc, IMAGE)
    assert both.asked == [(9, 9, 18, 18)] and judgement.score == 0
    assert judgement.failures == ("wrong_color",) and not judgement.constraints[0]["ok"]
    assert judgement.details["reason"].startswith(f"expected {clause['color']} {clause['class']}>=1, found 0")
    assert [row[0] for row in judgement.raw["detections"]] == [clause["class"]] * 2
    assert judgement.raw["colors"] == [{"class": clause["class"], "box": [9, 9, 18, 18], "color": "none"}]
    alone = _Finds([right])
    judge = DetectorJudge(alone, alone)
    assert judge(doc, IMAGE).score == 1
    assert (judge.name, judge.revision, judge.protocol) == ("known+known", "1+1", "geneval-hf")
    assert DetectorJudge(alone, alone, Options(threshold=0.2)).protocol == "geneval-hf-0.2-0.9"


def test_results_are_those_of_the_official_file(metadata, tmp_path):
    task = make_task("geneval-hf", {"metadata": str(metadata)})
    rows = []
    for doc in reversed(task.docs()[:3]):
        dog = _Finds([Detection("dog", 0.9, (0, 0, 8, 8))])
        judge = DetectorJudge(dog, dog)
        rows += [Row(doc, 0, index, judge(doc, IMAGE)) for index in range(2)]
    (path,) = task.write_results(rows, tmp_path)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert all(list(one) == keys for one in found)
    names = [f"seed_0/{n:05d}/samples/000{index}.png" for n in range(3) for index in range(2)]
    assert [one["filename"] for one in found] == names
    assert [one["correct"] for one in found] == [False] * 2 + [True] * 2 + [False] * 2
    assert found[0]["reason"] == "expected person>=1, found 0"
    assert json.loads(found[0]["metadata"]) == task.docs()[0].target
    assert json.loads(found[2]["details"]) == {"dog": [[0, 0, 8, 8, float(np.float32(0.9))]]}
    assert task.summary(rows) == {"correct_images": 1 / 3, "correct_prompts": 1 / 3}
    assert task.summary([]) == {}


def rows_of(tags):
    """For each tag so many right images of so many, of three prompts."""
    return [
        Row(Doc(f"{tag} {n}", "", tag, {"tag": tag, "prompt": f"{n % 3}"}), 0, 0, Judgement(float(n < right)))
        for tag, (right, of) in tags.items()
        for n in range(of)
    ]


def test_prompts_of_equal_metadata_are_merged_and_the_score_is_the_mean_of_the_tags():
    task = make_task("geneval-hf")
    found = task.summary(rows_of({"colors": (1, 4), "position": (2, 2), "counting": (0, 6)}))
    assert found == {"correct_images": 3 / 12, "correct_prompts": 3 / 8}
    # What the official summary printed: .55925 over the tags where .55714 of 70 images are right.
    shares = [(6, 13), (6, 12), (8, 12), (5, 11), (10, 11), (4, 11)]
    rows = rows_of(dict(zip(prompts.TAGS, shares, strict=True)))
    assert len(rows) == 70 and task.summary(rows)["correct_images"] == pytest.approx(0.55714, abs=5e-6)
    told = zip(*((row.doc.group, row.doc.doc_id, row.judgement.score) for row in rows), strict=True)
    score = score_interval(*told, task.formulas(prompts.TAGS)["score"])
    assert score.mean == pytest.approx(0.55925, abs=5e-6)


def test_a_judge_whose_detector_knows_too_little_says_what_is_missing(metadata, tmp_path, monkeypatch):
    options = {"metadata": str(metadata), "detector": str(tmp_path / "weights")}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(TaskError, match="geneval-hf.detector: .*weights: no folder"):
        make_task("geneval-hf", options).judge()
    (tmp_path / "weights").mkdir()
    about = {"model_type": "mask2former", "id2label": {"0": "person", "1": "cup"}}
    (tmp_path / "weights" / "config.json").write_text(json.dumps(about))
    (tmp_path / "weights" / "preprocessor_config.json").write_text("{}")
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"")
    with pytest.raises(TaskError, match="geneval-hf.detector: .* cannot find dog"):
        make_task("geneval-hf", options).judge()
