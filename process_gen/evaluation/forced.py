"""Teacher-forced steps: how the model continues a correct canvas, against one that it drew itself.

For every prompt the teacher draws a trajectory without a mistake. For each k from 2 the model continues the
teacher's first k - 1 steps by one of its own (`Sampler.continue_from`). Step k is right as in `process`:

    forced_right_at_step_k   of steps k after the teacher's first k - 1, the share that leave a right state
    forced_gap_at_step_k     that, less the share of the free trajectories (`right_at_step_k`)

The gap is paired over prompts. A free trajectory counts for the steps that it has; its step k need not draw
what the teacher's step k does. Arms with several candidates have no such measures, nor have those with an
outside planner, which would be told that only one step is left.

OUT/draws/.../forced/     trajectories of the teacher's steps and the model's one
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from process_gen.evaluation.counts import Counts, add_to
from process_gen.evaluation.draws import Draw, ProgressFn, silent
from process_gen.evaluation.process import count_step
from process_gen.evaluation.statistics import Interval, ratio_difference, ratio_interval
from process_gen.reports.listing import Listing
from process_gen.sampling import Sampler
from process_gen.scenes.requests import Request
from process_gen.scenes.teacher import teach
from process_gen.trajectory.stages import Mode, Trajectory

FOLDER = "forced"


@dataclasses.dataclass(frozen=True)
class Forced:
    """One step to draw.

    Attributes:
      draw: the free trajectory that it is compared with.
      step: its index (0 is the first step): so many steps before it are the teacher's.
      context: the teacher's trajectory.
    """

    draw: Draw
    step: int
    context: Trajectory

    @property
    def uid(self) -> str:
        """Its name on disk; steps count from 1 there."""
        return f"{self.draw.uid}_step{self.step + 1}"

    @property
    def turns(self) -> int:
        """How many turns are the teacher's."""
        return sum(len(step.turns) for step in self.context.steps[: self.step])


def context_of(request: Request) -> Trajectory:
    """The teacher's trajectory for a prompt, without mistakes and detours; equal for equal prompts."""
    rng = np.random.default_rng(zlib.crc32(request.text.encode()))
    return teach(request, rng, wrong=0, misplan=0, slip=0, detour=0)


def plan(wanted: Sequence[Draw], requests: Mapping[str, Request], sampler: Sampler) -> Iterator[Forced]:
    """Yields the steps to draw beside free trajectories, by number of the teacher's steps.

    Args:
      wanted: the free trajectories; those of index 0 are used.
      requests: `doc_id` -> what the prompt means.
      sampler: of the arm; its limits on steps and turns hold. Only mode `process` has forced steps.
    """
    config = sampler.config
    if config.mode != Mode.PROCESS:
        return
    contexts = {draw.doc.doc_id: context_of(requests[draw.doc.doc_id]) for draw in wanted}
    most = max((len(one.steps) for one in contexts.values()), default=0)
    for step in range(1, min(most, config.max_steps or most)):
        for draw in wanted:
            one = Forced(draw, step, contexts[draw.doc.doc_id])
            if draw.index == 0 and step < len(one.context.steps) and one.turns < config.max_turns:
                yield one


def draw_steps(
    sampler: Sampler,
    wanted: Sequence[Draw],
    requests: Mapping[str, Request],
    listing: Listing,
    host: tuple[int, int] = (0, 1),
    show: ProgressFn = silent,
) -> None:
    """Draws this host's share of the steps that are not listed yet; see `draws.draw`."""
    steps = (one for n, one in enumerate(plan(wanted, requests, sampler)) if n % host[1] == host[0])
    missing = [one for one in steps if one.uid not in listing.uids]
    done = 0
    for step, found in itertools.groupby(missing, key=lambda one: one.step):
        of_step = sampler.with_config(max_steps=step + 1)
        while some := list(itertools.islice(found, 2 * sampler.rows)):
            drawn = of_step.continue_from(
                [one.context for one in some],
                [one.turns for one in some],
                [one.draw.prompt for one in some],
                [one.draw.sampler_seed for one in some],
            )
            for one, trajectory in zip(some, drawn, strict=True):
                listing.add(dataclasses.replace(trajectory, uid=one.uid, metadata={}))
            done += len(some)
            show(f"{listing.folder.parent.name}: {done} of {len(missing)} steps after the teacher's")


def counts_of(listing: Listing, wanted: Sequence[Draw], requests: Mapping[str, Request]) -> dict[str, Counts]:
    """`doc_id` -> counts of the model's forced steps, each at its own step index."""
    by_uid, found = {draw.uid: draw for draw in wanted}, {}
    for record in listing.records():
        uid, _, step = record.uid.rpartition("_step")
        if (draw := by_uid.get(uid)) is not None:
            request = requests[draw.doc.doc_id]
            counts = count_step(listing.sampled(record), request, int(step) - 1)
            add_to(found, draw.doc.doc_id, counts)
    return found


def measures(forced: Mapping[str, Counts], free: Mapping[str, Counts]) -> dict[str, Interval]:
    """The measures that the module defines, of counts by `doc_id`."""
    found, docs = {}, [doc_id for doc_id in forced if doc_id in free]
    for k in sorted({key[1] for counts in forced.values() for key in counts if key[0] == "states_at"}):
        pairs = [[(side[d]["right_at", k], side[d]["states_at", k]) for d in docs] for side in (forced, free)]
        totals = [sum(n for _, n in some) for some in pairs]
        if totals[0]:
            found[f"forced_right_at_step_{k + 1}"] = ratio_interval(*zip(*pairs[0], strict=True))
        if all(totals):
            found[f"forced_gap_at_step_{k + 1}"] = ratio_difference(*pairs)
    return found
