"""The scene graph: objects with their attributes, relations and counts."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from process_gen.scenes.levels import Level, get_level

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
UNCLEAR = "unclear"
"""Shape (and colour) of something on the canvas that is no object of the vocabulary."""

MIN_OVERLAP = 0.6
"""A thing whose shape overlaps no mask by this much (soft IoU) is unclear."""

MAX_COLOUR_RATIO = 0.65
"""Largest distance to the nearest colour over that to the second nearest, background included; a thing with
a larger ratio is unclear."""

Box = tuple[float, float, float, float]
Anchor = tuple[str, "Object"]
"""(relation, another object): says where an object stands, such as "left of" the ring."""


@dataclasses.dataclass(frozen=True, slots=True)
class Object:
    """One thing on the canvas.

    Attributes:
      shape, colour: words of the level's vocabulary, or `unclear`.
      cell: name of the cell that holds its centre.
      x, y: centre in pixels, y down.
      size: pixels across.
      score: how well the canvas shows it (overlap of shapes); 1 unless parsed.
    """

    shape: str
    colour: str
    cell: str
    x: float
    y: float
    size: int
    score: float = dataclasses.field(default=1.0, compare=False)

    @property
    def box(self) -> Box:
        """(x0, y0, x1, y1) in pixels, the last two exclusive."""
        half = self.size / 2
        return (self.x - half, self.y - half, self.x + half, self.y + half)

    @property
    def clear(self) -> bool:
        return UNCLEAR not in (self.shape, self.colour)

    @property
    def named(self) -> tuple[str, str, str]:
        """As descriptions name it: shape, colour and cell."""
        return self.shape, self.colour, self.cell

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("shape", "colour", "cell", "x", "y", "size")}


def make_object(level: Level, shape: str, colour: str, cell: str, size: int | None = None) -> Object:
    """Makes an object in the middle of a cell, by default of the level's middle size. Raises ValueError."""
    if not isinstance(cell, str) or cell not in level.cell_index:
        raise ValueError(f"no cell {cell!r}: cells go from {level.cells[0]} to {level.cells[-1]}")
    x, y = level.centres[level.cell_index[cell]]
    return Object(shape, colour, cell, x, y, size or level.sizes[len(level.sizes) // 2][1])


def alike(one: Object, other: Object) -> bool:
    """Whether two things have the same shape and colour."""
    return one.shape == other.shape and one.colour == other.colour


def distance(one: Object, other: Object) -> int:
    """Manhattan distance between the centres of two things, in pixels."""
    return abs(one.x - other.x) + abs(one.y - other.y)


def without(things: Mapping[int, Object], number: int) -> list[Object]:
    """The objects of a canvas, by number, but one."""
    return [thing for n, thing in things.items() if n != number]


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """The objects of a canvas; later ones lie on top of earlier ones.

    Attributes:
      anchors: for each object None, or (relation, index of the object that it is relative to) as the
        description states it. Empty unless the scene comes from a description on a hung level.
    """

    objects: tuple[Object, ...] = ()
    anchors: tuple[tuple[str, int] | None, ...] = dataclasses.field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.objects)

    def anchor(self, number: int) -> tuple[str, int] | None:
        """The entry of `anchors` for an object; None where the description states no relation."""
        return self.anchors[number] if self.anchors else None

    def to_json(self) -> dict[str, Any]:
        return {"objects": [thing.to_json() for thing in self.objects]}


def lacking(scene: Scene, other: Scene) -> list[Object]:
    """The things of a scene that another one lacks, compared as descriptions name them."""
    left = collections.Counter(thing.named for thing in other.objects)
    found = []
    for thing in scene.objects:
        if left[thing.named]:
            left[thing.named] -= 1
        else:
            found.append(thing)
    return found


def same(scene: Scene, other: Scene) -> bool:
    """Whether two scenes hold the same things, compared as descriptions name them."""
    return not lacking(scene, other) and not lacking(other, scene)


def scene_from_json(data: Mapping[str, Any], level: str | Level) -> Scene:
    """Reads what `Scene.to_json` wrote, or a scene that a person wrote.

    An object needs `shape` and `colour`, and `cell` or `x` and `y`; `size` has a default. Raises ValueError
    that says which object is wrong and why.
    """
    level = get_level(level)
    if not isinstance(data, Mapping) or not isinstance(data.get("objects"), list):
        raise ValueError('a scene is a JSON object {"objects": [...]}')
    things: list[Object] = []
    for index, item in enumerate(data["objects"]):
        try:
            thing = _object_from_json(item, level)
            if level.placement == "grid" and any(thing.cell == other.cell for other in things):
                raise ValueError(f"cell {thing.cell} is taken")
        except ValueError as error:
            raise ValueError(f"object {index}: {error}") from None
        things.append(thing)
    return Scene(tuple(things))


def _object_from_json(item: Any, level: Level) -> Object:
    if not isinstance(item, Mapping):
        raise ValueError("not a JSON object")
    for field, words in (("shape", level.shapes), ("colour", level.colours)):
        if item.get(field) not in (*words, UNCLEAR):
            raise ValueError(f"{field} {item.get(field)!r} is none of {', '.join(words)}")
    for name in ("x", "y", "size"):
        value = item.get(name, 1)
        if type(value) not in (int, float) or not 0 <= value <= level.image_size:
            raise ValueError(f"{name} is not a number between 0 and {level.image_size}: {value!r}")
    if ("x" in item) != ("y" in item) or not ("cell" in item or "x" in item):
        raise ValueError("give a cell, or both x and y")
    cell = item["cell"] if "cell" in item else level.cell_at(item["x"], item["y"])
    middle = make_object(level, item["shape"], item["colour"], cell)
    thing = dataclasses.replace(middle, **{name: item[name] for name in ("x", "y", "size") if name in item})
    if not thing.clear:
        return thing
    if thing.size not in level.size_names:
        raise ValueError(f"size {thing.size} is none of {', '.join(map(str, level.size_names))}")
    if level.cell_at(thing.x, thing.y) != cell:
        raise ValueError(f"({thing.x}, {thing.y}) is not in cell {cell}")
    if level.placement == "grid" and max(abs(thing.x - middle.x), abs(thing.y - middle.y)) > level.jitter:
        raise ValueError(f"level {level.name!r} keeps things in the middle of their cell")
    return thing


def offsets(subject: Box, target: Box, margin: float = 0.1) -> tuple[float, float]:
    """Where the subject lies as seen from the target: (dx, dy), y down.

    GenEval's measure: the offset of the centres on each axis, shrunk towards zero by a tenth
    (`margin`) of the sum of both extents, over the Euclidean distance of the centres. All in
    float32, as in the official scorer.
    """
    a, b = np.asarray(subject, np.float32), np.asarray(target, np.float32)
    low, high = np.stack([a[:2], b[:2]]), np.stack([a[2:], b[2:]])
    centre, extent = (low + high) / 2, abs(high - low)
    offset = centre[0] - centre[1]
    revised = np.maximum(abs(offset) - np.float32(margin) * extent.sum(0), 0) * np.sign(offset)
    if (abs(revised) < 1e-3).all():
        return 0.0, 0.0
    dx, dy = revised / np.linalg.norm(offset)
    return float(dx), float(dy)


def relations_between(subject: Box, target: Box, margin: float = 0.1) -> tuple[str, ...]:
    """Which of the four relations hold: none, one or two, in the order of `OPPOSITE`."""
    dx, dy = offsets(subject, target, margin)
    return tuple(itertools.compress(OPPOSITE, (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5)))


def has_relations(thing: Object, anchors: Iterable[Anchor], margin: float) -> bool:
    """Whether a thing stands in each relation to the object given with it; `margin` as in `offsets`."""
    return all(relation in relations_between(thing.box, other.box, margin) for relation, other in anchors)
