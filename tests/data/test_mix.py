"""The paper's mix as shapes: its proportions, its rows, and the useful share of the 7B config."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from process_gen.data import mix
from process_gen.data.loader import make_loader
from process_gen.data.packing import Policy
from process_gen.experiment import builders, cli
from process_gen.training import amounts
from process_gen.trajectory.batch import PROMPT_FIELDS
from process_gen.trajectory.stages import targets_of
from tests.data.conftest import random_trajectory
from tests.data.fake import empty_row
from tests.models.tiny import layout

ROOT = pathlib.Path(__file__).parents[2]
PAPER = layout(prompt=120, before=128, after=110, turns=8, trajectories=4, copies=1, corrections=1)


def paper_layout():
    return builders.build_layout(cli.load_config(f"{ROOT}/configs/bagel_7b.py:paper"))


def test_trajectories_are_drawn_in_the_paper_s_proportions():
    drawn = mix.draw(PAPER, 4_000, seed=1)
    drafts = np.array([len(one.steps) for one in drawn])
    single = drafts == 1
    inspected = np.array([any(turn.after for turn in one.turns) for one in drawn])
    refined = np.array([one.corrections > 0 for one in drawn])
    assert single.mean() == pytest.approx(15_000 / 62_213, abs=0.02)
    assert (~inspected).mean() == pytest.approx(32_012 / 62_213, abs=0.02)
    assert refined[single].mean() == pytest.approx(2 / 3, abs=0.04)
    assert refined[~single & inspected].mean() == pytest.approx(8_296 / 15_201, abs=0.05)
    several = drafts[~single]
    assert (several.min(), several.max()) == (2, 5) and several.mean() == pytest.approx(3.5, abs=0.05)
    assert not refined[~inspected].any()


def test_a_draft_that_is_corrected_learns_its_correction():
    for one in mix.draw(PAPER, 200):
        refines, last = [turn.refines for turn in one.turns], len(one.turns) - 1
        assert not any(refines[:-1])
        expected = [*range(len(refines))]
        if refines[-1]:
            expected[-2] = last
            assert one.turns[-1].after is None  # the correction is not inspected
        assert targets_of(one.turns) == expected
        lengths = [len(mix.Letters().encode(turn.before)) + 2 for turn in one.turns]
        assert all(mix.SHORTEST <= length <= mix.LONGEST for length in lengths)
        assert sum(turn.after is not None for turn in one.turns) in (0, len(one.steps))


@pytest.mark.parametrize(("turns", "long"), [(12, "drop"), (4, "split"), (4, "drop")])
def test_trajectories_without_pixels_fill_rows_as_they_do_with_them(toy_tokenizer, turns, long):
    there = layout(
        prompt=40, before=90, after=60, turns=turns, trajectories=4, image_size=(8, 8), context="last"
    )
    toys = [random_trajectory(seed, twice=0.3) for seed in range(30)]
    assert turns == 12 or any(len(toy.turns) > 4 for toy in toys)
    bare = [mix.without_pixels(toy) for toy in toys]
    policy = Policy("skip", 1.0, long)
    loader = make_loader(toys, toy_tokenizer, there, 1, shuffle=False, epochs=1, policy=policy)
    assert mix.loader_of(there, bare, toy_tokenizer, long == "split").report(None) == loader.report(None)


def test_rows_have_the_fields_of_a_batch():
    there = layout(prompt_image=True, instruction=4, turns=8, trajectories=3)
    expected = empty_row(there)
    rows = list(mix.paper_loader(there, 60))
    assert set(rows[0]) == set(expected)
    for name, value in rows[0].items():
        slots = there.trajectories if name in PROMPT_FIELDS else there.turns
        assert value.shape[:2] == (1, slots) and value.dtype == expected[name].dtype, name
        if "image" not in name or name.endswith("weight") or name == "has_prompt_image":
            assert value.shape[1:] == expected[name].shape, name
    assert sum(row["is_first"].sum() for row in rows) == 60


@pytest.mark.parametrize("changes", [dict(corrections=0), dict(after=0), dict(before=0), dict(prompt=2)])
def test_the_mix_fits_any_layout(changes):
    there = layout(turns=8, trajectories=3, **changes)
    rows = list(mix.paper_loader(there, 60))
    assert sum(row["is_first"].sum() for row in rows) == 60 and any(row["refines"].any() for row in rows)


def test_the_same_arguments_give_the_same_rows():
    one, other = (list(mix.paper_loader(PAPER, 50, seed=3)) for _ in range(2))
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_row_of_the_7b_config_is_85_percent_useful():
    there = paper_layout()
    report = mix.paper_loader(there, 1_500).report(None)
    assert report.useful > 0.85
    assert amounts.of_a_row(there, 1_500)["useful"] == pytest.approx(report.useful, abs=1e-6)
