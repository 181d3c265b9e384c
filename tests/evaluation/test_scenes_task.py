"""The scenes benchmark is fixed, has the groups that it says, and holds out what it says."""

import collections

import numpy as np
import pytest
from evaluation_fakes import canvas

from process_gen.evaluation.draws import Draw, take
from process_gen.evaluation.tasks import make_task
from process_gen.evaluation.tasks.base import TaskError
from process_gen.evaluation.tasks.scenes import GROUPS, SCORED_GROUPS, TREE_GROUPS, Scenes
from process_gen.scenes.grammar import read_request
from process_gen.scenes.splits import is_held_out


def test_same_options_same_prompts_and_other_seeds_other_prompts():
    one, same = Scenes(per_group=6).docs(), Scenes(per_group=6).docs()
    assert one == same and [doc.doc_hash for doc in one] == [doc.doc_hash for doc in same]
    assert Scenes(per_group=6, prompt_seed=1).docs() != one
    assert Scenes(per_group=6, split="train").docs() != one


def test_every_group_has_its_share_and_its_category():
    task = Scenes(per_group=5)
    assert len(SCORED_GROUPS) == 8
    assert collections.Counter(doc.group for doc in task.docs()) == dict.fromkeys(GROUPS, 5)
    for doc in task.docs():
        assert read_request(doc.input) == task.requests[doc.doc_id]


def test_a_smaller_benchmark_is_a_part_of_a_larger_one():
    small, large = Scenes(per_group=4, groups="position,colors").docs(), Scenes(per_group=12).docs()
    for group in ("position", "colors"):
        first = [doc for doc in large if doc.group == group][:4]
        assert first == [doc for doc in small if doc.group == group]


def test_split_heldout_holds_a_held_out_composition_and_train_none():
    for split, expected in (("heldout", True), ("train", False)):
        for request in Scenes(per_group=10, split=split).requests.values():
            if request.category != "single_object":
                assert is_held_out(request.clauses) == expected, request.text


def test_prompts_repeat_only_where_a_group_runs_out_and_seeds_never_do():
    docs = Scenes().docs()
    for group in GROUPS:
        assert len({doc.input for doc in docs if doc.group == group}) == 40, group
    draws = [Draw(doc, seed, index, doc.input) for doc in docs for seed in (0, 1) for index in (0, 1)]
    seeds = {draw.sampler_seed for draw in draws}
    assert len(seeds) == len({draw.uid for draw in draws}) == len(draws)
    assert all(0 <= seed < 2**31 for seed in seeds)
    many = Scenes(per_group=100, groups="single_object").docs()
    assert 6 < len({doc.input for doc in many}) < 100


def test_the_mean_of_the_trees_comes_first_where_texts_name_no_cell():
    groups = ("position", "four_objects", "six_objects")
    assert Scenes().formulas(groups) == {"score": {"position": 0.5, "four_objects": 0.5}}
    hung = Scenes(level="hung")
    trees, score = hung.formulas(tuple(dict.fromkeys(doc.group for doc in hung.docs()))).items()
    assert trees == ("trees", dict.fromkeys(TREE_GROUPS, 0.25)) and score[0] == "score" and len(score[1]) == 8
    assert hung.formulas(groups)["trees"] == {"four_objects": 0.5, "six_objects": 0.5}
    assert hung.formulas(("position",)) == {"score": {"position": 1.0}} and not hung.formulas(())


def test_a_limit_takes_from_every_group_in_turn():
    docs = Scenes(per_group=5).docs()
    small, large = take(docs, limit=12), take(docs, limit=30)
    assert set(collections.Counter(doc.group for doc in small).values()) == {1, 2}
    assert all(doc in large for doc in small)
    assert take(docs) == docs and take(docs, limit=1000) == docs
    assert collections.Counter(doc.group for doc in take(docs, per_group=2)) == dict.fromkeys(GROUPS, 2)


def test_the_judge_reads_images_of_its_world_alone():
    task = Scenes(per_group=1, groups="single_object")
    (doc,) = task.docs()
    shape = doc.input.split()[-1]
    right = task.judge()(doc, canvas(f"red {shape} b2"))
    assert right.score == 1 and right.failures == () and right.constraints[0]["ok"]
    assert task.judge()(doc, canvas()).failures == ("missing",)
    with pytest.raises(TaskError, match="reads images of 32 x 32 pixels, this one has 64 x 64"):
        task.judge()(doc, np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"groups": "colour"}, "unknown group 'colour'; did you mean colors"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"per_group": "0"}, "per_group must be at least 1"),
        ({"level": "hard"}, "unknown level 'hard'"),
    ],
)
def test_bad_options_say_what_is_known(options, message):
    with pytest.raises(TaskError, match=message):
        make_task("scenes", options)
