"""Reads the text of a compiled program: its computations, and how often each of them runs.

XLA's cost analysis counts the body of a loop once. Here the trips of every loop,
which the compiler notes beside it, are multiplied through, so that scanned layers
and turns count in full.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

BITS = {
    "pred": 8, "s2": 2, "s4": 4, "s8": 8, "s16": 16, "s32": 32, "s64": 64, "u2": 2, "u4": 4, "u8": 8,
    "u16": 16, "u32": 32, "u64": 64, "f4e2m1fn": 4, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128,
}  # fmt: skip
"""Bits of an element; kinds that are not here and begin with `f8` have 8, tokens and opaque ones none."""

_VALUE = r"mesh\[.*?\}|\{(?:[^{}]|\{[^{}]*\})*\}|(?:\[[^\]]*\]|\([^)]*\)|[^,\s])+"
"""The value of an attribute: a mesh with axes of it, braces with braces in them, or all up to a comma."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = type op(operands), attributes`.

    Attributes:
      name, type, op: as the text has them.
      rest: everything after the opening bracket of the operands.
    """

    name: str
    type: str
    op: str
    rest: str

    def attribute(self, name: str) -> str:
        """The value of an attribute, as text; "" without it."""
        match = re.search(rf"[\s,]{name}=({_VALUE})", self.rest)
        return match[1] if match else ""

    @property
    def trips(self) -> int | None:
        """How often the body of this loop runs; None where the text does not tell."""
        noted = re.search(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)', self.rest)
        return int(noted[1]) if noted else None

    def calls(self) -> Iterator[tuple[str, int]]:
        """The computations that it runs, and how often."""
        if self.op == "while":
            yield self.attribute("body"), 1 if self.trips is None else self.trips
        elif self.op in ("fusion", "async-start"):
            yield self.attribute("calls"), 1
        elif self.op == "call":
            yield self.attribute("to_apply"), 1
        elif self.op == "conditional":
            for name in ("branch_computations", "true_computation", "false_computation"):
                yield from ((branch, 1) for branch in re.findall(r"[\w.\-]+", self.attribute(name)))


@dataclasses.dataclass
class Program:
    """A compiled module.

    Attributes:
      computations: instructions by name of the computation, each before those that call it.
      entry: the name of the one that runs first.
      partitions: devices that run it together.
    """

    computations: Mapping[str, Sequence[Instruction]]
    entry: str
    partitions: int

    @functools.cached_property
    def runs(self) -> Mapping[str, float]:
        """How often each computation runs in one run of the program; those that never do are left out.

        Every branch of a conditional counts as taken: an upper bound.
        """
        counts: dict[str, float] = collections.defaultdict(float)
        counts[self.entry] = 1.0
        for name in reversed(self.computations):
            if name in counts:
                for one in self.computations[name]:
                    for callee, trips in one.calls():
                        counts[callee] += counts[name] * trips
        return {name: count for name, count in counts.items() if count}

    @functools.cached_property
    def callers(self) -> Mapping[str, str]:
        """By name of a computation, one that calls it."""
        return {
            callee: name
            for name, body in self.computations.items()
            for one in body
            for callee, _ in one.calls()
        }

    @property
    def unknown_loops(self) -> list[str]:
        """Names of the loops whose trips are not noted; their bodies count once."""
        running = (one for name in self.runs for one in self.computations[name])
        return [one.name for one in running if one.op == "while" and one.trips is None]


_HEADER = re.compile(r"(?P<entry>ENTRY )?(?P<name>[\w.\-]+) (?:\(.*)?\{\s*$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?(?P<name>[\w.\-]+) = ")
_OP = re.compile(r" ?([\w\-]+)\(")


def parse(text: str) -> Program:
    """Reads the text of a module, as `compiled.as_text()` gives it.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.replace("%", "").splitlines():
        if match := _HEADER.match(line):
            current = computations[match["name"]] = []
            entry = match["name"] if match["entry"] else entry
        elif match := _INSTRUCTION.match(line):
            rest = line[match.end() :]
            end = _closing(rest) if rest.startswith("(") else rest.find(" ")
            if op := _OP.match(rest, end):
                current.append(Instruction(match["name"], rest[:end], op[1], rest[op.end() :]))
    if not entry:
        raise ValueError("this is no text of a compiled module: it has no ENTRY computation")
    partitions = re.search(r"num_partitions=(\d+)", text[:100_000])
    return Program(computations, entry, int(partitions[1]) if partitions else 1)


def _closing(text: str) -> int:
    """Where what the first letter, a bracket, opens has been closed."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
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
    found, depth = [""], 0
    for letter in text[1:-1]:
        depth += (letter in "({[") - (letter in ")}]")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [member.strip() for member in found]
