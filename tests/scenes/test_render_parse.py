from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter

from process_gen.scenes.graph import UNCLEAR, Scene, make_object
from process_gen.scenes.levels import BACKGROUND, COLOURS, LEVELS, get_level
from process_gen.scenes.parse import parse
from process_gen.scenes.render import render
from tests.benchmarks.parser_noise import read_back, sample_scenes, shown
from tests.scenes.making import scene

LEVEL = get_level("default")


def test_render_is_crisp_and_the_same_every_time():
    squares = scene("red square b2")
    image = render(squares, LEVEL)
    assert image.dtype == np.uint8 and image.shape == (32, 32, 3)
    assert (image == render(squares, LEVEL)).all()
    assert tuple(image[12, 12]) == COLOURS["red"] and tuple(image[0, 0]) == BACKGROUND
    assert (image[:8] == 128).all() and (image[16:] == 128).all()


def test_things_at_the_edge_are_cut_off():
    level = get_level("free64")
    thing = dataclasses.replace(make_object(level, "square", "red", "a1", 16), x=0, y=0)
    image = render(Scene((thing,)), level)
    assert tuple(image[0, 0]) == COLOURS["red"] and tuple(image[9, 9]) == BACKGROUND


@pytest.mark.parametrize(
    "level, count", [("default", 600), ("jitter", 600), ("free64", 60), ("free128", 25), ("hung", 300)]
)
def test_reads_back_what_was_rendered(level: str, count: int):
    rng = np.random.default_rng(0)
    scenes = sample_scenes(level, count, rng)
    assert read_back(scenes, level, 0.0, rng)[0] == 1.0
    assert read_back(scenes, level, 0.05, rng)[0] > 0.99


def test_exact_positions_are_read_back():
    for level in LEVELS:
        scenes = sample_scenes(level, 30, np.random.default_rng(1))
        for one in scenes:
            found = parse(render(one, level), level)
            assert sorted(o.box for o in one.objects) == sorted(o.box for o in found.objects)


def test_the_curve_falls_gently():
    rng = np.random.default_rng(0)
    scenes = sample_scenes("default", 200, rng)
    assert read_back(scenes, "default", 0.1, rng)[0] > 0.99
    assert read_back(scenes, "default", 0.15, rng)[0] > 0.93


def test_an_empty_canvas_is_empty_even_in_noise():
    rng = np.random.default_rng(0)
    noisy = rng.normal(128, 0.1 * 255, (50, 32, 32, 3)).round().clip(0, 255).astype(np.uint8)
    assert all(len(parse(image, LEVEL)) == 0 for image in noisy)


def test_mild_blur_does_not_matter():
    three = scene("red star a1", "blue ring b1", "black cross a2")
    blurred = np.asarray(Image.fromarray(render(three, LEVEL)).filter(ImageFilter.GaussianBlur(0.7)))
    assert shown(parse(blurred, LEVEL)) == shown(three)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a, b: a / 2 + b / 2,  # two objects blended
        lambda a, b: 128 + (a - 128.0) * 0.45,  # half faded away
        lambda a, b: np.roll(a, 4, 1),  # across two cells
        lambda a, b: np.where(np.arange(32)[:, None, None] % 8 < 4, a, b),  # half of each
    ],
)
def test_what_is_no_object_is_reported_as_unclear(spoil):
    a, b = (render(scene(thing), LEVEL) for thing in ("red circle b2", "blue square b2"))
    found = parse(spoil(a, b).astype(np.uint8), LEVEL).objects
    assert found and all(not thing.clear for thing in found)


@pytest.mark.parametrize("level", ["default", "free64", "free128"])
def test_smudges_are_reported(level: str):
    side = get_level(level).image_size
    image = np.full((side, side, 3), BACKGROUND, np.uint8)
    image[20:24, 20:24] = COLOURS["green"]
    found = parse(image, level).objects
    assert len(found) == 1 and found[0].shape == UNCLEAR


def test_a_spot_of_one_pixel_is_forgiven():
    image = render(scene("red star a1"), LEVEL)
    image[20, 20] = 255
    assert len(parse(image, LEVEL)) == 1


def test_wrong_sizes_and_types_are_refused():
    with pytest.raises(ValueError, match=r"reads \[32, 32, 3\] uint8 images, got \[64, 64, 3\] uint8"):
        parse(np.zeros((64, 64, 3), np.uint8), LEVEL)
    with pytest.raises(ValueError, match="float32"):
        parse(np.zeros((32, 32, 3), np.float32), LEVEL)


def test_in_a_grid_the_last_thing_of_a_cell_wipes_out_the_first():
    both = scene("red square b2", "blue ring b2")
    assert (render(both, LEVEL) == render(scene("blue ring b2"), LEVEL)).all()
