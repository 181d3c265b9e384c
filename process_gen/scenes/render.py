"""Scene -> image: crisp, anti-aliased and always the same."""

from __future__ import annotations

import functools

import numpy as np

from process_gen.scenes import shapes
from process_gen.scenes.graph import Object, Scene
from process_gen.scenes.levels import BACKGROUND, COLOURS, Level, get_level


@functools.cache
def tile(shape: str, colour: str, size: int) -> np.ndarray:
    """An object on the background, [canvas, canvas, 3] uint8, read-only."""
    coverage = shapes.mask(shape, size, shapes.canvas_of(size))[..., None]
    blended = np.asarray(BACKGROUND) * (1 - coverage) + np.asarray(COLOURS[colour]) * coverage
    blended = np.rint(blended).astype(np.uint8)
    blended.flags.writeable = False
    return blended


@functools.cache
def _blank(size: int) -> np.ndarray:
    return np.full((size, size, 3), BACKGROUND, np.uint8)


def render(scene: Scene, level: str | Level) -> np.ndarray:
    """Draws a scene.

    Returns:
      [image_size, image_size, 3] uint8.

    Raises:
      ValueError: if the scene holds something unclear.
    """
    level = get_level(level)
    image = _blank(level.image_size).copy()
    for thing in scene.objects:
        if not thing.clear:
            raise ValueError(f"cannot draw the unclear thing at {thing.cell}")
        _draw(image, thing, over=level.placement == "free")
    return image


def _draw(image: np.ndarray, thing: Object, over: bool) -> None:
    """Draws one object in place; what leaves the canvas is cut off."""
    canvas, side = shapes.canvas_of(thing.size), image.shape[0]
    left, top = round(thing.x) - canvas // 2, round(thing.y) - canvas // 2
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + canvas, side), min(top + canvas, side)
    inside = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    if not over:  # cells never share a pixel
        image[y0:y1, x0:x1] = tile(thing.shape, thing.colour, thing.size)[inside]
        return
    coverage = shapes.mask(thing.shape, thing.size, canvas)[inside][..., None]
    under = image[y0:y1, x0:x1]
    blended = under * (1 - coverage) + np.asarray(COLOURS[thing.colour], np.float32) * coverage
    image[y0:y1, x0:x1] = np.rint(blended)


def upscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeats every pixel `factor` times both ways, for people to look at."""
    return image.repeat(factor, 0).repeat(factor, 1)
