"""Image -> scene: an exact parser.

What a renderer drew is read back exactly, mild noise or not. What a model drew
may be anything: a thing that is not clearly one object of the vocabulary comes
back with the shape `unclear`, never silently dropped, so that a judge cannot
pass an image because of something that its parser skipped.
"""

from __future__ import annotations

import functools

import numpy as np

from process_gen.scenes.graph import MAX_COLOUR_RATIO, MIN_OVERLAP, UNCLEAR, Object, Scene
from process_gen.scenes.levels import BACKGROUND, Level, get_level
from process_gen.scenes.parse_free import parse_free
from process_gen.scenes.render import mask

STRAY_PIXELS = 4
STRAY_CONTRAST, STRAY_NOISE = 45.0, 1.25
"""A cell that no mask fits holds an unclear thing if so many of its smoothed pixels are this far (L2) from
the background; in a noisy image, `STRAY_NOISE` standard deviations of the noise if that is farther."""


def parse(image: np.ndarray, level: str | Level) -> Scene:
    """Reads one image of the level's size, [H, W, 3] uint8, else ValueError; objects come row by row."""
    level, image = get_level(level), np.asarray(image)
    side = level.image_size
    if image.dtype != np.uint8 or image.shape != (side, side, 3):
        raise ValueError(
            f"level {level.name!r} reads [{side}, {side}, 3] uint8 images, "
            f"got {list(image.shape)} {image.dtype}"
        )
    deviation = image.astype(np.float32) - np.asarray(BACKGROUND, np.float32)
    things = parse_free(deviation, level) if level.placement == "free" else _parse_grid(deviation, level)
    return Scene(tuple(things))


@functools.cache
def _bank(level: Level) -> tuple[list[tuple[str, int, int]], np.ndarray]:
    """Every mask that a cell may hold: (shape, dx, dy) and coverage [masks, cell * cell]."""
    size, cell = level.sizes[0][1], level.cell_size
    steps = range(-level.jitter, level.jitter + 1)
    names = [(shape, dx, dy) for shape in level.shapes for dy in steps for dx in steps]
    masks = [np.roll(mask(shape, size, cell), (dy, dx), (0, 1)).ravel() for shape, dx, dy in names]
    return names, np.stack(masks)


def _parse_grid(deviation: np.ndarray, level: Level) -> list[Object]:
    side, cell = level.grid, level.cell_size
    cells = deviation.reshape(side, cell, side, cell, 3).transpose(0, 2, 1, 3, 4)
    flat = cells.reshape(side * side, cell * cell, 3)
    names, masks = _bank(level)
    palette = level.palette[:-1]
    # Squared error of each mask in each colour, less that of an empty cell: [cells, colours, masks].
    shown = flat.transpose(0, 2, 1).reshape(-1, cell * cell) @ masks.T
    shown = palette @ shown.reshape(len(flat), 3, -1)
    errors = np.outer((palette * palette).sum(1), (masks * masks).sum(1)) - 2 * shown
    errors = errors.reshape(len(flat), -1)
    best = errors.argmin(1)
    drawn = errors[np.arange(len(best)), best] < 0
    best_colour, best = np.divmod(best, len(names))
    stray = _stray_pixels(deviation, level).reshape(-1) >= STRAY_PIXELS
    things = []
    found = np.flatnonzero(drawn | stray)
    overlap, ratio, colour = _clarity(flat[found], masks[best[found]], level)
    for i, place in enumerate(found):
        shape, dx, dy = names[best[place]]
        x, y = level.centres[place]
        coloured = ratio[i] <= MAX_COLOUR_RATIO
        if drawn[place] and overlap[i] >= MIN_OVERLAP and coloured:
            x, y, name = x + dx, y + dy, level.colours[best_colour[place]]
        else:
            shape, name = UNCLEAR, level.colours[colour[i]] if coloured else UNCLEAR
        score = round(float(overlap[i]), 3)
        things.append(Object(shape, name, level.cells[place], x, y, level.sizes[0][1], score))
    return things


def _clarity(cells: np.ndarray, masks: np.ndarray, level: Level) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How clearly cells, [N, cell * cell, 3], show a shape in one colour.

    Returns:
      Soft IoU of what is there with the mask; the ratio of the distances to the
      nearest and second nearest colour; and the nearest colour's index.
    """
    shown = np.einsum("np,npc->nc", masks, cells) / (masks * masks).sum(1, keepdims=True)
    distances = np.linalg.norm(shown[:, None] - level.palette, axis=-1)
    colour = distances[:, :-1].argmin(1)
    first = distances[np.arange(len(cells)), colour]
    distances[np.arange(len(cells)), colour] = np.inf
    ratio = first / np.maximum(distances.min(1, initial=np.inf), 1e-6)
    axis = level.palette[colour]
    share = (np.einsum("npc,nc->np", cells, axis) / (axis * axis).sum(1, keepdims=True)).clip(0, 1)
    overlap = np.minimum(share, masks).sum(1) / np.maximum(share, masks).sum(1)
    return overlap, ratio, colour


def _stray_pixels(deviation: np.ndarray, level: Level) -> np.ndarray:
    """[grid, grid]: in each cell, how many pixels differ from the background.

    Smoothed over 3 x 3 pixels, so that noise does not count; without the
    outermost ring of the cell, where a neighbour may spill over.
    """
    side, cell = level.grid, level.cell_size
    rows = deviation[:-2] + deviation[1:-1] + deviation[2:]
    smooth = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9
    rough = np.median(abs(deviation[1:-1, 1:-1] - smooth))
    contrast = np.maximum(STRAY_CONTRAST, STRAY_NOISE * 1.57 * rough)  # 1.57: median to deviation
    differs = np.zeros(deviation.shape[:2], bool)
    differs[1:-1, 1:-1] = np.einsum("yxc,yxc->yx", smooth, smooth) > contrast * contrast
    inner = differs.reshape(side, cell, side, cell)[:, 1:-1, :, 1:-1]
    return inner.sum((1, 3))
