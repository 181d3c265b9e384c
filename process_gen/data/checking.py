"""A look at a set of trajectories before a run: what is in it, what is wrong with it, what it needs."""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import dataclasses
import functools
import hashlib
import io
import multiprocessing
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import tqdm
from absl import logging

from process_gen.common.images import UNREADABLE
from process_gen.data.errors import BadTrajectory
from process_gen.data.lengths import Lengths
from process_gen.data.loader import Source
from process_gen.data.tokenizers import Tokenizer
from process_gen.trajectory.record import PROVENANCE_KEYS, TRAJECTORY_KEYS, TURN_KEYS
from process_gen.trajectory.stages import Trajectory

NAMED = 20
"""How many bad trajectories, and how many leaked prompts, are kept by name."""
SAMPLED = 20_000
"""How many trajectories the packing is reckoned from."""
BLOCK = 64
"""Trajectories that a process looks at for each message."""

Counts = collections.Counter


@dataclasses.dataclass
class Findings:
    """What some trajectories hold; `+` of two is what both hold.

    Attributes:
      good, bad: trajectories that can be read, and that cannot.
      problems: how often each problem came; where it lies is left out.
      named: the first bad ones, with file and line.
      turns, steps, corrections: how many trajectories have how many of them.
      stages: how many texts and images of each stage; `words alone` are corrections without an image.
      tokens: by slot, how many texts have how many tokens, their two brackets included.
      sizes, modes, formats: of image files; empty where the set keeps pixels.
      provenance: by key, how many trajectories say what.
      unknown: how many trajectories have a field that nobody knows.
      prompts, digests: of prompts, and of prompts with the last image: how often each comes.
      leaked: prompts of a benchmark, and how often.
      lengths: of the first `SAMPLED` trajectories.
    """

    good: int = 0
    bad: int = 0
    problems: Counts = dataclasses.field(default_factory=Counts)
    named: list[str] = dataclasses.field(default_factory=list)
    turns: Counts = dataclasses.field(default_factory=Counts)
    steps: Counts = dataclasses.field(default_factory=Counts)
    corrections: Counts = dataclasses.field(default_factory=Counts)
    stages: Counts = dataclasses.field(default_factory=Counts)
    tokens: dict[str, Counts] = dataclasses.field(default_factory=lambda: collections.defaultdict(Counts))
    sizes: Counts = dataclasses.field(default_factory=Counts)
    modes: Counts = dataclasses.field(default_factory=Counts)
    formats: Counts = dataclasses.field(default_factory=Counts)
    provenance: dict[str, Counts] = dataclasses.field(default_factory=lambda: collections.defaultdict(Counts))
    unknown: Counts = dataclasses.field(default_factory=Counts)
    prompts: Counts = dataclasses.field(default_factory=Counts)
    digests: Counts = dataclasses.field(default_factory=Counts)
    leaked: Counts = dataclasses.field(default_factory=Counts)
    lengths: list[Lengths] = dataclasses.field(default_factory=list)

    def __iadd__(self, other: Findings) -> Findings:
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, Counts):
                mine.update(theirs)
            elif isinstance(mine, dict):
                for key, counts in theirs.items():
                    mine[key].update(counts)
            elif isinstance(mine, list):
                mine += theirs[: (SAMPLED if field.name == "lengths" else NAMED) - len(mine)]
            else:
                setattr(self, field.name, mine + theirs)
        return self


def examine(
    source: Source,
    tokenizer: Tokenizer,
    indices: Sequence[int],
    leaks: Callable[[str], Any] | None = None,
) -> Findings:
    """Reads some trajectories, every image decoded.

    Args:
      source: any; of a `StoredSource` the image files are looked at too.
      tokenizer: counts tokens.
      indices: which trajectories.
      leaks: says of a prompt which benchmark it is of, None for none.
    """
    found = Findings()
    for index in indices:
        try:
            trajectory = source[index]
            lengths = Lengths.of(trajectory, tokenizer)
            stored = source.object(index) if hasattr(source, "object") else None
        except BadTrajectory as error:
            found.bad += 1
            place, _, problem = str(error).partition(": ")
            found.problems[problem[:80] or place] += 1
            found.named.append(str(error))
            continue
        found.good += 1
        found.lengths.append(lengths)
        _count_turns(found, trajectory, lengths)
        _count_prompt(found, trajectory, leaks)
        if stored is not None:
            _count_files(found, stored, getattr(source, "fields", ()))
    found.named = found.named[:NAMED]
    return found


