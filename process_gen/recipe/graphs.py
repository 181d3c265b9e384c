"""The scene graph of a free prompt: objects with attributes, relations between them (paper, section on data).

A chat model writes a graph as JSON by `SCHEMA`, and `read_graph` checks it. No two relations between the same
things exclude each other, and none forms a cycle. So no subgraph holds a contradiction either.
"""

from __future__ import annotations

import dataclasses
import graphlib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from process_gen.trajectory.markup import check_plain

OPPOSITES = {
    **{"left of": "right of", "right of": "left of", "above": "below", "below": "above"},
    **{"in front of": "behind", "behind": "in front of", "on": "under", "under": "on"},
    **{"inside": "around", "around": "inside"},
}
"""Relations and their inverses. The two exclude each other, and neither may form a cycle."""

MOST_THINGS = 12


class GraphError(ValueError):
    """Raised for what is no scene graph, or one that contradicts itself; the message says why."""


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object node with its attribute nodes.

    Attributes:
      name: unique in its graph, as "dog" or "second dog".
      attributes: of it, as "brown".
      alternative: an attribute that would do as well in the place of the first one; empty where none would.
    """

    name: str
    attributes: tuple[str, ...] = ()
    alternative: str = ""

    @property
    def noun(self) -> str:
        """With its attributes: "brown dog"."""
        return " ".join((*self.attributes, self.name))


@dataclasses.dataclass(frozen=True)
class Relation:
    """An edge: `subject` is `relation` of `target`, names of things."""

    subject: str
    relation: str
    target: str


@dataclasses.dataclass(frozen=True)
class Graph:
    """A scene.

    Attributes:
      things: in the order of the prompt.
      relations: between them.
      extras: names of things that would fit the scene and are not in the prompt.
    """

    things: tuple[Thing, ...]
    relations: tuple[Relation, ...] = ()
    extras: tuple[str, ...] = ()

    def part(self, names: Iterable[str]) -> Graph:
        """The subgraph of some things: with the relations between them."""
        kept = set(names)
        relations = (r for r in self.relations if {r.subject, r.target} <= kept)
        return Graph(tuple(t for t in self.things if t.name in kept), tuple(relations))

    def thing(self, name: str) -> Thing:
        """The thing of a name."""
        return next(thing for thing in self.things if thing.name == name)


def object_of(**properties: Any) -> dict[str, Any]:
    """JSON schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": TEXT}

SCHEMA = object_of(
    objects={"type": "array", "items": object_of(name=TEXT, attributes=_TEXTS, alternative=TEXT)},
    relations={"type": "array", "items": object_of(subject=TEXT, relation=TEXT, target=TEXT)},
    extras=_TEXTS,
)
"""JSON schema of a graph, strict as OpenAI's `response_format` wants it."""


def read_graph(value: Any) -> Graph:
    """The graph of a JSON object of `SCHEMA`.

    Raises:
      GraphError: it is no graph, or one that contradicts itself; the message names the field.
    """
    if not isinstance(value, Mapping):
        raise GraphError("a graph is a JSON object")
    things = tuple(_read_thing(one, f"objects[{i}]") for i, one in enumerate(_list(value, "objects")))
    if not 1 <= len(things) <= MOST_THINGS:
        raise GraphError(f"a graph has 1 to {MOST_THINGS} objects, this one {len(things)}")
    names = [thing.name for thing in things]
    if twice := [name for name in names if names.count(name) > 1]:
        raise GraphError(f"two objects are called {twice[0]!r}")
    relations = []
    for i, one in enumerate(_list(value, "relations")):
        told = (_text(one, key, f"relations[{i}]") for key in ("subject", "relation", "target"))
        relations.append(Relation(*told))
    extras = tuple(_plain(one, f"extras[{i}]") for i, one in enumerate(_list(value, "extras")))
    for one in relations:
        if missing := {one.subject, one.target} - set(names):
            raise GraphError(f"a relation names {missing.pop()!r}, which is no object")
        if one.subject == one.target:
            raise GraphError(f"{one.subject!r} is {one.relation} itself")
    graph = Graph(things, tuple(relations), tuple(extra for extra in extras if extra not in names))
    if problem := contradiction(graph):
        raise GraphError(problem)
    return graph


def _read_thing(one: Any, field: str) -> Thing:
    attributes = (_plain(a, f"{field}.attributes[{i}]") for i, a in enumerate(_list(one, "attributes")))
    alternative = one.get("alternative", "")
    return Thing(
        _text(one, "name", field),
        tuple(attributes),
        _plain(alternative, f"{field}.alternative") if alternative else "",
    )


def contradiction(graph: Graph) -> str | None:
    """Describes a contradiction between the relations of a graph; None where there is none."""
    relations = graph.relations
    for one, other in itertools.combinations(relations, 2):
        opposite = OPPOSITES.get(one.relation)
        same = (one.subject, one.target) == (other.subject, other.target)
        turned = (one.subject, one.target) == (other.target, other.subject)
        if opposite and (same and other.relation == opposite or turned and other.relation == one.relation):
            return f"{one.subject!r} is {one.relation} and {opposite} {one.target!r}"
    for relation, opposite in OPPOSITES.items():
        order = graphlib.TopologicalSorter()
        for r in relations:
            if r.relation == relation:
                order.add(r.subject, r.target)
            elif r.relation == opposite:
                order.add(r.target, r.subject)
        try:
            order.prepare()
        except graphlib.CycleError:
            return f"the relations {relation!r} form a circle"
    return None


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise GraphError(f"{key} is no list")
    return found


def _text(value: Any, key: str, field: str) -> str:
    return _plain(value.get(key) if isinstance(value, Mapping) else None, f"{field}.{key}")


def _plain(text: Any, field: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise GraphError(f"{field} is no text")
    try:
        return check_plain(text.strip(), field)
    except ValueError as error:
        raise GraphError(str(error)) from None
