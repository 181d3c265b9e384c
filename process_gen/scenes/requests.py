"""What a prompt asks for, as data: clauses in GenEval's schema."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from process_gen.scenes.graph import OPPOSITE, Anchor, Object
from process_gen.scenes.levels import NUMBERS, PLURALS, Level, get_level
from process_gen.scenes.words import noun_phrase

GENEVAL_CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def categories(level: str | Level) -> tuple[str, ...]:
    """Every category of a level: GenEval's six, and longer prompts by their number of objects."""
    numbers = NUMBERS[3 : get_level(level).max_objects + 1]
    return GENEVAL_CATEGORIES + tuple(f"{number}_objects" for number in numbers)


@dataclasses.dataclass(frozen=True, slots=True)
class Named:
    """A noun phrase of a prompt: `count` is None in "a circle", 1 in "one circle"."""

    shape: str
    count: int | None = None
    colour: str | None = None

    def __str__(self) -> str:
        return noun_phrase(self.count, self.colour, self.shape)


@dataclasses.dataclass(frozen=True, slots=True)
class Clause(Named):
    """Some objects of one shape that the prompt names together.

    Attributes:
      shape: GenEval's `class`.
      count: exactly how many.
      colour: of all of them; None leaves it open.
      position: (relation, index of the target clause), always an earlier one.
    """

    count: int = 1
    position: tuple[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and what it means.

    Attributes:
      category: one of `categories(level)`.
      clauses: what has to be on the canvas; nothing else may be.
    """

    text: str
    category: str
    clauses: tuple[Clause, ...]
    level: Level

    @functools.cached_property
    def naming_order(self) -> list[int]:
        """Indices of the clauses in the order in which the prompt names them.

        `clauses` has each target before its subject; on hung levels that order is kept.
        """
        if self.level.hung:
            return list(range(len(self.clauses)))

        def named_at(index: int) -> int:
            one = self.clauses[index]
            words = f"{one.colour or ''} ({one.shape}|{PLURALS[one.shape]})".strip()
            found = re.search(rf"\b{words}\b", self.text.lower())
            return found.start() if found else len(self.text)

        return sorted(range(len(self.clauses)), key=named_at)

    @functools.cached_property
    def numbering(self) -> list[int]:
        """The clause index of each object; objects are numbered clause by clause in `naming_order`."""
        return [index for index in self.naming_order for _ in range(self.clauses[index].count)]

    @functools.cached_property
    def partners(self) -> dict[int, list[tuple[str, int]]]:
        """Object number -> the (relation, number of the other object) pairs that the prompt asks for.

        Both directions are there: "A left of B" also gives "B right of A".
        """
        partners = collections.defaultdict(list)
        for i, clause in enumerate(self.clauses):
            if clause.position is None:
                continue
            relation, target = clause.position
            here, there = ([n for n, owner in enumerate(self.numbering) if owner == c] for c in (i, target))
            for a, b in itertools.product(here, there):
                partners[a].append((relation, b))
                partners[b].append((OPPOSITE[relation], a))
        return dict(partners)

    def related(self, number: int, things: Mapping[int, Object]) -> list[Anchor]:
        """The relations that the prompt asks of object `number`, to objects in `things` alone."""
        return [(relation, things[n]) for relation, n in self.partners.get(number, ()) if n in things]

    def metadata(self) -> dict[str, Any]:
        """One line of a GenEval metadata file.

        Stricter than GenEval: every class that is included is also excluded
        above its count, so that the verdict cannot depend on the order in which
        a detector lists equal objects. Our own protocol, not "GenEval".
        """
        include, totals = [], collections.Counter()
        for clause in self.clauses:
            include.append({"class": clause.shape, "count": clause.count})
            if clause.colour:
                include[-1]["color"] = clause.colour
            if clause.position:
                include[-1]["position"] = list(clause.position)
            totals[clause.shape] += clause.count
        exclude = [{"class": shape, "count": count + 1} for shape, count in totals.items()]
        return {"tag": self.category, "include": include, "exclude": exclude, "prompt": self.text}


Relation = tuple[int, str, int]  # subject, relation, target: indices of noun phrases


def order_clauses(named: Sequence[Named], relations: Sequence[Relation]) -> tuple[Clause, ...]:
    """Clauses in the order of the text, but every target before its subject.

    Raises:
      ValueError: if a subject has two relations, or relations form a cycle.
    """
    target = {}
    for subject, relation, other in relations:
        if subject in target:
            raise ValueError(f"two relations for the {named[subject].shape}; one is supported")
        target[subject] = (relation, other)
    clauses: list[Clause] = []
    place: dict[int, int] = {}

    def add(index: int, subjects: tuple[int, ...] = ()) -> None:
        if index in subjects:
            raise ValueError("the relations form a circle")
        if index in place:
            return
        one, position = named[index], None
        if index in target:
            relation, other = target[index]
            add(other, (*subjects, index))
            position = (relation, place[other])
        place[index] = len(clauses)
        clauses.append(Clause(one.shape, one.count or 1, one.colour, position))

    for index in range(len(named)):
        add(index)
    return tuple(clauses)


def categorize(named: Sequence[Named], relations: Sequence[Relation]) -> str:
    """The category that a prompt falls into."""
    total = sum(one.count or 1 for one in named)
    coloured = any(one.colour for one in named)
    if len(named) == 1:
        if total > 1 or (named[0].count and not coloured):
            return "counting"
        return "colors" if coloured else "single_object"
    if total > 2:
        return f"{NUMBERS[total]}_objects"
    if relations:
        return "position"
    return "color_attr" if coloured else "two_object"
