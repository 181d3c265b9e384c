"""Reads a prompt that a person typed: `read_request`.

    prompt  := [prefix] item (separator item)* ["."]
    item    := thing (["is" | "are"] relation thing)*
    thing   := ["a" | "an" | number | "the"] [colour] shape
    relation:= "left of" | "to the left of" | ... | "above" | "over" | ...

"the circle" means the circle named before, if there is one. Everything that
`prompts.sample_request` writes reads back as the very same request.
"""

from __future__ import annotations

import re

from process_gen.scenes.levels import COLOURS, NUMBERS, PLURALS, Level, get_level
from process_gen.scenes.prompts import PREFIXES, RELATION_PHRASES
from process_gen.scenes.requests import Named, Relation, Request, categorize, order_clauses
from process_gen.scenes.words import inflect
from process_gen.trajectory.markup import Malformed

_GLUE = ("a", "an", "the", "and", "with", "is", "are", ",", ".", ";")
_SEPARATORS = (",", ";", ".", "and", "with")
_PHRASES = sorted(
    ((tuple(phrase.split()), name) for name, phrases in RELATION_PHRASES.items() for phrase in phrases),
    key=lambda entry: -len(entry[0]),
)
_SINGULAR = {plural: shape for shape, plural in PLURALS.items()}


def prompt_words(level: str | Level) -> set[str]:
    """Every word and punctuation mark that a prompt of this level may hold."""
    level = get_level(level)
    phrases = (*PREFIXES, *(phrase for phrases in RELATION_PHRASES.values() for phrase in phrases))
    words = {word for phrase in phrases for word in phrase.split()}
    plurals = [PLURALS[shape] for shape in level.shapes]
    return words.union(_GLUE, NUMBERS[1 : level.max_objects + 1], level.colours, level.shapes, plurals)


def read_request(text: str, level: str | Level = "default") -> Request | Malformed:
    """Reads a prompt; what it cannot read comes back as `Malformed` with the reason."""
    level = get_level(level)
    words, known = re.findall(r"\w+|[^\w\s]", text.lower()), prompt_words(level)
    if not words:
        return Malformed("the prompt is empty", text)
    unknown = list(dict.fromkeys(word for word in words if word not in known))
    if unknown:
        return Malformed(f"unknown words: {', '.join(map(repr, unknown))}", text)
    try:
        named, relations = _Reader(words).read()
        total = sum(one.count or 1 for one in named)
        if total > level.max_objects:
            raise ValueError(f"{total} objects; level {level.name!r} has room for {level.max_objects}")
        clauses = order_clauses(named, relations)
    except ValueError as error:
        return Malformed(str(error), text)
    return Request(text, categorize(named, relations), clauses, level)


class _Reader:
    """Recursive descent over the words of one prompt."""

    def __init__(self, words: list[str]):
        self.words = words
        self.at = 0
        self.named: list[Named] = []
        self.relations: list[Relation] = []

    def read(self) -> tuple[list[Named], list[Relation]]:
        for prefix in PREFIXES:
            if self._take(*prefix.split()):
                break
        while True:
            self._item()
            end = self.at
            while self._word() in _SEPARATORS:
                self.at += 1
            done, separated = not self._word(), self.at > end
            if done and (not separated or self.words[-1] == "."):
                return self.named, self.relations
            if done or not separated:
                raise ValueError(f"cannot read on after {self._context()}")

    def _item(self) -> None:
        subject = self._thing()
        while True:
            verb = self._take("is") or self._take("are")
            relation = next((name for phrase, name in _PHRASES if self._take(*phrase)), None)
            if relation is None:
                if verb:
                    raise ValueError(f"expected a relation after {self._context()}")
                return
            target = self._thing()
            if target == subject:
                raise ValueError(f"the {self.named[subject].shape} cannot be {relation} itself")
            self.relations.append((subject, relation, target))
            subject = target

    def _thing(self) -> int:
        """Reads a thing; returns the index of its noun phrase, an earlier one for "the circle"."""
        start = self.at
        definite = self._take("the")
        count = None
        if not definite and not (self._take("a") or self._take("an")):
            count = next((n for n in range(1, len(NUMBERS)) if self._take(NUMBERS[n])), None)
        colour = None
        if self._word() not in PLURALS and self._word() not in _SINGULAR:
            colour = self._word()
            self.at += 1
        noun = self._word()
        shape = _SINGULAR.get(noun, noun)
        if shape not in PLURALS or (colour is not None and colour not in COLOURS):
            raise ValueError(f"expected a colour or a shape after {self._context()}")
        self.at += 1
        if definite:
            found = [
                i for i, one in enumerate(self.named) if one.shape == shape and colour in (None, one.colour)
            ]
            if len(found) > 1:
                name = shape if colour is None else f"{colour} {shape}"
                raise ValueError(f"'the {name}' could mean several things")
            if found:
                return found[0]
        if noun in _SINGULAR and count is None and self.words[start] not in ("a", "an"):
            raise ValueError(f"say how many {noun} there are")
        wanted = inflect(shape, count)
        if noun != wanted:
            raise ValueError(f"write {wanted!r} instead of {noun!r} here")
        self.named.append(Named(shape, count, colour))
        return len(self.named) - 1

    def _word(self) -> str:
        return self.words[self.at] if self.at < len(self.words) else ""

    def _take(self, *words: str) -> bool:
        if tuple(self.words[self.at : self.at + len(words)]) != words:
            return False
        self.at += len(words)
        return True

    def _context(self) -> str:
        return repr(" ".join(self.words[max(0, self.at - 3) : self.at])) if self.at else "the start"
