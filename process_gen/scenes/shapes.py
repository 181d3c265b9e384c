"""The shapes as coverage masks: which share of each pixel a shape fills."""

from __future__ import annotations

import functools

import numpy as np

_SAMPLES = 16  # per pixel and axis


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) <= 0.92


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (abs(u) <= 1) & (abs(v) <= 1)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (abs(v) <= 1) & (abs(u) <= (v + 1) / 2)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _square(u, v) & ((abs(u) <= 1 / 3) | (abs(v) <= 1 / 3))


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    radius = np.hypot(u, v)
    return (radius <= 1) & (radius >= 0.55)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points, one of them up; folded into one tenth of the turn."""
    outer, inner, tenth = 1.1, 0.46, np.pi / 5
    v = v - 0.1
    radius, angle = np.hypot(u, v), np.arctan2(u, -v)
    folded = abs((angle + tenth) % (2 * tenth) - tenth)
    x, y = radius * np.cos(folded), radius * np.sin(folded)
    tip, dent = np.array([outer, 0.0]), inner * np.array([np.cos(tenth), np.sin(tenth)])
    edge = dent - tip
    return edge[0] * (y - tip[1]) - edge[1] * (x - tip[0]) >= 0


_INSIDE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
"""Each takes coordinates in [-1, 1] across the object's box, y down."""


@functools.cache
def mask(shape: str, size: int, canvas: int) -> np.ndarray:
    """Coverage of a shape of `size` pixels in the middle of a square canvas.

    Returns:
      [canvas, canvas] float32 in [0, 1], read-only.
    """
    axis = ((np.arange(canvas * _SAMPLES) + 0.5) / _SAMPLES - canvas / 2) / (size / 2)
    inside = _INSIDE[shape](*np.meshgrid(axis, axis))
    coverage = inside.reshape(canvas, _SAMPLES, canvas, _SAMPLES).mean((1, 3)).astype(np.float32)
    coverage.flags.writeable = False
    return coverage


def canvas_of(size: int) -> int:
    """The even canvas that holds an object of `size` pixels around a whole-pixel centre."""
    return size + size % 2
