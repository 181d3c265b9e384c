"""Request x image -> verdict: every constraint on its own, with a reason.

Strict: exact counts, nothing that was not asked for, nothing unclear, colours,
and relations by GenEval's rule on the boxes (`graph.relations_between`), with the level's margin. Where
a prompt names one shape in several clauses ("a red circle left of a blue
circle"), any assignment of things to clauses that satisfies all of them will do.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from process_gen.scenes.graph import Object, Scene, has_relations, relations_between
from process_gen.scenes.parse import parse
from process_gen.scenes.requests import Clause, Request
from process_gen.scenes.words import noun_phrase

_MAX_ASSIGNMENTS = 5000


@dataclasses.dataclass(frozen=True)
class Check:
    """One constraint and whether it holds.

    Attributes:
      constraint: in words, e.g. "two red circles".
      reason: why it does not hold; empty if it does.
    """

    kind: Literal["count", "colour", "relation", "extra", "unclear"]
    constraint: str
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the constraint holds."""
        return not self.reason


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the judge says of one image.

    Attributes:
      checks: one per constraint. As in GenEval, a colour is not checked where the
        count is wrong, nor a relation where the count of its subject is.
    """

    checks: tuple[Check, ...]

    @property
    def correct(self) -> bool:
        """Whether every check holds."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why the image fails; empty if it is correct."""
        return "; ".join(check.reason for check in self.checks if not check.ok)

    @property
    def failures(self) -> tuple[str, ...]:
        """The kinds of the constraints that do not hold, each once."""
        return tuple(dict.fromkeys(check.kind for check in self.checks if not check.ok))

    def to_json(self) -> dict[str, Any]:
        fields = ("kind", "constraint", "ok", "reason")
        checks = [{field: getattr(check, field) for field in fields} for check in self.checks]
        return {"correct": self.correct, "checks": checks}


def judge(request: Request, image_or_scene: np.ndarray | Scene) -> Verdict:
    """Judges an image of the request's level, [H, W, 3] uint8, or a scene."""
    scene = image_or_scene if isinstance(image_or_scene, Scene) else parse(image_or_scene, request.level)
    clear = [thing for thing in scene.objects if thing.clear]
    assignments = itertools.islice(_assignments(request.clauses, clear), _MAX_ASSIGNMENTS)
    options = (_check_clauses(request, groups) for groups in assignments)
    best = min(options, key=lambda checks: sum(not check.ok for check in checks))
    asked = {clause.shape for clause in request.clauses}
    extra = [f"{thing.colour} {thing.shape} at {thing.cell}" for thing in clear if thing.shape not in asked]
    unclear = [f"{thing.cell} (overlap {thing.score:.2f})" for thing in scene.objects if not thing.clear]
    too_much = Check("extra", "nothing else", f"nobody asked for: {', '.join(extra)}" if extra else "")
    blurred = Check("unclear", "everything clear", f"unclear at {', '.join(unclear)}" if unclear else "")
    return Verdict((*best, too_much, blurred))


def may_become(request: Request, scene: Scene) -> bool:
    """Whether things that are still to be added can make a scene what the prompt asks for.

    False where something on the canvas contradicts the prompt: a thing too many, a
    wrong colour or shape, a relation that does not hold. Whether there is room for
    what is missing is not asked.
    """
    return find_numbers(request, scene) is not None


def find_numbers(request: Request, scene: Scene) -> dict[int, Object] | None:
    """Assigns the things of a scene to object numbers of the request; None where that contradicts it."""
    return next(matchings(request, scene.objects, lambda _, numbers: numbers[-1]), None)


def matchings(
    request: Request,
    things: Sequence[Object],
    choose: Callable[[Object, Sequence[int]], int],
    some: bool = False,
) -> Iterator[dict[int, Object]]:
    """Yields assignments, number (`Request.numbering`) -> thing, that do not contradict the prompt.

    Args:
      choose: picks a thing's number among the free ones of a clause, which are interchangeable.
      some: whether things may stay unassigned.
    """

    def go(index: int, placed: dict[int, Object]) -> Iterator[dict[int, Object]]:
        if index == len(things):
            yield placed
            return
        thing, free = things[index], {}
        for number, owner in enumerate(request.numbering):
            if number not in placed:
                free.setdefault(owner, []).append(number)
        for owner, numbers in free.items():
            clause, number = request.clauses[owner], choose(thing, numbers)
            fits = thing.shape == clause.shape and clause.colour in (None, thing.colour)
            if fits and has_relations(thing, request.related(number, placed), request.level.margin):
                yield from go(index + 1, {**placed, number: thing})
        if some:
            yield from go(index + 1, placed)

    return go(0, {})


def _assignments(clauses: Sequence[Clause], things: list[Object]) -> Iterator[tuple[tuple[Object, ...], ...]]:
    """Yields ways to divide the things of each shape among the clauses that name it.

    The last clause of a shape gets all that is left, so that its count shows a surplus.
    """
    if not clauses:
        yield ()
        return
    clause, rest = clauses[0], clauses[1:]
    mine = [thing for thing in things if thing.shape == clause.shape]
    if not any(other.shape == clause.shape for other in rest):
        for tail in _assignments(rest, things):
            yield (tuple(mine), *tail)
        return
    # Things of the right colour first: of equally good assignments the first one counts.
    mine.sort(key=lambda thing: clause.colour not in (None, thing.colour))
    for chosen in itertools.combinations(mine, min(clause.count, len(mine))):
        left = [thing for thing in things if not any(thing is one for one in chosen)]
        for tail in _assignments(rest, left):
            yield (chosen, *tail)


def _check_clauses(request: Request, groups: Sequence[Sequence[Object]]) -> tuple[Check, ...]:
    """Checks the things that were assigned to each clause: counts and colours, then relations."""
    checks, usable, clauses = [], [], request.clauses
    for clause, group in zip(clauses, groups, strict=True):
        wanted = noun_phrase(clause.count, None, clause.shape)
        counted = len(group) == clause.count
        checks.append(Check("count", wanted, "" if counted else f"expected {wanted}, found {len(group)}"))
        if clause.colour and counted:
            wrong = [thing.colour for thing in group if thing.colour != clause.colour]
            reason = f"expected {clause}, found {' and '.join(wrong)}" if wrong else ""
            checks.append(Check("colour", str(clause), reason))
        usable.append(checks[-1].ok)
    for clause, group in zip(clauses, groups, strict=True):
        if clause.position and len(group) == clause.count:
            relation, target = clause.position
            name = f"{clause} {relation} {clauses[target]}"
            if usable[target]:
                reason = _misplaced(group, relation, groups[target], name, request.level.margin)
            else:
                reason = f"no target for {clause} to be {relation}"
            checks.append(Check("relation", name, reason))
    return tuple(checks)


def _misplaced(
    group: Sequence[Object], relation: str, targets: Sequence[Object], name: str, margin: float
) -> str:
    """Why a relation does not hold between all things of two groups; empty if it does."""
    for subject, other in itertools.product(group, targets):
        found = relations_between(subject.box, other.box, margin)
        if relation not in found:
            seen = " and ".join(found) or "in no clear relation to"
            return f"expected {name}, found the {subject.shape} {seen} the {other.shape}"
    return ""
