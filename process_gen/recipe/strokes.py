"""Splits a graph into steps: growing subgraphs, and rewrites that reach the same end by another path.

Each step adds one or two things. In a share of the trajectories one part of the path is rewritten (the paper
rewrites part of the steps into attribute changes, swaps and removals):

    modify  a thing is drawn with another attribute first, and is changed later
    swap    two related things are drawn in each other's place first, and are swapped later
    remove  a thing that nobody asked for is drawn first, and is removed later

The paper does not say how the rewrites are drawn. Ours: at most one in a trajectory, uniform over the kinds
that its graph allows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from numpy.random import Generator

from process_gen.recipe.graphs import OPPOSITES, Graph, Relation, Thing, contradiction
from process_gen.trajectory.markup import Plan

Kind = Literal["add", "modify", "swap", "remove"]


@dataclasses.dataclass(frozen=True)
class Stroke:
    """What one step sets out to do.

    Attributes:
      plan: in words.
      kinds: of its changes.
      state: the scene as it should stand afterwards: a `Graph`, in the scenes world a `scenes.Taught`.
    """

    plan: Plan
    kinds: tuple[Kind, ...]
    state: Any = None


def with_article(noun: str) -> str:
    """Such as "a dog" and "an old dog"; a noun that begins with an article or a number stays as it is."""
    first = noun.split()[0].lower()
    if first in ("a", "an", "the", "some", "two", "three", "four", "five", "six", "several", "many"):
        return noun
    return f"{'an' if first[0] in 'aeiou' else 'a'} {noun}"


def describe(graph: Graph) -> str:
    """The whole scene in words: its things, then its relations."""
    if not graph.things:
        return "nothing yet"
    things = ", ".join(with_article(thing.noun) for thing in graph.things)
    facts = [f"the {r.subject} is {r.relation} the {r.target}" for r in graph.relations]
    return "; ".join([things, *facts])


def _added(thing: Thing, graph: Graph, earlier: Sequence[str]) -> str:
    """The words that add `thing`, a part of `graph`; `earlier` are the names of what was drawn before."""
    facts = [f" {r.relation} the {r.target}" for r in graph.relations if r.subject == thing.name]
    facts += [
        f" {OPPOSITES[r.relation]} the {r.subject}"
        for r in graph.relations
        if r.target == thing.name and r.subject in earlier and r.relation in OPPOSITES
    ]
    return f"add {with_article(thing.noun)}{','.join(facts)}"


def schedule(rng: Generator, graph: Graph, most: int, rewrites: float, pair: float) -> list[Stroke]:
    """The steps that draw a graph, at most `most` (at least 2).

    A share `rewrites` has a rewrite, where the graph allows one; `pair` is how often a step adds two things
    where one would do.
    """
    rewrite = rng.random() < rewrites and _options(graph)
    kind, first, words = _rewritten(rng, graph) if rewrite else ("add", graph, "")
    room = most - bool(words)
    names = [thing.name for thing in first.things]
    if kind == "remove":  # so that what is removed never stands alone
        names.insert(1 + int(rng.random() * (len(names) - 1)), names.pop())
    strokes = list(_additions(first, _groups(rng, names, room, pair)))
    if words:
        strokes.append(Stroke(Plan(words, describe(graph)), (kind,), graph))
    return strokes


@dataclasses.dataclass(frozen=True)
class Planted:
    """A path with one step that is wrong, and the instruction that puts it right.

    `analysis` says what contradicts the prompt, `shown` how the picture differs from the right step.
    """

    before: tuple[Stroke, ...]
    wrong: Stroke
    right: Stroke
    analysis: str
    shown: str
    correction: str
    rest: tuple[Stroke, ...]


def plant(rng: Generator, graph: Graph, most: int, pair: float) -> Planted | None:
    """A conflict made from the graph alone: another attribute, a relation reversed, or a thing too many.

    None where the graph allows none. `most` and `pair` are as for `schedule`; the correction does not count.
    """
    if not _options(graph):
        return None
    kind, other, correction = _rewritten(rng, graph)
    groups = _groups(rng, [thing.name for thing in graph.things], most, pair)
    right = _additions(graph, groups)
    if kind == "remove":
        extra, at = other.things[-1].name, int(rng.random() * len(groups))
        groups[at] = [*groups[at], extra]
    wrong = _additions(other, groups)
    at = next(i for i, (a, b) in enumerate(zip(wrong, right, strict=True)) if a.plan != b.plan)
    told = _told(kind, graph, other)
    return Planted(right[:at], wrong[at], right[at], *told, correction, right[at + 1 :])


def _told(kind: Kind, graph: Graph, other: Graph) -> tuple[str, str]:
    """`Planted.analysis` and `Planted.shown`: how `other` contradicts the prompt, and what it shows."""
    if kind == "modify":
        pairs = zip(graph.things, other.things, strict=True)
        wanted, found = next((with_article(a.noun), with_article(b.noun)) for a, b in pairs if a != b)
    elif kind == "swap":
        pairs = zip(graph.relations, other.relations, strict=True)
        right, wrong = next(pair for pair in pairs if pair[0] != pair[1])
        wanted = f"the {right.subject} {right.relation} the {right.target}"
        found = f"the {wrong.subject} {wrong.relation} the {wrong.target}"
    else:
        extra = with_article(other.things[-1].noun)
        return f"the prompt does not ask for {extra}", f"the picture shows {extra}, which was not asked for"
    return f"the prompt asks for {wanted}, not for {found}", f"the picture shows {found}, not {wanted}"


def _additions(graph: Graph, groups: Sequence[Sequence[str]]) -> tuple[Stroke, ...]:
    """The steps that add groups of things, one after the other."""
    strokes: list[Stroke] = []
    there: list[str] = []
    for group in groups:
        earlier, there = there, [*there, *group]
        part = graph.part(there)
        words = [_added(part.thing(name), part, earlier) for name in group]
        strokes.append(Stroke(Plan(" and ".join(words), describe(part)), ("add",) * len(group), part))
    return tuple(strokes)


def _options(graph: Graph) -> dict[Kind, list[Any]]:
    """The rewrites that a graph allows, each with what it may be of: things, relations, extras."""
    found: dict[Kind, list[Any]] = {
        "modify": [thing for thing in graph.things if thing.attributes and thing.alternative],
        "swap": [edge for edge in graph.relations if contradiction(_turned(graph, edge)) is None],
        "remove": list(graph.extras),
    }
    return {kind: some for kind, some in found.items() if some}


def _rewritten(rng: Generator, graph: Graph) -> tuple[Kind, Graph, str]:
    """Draws a rewrite: its kind, the graph before it, and the instruction that leads from that to `graph`."""

    def one_of(options: Sequence[Any]) -> Any:
        return options[int(rng.random() * len(options))]

    options = _options(graph)
    kind = one_of([*options])
    chosen = one_of(options[kind])
    if kind == "modify":
        other = dataclasses.replace(chosen, attributes=(chosen.alternative, *chosen.attributes[1:]))
        things = tuple(other if one is chosen else one for one in graph.things)
        words = f"change the {other.noun} into {with_article(chosen.noun)}"
        return kind, dataclasses.replace(graph, things=things), words
    if kind == "swap":
        return kind, _turned(graph, chosen), f"swap the {chosen.subject} and the {chosen.target}"
    extra = Thing(chosen)
    return kind, dataclasses.replace(graph, things=(*graph.things, extra)), f"remove the {extra.name}"


def _turned(graph: Graph, edge: Relation) -> Graph:
    """The graph with subject and target of one relation exchanged."""
    other = Relation(edge.target, edge.relation, edge.subject)
    return dataclasses.replace(graph, relations=tuple(other if r == edge else r for r in graph.relations))


def _groups(rng: Generator, names: Sequence[str], most: int, pair: float) -> list[list[str]]:
    """Splits names, in order, into at most `most` groups of one or two, or of more where necessary."""
    groups, left = [], list(names)
    while left:
        slots = max(most - len(groups), 1)
        least = -(-len(left) // slots)
        size = max(least, 2 if len(left) > 1 and rng.random() < pair else 1)
        groups.append(left[:size])
        left = left[size:]
    return groups
