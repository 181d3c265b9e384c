"""Prompts of GenEval's schema."""

from __future__ import annotations

import collections

import pytest

from process_gen.evaluation.geneval import files, prompts
from process_gen.evaluation.options import TaskError

NAMES = ["person", "umbrella", "dog", "sheep", "orange"]


def test_every_tag_has_its_schema_and_its_words(tmp_path):
    found = prompts.sample_prompts(NAMES, each=40)
    assert list(dict.fromkeys(one["tag"] for one in found)) == list(prompts.TAGS)
    assert len({one["prompt"] for one in found}) == len(found)
    path = files.write_metadata(tmp_path / "metadata.jsonl", found)
    assert files.read_metadata(path) == found
    counts = collections.Counter(one["tag"] for one in found)
    assert counts["single_object"] == len(NAMES) and max(counts.values()) <= 40
    for one in found:
        assert ("exclude" in one) == (one["tag"] == "counting")
        classes = [clause["class"] for clause in one["include"]]
        assert len(set(classes)) == len(classes)
        assert not any("color" in clause for clause in one["include"] if clause["class"] == "person")
        if one["tag"] == "position":
            target, subject = one["include"]
            relation, index = subject["position"]
            assert index == 0 and "position" not in target
            assert one["prompt"].startswith(f"a photo of a{'n' * (subject['class'][0] in 'ou')} ")
            assert f" {subject['class']} {relation} a" in one["prompt"]
            assert one["prompt"].endswith(f" {target['class']}")
        if one["tag"] == "color_attr":
            assert one["include"][0]["color"] != one["include"][1]["color"]
    texts = {one["prompt"]: one for one in found}
    assert texts["a photo of an umbrella"]["include"] == [{"class": "umbrella", "count": 1}]
    sheep = texts["a photo of two sheeps"]
    assert sheep["include"] == [{"class": "sheep", "count": 2}]
    assert sheep["exclude"] == [{"class": "sheep", "count": 3}]


def test_the_seed_decides_and_a_tag_does_not_depend_on_the_others():
    assert prompts.sample_prompts(NAMES, 1) == prompts.sample_prompts(NAMES, 1)
    assert prompts.sample_prompts(NAMES, 1) != prompts.sample_prompts(NAMES, 2)
    alone = prompts.sample_prompts(NAMES, tags=["position"])
    assert alone == [one for one in prompts.sample_prompts(NAMES) if one["tag"] == "position"]


@pytest.mark.parametrize(
    "names, tags, message",
    [
        (["dog"], prompts.TAGS, "at least two different names, got dog"),
        (["dog", "dog"], prompts.TAGS, "at least two different names"),
        (["dog", "person"], ["color_attr"], "color_attr needs more names than dog, person"),
        (NAMES, ["colour"], "unknown tag 'colour'; did you mean colors"),
    ],
)
def test_what_cannot_be_drawn_is_refused(names, tags, message):
    with pytest.raises(TaskError, match=message):
        prompts.sample_prompts(names, tags=tags)


def test_a_prompt_in_the_form_and_words_of_the_benchmark_is_found():
    for one in prompts.sample_prompts(prompts.OBJECTS, seed=3, each=60):
        assert prompts.tag_of(one["prompt"]) == one["tag"]
        assert prompts.tag_of(one["prompt"].upper() + ".") == one["tag"]
    for text in (
        "a dog",
        "a photo of a dragon",
        "a photo of a red dog and a cat",
        "a photo of a dog in the snow",
    ):
        assert prompts.tag_of(text) is None
