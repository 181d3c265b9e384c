from __future__ import annotations

import itertools

import numpy as np
import pytest

from process_gen.scenes.levels import BACKGROUND, COLOURS, LEVELS, SHAPES, get_level
from process_gen.scenes.render import canvas_of, mask


def test_default_cells():
    level = get_level("default")
    assert (level.image_size, level.cell_size, len(level.cells)) == (32, 8, 16)
    assert level.cells[0] == "a1" and level.cells[1] == "b1" and level.cells[-1] == "d4"
    assert level.cell_at(4, 4) == "a1" and level.cell_at(31, 0) == "d1" and level.cell_at(-3, 99) == "a4"
    assert all(
        level.cell_at(*centre) == cell for centre, cell in zip(level.centres, level.cells, strict=True)
    )


def test_unknown_level_names_the_known_ones():
    with pytest.raises(ValueError, match="default, jitter, free64, free128, hung"):
        get_level("nope")


def test_colours_are_far_apart():
    for a, b in itertools.combinations([BACKGROUND, *COLOURS.values()], 2):
        assert np.linalg.norm(np.subtract(a, b)) > 150


@pytest.mark.parametrize("level", LEVELS)
def test_shapes_are_far_apart(level: str):
    for _, size in get_level(level).sizes:
        masks = [mask(shape, size, canvas_of(size)) for shape in SHAPES]
        for a, b in itertools.combinations(masks, 2):
            assert np.minimum(a, b).sum() / np.maximum(a, b).sum() < 0.72


def test_masks_stay_inside_their_box():
    for shape in SHAPES:
        found = mask(shape, 7, 10)
        assert found[:1].sum() == found[-1:].sum() == found[:, :1].sum() == found[:, -1:].sum() == 0
        assert 0.3 * 49 < found.sum() <= 49 and found.max() == 1
