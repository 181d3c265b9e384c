"""Prompts of every category: `sample_request` writes them, `grammar` reads them."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.random import Generator

from process_gen.scenes.levels import NUMBERS, Level, get_level
from process_gen.scenes.placement import place_request
from process_gen.scenes.requests import Named, Relation, Request, categories, order_clauses
from process_gen.scenes.splits import FREE_SHAPES, HELD_OUT_TOGETHER, SPLITS, Split, is_held_out
from process_gen.scenes.words import count_tokens, inflect, listed, pick

PREFIXES = ("a photo of", "a picture of", "an image of", "a drawing of", "draw", "show")
RELATION_PHRASES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
LAST = (" and ", " and ", ", ")
"""Separators before the last item of a list; drawn uniformly, so a repeated one is more likely."""


def sample_request(rng: Generator, level: str | Level, category: str, split: Split = "train") -> Request:
    """Draws a prompt of one of the `categories(level)`.

    The split `train` has requests without any held-out composition, `heldout` such with at least one (see
    `splits`; single objects have none). Raises ValueError for an unknown level, category or split.
    """
    level = get_level(level)
    known = categories(level)
    if category not in known:
        raise ValueError(f"level {level.name!r} has no category {category!r}; it has {', '.join(known)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {' and '.join(SPLITS)}")
    while True:
        named, relations = _draw(rng, level, category, split)
        clauses = order_clauses(named, relations)
        if is_held_out(clauses) == (split == "heldout") or category == "single_object":
            if not level.hung or _is_placeable(Request("", category, clauses, level)):
                return Request(_write(rng, named, relations, level), category, clauses, level)


def _is_placeable(request: Request) -> bool:
    """Whether a request can be placed on a hung level. Placement does not depend on colours or the seed."""
    try:
        return bool(place_request(np.random.default_rng(0), request))
    except ValueError:
        return False


def _draw(rng: Generator, level: Level, category: str, split: Split) -> tuple[list[Named], list[Relation]]:
    """Noun phrases and relations of one category, before the split is checked."""
    if category in ("single_object", "colors", "counting"):
        colour = pick(rng, level.colours) if category == "colors" else None
        count = 1 + int(rng.random() * 4) if category == "counting" else None
        return [Named(pick(rng, level.shapes), count, colour)], []
    if category in ("two_object", "color_attr", "position"):
        coloured = category == "color_attr" or (category == "position" and rng.random() < 0.35)
        shapes = _distinct_shapes(rng, level, 2, split)
        one = other = None
        if coloured:  # GenEval asks for two different colours
            one = pick(rng, level.colours)
            other = pick(rng, [colour for colour in level.colours if colour != one])
        relations = [(0, pick(rng, tuple(RELATION_PHRASES)), 1)] if category == "position" else []
        return [Named(shapes[0], None, one), Named(shapes[1], None, other)], relations
    draw = _draw_tree if level.hung else _draw_long
    return draw(rng, level, NUMBERS.index(category.split("_")[0]), split)


def _draw_long(rng: Generator, level: Level, total: int, split: Split) -> tuple[list[Named], list[Relation]]:
    """Two to `total` noun phrases for `total` objects, up to two relations.

    More than `FREE_SHAPES` different shapes hold a held-out pair; of so many phrases for training some have a
    shape in common, and no relation.
    """
    most = min(total, len(level.shapes))
    phrases = most - min(int(rng.random() * rng.random() * most), most - 2)
    shapes = _distinct_shapes(rng, level, phrases if split == "heldout" else min(phrases, FREE_SHAPES), split)
    twins = [pick(rng, shapes) for _ in range(phrases - len(shapes))]
    for shape in twins:
        shapes.insert(int(rng.random() * (len(shapes) + 1)), shape)
    counts = [1] * len(shapes)
    for _ in range(total - len(shapes)):
        open_ones = [i for i, count in enumerate(counts) if count < 4]
        counts[pick(rng, open_ones)] += 1
    with_colours = rng.random() < 0.8
    named = []
    for shape, count in zip(shapes, counts, strict=True):
        colour = pick(rng, level.colours) if with_colours and rng.random() < 0.8 else None
        if shape in twins:
            others = [one.colour for one in named if one.shape == shape]
            colour = pick(rng, [colour for colour in level.colours if colour not in others])
        named.append(Named(shape, count if count > 1 else None, colour))
    relations: list[Relation] = []
    if rng.random() < 0.65:
        pairs = 1 + (len(named) > 3 and rng.random() < 0.4)
        first = 0  # a subject and its target are adjacent phrases
        for left in range(pairs, 0, -1):
            first += int(rng.random() * (len(named) - first - 2 * left + 1))
            # With more pairs of objects than this, a relation can hardly be placed.
            if counts[first] * counts[first + 1] <= 4 and not {shapes[first], shapes[first + 1]} & {*twins}:
                relations.append((first, pick(rng, tuple(RELATION_PHRASES)), first + 1))
            first += 2
    return named, relations


def _draw_tree(rng: Generator, level: Level, total: int, split: Split) -> tuple[list[Named], list[Relation]]:
    """Draws `total` different objects, each but the first related to an earlier one.

    For training, an object that makes a held-out composition is drawn again at once:
    hardly any long prompt would be free of them by chance.
    """
    shapes = _distinct_shapes(
        rng, level, min(total, len(level.shapes) if split == "heldout" else FREE_SHAPES), split
    )
    named: list[Named] = []
    relations: list[Relation] = []
    for _ in range(30 * total):
        if len(named) == total:
            break
        number = len(named)
        fresh = [shape for shape in shapes if not any(shape == one.shape for one in named)]
        shape = pick(rng, fresh if fresh and rng.random() < 0.7 else shapes)
        # At most two have no colour, and their shapes occur once: "the circle" has to be unambiguous.
        open_ones = sum(one.colour is None for one in named)
        colour = pick(rng, level.colours) if open_ones > 1 or rng.random() < 0.8 else None
        # Most relate to the object just before (chains), the others to any earlier one.
        target = number - 1 if rng.random() < 0.7 else int(rng.random() * number)
        links = [*relations, (number, pick(rng, tuple(RELATION_PHRASES)), target)] if number else []
        things = [*named, Named(shape, None, colour)]
        twins = [one.colour for one in things if one.shape == shape]
        if len(set(twins)) < len(twins) or (None in twins and len(twins) > 1):
            continue
        if split == "heldout" or not is_held_out(order_clauses(things, links)):
            named, relations = things, links
    else:  # no further object was accepted: start over
        return _draw_tree(rng, level, total, split)
    if rng.random() < 0.3:  # swap the first two, to write them as one phrase: "a star above a circle, .."
        other = {0: 1, 1: 0}
        named[:2] = named[1::-1]
        relations = [(other.get(a, a), relation, other.get(b, b)) for a, relation, b in relations]
    return named, relations


def _distinct_shapes(rng: Generator, level: Level, number: int, split: Split) -> list[str]:
    """`number` different shapes in random order; for training, without a pair that is held out."""
    while True:
        chosen = sorted(level.shapes, key=lambda _: rng.random())[:number]
        pairs = itertools.combinations(chosen, 2)
        if split == "heldout" or not any(frozenset(pair) in HELD_OUT_TOGETHER for pair in pairs):
            return chosen


def _write(rng: Generator, named: list[Named], relations: list[Relation], level: Level) -> str:
    """Puts noun phrases and relations into words, within the level's budget."""
    bare = [inflect(one.shape, one.count) for one in named]
    for attempt in range(22):
        short = attempt > 3
        phrases = {r: pick(rng, RELATION_PHRASES[r][: 1 if short else None]) for _, r, _ in relations}
        if not level.hung and relations and len(named) > 2 and rng.random() < 0.4 and not short:
            facts = [f"the {bare[a]} {phrases[r]} the {bare[b]}" for a, r, b in relations]
            text = f"{listed([str(one) for one in named], pick(rng, LAST))}, with {' and '.join(facts)}"
        else:
            text = listed(_items(named, relations, phrases), pick(rng, LAST))
        if rng.random() < 0.7 and not short:
            text = f"{PREFIXES[0] if rng.random() < 0.5 else pick(rng, PREFIXES)} {text}"
        if count_tokens(text) + 2 <= level.budget.prompt:
            return text
    raise ValueError(f"no prompt of {level.budget.prompt} tokens says: {text}")


def _items(named: list[Named], relations: list[Relation], phrases: dict[str, str]) -> list[str]:
    """The items of a prompt's list; a subject and its target are one item, "a circle left of a square".

    A target that comes before its subject, on hung levels, is named again: "a star, a ring above the star".
    """
    shapes = [one.shape for one in named]
    links = {a: (phrases[relation], b) for a, relation, b in relations}
    later = {b for a, _, b in relations if b > a}
    items = []
    for index, one in enumerate(named):
        phrase, target = links.get(index, ("", index))
        other = named[target]
        if target < index:
            name = other.shape if shapes.count(other.shape) == 1 else f"{other.colour} {other.shape}"
            items.append(f"{one} {phrase} the {name}")
        elif index not in later:
            items.append(f"{one} {phrase} {other}" if phrase else str(one))
    return items
