"""Reads the text of a compiled program: its computations, and how often each of them runs.

XLA's cost analysis counts the body of a loop once. Here the trips of every loop
are found (the compiler's own note, or the comparison in the loop's condition)
and multiplied through, so that scanned layers and steps count in full.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

BITS = {
    "pred": 8, "s2": 2, "s4": 4, "s8": 8, "s16": 16, "s32": 32, "s64": 64, "u2": 2, "u4": 4, "u8": 8,
    "u16": 16, "u32": 32, "u64": 64, "f4e2m1fn": 4, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128,
}  # fmt: skip
"""Bits of an element; kinds that are not here and begin with `f8` have 8, tokens and opaque ones none."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = type op(operands), attributes`.

    Attributes:
      name, type, op: as the text has them, names without `%`.
      rest: everything after the opening bracket of the operands.
    """

    name: str
    type: str
    op: str
    rest: str

    @functools.cached_property
    def split(self) -> tuple[str, str]:
        """The operands and the attributes, as text."""
        end = _closing(f"({self.rest}", 0)
        return self.rest[: end - 1], self.rest[end:]

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        text = self.split[0]
        named = re.findall(r"%([\w.\-]+)", text)
        return named or [part.split()[-1] for part in text.split(", ") if part.strip()]

    def attribute(self, name: str) -> str | None:
        """The text of an attribute up to the next comma, what is in brackets in full; None without it."""
        text = self.split[1]
        match = re.search(rf"(?:^|[\s,]){name}=", text)
        if not match:
            return None
        start = match.end()
        if text[start : start + 1] in ("{", "["):
            end = _closing(text, start) + 1
            more = re.match(r"<=\[[\d,]*\](?:T\([\d,]*\))?", text[end:])
            return text[start : end + (more.end() if more else 0)]
        return re.match(r"[^,\s]*", text[start:])[0]


@dataclasses.dataclass
class Computation:
    """Instructions in order; `root` is the last one, or the one marked as such."""

    name: str
    instructions: list[Instruction]
    root: Instruction | None = None

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        return {one.name: one for one in self.instructions}


@dataclasses.dataclass
class Program:
    """A compiled module.

    Attributes:
      computations: by name, each before those that call it.
      entry: the name of the one that runs first.
      partitions: devices that run it together.
    """

    computations: dict[str, Computation]
    entry: str
    partitions: int

    @functools.cached_property
    def runs(self) -> Mapping[str, float]:
        """How often each computation runs in one run of the program; those that never do are left out.

        Every branch of a conditional counts as taken: an upper bound.
        """
        counts: dict[str, float] = collections.defaultdict(float)
        counts[self.entry] = 1.0
        for computation in reversed(self.computations.values()):
            times = counts.get(computation.name, 0.0)
            if not times:
                continue
            for instruction in computation.instructions:
                for callee, trips in self.calls(computation, instruction):
                    counts[callee] += times * trips
        return dict(counts)

    @property
    def unknown_loops(self) -> list[str]:
        """Names of the loops whose trips could not be found; their bodies count once."""
        return [
            one.name
            for name in self.runs
            for one in self.computations[name].instructions
            if one.op == "while" and self.trips(self.computations[name], one) is None
        ]

    def calls(self, computation: Computation, one: Instruction) -> Iterator[tuple[str, float]]:
        """The computations that an instruction runs, and how often."""
        if one.op == "while":
            trips = self.trips(computation, one)
            yield _bare(one.attribute("body")), 1.0 if trips is None else trips
        elif one.op in ("fusion", "async-start"):
            yield _bare(one.attribute("calls")), 1.0
        elif one.op == "call":
            yield _bare(one.attribute("to_apply")), 1.0
        elif one.op == "conditional":
            names = one.attribute("branch_computations") or " ".join(
                filter(None, (one.attribute("true_computation"), one.attribute("false_computation")))
            )
            yield from ((name, 1.0) for name in re.findall(r"[\w.\-]+", names.replace("%", " ")))

    def trips(self, computation: Computation, loop: Instruction) -> float | None:
        """How often the body of a loop of a computation runs; None where the text does not tell."""
        noted = re.search(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)', loop.split[1])
        if noted:
            return float(noted[1])
        condition = self.computations.get(_bare(loop.attribute("condition")))
        root = condition.root if condition else None
        if root is not None and root.op == "fusion":
            inner = self.computations.get(_bare(root.attribute("calls")))
            return self._compared(inner, computation, loop, _fed(inner, root, condition)) if inner else None
        return self._compared(condition, computation, loop, {}) if root is not None else None

    def _compared(
        self, condition: Computation, outside: Computation, loop: Instruction, fed: Mapping[str, Instruction]
    ) -> float | None:
        """Trips of a loop that counts up to a constant, one at a time."""
        root = condition.root
        if root is None or root.op != "compare" or root.attribute("direction") not in ("LT", "GT"):
            return None
        sides = [fed.get(name, condition.by_name.get(name)) for name in root.operands]
        if root.attribute("direction") == "GT":
            sides.reverse()
        counter, bound = sides
        last = _constant(bound)
        if last is None or counter is None or counter.op != "get-tuple-element":
            return None
        return max(last - (self._start(outside, loop, int(counter.attribute("index"))) or 0.0), 0.0)

    def _start(self, outside: Computation, loop: Instruction, index: int) -> float | None:
        """What a loop's counter begins with, where that is a constant."""
        carried = outside.by_name.get(loop.operands[0])
        if carried is None or carried.op != "tuple":
            return None
        first = outside.by_name.get(carried.operands[index])
        while first is not None and first.op in ("copy", "bitcast"):
            first = outside.by_name.get(first.operands[0])
        return _constant(first)


