"""Request x image -> verdict: every constraint on its own, with a reason.

Strict: exact counts, nothing that was not asked for, nothing unclear, colours,
and relations by GenEval's rule on the boxes (`graph.relations_between`). Where
a prompt names one shape in several clauses ("a red circle left of a blue
circle"), any assignment of things to clauses that satisfies all of them will do.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from process_gen.scenes.graph import Object, Scene, relations_between
from process_gen.scenes.levels import NUMBERS, PLURALS, Level, get_level
from process_gen.scenes.parse import parse
from process_gen.scenes.requests import Clause, Request

Kind = Literal["count", "colour", "relation", "extra", "unclear"]

_MAX_ASSIGNMENTS = 5000


@dataclasses.dataclass(frozen=True)
class Check:
    """One constraint and whether it holds.

    Attributes:
      kind: what sort of constraint.
      constraint: in words, e.g. "two red circles".
      ok: whether it holds.
      reason: why not; empty if it holds.
    """

    kind: Kind
    constraint: str
    ok: bool
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the judge says of one image.

    Attributes:
      correct: every check holds.
      checks: one per constraint. A colour is not checked where the count is
        wrong, nor a relation whose subject is (as GenEval has it).
    """

    correct: bool
    checks: tuple[Check, ...]

    @property
    def reason(self) -> str:
        """Why the image fails; empty if it is correct."""
        return "; ".join(check.reason for check in self.checks if not check.ok)

    @property
    def failures(self) -> tuple[str, ...]:
        """The kinds of the constraints that do not hold, each once."""
        return tuple(dict.fromkeys(check.kind for check in self.checks if not check.ok))

    def to_json(self) -> dict[str, Any]:
        return {"correct": self.correct, "checks": [dataclasses.asdict(check) for check in self.checks]}


def judge(request: Request, image_or_scene: np.ndarray | Scene, level: str | Level | None = None) -> Verdict:
    """Judges an image, [H, W, 3] uint8, or a scene.

    Args:
      level: of the image; the request's by default.
    """
    scene = image_or_scene
    if not isinstance(scene, Scene):
        scene = parse(scene, get_level(level or request.level))
    clear = [thing for thing in scene.objects if thing.clear]
    best: tuple[Check, ...] = ()
    for groups in itertools.islice(_assignments(request.clauses, clear), _MAX_ASSIGNMENTS):
        checks = _check_clauses(request.clauses, groups)
        if not best or _failed(checks) < _failed(best):
            best = checks
        if not _failed(best):
            break
    checks = (*best, _check_extra(request.clauses, clear), _check_clear(scene))
    return Verdict(not _failed(checks), checks)


def may_become(request: Request, scene: Scene) -> bool:
    """Whether things that are still to be added can make a scene what the prompt asks for.

    False where something on the canvas contradicts the prompt: a thing too many, a
    wrong colour or shape, a relation that does not hold. Whether there is room for
    what is missing is not asked.
    """
    owners, partners = request.numbering(), request.partners()

    def find_numbers(things: Sequence[Object], placed: Mapping[int, Object]) -> bool:
        """Whether things can have numbers of the prompt that nothing placed so far has."""
        if not things:
            return True
        thing, *rest = things
        # Numbers of one clause are alike, so one of each will do.
        free = {owner: number for number, owner in enumerate(owners) if number not in placed}
        for owner, number in free.items():
            clause = request.clauses[owner]
            fits = thing.shape == clause.shape and clause.colour in (None, thing.colour)
            related = all(
                relation in relations_between(thing.box, placed[other].box)
                for relation, other in partners.get(number, ())
                if other in placed
            )
            if fits and related and find_numbers(rest, {**placed, number: thing}):
                return True
        return False

    return find_numbers(scene.objects, {})


def _failed(checks: Sequence[Check]) -> int:
    return sum(not check.ok for check in checks)


def _assignments(clauses: Sequence[Clause], things: list[Object]) -> Iterator[tuple[tuple[Object, ...], ...]]:
    """Ways to share out things of each shape among the clauses that name it.

    The last clause of a shape takes all that is left, so that too many of them show.
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
    # Things of the right colour first: the first assignment is then most often the best.
    mine.sort(key=lambda thing: clause.colour not in (None, thing.colour))
    for chosen in itertools.combinations(mine, min(clause.count, len(mine))):
        left = [thing for thing in things if not any(thing is one for one in chosen)]
        for tail in _assignments(rest, left):
            yield (chosen, *tail)


def _phrase(clause: Clause) -> str:
    noun = PLURALS[clause.shape] if clause.count > 1 else clause.shape
    return " ".join(filter(None, (NUMBERS[clause.count], clause.colour, noun)))


def _check_clauses(clauses: Sequence[Clause], groups: Sequence[Sequence[Object]]) -> tuple[Check, ...]:
    checks, usable = [], []
    for clause, group in zip(clauses, groups, strict=True):
        name, found = _phrase(clause), len(group)
        counted = found == clause.count
        noun = clause.shape if clause.count == 1 else PLURALS[clause.shape]
        wanted = f"{NUMBERS[clause.count]} {noun}"
        checks.append(Check("count", wanted, counted, "" if counted else f"expected {wanted}, found {found}"))
        coloured = True
        if clause.colour and counted:
            wrong = [thing.colour for thing in group if thing.colour != clause.colour]
            coloured = not wrong
            reason = f"expected {name}, found {' and '.join(wrong)}" if wrong else ""
            checks.append(Check("colour", name, coloured, reason))
        usable.append(counted and coloured)
    for i, clause in enumerate(clauses):
        if clause.position and len(groups[i]) == clause.count:
            checks.append(_check_relation(clauses, groups, usable, i))
    return tuple(checks)


def _check_relation(
    clauses: Sequence[Clause], groups: Sequence[Sequence[Object]], usable: Sequence[bool], index: int
) -> Check:
    relation, target = clauses[index].position
    name = f"{_phrase(clauses[index])} {relation} {_phrase(clauses[target])}"
    if not usable[target]:
        return Check("relation", name, False, f"no target for {_phrase(clauses[index])} to be {relation}")
    for subject, other in itertools.product(groups[index], groups[target]):
        found = relations_between(subject.box, other.box)
        if relation not in found:
            seen = " and ".join(found) or "in no clear relation to"
            reason = f"expected {name}, found the {subject.shape} {seen} the {other.shape}"
            return Check("relation", name, False, reason)
    return Check("relation", name, True)


def _check_extra(clauses: Sequence[Clause], things: Sequence[Object]) -> Check:
    asked = {clause.shape for clause in clauses}
    extra = [f"{thing.colour} {thing.shape} at {thing.cell}" for thing in things if thing.shape not in asked]
    reason = f"nobody asked for: {', '.join(extra)}" if extra else ""
    return Check("extra", "nothing else", not extra, reason)


def _check_clear(scene: Scene) -> Check:
    unclear = [f"{thing.cell} (overlap {thing.score:.2f})" for thing in scene.objects if not thing.clear]
    reason = f"unclear at {', '.join(unclear)}" if unclear else ""
    return Check("unclear", "everything clear", not unclear, reason)
