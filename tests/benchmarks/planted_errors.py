"""What the inspection sees of errors that the teacher plants in its drafts, by kind.

    python tests/benchmarks/planted_errors.py --workdir=runs/hung --level=hung --per_group=20

The model goes on from the teacher's trajectories, held-out prompts, each time after a draft without its
inspection. An evaluation counts what it sees of its own errors (`inspect_recall`): a model may see the one
and not the other, since it judges a draft as it draws one. Errors of plans are in rows of their own: such
a draft shows what its plan says, and contradicts the prompt.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
from collections.abc import Iterator

import numpy as np

from process_gen.evaluation.statistics import ratio_interval
from process_gen.reports.table import table
from process_gen.sampling.sampler import Sampler
from process_gen.scenes.levels import get_level
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.requests import categories
from process_gen.scenes.teacher import teach
from process_gen.trajectory.stages import Trajectory
from process_gen.weights.restore import load_sampler


def cases(level: str, per_group: int) -> Iterator[tuple[int, int, Trajectory, str]]:
    """The number of a prompt, how many turns are kept, the trajectory up to there, and its last error."""
    rng = np.random.default_rng(0)
    groups = categories(get_level(level)) * per_group
    for prompt, group in enumerate(groups):
        request = sample_request(rng, level, group, "heldout")
        one = teach(request, rng, wrong=0.4, misplan=0.15, slip=0, detour=0)
        drafts = [index for index, turn in enumerate(one.turns) if not turn.refines]
        for index, mistake in zip(drafts, one.metadata["mistakes"], strict=True):
            unseen = dataclasses.replace(one.turns[index], after=None)
            turns = (*one.turns[:index], unseen)
            kind = (
                "none" if mistake is None else mistake["kind"] + (", planned" if mistake["planned"] else "")
            )
            yield prompt, index + 1, dataclasses.replace(one, turns=turns), kind


def objections(sampler: Sampler, level: str, per_group: int) -> list[tuple[int, str, bool]]:
    """Of each draft the number of its prompt, its error, and whether the model corrects it."""
    found, by_turns = [], collections.defaultdict(list)
    for case in cases(level, per_group):
        by_turns[case[1]].append(case)
    for turns, some in sorted(by_turns.items()):
        if turns < sampler.config.max_turns:
            short = sampler.with_config(max_turns=turns + 1)
            drawn = short.continue_from([one for _, _, one, _ in some], turns)
            for (prompt, _, _, kind), one in zip(some, drawn, strict=True):
                found.append((prompt, kind, len(one.turns) > turns and one.turns[turns].refines))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", help="of a training; the shipped weights by default")
    parser.add_argument("--level", default="default")
    parser.add_argument("--per_group", type=int, default=20, help="prompts of each group")
    args = parser.parse_args()
    sampler, _ = load_sampler(args.workdir, rows=64, flow_steps=1)  # what is drawn afterwards is of no matter
    found, rows = objections(sampler, args.level, args.per_group), []
    kinds = sorted({kind for _, kind, _ in found} - {"none"})
    for name, some in [*((kind, {kind}) for kind in kinds), ("all errors", set(kinds)), ("none", {"none"})]:
        seen, of = collections.Counter(), collections.Counter()
        for prompt, kind, objects in found:
            if kind in some:
                seen[prompt] += objects
                of[prompt] += 1
        rows.append((name, sum(of.values()), str(ratio_interval([seen[p] for p in of], [*of.values()]))))
    print(table(rows, ("error", "drafts", "corrected")))


if __name__ == "__main__":
    main()
