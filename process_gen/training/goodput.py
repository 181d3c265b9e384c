"""Goodput: the share of a run's wall time that went into steps which count, restarts included.

Time is in exactly one category at any moment, so the categories add up to the
wall time since the run began. They are stored in `workdir/goodput.json`, and a
restarted run adds to them:

    init        building model, data and state
    compile     compiling and the first step of each start, with first validation losses if any
    restore     reading a checkpoint
    data        devices idle, because the batch was not ready yet
    save        training blocked by a checkpoint
    evaluation  validation losses and pictures during training, and the benchmark at the end
    drawing     images of the model's own for its context (`train.own`), and the losses under both contexts
    steps       the rest of the training loop
    lost        steps that a restart had to do again
    down        from the last write of the file before an unplanned end to the next start
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging
from etils import epath

from process_gen.common import files
from process_gen.distributed import hosts
from process_gen.reports.table import table

FILE = "goodput.json"
CATEGORIES = ("init", "compile", "restore", "data", "save", "evaluation", "drawing", "steps", "lost", "down")
EVERY = 30.0
"""Seconds between writes of the file. A killed run loses at most the last ones, which count as `down`."""


class Goodput(contextlib.AbstractContextManager):
    """Accounts for a run's wall time, starts before this one included; the lead host writes it.

    `since` is when this start began, by `clock`.
    """

    def __init__(
        self, workdir: epath.PathLike, since: float | None = None, clock: Callable[[], float] = time.time
    ):
        self._path, self._clock = epath.Path(workdir) / FILE, clock
        self.category, self._since = "init", clock() if since is None else since
        self.seconds = dict.fromkeys(CATEGORIES, 0.0)
        self.starts, self.step, self._at_save = 1, 0, {}
        if before := self._read():
            self.seconds |= before["seconds"]
            self.starts, self.step = before["starts"] + 1, before["step"]
            self._at_save = {int(step): seconds for step, seconds in before["steps_at_save"].items()}
            if not before["done"]:
                self.seconds["down"] += max(0.0, self._since - before["written"])
        self._written = self._since

    def __exit__(self, *_) -> None:
        self.write()

    def enter(self, category: str) -> None:
        """From now on time belongs to `category`."""
        self._settle()
        self.category = category

    @contextlib.contextmanager
    def spending(self, category: str) -> Iterator[None]:
        """Time inside belongs to `category`, afterwards to what it belonged to before."""
        before = self.category
        self.enter(category)
        try:
            yield
        finally:
            self.enter(before)

    def idle(self, seconds: float) -> None:
        """Moves `seconds` from `steps` to `data`, if `steps` is the current category."""
        self._settle()
        if self.category != "steps":
            return
        seconds = min(seconds, self.seconds["steps"])
        self.seconds["steps"] -= seconds
        self.seconds["data"] += seconds

    def resumed(self, step: int) -> None:
        """The run resumes from `step`: the time of steps that it did after it before is `lost`."""
        if self.step > step:
            at_save = self._at_save.get(step, self.seconds["steps"] * step / self.step)
            lost = max(0.0, self.seconds["steps"] - at_save)
            self.seconds["steps"] -= lost
            self.seconds["lost"] += lost
        self.step = step
        self._at_save = {s: seconds for s, seconds in self._at_save.items() if s <= step}

    def reached(self, step: int) -> None:
        """A step is done; the file is brought up to date every so often."""
        self.step = step
        if self._clock() - self._written > EVERY:
            self.write()

    def saved(self, step: int) -> None:
        """A checkpoint of `step` is being written."""
        self._settle()
        self._at_save = dict([*self._at_save.items(), (step, self.seconds["steps"])][-100:])
        self.write()

    def scalars(self) -> dict[str, float]:
        """`goodput`, and the share of every category, of the wall time so far."""
        self._settle()
        total = sum(self.seconds.values()) or 1.0
        shares = {f"goodput/{name}": seconds / total for name, seconds in self.seconds.items()}
        return {"goodput": shares["goodput/steps"], **shares}

    def table(self) -> str:
        """Where the time went, for a terminal; what took none is left out."""
        shares = self.scalars()
        rows = [
            (name, f"{seconds:,.0f} s", f"{shares[f'goodput/{name}']:.1%}")
            for name, seconds in self.seconds.items()
            if seconds >= 0.5
        ]
        starts = f"{self.starts} start{'s' * (self.starts > 1)}"
        total = sum(self.seconds.values())
        return table([*rows, (f"wall time, {starts}", f"{total:,.0f} s", "")], ("", "time", "share"))

    def write(self, done: bool = False) -> None:
        """Writes the file; if `done`, the time until another start does not count as `down`."""
        self._settle()
        self._written = self._since
        if not hosts.is_lead():
            return
        content = {
            "seconds": {name: round(seconds, 3) for name, seconds in self.seconds.items()},
            "starts": self.starts,
            "step": self.step,
            "steps_at_save": self._at_save,
            "written": self._since,
            "done": done,
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self._path, content, indent=1)
        except OSError as error:  # the run goes on without the file
            logging.warning("%s could not be written (%s)", self._path, error)

    def _settle(self) -> None:
        now = self._clock()
        self.seconds[self.category] += max(0.0, now - self._since)
        self._since = now

    def _read(self) -> dict[str, Any] | None:
        """The contents of the file; None, and the account starts anew, where it is missing or broken."""
        try:
            found = files.read_json(self._path)
            kinds = {"seconds": dict, "steps_at_save": dict, "starts": int, "step": int, "done": bool}
            if all(isinstance(found[key], kind) for key, kind in kinds.items()) and found["written"] >= 0:
                return found
        except OSError:  # most likely a new run; else `write` will warn
            return None
        except (ValueError, KeyError, TypeError):
            pass
        logging.warning("%s cannot be read; the account of wall time starts anew", self._path)
        return None
