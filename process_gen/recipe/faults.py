"""Finds what is wrong with a scene, as one mistake that one instruction repairs.

The teacher knows its mistakes because it plants them. Those of a model have to be found: by comparing a draft
with its plan, or by a search for one change after which the scene no longer contradicts the prompt.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from numpy.random import Generator

from process_gen.recipe.parts import Skip
from process_gen.scenes.graph import Object, Scene, alike, lacking
from process_gen.scenes.levels import Level
from process_gen.scenes.mistakes import Mistake
from process_gen.scenes.oracle import find_mistakes, sound
from process_gen.scenes.placement import find_place
from process_gen.scenes.requests import Request

_PLACES = 12  # tries for another place of a thing
SEVERAL = "more than one error in a step"


Fault = tuple[Mistake, Scene]
"""A mistake, and the canvas without it; its number is an index into that, -1 if it is a thing too many."""


def changed(before: Scene, after: Scene) -> tuple[str, ...]:
    """The kinds of changes between two scenes, as in a `Stroke`."""
    lost, new = lacking(before, after), lacking(after, before)
    kinds: list[str] = []
    moved = [t for t in lost if any(alike(t, o) for o in new)]
    if len(moved) == 2 and {t.cell for t in moved} <= {t.cell for t in new}:
        kinds.append("swap")
        new = [t for t in new if not any(alike(t, thing) for thing in moved)]
        lost = [t for t in lost if t not in moved]
    for thing in lost:
        cells = [o for o in new if o.cell == thing.cell]
        twins = [o for o in new if alike(o, thing)]
        if same := cells or twins:
            kinds.append("modify")
            new.remove(same[0])
        else:
            kinds.append("remove")
    return (*kinds, *("add" for _ in new))


def of_draft(planned: Scene, shown: Scene) -> Fault | None:
    """What a draft shows otherwise than its plan says; None where it shows just that.

    Raises:
      Skip: more is wrong than one instruction repairs.
    """
    mistakes = find_mistakes(shown, planned)
    if not mistakes:
        return None
    if len(mistakes) > 1:
        raise Skip(SEVERAL)
    (mistake,) = mistakes
    wrong, right = mistake.wrong, mistake.right
    kept = [thing for thing in shown.objects if thing is not wrong]
    if right is not None and wrong is None:  # an unclear thing in its cell is no further error
        kept = [thing for thing in kept if thing.clear or thing.cell != right.cell]
    if not all(thing.clear for thing in (*kept, *([wrong] if wrong else ()))):
        raise Skip("something unclear where nothing should be")
    repaired = Scene((*kept, *([right] if right else ())))
    return dataclasses.replace(mistake, number=len(kept) if right else -1), repaired


def of_plan(request: Request, scene: Scene, rng: Generator, level: Level) -> Fault:
    """The first change of `_repairs` after which a scene no longer contradicts its prompt or itself.

    Raises:
      Skip: no single one does it.
    """
    wanted = Counter(request.clauses[owner].shape for owner in request.numbering)
    found = Counter(thing.shape for thing in scene.objects)
    for number, kind, wrong, right in _repairs(scene, rng, level):
        if right is None and found[wrong.shape] <= wanted[wrong.shape]:
            continue  # the prompt asks for a thing of this shape: removing it is no repair
        things = list(scene.objects)
        things[number : number + 1] = [right] if right else []
        repaired = Scene(tuple(things))
        if sound(request, repaired):
            if right is None and any(alike(wrong, thing) for thing in things):
                kind = "count"
            return Mistake(kind, number if right else -1, wrong, right), repaired
    raise Skip(SEVERAL)


def _repairs(scene: Scene, rng: Generator, level: Level) -> Iterator[tuple[int, str, Object, Object | None]]:
    """Yields single changes, (number, kind, thing, thing after it or None): looks, places, then removals."""
    things = list(enumerate(scene.objects))
    for kind, words in (("colour", level.colours), ("shape", level.shapes)):
        for number, thing in things:
            for word in words:
                if word != getattr(thing, kind):
                    yield number, kind, thing, dataclasses.replace(thing, **{kind: word})
    for number, thing in things:
        others = [other for n, other in things if n != number]
        for _ in range(_PLACES):
            if (there := find_place(rng, level, thing, [*others, thing])) is not None:
                yield number, "place", thing, there
    for number, thing in things:
        yield number, "extra", thing, None
