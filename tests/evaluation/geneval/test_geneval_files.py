"""GenEval's files: what is read and what is refused."""

from __future__ import annotations

import json

import pytest

from process_gen.evaluation.geneval import files
from process_gen.evaluation.options import TaskError

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
