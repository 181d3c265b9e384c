"""GenEval's files: what is read, what is refused, and how results add up."""

from __future__ import annotations

import json

import pytest

from process_gen.evaluation.errors import TaskError
from process_gen.evaluation.geneval import files, prompts

DOG = {"class": "dog", "count": 1}


def _metadata(*include, tag: str = "colors", prompt: str = "a photo", **more) -> dict:
    return {"tag": tag, "include": list(include), **more, "prompt": prompt}


@pytest.mark.parametrize(
    "include, message",
    [
        ([DOG | {"count": 0}], r"include\[0\]: 'count' must be from 1 to 16, got 0"),
        ([DOG | {"count": 17}], "must be from 1 to 16, got 17"),
        ([DOG | {"count": True}], "must be from 1 to 16, got True"),
        ([DOG | {"color": "gren"}], "unknown color 'gren'; did you mean green"),
        ([DOG | {"colour": "green"}], "unknown key 'colour'; did you mean color"),
        ([DOG, DOG | {"position": ["left off", 0]}], r"include\[1\]: unknown relation 'left off'"),
        ([DOG, DOG | {"position": ["left of", 1]}], "target 1 is not an earlier clause"),
        ([DOG, DOG | {"position": ["left of", -1]}], "target -1 is not an earlier clause"),
        ([DOG, DOG | {"position": "left of"}], r"'position' must be \[relation, index"),
        ([DOG | {"color": ["red"]}], "unknown color"),
        ([{"count": 1}], "'class' is not a text"),
        (["dog"], "not a JSON object"),
        ([], "no clauses"),
    ],
)
def test_metadata_that_cannot_be_judged_are_refused_with_file_and_line(tmp_path, include, message):
    path = tmp_path / "prompts.jsonl"
    lines = [_metadata(DOG), _metadata(*include)]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    with pytest.raises(TaskError, match=f"prompts.jsonl, line 3: .*{message}"):
        files.read_metadata(path)


def test_a_broken_line_and_a_missing_file_are_named(tmp_path):
    path = tmp_path / "prompts.jsonl"
    for text, message in (
        ("{", "line 1: Expecting"),
        ("[1]", "line 1: not a JSON object"),
        ("", "no prompts"),
    ):
        path.write_text(text)
        with pytest.raises(TaskError, match=f"prompts.jsonl(, |: ){message}"):
            files.read_metadata(path)
    with pytest.raises(TaskError, match="nothing.jsonl: No such file"):
        files.read_metadata(tmp_path / "nothing.jsonl")


def _folder(root, name: str, *images: str, text: str | None = None) -> None:
    samples = root / name / "samples"
    samples.mkdir(parents=True)
    for image in images:
        (samples / image).write_bytes(b"")
    (root / name / "metadata.jsonl").write_text(json.dumps(_metadata(DOG)) if text is None else text)


def test_a_folder_is_read_by_the_official_rules(tmp_path):
    _folder(tmp_path, "00001", "0001.png", "0000.png", "00010.png.bak", "a0001.png", "0002.jpg", "grid.png")
    _folder(tmp_path, "7", "00000.png")
    _folder(tmp_path, "x1", "0000.png")
    (tmp_path / "notes.txt").write_text("stray")
    found = [f"{name}/{path.name}" for name, _, path in files.read_images(tmp_path)]
    assert found == ["00001/0000.png", "00001/0001.png", "00001/00010.png.bak", "7/00000.png"]


def test_a_second_line_of_metadata_or_none_at_all_is_an_error(tmp_path):
    line = json.dumps(_metadata(DOG))
    _folder(tmp_path / "a", "00000", "0000.png", text=f"{line}\n{line}\n")
    with pytest.raises(TaskError, match="00000/metadata.jsonl: Extra data"):
        list(files.read_images(tmp_path / "a"))
    (tmp_path / "b" / "00000" / "samples").mkdir(parents=True)
    with pytest.raises(TaskError, match="00000/metadata.jsonl: No such file"):
        list(files.read_images(tmp_path / "b"))
    (tmp_path / "c" / "00000").mkdir(parents=True)
    (tmp_path / "c" / "00000" / "metadata.jsonl").write_text(line)
    with pytest.raises(TaskError, match="samples: no such folder"):
        list(files.read_images(tmp_path / "c"))


def _results(tags: dict[str, tuple[int, int]]) -> list[files.Result]:
    return [
        files.make_result(f"{tag}/{n:04d}.png", _metadata(DOG, tag=tag, prompt=f"{n % 3}"), n < right, "", {})
        for tag, (right, of) in tags.items()
        for n in range(of)
    ]


def test_results_have_the_official_keys_and_come_back_sorted(tmp_path):
    results = _results({"position": (1, 2), "colors": (3, 4)})
    path = files.write_results(tmp_path / "results.jsonl", results)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert all(list(line) == keys for line in lines)
    assert [line["filename"] for line in lines] == sorted(one.filename for one in results)
    assert json.loads(lines[0]["metadata"]) == _metadata(DOG, prompt="0") and lines[0]["details"] == "{}"
    assert [files.Result(**line) for line in lines] == sorted(results, key=lambda one: one.filename)


def test_the_score_is_the_mean_of_the_tags_and_equal_prompts_are_merged():
    summary = files.summarize(_results({"colors": (1, 4), "position": (2, 2), "counting": (0, 6)}))
    assert (summary.images, summary.prompts) == (12, 8)
    assert summary.correct_images == 3 / 12 and summary.overall == (0.25 + 1 + 0) / 3
    assert summary.correct_prompts == 3 / 8
    assert str(summary).splitlines() == [
        *("Summary", "=======", "Total images: 12", "Total prompts: 8", "% correct images: 25.00%"),
        *("% correct prompts: 37.50%", "", "Task breakdown", "=============="),
        *("colors           = 25.00% (1 / 4)", "position         = 100.00% (2 / 2)"),
        *("counting         = 0.00% (0 / 6)", "", "Overall score (avg. over tasks): 0.41667"),
    ]
    with pytest.raises(TaskError, match="no results"):
        files.summarize([])


def test_the_figures_that_the_official_summary_printed():
    """0.55925 over the tags where 0.55714 of 70 images are right; the counts are chosen to fit these."""
    shares = [(6, 13), (6, 12), (8, 12), (5, 11), (10, 11), (4, 11)]
    summary = files.summarize(_results(dict(zip(prompts.TAGS, shares, strict=True))))
    assert (summary.images, round(summary.correct_images, 5)) == (70, 0.55714)
    assert str(summary).endswith("Overall score (avg. over tasks): 0.55925")
