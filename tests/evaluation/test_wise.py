"""WISE: answers as the official code reads them, categories, and three overall numbers worked out by hand."""

import json

import pytest

from process_gen.evaluation import wise


@pytest.mark.parametrize(
    "answer, marks",
    [
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0", (2, 1, 0)),
        ("**Consistency**: 2\n**Realism**: 1\n**Aesthetic Quality**: 0", (2, 1, 0)),
        ("**Consistency:** 2\n**Realism:** 1\n**Aesthetic Quality:** 0", None),
        ("2\n1\n0", (2, 1, 0)),
        (" 2 \n\n1\n0\n", (2, 1, 0)),
        ("Consistency: 5\nRealism: 1\nAesthetic Quality: 0", (5, 1, 0)),
        ("Consistency：2\nRealism：1\nAesthetic Quality：0", None),
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0\nConsistency: 1", (1, 1, 0)),
        ("consistency 2, REALISM 1, aesthetic quality: 0", (2, 1, 0)),
        ("Consistency: 2\nRealism: 1", None),
        ("2\n1", None),
        ("2\n1\n0\n0", None),
        ("", None),
        ("I cannot judge this picture.", None),
    ],
)
def test_legacy_answers(answer, marks):
    assert wise.parse_legacy(answer) == marks


@pytest.mark.parametrize(
    "answer, score",
    [
        ("Score: 1", 1),
        ("score 0", 0),
        ("**Score:** 1", None),
        ("1", 1),
        (" 0\n", 0),
        ("0\n1", None),
        ("Score: 10", None),
        ("Score: 2", None),
        ("Score：1", None),
        ("Score: 0\nScore: 1", 0),
        ("Underscore 1", 1),
        ("", None),
    ],
)
def test_verified_answers(answer, score):
    assert wise.parse_verified(answer) == score


def test_categories_by_the_id_alone():
    sizes = {"legacy": (400, 167, 133, 100, 100, 100), "verified": (400, 120, 120, 120, 120, 120)}
    for edition, expected in sizes.items():
        names = [wise.category(prompt_id, edition) for prompt_id in range(1, 1001)]
        assert tuple(names.count(name) for name in wise.CATEGORIES) == expected
        assert names == sorted(names, key=wise.CATEGORIES.index)
        weights = wise.AGGREGATIONS[wise.EDITIONS[edition].weights]  # overall = mean over the images
        assert [round(1000 * weight) for weight in weights.values()] == list(expected)
    assert wise.category(521, "legacy") == "TIME" and wise.category(521, "verified") == "SPACE"
    for wrong in (0, 1001):
        pytest.raises(wise.WiseError, wise.category, wrong, "legacy")


LEGACY = {
    "CULTURE": [(2, 2, 2), (1, 2, 1)],  # 1 and (.7 + .4 + .1) / 2 = .6, so .8
    "TIME": [(1, 1, 1)],  # .5
    "SPACE": [(0, 2, 2)],  # (.4 + .2) / 2 = .3
    "BIOLOGY": [(2, 2, 2)],  # 1
    "PHYSICS": [(0, 0, 0)],  # 0
    "CHEMISTRY": [(1, 0, 2)],  # (.7 + .2) / 2 = .45
}


def legacy_lines():
    for prompt_id in range(1, 1001):
        choices = LEGACY[wise.category(prompt_id, "legacy")]
        marks = wise.Marks(*choices[prompt_id % len(choices)])
        yield {"prompt_id": prompt_id, "Subcategory": "x", **marks._asdict()}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_three_overall_numbers_of_a_legacy_score_file(tmp_path):
    lines = list(legacy_lines())
    paths = [write(tmp_path / "a.jsonl", lines[:400]), write(tmp_path / "b.jsonl", lines[400:])]
    found = wise.aggregate(wise.read_scores(paths, "legacy"), "legacy")
    assert found == pytest.approx(
        {
            "CULTURE": 0.8,
            "TIME": 0.5,
            "SPACE": 0.3,
            "BIOLOGY": 1,
            "PHYSICS": 0,
            "CHEMISTRY": 0.45,
            "legacy weights": 0.5884,  # .32 + .0835 + .0399 + .1 + 0 + .045
            "verified weights": 0.59,  # .32 + .12 * 2.25
            "mean of six (BAGEL)": 3.05 / 6,
        }
    )


