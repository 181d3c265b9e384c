"""Parsing where objects lie anywhere, come in sizes and may overlap.

Pixels are named by their nearest colour and gathered into connected regions.
Each region is then compared with every mask at every place where its box may
be; pixels that another object covers are left out of the comparison.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from process_gen.scenes.graph import MAX_COLOUR_RATIO, MIN_OVERLAP, UNCLEAR, Object
from process_gen.scenes.levels import Level
from process_gen.scenes.render import canvas_of, mask, placed_mask

_BLUR = np.array([1, 2, 1], np.float32) / 4
_SLACK = 2  # pixels by which a region's box may differ from the object's
_MIN_REGION = 9  # pixels in full 2 x 2 blocks; fewer are taken for the blended edge between two colours
_MIN_VISIBLE = 0.5  # of a mask; with more of it covered, its shape is a guess
_STRAY_CONTRAST = 60.0


def parse_free(deviation: np.ndarray, level: Level) -> list[Object]:
    """Reads one image, [H, W, 3] float32 less the background; objects come row by row."""
    smooth = _blurred(deviation)
    labels = ((smooth[:, :, None] - level.palette) ** 2).sum(-1).argmin(-1)
    solid = _in_blocks(labels) & (labels != len(level.colours))
    regions: list[np.ndarray] = []
    for label in range(len(level.colours)):
        numbers, _ = ndimage.label(labels == label)
        regions += [numbers == n for n in np.unique(numbers[solid]) if n]
    found: list[Object] = []
    explained = np.zeros(labels.shape, bool)
    # The largest first; of equal ones that whose first pixel comes first.
    for region in sorted(regions, key=lambda region: (-(region & solid).sum(), region.argmax())):
        fresh = region & ~explained
        if (fresh & solid).sum() < _MIN_REGION or fresh.sum() < 0.3 * region.sum():
            continue
        thing, covered = _fit(deviation, labels, region, level)
        found.append(thing)
        explained |= ndimage.binary_dilation(region, iterations=2)
        explained |= covered & (labels == labels[region][0])
    found += _strays(smooth, explained, level)
    return sorted(found, key=lambda thing: (thing.y, thing.x))


def _blurred(values: np.ndarray) -> np.ndarray:
    rows = ndimage.correlate1d(values, _BLUR, axis=0, mode="nearest")
    return ndimage.correlate1d(rows, _BLUR, axis=1, mode="nearest")


def _in_blocks(labels: np.ndarray) -> np.ndarray:
    """Whether a pixel is part of a 2 x 2 block of its label."""
    filters = (ndimage.minimum_filter, ndimage.maximum_filter)  # of each pixel and those above and left
    least, most = (one(labels.astype(int), 2, mode="constant", cval=-1) for one in filters)
    return ndimage.maximum_filter(least == most, 2, origin=-1, mode="constant")


def _fit(
    deviation: np.ndarray, labels: np.ndarray, region: np.ndarray, level: Level
) -> tuple[Object, np.ndarray]:
    """The object that explains a region best, or an unclear one, and the pixels that it covers."""
    colour = labels[region][0]
    counts = region | (labels == len(level.colours))  # compared; other colours may cover the object
    axis = level.palette[colour]
    share = (deviation @ axis / (axis @ axis)).clip(0, 1)
    box = _box(region)
    hidden = (ndimage.binary_dilation(region, iterations=2) & ~counts).sum() > 2
    longest = max(box[2] - box[0], box[3] - box[1])
    matches = [
        _best_place(share, counts, box, size, level)
        for _, size in level.sizes
        if longest <= size + _SLACK and (hidden or longest >= size - 2 - _SLACK)
    ]
    if not matches:
        return _unclear(box, level, level.colours[colour], 0.0), region
    _, shape, size, x, y = min(matches, key=lambda match: match[0])
    whole, place = placed_mask(shape, size, x, y, level.image_size)
    weight = whole * counts[place]
    overlap = np.minimum(share[place], whole) * counts[place]
    union = np.maximum(share[place], whole) * counts[place]
    score = float(overlap.sum() / max(union.sum(), 1e-6))
    shown = (weight[..., None] * deviation[place]).sum((0, 1)) / max((weight * whole).sum(), 1e-6)
    distances = np.sort(np.linalg.norm(level.palette - shown, axis=-1))
    visible = weight.sum() / max(whole.sum(), 1e-6)
    covered = np.zeros(labels.shape, bool)
    covered[place] = whole > 0.25
    if score < MIN_OVERLAP or visible < _MIN_VISIBLE or distances[0] > MAX_COLOUR_RATIO * distances[1]:
        return _unclear(box, level, level.colours[colour], score), region
    found = Object(shape, level.colours[colour], level.cell_at(x, y), x, y, size, round(score, 3))
    return found, covered


def _best_place(
    share: np.ndarray, counts: np.ndarray, box: tuple[int, ...], size: int, level: Level
) -> tuple[float, str, int, int, int]:
    """Least squares over shapes and places of one size: (error, shape, size, x, y)."""
    x0, y0, x1, y1 = box
    pad = canvas = canvas_of(size)
    weight = np.pad(counts.astype(np.float32), pad)
    target = np.pad(share, pad) * weight
    shift, last = pad - (canvas - size) // 2, len(weight) - canvas
    rows = (np.arange(y1 - size - _SLACK, y0 + _SLACK + 1) + shift).clip(0, last)
    columns = (np.arange(x1 - size - _SLACK, x0 + _SLACK + 1) + shift).clip(0, last)
    view, places = np.lib.stride_tricks.sliding_window_view, np.ix_(rows, columns)
    weights = view(weight, (canvas, canvas))[places].reshape(-1, canvas * canvas)
    targets = view(target, (canvas, canvas))[places].reshape(-1, canvas * canvas)
    masks = np.stack([mask(shape, size, canvas).ravel() for shape in level.shapes])
    errors = (targets * targets).sum(1)[:, None] - 2 * targets @ masks.T + weights @ (masks * masks).T
    place, shape = np.unravel_index(errors.argmin(), errors.shape)
    row, column = divmod(int(place), len(columns))
    x, y = int(columns[column]) - pad + canvas // 2, int(rows[row]) - pad + canvas // 2
    return float(errors[place, shape]), level.shapes[shape], size, x, y


def _box(region: np.ndarray) -> tuple[int, ...]:
    """(x0, y0, x1, y1) of a region, the last two exclusive."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _unclear(box: tuple[int, ...], level: Level, colour: str, score: float) -> Object:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    size = int(max(box[2] - box[0], box[3] - box[1]))
    return Object(UNCLEAR, colour, level.cell_at(x, y), float(x), float(y), size, round(score, 3))


def _strays(smooth: np.ndarray, explained: np.ndarray, level: Level) -> list[Object]:
    """One unclear thing around all pixels that are no background and explained by no object; or none."""
    smoother = _blurred(smooth)
    differs = (smoother * smoother).sum(-1) > _STRAY_CONTRAST**2
    left = differs & ~ndimage.binary_dilation(explained)
    left &= _in_blocks(left)
    if left.sum() < _MIN_REGION:
        return []
    return [_unclear(_box(left), level, UNCLEAR, 0.0)]
