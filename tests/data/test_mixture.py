"""Mixtures of sources, and what is held out of them."""

import collections
import itertools

import numpy as np
import pytest

from process_gen.data.loader import make_loader
from process_gen.data.mixture import WINDOW, Mixture, Part, hold_out
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Stage, stage_bits
from tests.data.conftest import random_trajectory

LAYOUT = Layout(
    image_size=(8, 8),
    latent_grid=(2, 2),
    latent_values=48,
    prompt=32,
    before=64,
    after=64,
    turns=12,
    trajectories=4,
)


class ToySource:
    """So many trajectories of `random_trajectory`, another choice for each seed."""

    def __init__(self, size, seed=0):
        self.size, self.seed, self.name = size, seed, f"toys {seed}"

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return random_trajectory(1000 * self.seed + index)


def mixture(sizes=(40, 6), weights=(3.0, 1.0), **stages):
    names = ("process", "images")
    return Mixture(
        {
            name: Part(ToySource(size, seed=place), weight, frozenset(stages.get(name, Stage)), place)
            for place, (name, size, weight) in enumerate(zip(names, sizes, weights, strict=True))
        }
    )


def test_each_source_has_its_share_of_every_stretch_and_epochs_of_its_own():
    stream = mixture().stream(0, True, None)
    drawn = [stream[i] for i in range(320)]
    for start in range(0, 320, WINDOW):
        found = collections.Counter(one.source for one in drawn[start : start + WINDOW])
        assert found == {0: 48, 1: 16}
    own = collections.Counter(one.uid for one in drawn if one.source == 0)
    assert len(own) == 40 and set(own.values()) == {6}


@pytest.mark.parametrize("rows", [2, 4, 8])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0)])
def test_rows_have_the_shares_of_the_mixture_however_many_there_are(weights, rows):
    """No row of a batch reads one source alone, which would go by other shares where lengths differ."""
    stream = mixture(weights=weights).stream(0, True, None)
    for row in range(rows):
        found = np.array([stream[i].source for i in range(row, 200 * rows, rows)])
        assert abs(found.mean() - weights[1] / sum(weights)) < 0.12


def test_a_batch_says_where_its_turns_come_from_and_what_they_teach(toy_tokenizer):
    loader = make_loader(mixture(images=[Stage.SKETCH]), toy_tokenizer, LAYOUT, 4)
    for batch in itertools.islice(iter(loader), 3):
        there = batch["present"]
        wanted = np.where(batch["source"] == 1, stage_bits({Stage.SKETCH}), stage_bits(Stage))
        np.testing.assert_array_equal(batch["supervised"][there], wanted[there])
        assert set(np.unique(batch["source"][there])) == {0, 1}


def test_a_mixture_is_resumed_exactly_and_another_one_is_refused(toy_tokenizer):
    iterator = iter(make_loader(mixture(), toy_tokenizer, LAYOUT, 4, prefetch=0))
    for _ in range(3):
        next(iterator)
    state, wanted = iterator.get_state(), [next(iterator) for _ in range(2)]
    again = iter(make_loader(mixture(), toy_tokenizer, LAYOUT, 4, prefetch=0))
    again.set_state(state)
    for batch in wanted:
        for name, value in next(again).items():
            np.testing.assert_array_equal(value, batch[name])
    for other in (mixture(weights=(1.0, 1.0)), mixture(images=[Stage.SKETCH]), mixture((40, 5))):
        with pytest.raises(ValueError, match="images"):
            iter(make_loader(other, toy_tokenizer, LAYOUT, 4, prefetch=0)).set_state(state)


def test_what_is_held_out_is_never_trained_on():
    source = ToySource(101)
    train, validation = (hold_out(source, 0.1, split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (91, 10)
    uids = [{one[i].uid for i in range(len(one))} for one in (train, validation)]
    assert not uids[0] & uids[1] and len(uids[0] | uids[1]) == 101
    assert hold_out(source, 0.004, "train") is source and not len(hold_out(source, 0.004, "validation"))
    mixed = hold_out(mixture(), 0.1, "validation")
    assert [len(part) for part in mixed.parts.values()] == [4, 1] and mixed[4].source == 1
    own = hold_out(mixture(), {"process": 0.0, "images": 0.5}, "validation")
    assert [len(part) for part in own.parts.values()] == [0, 3]
    with_splits = ToySource(9)
    with_splits.own_splits = True
    assert hold_out(with_splits, 0.5, "validation") is with_splits


def test_trajectories_of_one_row_are_held_out_together():
    source = ToySource(101)
    source.rows_of_trajectories = lambda: np.arange(101) // 3  # three captions of each image
    train, validation = (hold_out(source, 0.1, split) for split in ("train", "validation"))
    rows = [{int(index) // 3 for index in one.indices} for one in (train, validation)]
    assert not rows[0] & rows[1] and len(train) + len(validation) == 101
    assert 10 <= len(validation) <= 12 and validation.name.endswith(
        f"{len(validation)} of it held out by rows"
    )
    source.rows_of_trajectories = lambda: np.zeros(101, int)  # one row alone is trained on
    assert (len(hold_out(source, 0.1, "train")), len(hold_out(source, 0.1, "validation"))) == (101, 0)


def test_what_cannot_be_mixed_says_so():
    with pytest.raises(ValueError, match="weight of source 'images' must be above 0"):
        mixture(weights=(1.0, 0.0))
    with pytest.raises(ValueError, match="source 'process' of the mixture does not"):
        mixture().shapes()