def test_three_overall_numbers_of_a_verified_score_file(tmp_path):
    def lines():
        for prompt_id in range(1, 1001):
            right = prompt_id <= 400 or 881 <= prompt_id <= 910  # all of culture, 30 of 120 in chemistry
            yield {"prompt_id": prompt_id, "Subcategory": "x", "score": int(right)}

    path = write(tmp_path / "scores.jsonl", lines())
    found = wise.aggregate(wise.read_scores([path], "verified"), "verified")
    assert found["verified weights"] == pytest.approx(0.43)  # .4 + .12 / 4
    assert found["mean of six (BAGEL)"] == pytest.approx(1.25 / 6)
    assert found["legacy weights"] == pytest.approx(0.425)


def test_a_missing_id_leaves_no_overall_and_one_that_comes_twice_counts_twice():
    scores = [(prompt_id, 0.0) for prompt_id in range(1, 1001)]
    with pytest.raises(wise.WiseError, match="no overall score: 2 of 1000 ids have none: 7, 900$"):
        wise.aggregate([one for one in scores if one[0] not in (7, 900)], "legacy")
    assert wise.aggregate([*scores, (1, 1.0)], "legacy")["CULTURE"] == pytest.approx(1 / 401)


@pytest.mark.parametrize(
    "line, message",
    [
        (
            {"prompt_id": 1, "consistency": 9.9, "realism": 1, "aesthetic_quality": 1},
            "line 1: a mark is out of",
        ),
        ({"prompt_id": 1, "score": 1}, "line 1: no scores of legacy"),
        ({"prompt_id": "1", "consistency": 1, "realism": 1, "aesthetic_quality": 1}, "line 1: no scores"),
        ([1], "line 1: no scores"),
    ],
)
def test_score_lines_that_say_nothing(tmp_path, line, message):
    with pytest.raises(wise.WiseError, match=message):
        wise.read_scores([write(tmp_path / "scores.jsonl", [line])], "legacy")


def entry(prompt_id, **others):
    told = {"Prompt": f"prompt {prompt_id}", "Explanation": f"because {prompt_id}", "Subcategory": "Food"}
    return {"Category": "Culture", "prompt_id": prompt_id, **told, **others}


def test_data_of_a_folder_and_of_files(tmp_path):
    for stem, ids in zip(wise.STEMS, ((2, 1), (500,), (900,)), strict=True):
        (tmp_path / f"{stem}.json").write_text(json.dumps([entry(prompt_id) for prompt_id in ids]))
        (tmp_path / f"{stem}_rewrite.json").write_text("[]")
    items = wise.read_data(wise.data_files(tmp_path, "legacy"))
    assert [item.prompt_id for item in items] == [1, 2, 500, 900]
    assert items[0] == (1, "prompt 1", "because 1", "Food")
    with pytest.raises(wise.WiseError, match="no cultural_common_sense_verified.json, .* and no merge.json"):
        wise.data_files(tmp_path, "verified")
    (tmp_path / "merge.json").write_text(json.dumps([entry(3)]))
    assert [item.prompt_id for item in wise.read_data(wise.data_files(tmp_path, "verified"))] == [3]
    (tmp_path / "natural_science.json").unlink()
    (tmp_path / "final_data.json").write_text(json.dumps([entry(4, Hint="look")]))
    assert wise.data_files(tmp_path, "legacy") == [tmp_path / "final_data.json"]
    assert wise.data_files(tmp_path / "final_data.json", "legacy") == [tmp_path / "final_data.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "data.json: "),
        ("{}", "expected a list of prompts, got dict"),
        ("[1]", "entry 0: expected an object"),
        (json.dumps([entry(1), entry(1)]), "prompt_id 1 comes twice"),
        (json.dumps([entry("1")]), "entry 0: prompt_id must be a whole number"),
        (json.dumps([entry(1001)]), "entry 0: prompt_id must be a whole number from 1 to 1000"),
        (json.dumps([entry(1, Prompt=None)]), "entry 0: Prompt must be a text"),
        (json.dumps([entry(1, Explanation=" ")]), "entry 0: Explanation must be a text"),
    ],
)
def test_broken_data_name_file_and_entry(tmp_path, text, message):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(wise.WiseError, match=message):
        wise.read_data([tmp_path / "data.json"])
