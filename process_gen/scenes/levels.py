"""Defines the difficulty levels of the scenes world, one row of `LEVELS` each.

Every level shares one vocabulary and one interface, so that a model, a data
set or a benchmark moves to a harder world by changing a name. On `default`
each object sits in the middle of a cell and one cell is one 8 x 8 image token:
a small model learns it in minutes on a laptop. The harder levels move objects
freely, give them sizes, add more of them and let them overlap. On `hung` texts
name no cell: they place an object relative to another one, and its cell follows
from the canvas (`placement.hang`). "Hung levels" are those with `Level.hung`.

Cells are named by column letter and row number: `a1` is the top left.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

BACKGROUND = (128, 128, 128)
"""Mid-grey: zero on the model's [-1, 1] scale."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
"""Six shapes that can be told apart at 7 pixels (`ring` is a circle with a hole)."""

PLURALS = {shape: ("crosses" if shape == "cross" else f"{shape}s") for shape in SHAPES}

COLOURS = {
    "red": (225, 20, 30),
    "yellow": (255, 225, 0),
    "green": (0, 165, 45),
    "blue": (15, 65, 245),
    "purple": (170, 0, 200),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}
"""Seven of GenEval's ten colours as RGB, at least 150 from each other and from the background (L2)."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclasses.dataclass(frozen=True)
class Budget:
    """The most tokens (`words.count_tokens`) of each text, `<|im_start|>` and `<|im_end|>` included."""

    prompt: int = 36
    plan: int = 40
    inspect: int = 18
    refine: int = 14


@dataclasses.dataclass(frozen=True)
class Level:
    """One difficulty of the scenes world.

    Attributes:
      name: the key in `LEVELS`.
      image_size: height and width in pixels.
      grid: cells per side.
      sizes: (name, pixels) of the sizes that objects come in.
      placement: `grid` puts objects into the middle of a cell, up to `jitter`
        pixels off; `free` puts them anywhere.
      hung: whether texts name objects and relations but never cells;
        `placement.hang` then determines the cell of an object.
      margin: the `margin` of `graph.relations_between`. At GenEval's 0.1 a diagonal
        neighbour is both beside and above; from 0.17 on it is neither.
      jitter: largest offset from the middle of the cell, in whole pixels.
      overlap: the largest share of a smaller object that another may cover;
        zero keeps objects apart (`free` placement only).
      max_objects: the most objects that a prompt may ask for.
      budget: how long the texts of a trajectory may be.
    """

    name: str
    image_size: int = 32
    grid: int = 4
    sizes: tuple[tuple[str, int], ...] = (("medium", 7),)
    placement: Literal["grid", "free"] = "grid"
    hung: bool = False
    margin: float = 0.1
    jitter: int = 0
    overlap: float = 0.0
    max_objects: int = 5
    budget: Budget = Budget()
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)

    @functools.cached_property
    def cell_size(self) -> int:
        return self.image_size // self.grid

    @functools.cached_property
    def cells(self) -> tuple[str, ...]:
        """Names of the cells, row by row."""
        return tuple(f"{chr(97 + i % self.grid)}{i // self.grid + 1}" for i in range(self.grid**2))

    @functools.cached_property
    def cell_index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.cells)}

    @functools.cached_property
    def centres(self) -> tuple[tuple[int, int], ...]:
        """(x, y) of the middle of each cell, in pixels."""
        middles = range(self.cell_size // 2, self.image_size, self.cell_size)
        return tuple((x, y) for y in middles for x in middles)

    @functools.cached_property
    def palette(self) -> np.ndarray:
        """RGB less the background, [colours + 1, 3] float32; the last row, zeros, is the background."""
        rows = np.asarray([*(COLOURS[name] for name in self.colours), BACKGROUND], np.float32)
        return rows - np.asarray(BACKGROUND, np.float32)

    @functools.cached_property
    def size_names(self) -> dict[int, str]:
        return {pixels: name for name, pixels in self.sizes}

    @property
    def sized(self) -> bool:
        """Whether texts have to say how large an object is."""
        return len(self.sizes) > 1

    def cell_at(self, x: float, y: float) -> str:
        """The name of the cell that holds a point; points outside count for the nearest."""
        column, row = (min(max(int(v // self.cell_size), 0), self.grid - 1) for v in (x, y))
        return self.cells[row * self.grid + column]


LEVELS = {
    level.name: level
    for level in (
        Level("default"),
        Level("jitter", sizes=(("medium", 6),), jitter=1),
        Level(
            "free64",
            image_size=64,
            grid=8,
            sizes=(("small", 9), ("medium", 12), ("large", 16)),
            placement="free",
            budget=Budget(plan=56),
        ),
        Level(
            "free128",
            image_size=128,
            grid=8,
            sizes=(("small", 16), ("medium", 22), ("large", 30)),
            placement="free",
            overlap=0.25,
            max_objects=8,
            budget=Budget(plan=80),
        ),
        Level(
            "hung",
            image_size=48,
            grid=6,
            hung=True,
            margin=0.2,
            max_objects=6,
            budget=Budget(prompt=52, plan=64, inspect=20, refine=14),
        ),
    )
}


def get_level(level: str | Level) -> Level:
    """Looks a level up by name; returns a `Level` as it is. Raises ValueError for an unknown name."""
    if isinstance(level, Level):
        return level
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}; there are {', '.join(LEVELS)}")
    return LEVELS[level]
