"""Parses the text of a compiled program (HLO): its computations, and how often each of them runs.

XLA's cost analysis counts the body of a loop once. Here every loop's trip count is
read from the compiler's annotation, which programs for TPUs lack, or from the
comparison in the loop's condition. Nested counts multiply, so that scans over layers
and turns count in full.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_VALUE = r"mesh\[.*?\}|\{(?:[^{}]|\{[^{}]*\})*\}|(?:\[[^\]]*\]|\([^)]*\)|[^,\s])+"
"""Regular expression of an attribute's value: a mesh with axes, nested braces, or text up to a comma."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = type op(operands), attributes`, names without `%`.

    `rest` is the text after the opening parenthesis of the operands; `computation` is what it belongs to.
    """

    name: str
    type: str
    op: str
    rest: str
    computation: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands, followed, in text with `%`, by those of computations in the attributes."""
        return re.findall(r"%([\w.\-]+)", self.rest) or re.findall(r"[\w.\-]+", self.rest.partition(")")[0])

    def attribute(self, name: str) -> str:
        """The value of an attribute, as text without `%`; "" without it."""
        match = re.search(rf"[\s,]{name}=({_VALUE})", self.rest)
        return match[1].replace("%", "") if match else ""


@dataclasses.dataclass
class Program:
    """A compiled module, partitioned over `partitions` devices.

    `computations`: name -> instructions by name; each computation comes before those that call it. `entry`
    names the one that runs first.
    """

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    partitions: int

    @functools.cached_property
    def runs(self) -> Mapping[str, float]:
        """How often each computation runs in one run of the program; those that never run are left out.

        Every branch of a conditional is counted, so this is an upper bound.
        """
        counts: dict[str, float] = collections.defaultdict(float)
        counts[self.entry] = 1.0
        for name in reversed(self.computations):
            if counts[name]:
                for one in self.computations[name].values():
                    for callee, trips in self._calls(one):
                        counts[callee] += counts[name] * trips
        return {name: count for name, count in counts.items() if count}

    @functools.cached_property
    def callers(self) -> Mapping[str, str]:
        """Name of a computation -> name of a computation that calls it (the last one, if several do)."""
        instructions = (one for body in self.computations.values() for one in body.values())
        return {callee: one.computation for one in instructions for callee, _ in self._calls(one)}

    @property
    def unknown_loops(self) -> list[str]:
        """Names of the loops whose trip count could not be found; their bodies count once."""
        running = (one for name in self.runs for one in self.computations[name].values())
        return [one.name for one in running if one.op == "while" and self.trips(one) is None]

    def _calls(self, one: Instruction) -> Iterator[tuple[str, int]]:
        """The computations that an instruction runs, and how often."""
        if one.op == "while":
            trips = self.trips(one)
            yield one.attribute("body"), 1 if trips is None else trips
        elif one.op in ("fusion", "async-start"):
            yield one.attribute("calls"), 1
        elif one.op == "call":
            yield one.attribute("to_apply"), 1
        elif one.op == "conditional":
            for name in ("branch_computations", "true_computation", "false_computation"):
                yield from ((branch, 1) for branch in re.findall(r"[\w.\-]+", one.attribute(name)))

    def trips(self, loop: Instruction) -> int | None:
        """The trip count of a loop, assumed to count up by one; None where the text does not tell."""
        noted = re.search(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)', loop.rest)
        if noted:
            return int(noted[1])
        condition = self._with_fused(loop.attribute("condition"))
        compared = [one for one in condition.values() if one.op == "compare"]
        if len(compared) != 1 or not {one.op for one in condition.values()} <= _COUNTING:
            return None
        counter, bound = (condition[name] for name in compared[0].operands[:2])
        if (direction := compared[0].attribute("direction")) == "GT":
            counter, bound = bound, counter
        last = _constant(bound)
        if direction not in ("LT", "GT") or counter.op != "get-tuple-element" or last is None:
            return None
        return max(last - self._start(loop, int(counter.attribute("index"))), 0)

    def _with_fused(self, name: str) -> dict[str, Instruction]:
        """Instructions of a computation and its fusions; a parameter of a fusion maps to its operand."""
        found = dict(self.computations[name])
        for fusion in [one for one in found.values() if one.op == "fusion"]:
            for one in self.computations[fusion.attribute("calls")].values():
                if one.op == "parameter":
                    number = int(one.rest.partition(")")[0])
                    found[one.name] = found[fusion.operands[number]]
                else:
                    found[one.name] = one
        return found

    def _start(self, loop: Instruction, index: int) -> int:
        """The initial value of a loop's counter if it is a constant, else 0."""
        outside = self.computations[loop.computation]
        first = outside[loop.operands[0]]
        if first.op == "tuple":
            first = outside[first.operands[index]]
        while first.op in ("copy", "bitcast"):
            first = outside[first.operands[0]]
        return _constant(first) or 0


_COUNTING = {"parameter", "get-tuple-element", "constant", "compare", "fusion", "copy", "bitcast"}
"""Operations that the condition of a counted loop may have."""


def _constant(one: Instruction) -> int | None:
    match = re.match(r"(-?\d+)\)", one.rest) if one.op == "constant" else None
    return int(match[1]) if match else None


_HEADER = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) (?:\(.*)?\{\s*$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")


def parse(text: str) -> Program:
    """Parses the text of a module, as `compiled.as_text()` gives it."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if match := _HEADER.match(line):
            current = match["name"]
            computations[current] = {}
            entry = current if match["entry"] else entry
        elif match := _INSTRUCTION.match(line):
            computations[current][match[1]] = Instruction(*match.groups(), current)
    partitions = re.search(r"num_partitions=(\d+)", text[:100_000])
    return Program(computations, entry, int(partitions[1]) if partitions else 1)


def type_bytes(text: str) -> int:
    """Bytes of an HLO type, of a tuple's members in all. A dtype's first number is its width in bits."""
    total = 0
    for bits, sides in re.findall(r"\b(?:pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]", text):
        total += math.prod(int(side) for side in sides.split(",") if side) * int(bits or 8)
    return total // 8


def members(text: str) -> list[str]:
    """The members of a tuple type, as text; [text] for any other type."""
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
