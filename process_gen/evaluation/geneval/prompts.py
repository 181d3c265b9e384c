"""Prompts in GenEval's schema, of any object names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from process_gen.common.names import check_name
from process_gen.evaluation.errors import TaskError
from process_gen.evaluation.geneval.decision import COLORS, RELATIONS
from process_gen.evaluation.geneval.files import Metadata

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""In the order of the official file."""

COUNTS = {2: "two", 3: "three", 4: "four"}

UNCOLORED = ("person",)
"""What no prompt gives a colour to."""


def sample_prompts(
    names: Sequence[str],
    seed: int = 0,
    each: int = 100,
    tags: Sequence[str] = TAGS,
    colors: Sequence[str] = COLORS,
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
      colors: what objects are asked for in; two at least.

    Raises:
      TaskError: unknown tag, or too few or repeated names or colours.
    """
    for words, what in ((names, "names"), (colors, "colors")):
        if len(words) < 2 or len(set(words)) < len(words):
            raise TaskError(f"prompts need at least two different {what}, got {', '.join(words) or 'none'}")
    found: dict[str, Metadata] = {}
    for tag in tags:
        rng = np.random.default_rng([seed, TAGS.index(check_name(tag, TAGS, "tag", TaskError))])
        for one in itertools.islice(_draw(rng, tag, names, colors), len(names) if tag == TAGS[0] else each):
            found.setdefault(one["prompt"], one)
    return list(found.values())


def _draw(
    rng: np.random.Generator, tag: str, names: Sequence[str], colors: Sequence[str]
) -> Iterator[Metadata]:
    """Prompts of a tag without end, but for single objects."""
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
            one, color = str(rng.choice(coloured)), str(rng.choice(colors))
            yield _prompt(tag, _with_article(f"{color} {one}"), [_clause(one, color=color)])
        elif tag == "position":
            relation = str(rng.choice(RELATIONS))
            clauses = [_clause(other), _clause(one, position=[relation, 0])]
            yield _prompt(tag, f"{_with_article(one)} {relation} {_with_article(other)}", clauses)
        elif tag == "color_attr":
            ours, theirs = _two(rng, colors)
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
