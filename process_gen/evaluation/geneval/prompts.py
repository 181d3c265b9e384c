"""Prompts in GenEval's schema, of any object names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from process_gen.common.names import check_name
from process_gen.evaluation.geneval.decision import COLORS, RELATIONS
from process_gen.evaluation.geneval.files import Metadata
from process_gen.evaluation.options import TaskError

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""In the order of the official file."""

COUNTS = {2: "two", 3: "three", 4: "four"}

OBJECTS = tuple(
    " ".join(name.split())
    for name in """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
    hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,
    bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis,
    snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
    racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich,
    orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
    dining table, toilet, tv, laptop, computer mouse, tv remote, computer keyboard, cell
    phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy
    bear, hair drier, toothbrush""".split(",")
)
"""What the official prompts name: the 80 classes of COCO, some of them under another name."""

UNCOLORED = ("person",)
"""Objects that no prompt gives a colour."""


def sample_prompts(
    names: Sequence[str],
    seed: int = 0,
    each: int = 100,
    tags: Sequence[str] = TAGS,
) -> list[Metadata]:
    """Draws prompts of GenEval's six kinds; `files.write_metadata` writes them.

    Plurals are the name and an s ("two sheeps"), as the official ones are. No
    prompt names one object twice. `single_object` has every name once. Of the
    other tags `each` prompts are drawn and those that repeat left out, as
    officially, so a tag may hold fewer.

    Args:
      names: of objects, at least two, one of which may have a colour; in the
        singular, without article.
      seed: the same one draws the same prompts of a tag, whatever the other tags.
      each: how many draws for a tag.
      tags: which, in the order in which they come.

    Raises:
      TaskError: unknown tag, or too few or repeated names.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise TaskError(f"prompts need at least two different names, got {', '.join(names) or 'none'}")
    found: dict[str, Metadata] = {}
    for tag in tags:
        rng = np.random.default_rng([seed, TAGS.index(check_name(tag, TAGS, "tag", TaskError))])
        for one in itertools.islice(_draw(rng, tag, names), len(names) if tag == TAGS[0] else each):
            found.setdefault(one["prompt"], one)
    return list(found.values())


def _draw(rng: np.random.Generator, tag: str, names: Sequence[str]) -> Iterator[Metadata]:
    """Yields prompts of a tag without end; of `single_object`, one for each name."""
    if tag == "single_object":
        yield from (_prompt(tag, _with_article(name), [_clause(name)]) for name in names)
        return
    coloured = [name for name in names if name not in UNCOLORED]
    if len(coloured) < 1 + (tag == "color_attr") and tag in ("colors", "color_attr"):
        raise TaskError(f"{tag} needs more names than {', '.join(names)}")
    while True:
        one, other = _two(rng, coloured if tag == "color_attr" else names)
        if tag == "counting":
            count = int(rng.choice(list(COUNTS)))
            excluded = [_clause(one, count + 1)]
            yield _prompt(tag, f"{COUNTS[count]} {one}s", [_clause(one, count)], exclude=excluded)
        elif tag == "colors":
            one, color = str(rng.choice(coloured)), str(rng.choice(COLORS))
            yield _prompt(tag, _with_article(f"{color} {one}"), [_clause(one, color=color)])
        elif tag == "position":
            relation = str(rng.choice(RELATIONS))
            clauses = [_clause(other), _clause(one, position=[relation, 0])]
            yield _prompt(tag, f"{_with_article(one)} {relation} {_with_article(other)}", clauses)
        elif tag == "color_attr":
            ours, theirs = _two(rng, COLORS)
            text = f"{_with_article(f'{ours} {one}')} and {_with_article(f'{theirs} {other}')}"
            yield _prompt(tag, text, [_clause(one, color=ours), _clause(other, color=theirs)])
        else:
            text = f"{_with_article(one)} and {_with_article(other)}"
            yield _prompt(tag, text, [_clause(one), _clause(other)])


def _two(rng: np.random.Generator, words: Sequence[str]) -> tuple[str, str]:
    first, second = rng.choice(len(words), 2, replace=False)
    return words[first], words[second]


def _with_article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def _prompt(tag: str, text: str, include: list[dict[str, Any]], **more: Any) -> Metadata:
    return {"tag": tag, "include": include, **more, "prompt": f"a photo of {text}"}


def tag_of(prompt: str) -> str | None:
    """The tag of a text in the form of GenEval's prompts with the official objects; None for other texts.

    Made to check training data. What it finds has the form and the words of the benchmark, but need not be
    one of its 553 prompts.
    """
    found = _FORM.fullmatch(" ".join(prompt.lower().removesuffix(".").split()))
    if found is None:
        return None
    groups = {name for name, text in found.groupdict().items() if text}
    if "count" in groups:
        return "counting"
    if "relation" in groups:
        return None if groups & {"color", "other_color"} else "position"
    if "other" in groups:
        kinds = {frozenset(): "two_object", frozenset({"color", "other_color"}): "color_attr"}
        return kinds.get(frozenset(groups & {"color", "other_color"}))
    return "colors" if "color" in groups else "single_object"


def _any(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_FORM = re.compile(
    rf"a photo of (?:(?P<count>{_any([*COUNTS.values()])}) (?:{_any(OBJECTS)})s"
    rf"|an? (?:(?P<color>{_any(COLORS)}) )?(?:{_any(OBJECTS)})"
    rf"(?: (?:and|(?P<relation>{_any(RELATIONS)})) "
    rf"an? (?:(?P<other_color>{_any(COLORS)}) )?(?P<other>{_any(OBJECTS)}))?)"
)
