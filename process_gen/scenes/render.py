"""Scene -> image: crisp, anti-aliased and always the same."""

from __future__ import annotations

import numpy as np

from process_gen.scenes import shapes
from process_gen.scenes.graph import Scene
from process_gen.scenes.levels import BACKGROUND, COLOURS, Level, get_level


def render(scene: Scene, level: str | Level) -> np.ndarray:
    """Draws a scene; what leaves the canvas is cut off.

    Returns:
      [image_size, image_size, 3] uint8.

    Raises:
      ValueError: if the scene holds something unclear.
    """
    level = get_level(level)
    background = np.asarray(BACKGROUND, np.float32)
    image = np.full((level.image_size, level.image_size, 3), BACKGROUND, np.uint8)
    for thing in scene.objects:
        if not thing.clear:
            raise ValueError(f"cannot draw the unclear thing at {thing.cell}")
        x, y = round(thing.x), round(thing.y)
        mask, place = shapes.placed_mask(thing.shape, thing.size, x, y, level.image_size)
        # On a grid an object replaces whatever its cell showed; on free levels it is blended over it.
        under = image[place] if level.placement == "free" else background
        coverage, colour = mask[..., None], np.asarray(COLOURS[thing.colour], np.float32)
        image[place] = np.rint(under * (1 - coverage) + colour * coverage)
    return image