def _fed(inner: Computation, fusion: Instruction, outer: Computation) -> dict[str, Instruction]:
    """The parameters of a fused computation, by name, as the instructions that feed them."""
    fed = {}
    for one in inner.instructions:
        if one.op == "parameter":
            source = outer.by_name.get(fusion.operands[int(one.split[0])])
            if source is not None:
                fed[one.name] = source
    return fed


def _constant(one: Instruction | None) -> float | None:
    if one is None or one.op != "constant":
        return None
    return float(one.split[0]) if re.fullmatch(r"-?\d+", one.split[0]) else None


def _bare(name: str | None) -> str:
    return (name or "").lstrip("%")


_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ")
_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) (?:\(.*)?\{\s*$")


def parse(text: str) -> Program:
    """Reads the text of a module, as `compiled.as_text()` gives it.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line[:1] not in (" ", "}", "") and (match := _HEADER.match(line)):
            current = Computation(match["name"], [])
            computations[current.name] = current
            entry = current.name if match["entry"] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            one = _instruction(match["name"], line[match.end() :])
            if one is not None:
                current.instructions.append(one)
                current.root = one if match["root"] or current.root is None else current.root
    if not entry:
        raise ValueError("this is no text of a compiled module: it has no ENTRY computation")
    partitions = re.search(r"num_partitions=(\d+)", text[:100_000])
    return Program(computations, entry, int(partitions[1]) if partitions else 1)


def _instruction(name: str, text: str) -> Instruction | None:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    match = re.match(r" ?([\w\-]+)\(", text[end:])
    return Instruction(name, text[:end], match[1], text[end + match.end() :]) if match else None


_PAIRS = {"(": ")", "{": "}", "[": "]"}


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    opening, closing, depth = text[start], _PAIRS[text[start]], 0
    for match in re.finditer(f"[{re.escape(opening)}{re.escape(closing)}]", text[start:]):
        depth += 1 if match[0] == opening else -1
        if not depth:
            return start + match.start()
    return len(text)


def type_bytes(text: str) -> int:
    """Bytes of a type, a tuple's members together."""
    total = 0
    for kind, sides in re.findall(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]", text):
        bits = BITS.get(kind, 8 if kind.startswith("f8") else 0)
        total += math.prod(int(side) for side in sides.split(",") if side) * bits
    return total // 8


def members(text: str) -> list[str]:
    """The members of a tuple type, as text; a type that is no tuple is its own only member."""
    if not text.startswith("("):
        return [text]
    found, depth, start, inside = [], 0, 1, text[: _closing(text, 0)]
    for i, letter in enumerate(inside):
        depth += (letter in "({[") - (letter in ")}]")
        if letter == "," and depth == 1:
            found.append(inside[start:i].strip())
            start = i + 1
    return [*found, inside[start:].strip()]
