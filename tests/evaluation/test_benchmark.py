"""The benchmark is fixed, has the groups that it says, and holds out what it says."""

import collections

import pytest

from process_gen.evaluation.benchmark import EXTRA_GROUPS, GROUPS, SCORED_GROUPS, make_benchmark
from process_gen.scenes.grammar import read_request
from process_gen.scenes.splits import is_held_out


def test_same_arguments_same_tasks_and_other_seeds_other_tasks():
    one, same = make_benchmark(per_group=6), make_benchmark(per_group=6)
    assert one == same and one.fingerprint == same.fingerprint
    assert make_benchmark(per_group=6, seed=1).fingerprint != one.fingerprint
    assert make_benchmark(per_group=6, split="train").fingerprint != one.fingerprint


def test_every_group_has_its_share_and_its_category():
    benchmark = make_benchmark(per_group=5)
    assert benchmark.groups == GROUPS == SCORED_GROUPS + EXTRA_GROUPS and len(SCORED_GROUPS) == 8
    assert collections.Counter(task.group for task in benchmark.tasks) == dict.fromkeys(GROUPS, 5)
    for task in benchmark.tasks:
        assert read_request(task.request.text) == task.request


def test_a_smaller_benchmark_is_a_part_of_a_larger_one():
    small = make_benchmark(per_group=4, groups=["position", "colors"])
    large = make_benchmark(per_group=12)
    for group in small.groups:
        first = [task for task in large.tasks if task.group == group][:4]
        assert first == [task for task in small.tasks if task.group == group]


def test_split_heldout_holds_a_held_out_composition_and_train_none():
    for split, expected in (("heldout", True), ("train", False)):
        for task in make_benchmark(per_group=10, split=split).tasks:
            if task.group != "single_object":
                assert is_held_out(task.request.clauses) == expected, task.request.text


def test_prompts_repeat_only_where_a_group_runs_out_and_seeds_never_do():
    benchmark = make_benchmark(per_group=40)
    for group in benchmark.groups:
        texts = [task.request.text for task in benchmark.tasks if task.group == group]
        assert len(set(texts)) == 40, group
    seeds = [task.seed for task in benchmark.tasks]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)
    many = make_benchmark(per_group=100, groups=["single_object"])
    assert 6 < len({task.request.text for task in many.tasks}) < 100


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"groups": ["colour"]}, "unknown group 'colour'; did you mean colors"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"per_group": 0}, "per_group must be at least 1"),
        ({"level": "hard"}, "unknown level 'hard'"),
    ],
)
def test_bad_arguments_say_what_is_known(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_benchmark(**arguments)
