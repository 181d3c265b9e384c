from __future__ import annotations

import numpy as np
import pytest

from process_gen.scenes import categories, read_request, sample_request, splits
from process_gen.scenes.grammar import prompt_words
from process_gen.scenes.graph import OPPOSITE
from process_gen.scenes.levels import LEVELS, get_level
from process_gen.scenes.requests import Clause
from process_gen.scenes.splits import is_held_out
from process_gen.scenes.words import count_tokens
from process_gen.trajectory.markup import Malformed

CASES = [(level, category) for level in ("default", "free128", "hung") for category in categories(level)]


@pytest.mark.parametrize("level, category", CASES)
def test_every_prompt_reads_back_as_the_same_request(level: str, category: str):
    rng = np.random.default_rng(0)
    for split in splits.SPLITS:
        for _ in range(200):
            request = sample_request(rng, level, category, split)
            assert read_request(request.text, level) == request
            assert count_tokens(request.text) + 2 <= get_level(level).budget.prompt
            assert request.category == category


@pytest.mark.parametrize("category", categories("default"))
def test_splits_share_no_composition(category: str):
    rng = np.random.default_rng(1)
    for _ in range(400):
        assert not is_held_out(sample_request(rng, "default", category, "train").clauses)
    for _ in range(200):
        request = sample_request(rng, "default", category, "heldout")
        assert is_held_out(request.clauses) or category == "single_object"


@pytest.mark.parametrize("level", ["default", "free128"])
@pytest.mark.parametrize("category", ["four_objects", "five_objects"])
def test_training_has_prompts_with_as_many_phrases_as_the_benchmark(level: str, category: str):
    rng, total = np.random.default_rng(2), {"four_objects": 4, "five_objects": 5}[category]
    for split in splits.SPLITS:
        drawn = [sample_request(rng, level, category, split) for _ in range(200)]
        assert sum(len(request.clauses) == total for request in drawn) > 60, split
    twins = [request for request in drawn if len({one.shape for one in request.clauses}) < total]
    assert not [one for one in twins if len(one.clauses) == total], "the benchmark names other shapes"


def test_things_of_one_shape_are_drawn_in_the_order_of_their_colours():
    request = read_request("a red star, a ring and a blue star")
    assert [request.clauses[index].colour for index in request.naming_order] == ["red", None, "blue"]


def test_held_out_tables_are_spread():
    colours, shapes = zip(*splits.HELD_OUT_COLOURED, strict=True)
    assert len(set(colours)) == len(set(shapes)) == 6
    assert len(splits.HELD_OUT_TOGETHER) == 3
    assert sorted(n for _, n in splits.HELD_OUT_COUNTS) == [2, 2, 3, 3, 4, 4]
    assert len({shape for shape, _ in splits.HELD_OUT_COUNTS}) == 6
    assert 0.15 < len(splits.HELD_OUT_RELATIONS) / 120 < 0.25
    assert 0.15 < len(splits.HELD_OUT_PAIRS) / 861 < 0.25


def test_a_relation_and_its_opposite_are_one_composition():
    for a, relation, b in splits.HELD_OUT_RELATIONS:
        assert is_held_out([Clause(a), Clause(b, position=(OPPOSITE[relation], 0))])


def test_position_names_the_subject_first_and_lists_the_target_first():
    request = read_request("a photo of a star left of a ring")
    assert request.clauses == (Clause("ring"), Clause("star", 1, None, ("left of", 0)))
    assert request.metadata() == {
        "tag": "position",
        "include": [
            {"class": "ring", "count": 1},
            {"class": "star", "count": 1, "position": ["left of", 0]},
        ],
        "exclude": [{"class": "ring", "count": 2}, {"class": "star", "count": 2}],
        "prompt": "a photo of a star left of a ring",
    }


def test_metadata_sums_clauses_of_one_class():
    request = read_request("two red stars and a blue star")
    assert request.category == "three_objects"
    assert request.metadata()["exclude"] == [{"class": "star", "count": 4}]


@pytest.mark.parametrize(
    "text, category, clauses",
    [
        ("A Red Circle.", "colors", 1),
        ("red circle", "colors", 1),
        ("one ring", "counting", 1),
        ("show three blue squares", "counting", 1),
        ("a circle is above a star", "position", 2),
        ("a circle above a star above a ring", "three_objects", 3),
        ("a red star left of a blue star", "position", 2),
        ("a star, a ring and a circle, with the star over the ring", "three_objects", 3),
        ("draw the circle", "single_object", 1),
    ],
)
def test_reads_what_people_type(text: str, category: str, clauses: int):
    request = read_request(text)
    assert (request.category, len(request.clauses)) == (category, clauses)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "the prompt is empty"),
        ("  \n", "the prompt is empty"),
        ("a dog and a blurple cat", "unknown words: 'dog', 'blurple', 'cat'"),
        ("a circle left of", "expected a colour or a shape"),
        ("a photo of", "expected a colour or a shape"),
        ("two circle", "write 'circles' instead of 'circle'"),
        ("a circles", "write 'circle' instead of 'circles'"),
        ("the circles", "say how many circles"),
        ("circles", "say how many circles"),
        ("five circles and a star", "6 objects; level 'default' has room for 5"),
        ("a circle a star", "cannot read on"),
        ("a circle and", "cannot read on"),
        ("a circle is", "expected a relation"),
        ("a circle left of a star, the star left of the circle", "form a circle"),
        ("a circle left of a star, the circle above a ring", "two relations"),
        ("a circle, the circle above the circle", "cannot be above itself"),
        ("a red star and a blue star, the star above a ring", "could mean several"),
        ("a <ins> circle", "unknown words"),
        ("a\x00circle", "unknown words"),
        ("a red red circle", "expected a colour or a shape"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, reason: str):
    result = read_request(text)
    assert isinstance(result, Malformed) and reason in result.reason, result


@pytest.mark.parametrize("level", LEVELS)
def test_words_of_a_level(level: str):
    rng = np.random.default_rng(2)
    words = prompt_words(level)
    for category in categories(level):
        text = sample_request(rng, level, category).text
        assert set(text.replace(",", " ,").split()) <= words


def test_bad_arguments_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no category 'six_objects'"):
        sample_request(rng, "default", "six_objects")
    with pytest.raises(ValueError, match="unknown split"):
        sample_request(rng, "default", "counting", "test")


def test_same_seed_same_prompts():
    def draw():
        rng = np.random.default_rng(3)
        return [sample_request(rng, "default", "four_objects") for _ in range(20)]

    assert draw() == draw()
