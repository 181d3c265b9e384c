"""What damages bytes, JSON and text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), 0.5),
    *("", " ", "\0", "\ud83d", "a" * 20_000, "../outside.txt", "/etc/passwd", "~", "<ins>", "é", "1e9"),
    *([], {}, [[]], [None], {"": None}, {"a": {"a": {}}}, ["a"] * 3000),
)
"""What stands where something else is expected."""


def pick(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def damaged_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Bytes with some of them changed, left out, doubled or added."""
    for _ in range(int(rng.integers(1, 4))):
        at, size = (int(x) for x in rng.integers(0, (len(data) + 1, min(len(data), 64) + 1)))
        new = rng.integers(0, 256, size, np.uint8).tobytes()
        data = pick(
            rng,
            [
                data[:at] + new + data[at + size :],
                data[:at] + data[at + size :],
                data[:at],
                data[:at] + data[max(0, at - size) : at] + data[at:],
                data[:at] + pick(rng, [b"\0" * 8, b"\xff" * 8, b"\n", b"{", b'"']) + data[at:],
            ],
        )
    return data


def damaged_json(rng: np.random.Generator, value: Any) -> Any:
    """JSON with one of its values replaced, left out or put somewhere else."""
    value, places = json.loads(json.dumps(value)), []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(value)
    if not places:
        return pick(rng, ODD)
    node, key = pick(rng, places)
    way = int(rng.integers(4))
    if way == 0:
        del node[key]
    elif way == 1:
        other, name = pick(rng, places)
        node[key] = json.loads(json.dumps(other[name]))
    elif way == 2 and isinstance(node, dict):
        node[pick(rng, ["x", "", "é", f"{key}s", "refine", "turns"])] = pick(rng, ODD)
    else:
        node[key] = pick(rng, ODD)
    return value


def damaged_text(rng: np.random.Generator, value: Any) -> bytes:
    """JSON as bytes, damaged as a value or as bytes, or nested deeper than a parser goes."""
    way = int(rng.integers(8))
    if way == 0:
        depth = int(rng.integers(500, 200_000))
        return b"[" * depth + b"]" * depth
    text = json.dumps(value if way == 1 else damaged_json(rng, value), ensure_ascii=bool(rng.integers(2)))
    data = text.encode(pick(rng, ["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]), "replace")
    return damaged_bytes(rng, data) if way in (1, 2) else data
