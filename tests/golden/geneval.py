"""Compares our decision with cases of known answers, of the keys that `geneval_vectors/README.md` names.

    python -m tests.golden.geneval FILE

Prints what differs and how many cases are exact; the exit code is 1 where one is not.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from process_gen.common.files import from_json
from process_gen.evaluation.geneval.decision import Detection, Options, judge, select

VECTORS = pathlib.Path(__file__).with_name("geneval_vectors") / "vectors.jsonl"
ANSWERS = ("correct", "reason", "reason_kinds", "kept", "color_queries")


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The cases of a file."""
    return [from_json(line) for line in path.read_bytes().splitlines() if line.strip()]


def answer(case: Mapping[str, Any]) -> dict[str, Any]:
    """What our decision says of a case."""
    options = Options(**case["options"])
    things = [
        Detection(one["class"], one["score"], tuple(one["box"]), color=one["color"])
        for one in case["detections"]
    ]
    queries: list[list[int]] = []

    def colors_of(cls: str, found: Sequence[Detection]) -> list[str]:
        queries.append([things.index(one) for one in found])
        return [one.color for one in found]

    selected = select(things, case["metadata"]["tag"], options)
    verdict = judge(case["metadata"], selected, colors_of, options)
    return {
        "correct": verdict.correct,
        "reason": verdict.reason,
        "reason_kinds": [failure.kind for failure in verdict.failures],
        "kept": {cls: [things.index(one) for one in ones] for cls, ones in selected.items()},
        "color_queries": queries,
    }


def differences(case: Mapping[str, Any]) -> list[str]:
    """Where our answer differs, a line each."""
    ours = answer(case)
    return [
        f"{case['id']} ({case['case']}) {key}: expected {case[key]!r}, got {ours[key]!r}"
        for key in ANSWERS
        if case[key] != ours[key]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=pathlib.Path, default=VECTORS, help="JSONL of cases")
    cases = read(parser.parse_args(arguments).file)
    found = [differences(case) for case in cases]
    for lines in found:
        print(*lines, sep="\n", end="\n" if lines else "")
    exact = sum(not lines for lines in found)
    print(f"{exact} of {len(cases)} exact")
    return int(exact < len(cases) or not cases)


if __name__ == "__main__":
    sys.exit(main())