def _count_turns(found: Findings, trajectory: Trajectory, lengths: Lengths) -> None:
    found.turns[len(trajectory.turns)] += 1
    found.steps[len(trajectory.steps)] += 1
    found.corrections[trajectory.corrections] += 1
    found.tokens["prompt"][lengths.prompt] += 1
    if lengths.instruction:
        found.tokens["instruction"][lengths.instruction] += 1
    for turn, before, after in zip(trajectory.turns, lengths.before, lengths.after, strict=True):
        stage = "refine" if turn.refines else "plan"
        found.stages[f"{stage}, text"] += before > 0
        found.stages["inspect, text"] += after > 0
        found.stages[f"{'refine' if turn.refines else 'sketch'}, image"] += turn.image is not None
        found.stages["refine, words alone"] += turn.image is None
        for slot, length in (("before", before), ("after", after)):
            if length:
                found.tokens[slot][length] += 1


def _count_prompt(found: Findings, trajectory: Trajectory, leaks: Callable[[str], Any] | None) -> None:
    texts = f"{trajectory.prompt}\0{trajectory.instruction}".encode()
    found.prompts[_digest(texts)] += 1
    found.digests[_digest(texts, np.ascontiguousarray(trajectory.image).tobytes())] += 1
    for key in PROVENANCE_KEYS:
        found.provenance[key][str(trajectory.metadata.get(key, "-"))] += 1
    if leaks is not None and (name := leaks(trajectory.prompt)):
        found.leaked[f"{name}: {trajectory.prompt}"] += 1


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).digest()


def _count_files(found: Findings, stored: Mapping[str, Any], own: Collection[str]) -> None:
    """The image files of a trajectory, and the fields that nobody knows; one's `own` are known."""
    found.unknown.update(key for key in stored if key not in TRAJECTORY_KEYS)
    found.unknown.update(
        {f"turns.{key}" for turn in stored["turns"] for key in turn if key not in (*TURN_KEYS, *own)}
    )
    for image in (stored.get("image"), *(turn.get("image") for turn in stored["turns"])):
        if image is None:
            continue
        try:
            with PIL.Image.open(io.BytesIO(image["bytes"])) as opened:
                found.sizes[opened.height, opened.width] += 1
                found.modes[opened.mode] += 1
                found.formats[opened.format] += 1
        except UNREADABLE:  # named where it was read
            continue


# ----------------------------------------------------------------- processes


def examine_all(
    open_source: Callable[[], Source],
    tokenizer: Tokenizer,
    leaks: Callable[[str], Any] | None = None,
    processes: int = 1,
    limit: int = 0,
) -> Findings:
    """`examine` of a whole set, or its first `limit` trajectories, on several processes, with a progress bar.

    Args:
      open_source, leaks: can be pickled where there are several processes, each of which opens the set.
      tokenizer: likewise.
      processes: how many; with one, nothing is started.
      limit: 0 for all.

    Raises:
      ChildProcessError: one of the processes was ended from outside.
    """
    source = open_source()
    count = min(len(source), limit or len(source))
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    found = Findings()
    with tqdm.tqdm(total=count, unit=" trajectories", desc="checking", mininterval=1.0) as bar:
        for block in _blocks(open_source, source, tokenizer, leaks, processes, blocks):
            found += block
            bar.update(block.good + block.bad)
    for problem in getattr(source, "skipped", ()):
        found.bad += 1
        found.problems[problem.partition(": ")[2][:80]] += 1
        found.named = [*found.named, problem][:NAMED]
    return found


def _blocks(
    open_source: Callable[[], Source],
    source: Source,
    tokenizer: Tokenizer,
    leaks: Callable[[str], Any] | None,
    processes: int,
    blocks: Sequence[range],
) -> Iterator[Findings]:
    if processes <= 1 or len(blocks) <= 1:
        yield from (examine(source, tokenizer, block, leaks) for block in blocks)
        return
    start = functools.partial(_start, open_source, tokenizer, leaks)
    pool = concurrent.futures.ProcessPoolExecutor(
        min(processes, len(blocks)), multiprocessing.get_context("spawn"), start
    )
    try:
        with pool:
            yield from pool.map(_examine_here, blocks)
    except concurrent.futures.process.BrokenProcessPool:
        raise ChildProcessError(
            f"one of {processes} processes came to an end while it read the set, often for want of memory: "
            "ask for fewer (--processes)"
        ) from None


_HERE: dict[str, Any] = {}
"""What a process works with."""


def _start(open_source: Callable[[], Source], tokenizer: Tokenizer, leaks: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.set_verbosity(logging.ERROR)  # what is left out and what is unknown is counted
    _HERE.update(source=open_source(), tokenizer=tokenizer, leaks=leaks)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: else it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _examine_here(indices: range) -> Findings:
    return examine(_HERE["source"], _HERE["tokenizer"], indices, _HERE["leaks"])
