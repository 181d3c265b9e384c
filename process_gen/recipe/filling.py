"""Fills a folder up to its quotas, from candidates that are made in parallel."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures

import tqdm

from process_gen.recipe.making import Made
from process_gen.recipe.output import SampleFolder
from process_gen.recipe.parts import Later, RecipeError, Skip
from process_gen.services.pool import LOOK_SECONDS, workers_of


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something that may become a sample.

    Attributes:
      uid: of the candidate and its sample.
      make: makes the sample, or raises Skip.
      kind: of the sample; empty where it is not known in advance.
    """

    uid: str
    make: Callable[[], Made]
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Filled:
    """How a folder was filled: samples of each kind, their quotas, and what this call added.

    `waiting` is the number of candidates that a service failed to answer: the next call asks again.
    """

    counts: Mapping[str, int]
    wanted: Mapping[str, int]
    made: int
    seconds: float
    waiting: int = 0

    @property
    def missing(self) -> dict[str, int]:
        """By kind, how many samples are missing because candidates ran out."""
        found = {kind: count - self.counts.get(kind, 0) for kind, count in self.wanted.items()}
        return {kind: count for kind, count in found.items() if count > 0}

    def __str__(self) -> str:
        counts = ", ".join(f"{self.counts.get(k, 0):,} of {n:,} {k}" for k, n in self.wanted.items())
        rate = (
            f"{self.made / self.seconds:,.1f} a second"
            if self.made or self.missing
            else "nothing was left to do"
        )
        return f"{counts}; {self.made:,} made in {self.seconds:,.0f} s, {rate}"


def fill(
    growing: SampleFolder,
    wanted: Mapping[str, int],
    candidates: Iterator[Candidate],
    workers: int,
    stop: Callable[[], None] = lambda: None,
    patience: int = 0,
) -> Filled:
    """Makes candidates until every quota is full or none is left.

    No more candidates are in progress than samples are wanted, so that none is made (and paid for) in vain.
    The exception is a candidate whose kind turns out to be full by then: it is recorded as rejected.

    Args:
      wanted: kind -> how many.
      candidates: in order; those in `growing.done` are skipped.
      workers: candidates that are made in parallel.
      stop: is called between samples; what it raises ends the work once candidates in progress are finished.
      patience: candidates in a row without a sample after which the work ends, for endless ones; 0 for never.

    Raises:
      RecipeError: `patience` candidates in a row became no sample.
      ReportError, ServiceError: candidates in progress are finished first.
    """
    start, before = time.monotonic(), growing.counts.total()
    bar = tqdm.tqdm(
        total=sum(wanted.values()), initial=before, unit=" samples", desc=growing.folder.name,
        mininterval=1.0,
    )  # fmt: skip
    with bar, workers_of(workers) as pool:
        filling = _Filling(growing, wanted, pool, bar, patience)
        filling.run(candidates, workers, stop)
    made, seconds = growing.counts.total() - before, max(time.monotonic() - start, 1e-9)
    return Filled(dict(growing.counts), dict(wanted), made, seconds, filling.waiting)


@dataclasses.dataclass
class _Filling:
    """State and loop of `fill`."""

    growing: SampleFolder
    wanted: Mapping[str, int]
    pool: futures.Executor
    bar: tqdm.tqdm
    patience: int
    in_vain: int = 0
    waiting: int = 0
    under_way: dict[futures.Future, Candidate] = dataclasses.field(default_factory=dict)

    def left(self, kind: str = "") -> int:
        """Samples of a kind, or of all, that are neither there nor under way."""
        kinds = [kind] if kind else list(self.wanted)
        there = sum(min(self.growing.counts[k], self.wanted[k]) for k in kinds)
        going = sum(not kind or one.kind == kind for one in self.under_way.values())
        return sum(self.wanted[k] for k in kinds) - there - going

    def run(self, candidates: Iterator[Candidate], workers: int, stop: Callable[[], None]) -> None:
        done, problem = self.growing.done, None
        candidates = (c for c in candidates if c.uid not in done and (not c.kind or self.left(c.kind) > 0))
        while problem is None or self.under_way:
            try:
                if problem is None:
                    stop()
                    while len(self.under_way) < 2 * workers and self.left() > 0:
                        if (one := next(candidates, None)) is None:
                            break
                        self.under_way[self.pool.submit(one.make)] = one
                    if not self.under_way:
                        return
                self._settle()
            except Exception as error:
                if getattr(error, "at_once", False):  # a second signal
                    raise
                if problem is None:  # the one to tell, when candidates in progress are written
                    problem = error
                    for future in self.under_way:
                        future.cancel()
        raise problem

    def _settle(self) -> None:
        """Waits at most `LOOK_SECONDS` for candidates, and writes or rejects those that are finished."""
        done, _ = futures.wait(self.under_way, LOOK_SECONDS, futures.FIRST_COMPLETED)
        for future in [one for one in self.under_way if one in done]:  # in the order of the candidates
            one = self.under_way.pop(future)
            if future.cancelled():
                continue
            try:
                made = future.result()
            except Later as later:
                self.growing.rejected[f"{later} (retried by the next run)"] += 1
                self.waiting += 1
                continue
            except Skip as skip:
                self.growing.reject(one.uid, str(skip), skip.detail)
                self.in_vain += 1
                if self.patience and self.in_vain >= self.patience:
                    name, why = self.growing.folder.name, f" ({skip.detail})" if skip.detail else ""
                    raise RecipeError(
                        f"{self.in_vain:,} candidates in a row became no sample of {name}, the last one: "
                        f"{skip}{why}"
                    ) from None
                continue
            self.in_vain = 0
            if self.growing.counts[made.kind] >= self.wanted.get(made.kind, 0):
                self.growing.reject(one.uid, f"quota is full: {made.kind}", "")
                continue
            self.growing.add(one.uid, made)
            self.bar.update()
