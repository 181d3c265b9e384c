"""Scene -> image: crisp, anti-aliased and always the same.

A shape is drawn by its mask: which share of each pixel it fills.
"""

from __future__ import annotations

import functools

import numpy as np

from process_gen.scenes.graph import Scene
from process_gen.scenes.levels import BACKGROUND, COLOURS, Level, get_level

_SAMPLES = 16  # per pixel and axis


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (abs(u) <= 1) & (abs(v) <= 1)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Tests for a five-pointed star, one point up; by symmetry, in one tenth of the circle."""
    outer, inner, tenth = 1.1, 0.46, np.pi / 5
    v = v - 0.1
    radius, angle = np.hypot(u, v), np.arctan2(u, -v)
    folded = abs((angle + tenth) % (2 * tenth) - tenth)
    x, y = radius * np.cos(folded), radius * np.sin(folded)
    tip, dent = np.array([outer, 0.0]), inner * np.array([np.cos(tenth), np.sin(tenth)])
    edge = dent - tip
    return edge[0] * (y - tip[1]) - edge[1] * (x - tip[0]) >= 0


_INSIDE = {
    "circle": lambda u, v: np.hypot(u, v) <= 0.92,
    "square": _square,
    "triangle": lambda u, v: (abs(v) <= 1) & (abs(u) <= (v + 1) / 2),
    "star": _star,
    "cross": lambda u, v: _square(u, v) & ((abs(u) <= 1 / 3) | (abs(v) <= 1 / 3)),
    "ring": lambda u, v: (np.hypot(u, v) <= 1) & (np.hypot(u, v) >= 0.55),
}
"""Each maps coordinates, [-1, 1] across the object's box and y down, to whether they are inside."""


@functools.cache
def mask(shape: str, size: int, canvas: int) -> np.ndarray:
    """[canvas, canvas] float32 in [0, 1], read-only: a shape of `size` pixels in the middle of a canvas."""
    axis = ((np.arange(canvas * _SAMPLES) + 0.5) / _SAMPLES - canvas / 2) / (size / 2)
    inside = _INSIDE[shape](*np.meshgrid(axis, axis))
    coverage = inside.reshape(canvas, _SAMPLES, canvas, _SAMPLES).mean((1, 3)).astype(np.float32)
    coverage.flags.writeable = False
    return coverage


def canvas_of(size: int) -> int:
    """Side of the smallest canvas with a whole-pixel centre (an even side) that holds `size` pixels."""
    return size + size % 2


def placed_mask(shape: str, size: int, x: int, y: int, side: int) -> tuple[np.ndarray, tuple[slice, slice]]:
    """A mask centred on (x, y), cut to an image of `side` pixels, and the (y, x) slices that it covers."""
    canvas = canvas_of(size)
    left, top = x - canvas // 2, y - canvas // 2
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + canvas, side), min(top + canvas, side)
    inside = mask(shape, size, canvas)[y0 - top : y1 - top, x0 - left : x1 - left]
    return inside, (slice(y0, y1), slice(x0, x1))


def render(scene: Scene, level: str | Level) -> np.ndarray:
    """Draws a scene, [image_size, image_size, 3] uint8; what leaves the canvas is cut off.

    Raises ValueError if the scene holds something unclear.
    """
    level = get_level(level)
    background = np.asarray(BACKGROUND, np.float32)
    image = np.full((level.image_size, level.image_size, 3), BACKGROUND, np.uint8)
    for thing in scene.objects:
        if not thing.clear:
            raise ValueError(f"cannot draw the unclear thing at {thing.cell}")
        x, y = round(thing.x), round(thing.y)
        whole, place = placed_mask(thing.shape, thing.size, x, y, level.image_size)
        # On a grid an object replaces whatever its cell showed; on free levels it is blended over it.
        under = image[place] if level.placement == "free" else background
        coverage, colour = whole[..., None], np.asarray(COLOURS[thing.colour], np.float32)
        image[place] = np.rint(under * (1 - coverage) + colour * coverage)
    return image
