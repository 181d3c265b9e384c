"""Rules: every turn both ways and by rows, and what is left over on either side."""

import numpy as np
import pytest

from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.checkpoints.published import rules

TURNS = {
    "as it is": (rules.AS_IS, (5, 3), (5, 3)),
    "linear": (rules.LINEAR, (5, 3), (3, 5)),
    "convolution": (rules.CONV, (5, 4, 2, 3), (2, 3, 4, 5)),
    "pointwise": (rules.POINTWISE, (5, 3, 1, 1), (3, 5)),
    "patches": (rules.PATCHES, (5, 3, 2, 2), (12, 5)),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_turn_goes_both_ways_in_whole_and_by_rows(name):
    turn, theirs, ours = TURNS[name]
    tensor = np.arange(np.prod(theirs)).reshape(theirs)
    array = turn.ours(tensor)
    assert array.shape == ours and turn.shape(ours) == theirs
    np.testing.assert_array_equal(turn.theirs(array, theirs), tensor)
    for start, stop in ((0, 2), (2, 5)):
        axis = turn.rows % array.ndim
        part = np.take(array, range(start, stop), axis)
        np.testing.assert_array_equal(turn.ours(tensor[start:stop]), part)
        np.testing.assert_array_equal(turn.theirs(part, theirs), tensor[start:stop])


def test_patches_are_flattened_row_by_row_channels_last():
    tensor = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    array = rules.PATCHES.ours(tensor)
    for row in range(2):
        for column in range(2):
            for channel in range(3):
                at = (row * 2 + column) * 3 + channel
                np.testing.assert_array_equal(array[at], tensor[:, channel, row, column])


RULES = (
    rules.Rule("blocks.{layer}.w.weight", "layers/w/kernel", rules.LINEAR),
    rules.Rule("blocks.{layer}.w.bias", "layers/w/bias"),
    rules.Rule("head.weight", "head"),
)
OURS = {"layers/w/kernel": (2, 3, 4), "layers/w/bias": (2, 4), "head": (7,)}
THEIRS = {f"blocks.{i}.w.{end}": s for i in (0, 1) for end, s in (("weight", (4, 3)), ("bias", (4,)))}
THEIRS |= {"head.weight": (7,)}


def test_a_table_gives_one_move_per_published_tensor():
    moves = rules.expand(RULES, OURS)
    assert {move.theirs: move.shape for move in moves} == THEIRS
    assert [move.layer for move in moves] == [0, 1, 0, 1, None]
    rules.check(moves, THEIRS, "file")


def test_what_no_rule_fills_is_reported():
    with pytest.raises(CheckpointMismatch, match="no tensors for extra/kernel"):
        rules.expand(RULES, OURS | {"extra/kernel": (1,)})


def test_what_the_model_does_not_have_is_not_asked_for():
    moves = rules.expand(RULES, {"head": (7,)})
    with pytest.raises(CheckpointMismatch, match="unknown: blocks.0.w.bias"):
        rules.check(moves, THEIRS, "file")
    rules.check(moves, THEIRS, "file", [r"blocks\..*"])


def test_missing_unknown_and_other_shapes_are_named():
    found = dict(THEIRS) | {"head.weight": (8,), "new": (1,)}
    del found["blocks.1.w.bias"]
    with pytest.raises(CheckpointMismatch) as error:
        rules.check(rules.expand(RULES, OURS), found, "file")
    assert str(error.value) == (
        "file does not hold this model; missing: blocks.1.w.bias; unknown: new; "
        "of another shape: head.weight (8,) instead of (7,)"
    )
