"""Our decision gives the official answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from process_gen.evaluation.geneval.decision import Check, Detection, Options, judge, select
from tests.golden import geneval


@pytest.mark.parametrize("case", geneval.read(geneval.VECTORS), ids=lambda case: case["id"])
def test_the_official_answers(case):
    assert geneval.differences(case) == []


def test_the_command_counts_and_shows_what_differs(tmp_path, capsys):
    cases = geneval.read(geneval.VECTORS)[:3]
    cases[1]["correct"] = not cases[1]["correct"]
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(case) + "\n" for case in cases))
    assert geneval.main([str(path)]) == 1
    assert f"{cases[1]['id']} ({cases[1]['case']}) correct: expected" in (said := capsys.readouterr().out)
    assert said.endswith("\n2 of 3 exact\n")
    assert geneval.main([]) == 0 and capsys.readouterr().out == "185 of 185 exact\n"


def test_a_score_is_compared_in_float32_whatever_it_came_as():
    box = (0.0, 0.0, 1.0, 1.0)
    for score in (0.3, np.float64(np.float32(0.3)), np.float32(0.3)):
        assert select([Detection("dog", score, box)], "colors") == {}
    over = np.nextafter(np.float32(0.3), np.float32(1))
    assert list(select([Detection("dog", over, box)], "colors")) == ["dog"]
    assert select([Detection("dog", over, box)], "counting") == {}


def test_of_equal_scores_the_last_listed_comes_first_and_the_rest_falls_off():
    things = [Detection("dog", 0.9 if i % 2 else 0.8, (i, 0, i + 1, 1)) for i in range(6)]
    kept = select(things, "colors", Options(max_objects=4))["dog"]
    assert [one.box[0] for one in kept] == [5, 3, 1, 4]


def test_every_clause_says_whether_it_holds():
    metadata = {
        "include": [
            {"class": "dog", "count": 1},
            {"class": "cup", "count": 2, "color": "red", "position": ["left of", 0]},
        ],
        "exclude": [{"class": "dog", "count": 2}],
    }
    dogs = [Detection("dog", 0.9, (0, 0, 9, 9)), Detection("dog", 0.8, (20, 0, 29, 9))]
    verdict = judge(metadata, select(dogs, "x"), lambda cls, found: [])
    assert verdict.checks == (
        Check("dog>=1", "", ""),
        Check("red cup>=2 left of dog", "missing_count", "expected cup>=2, found 0"),
        Check("dog<2", "exclude_exceeded", "expected dog<2, found 2"),
    )
