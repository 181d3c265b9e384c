"""What the teacher says on a level without cells; `language` has the tables of the others.

`{it}` is a thing by its looks, "red circle"; `{place}` what it stands by, "above the blue
star", or nothing where the canvas alone says where.
"""

from __future__ import annotations

CHANGES: dict[str, tuple[str, ...]] = {
    "add": ("add {after}", "put {after}", "draw {after}", "place {after}"),
    "colour": ("change the {it} to {colour}", "make the {it} {colour}", "paint the {it} {colour}"),
    "shape": (
        "change the {it} to a {new}",
        "turn the {it} into a {new}",
        "replace the {it} with a {colour} {new}",
    ),
    "move": ("move the {it} {place}", "shift the {it} {place}"),
    "remove": ("remove the {it} {place}", "erase the {it} {place}", "take away the {it} {place}"),
}
"""The first of each is the shortest that says it all."""

FAULTS: dict[str, tuple[str, ...]] = {
    "colour": (
        "the {shape} is {wrong}, not {right}",
        "wrong colour: the {shape} should be {right}, not {wrong}",
        "the {wrong} {shape} should be {right}",
    ),
    "shape": (
        "there is a {colour} {wrong}, not a {colour} {right}",
        "wrong shape: the {colour} {wrong} should be a {right}",
        "the {colour} {wrong} should be a {right}",
    ),
    "place": (
        "the {colour} {shape} should be {place}",
        "wrong place: the {colour} {shape} should be {place}",
    ),
    "missing": (
        "the {colour} {shape} is missing",
        "there is no {colour} {shape}",
        "missing: {colour} {shape}",
    ),
    "extra": (
        "the {colour} {shape} should not be there",
        "there is an extra {colour} {shape}",
        "extra: {colour} {shape}",
    ),
    "many": (
        "there should be {wanted}, not {found}: one is extra",
        "wrong count: {wanted}, not {found}, one is extra",
    ),
    "few": (
        "there should be {wanted}, not {found}: one is missing",
        "wrong count: {wanted}, not {found}, one is missing",
    ),
}
