"""The second stage of an evaluation: verdicts, one line for each image, appended as they come.

DRAWS/verdicts/<judge>-<hash>.jsonl

Every state of a trajectory is judged: each draft, each correction, and the last of them, which is the final
image. A line names the judge, its revision and its protocol, and has the fields of lmms-eval where it has
one (`doc_id`, `doc_hash`, `input`, `target`, `resps`). Where the judge had no verdict the line has an
`error` in place of a score, and the next run asks again. Another judge writes another file; nothing is drawn.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

from process_gen.common.files import from_json
from process_gen.evaluation.counts import counts_to_json
from process_gen.evaluation.draws import Draw, ProgressFn, listed, silent
from process_gen.evaluation.options import read_image
from process_gen.evaluation.tasks.base import Doc, Judge, Judgement, Task, TaskError, Unjudged
from process_gen.reports import files
from process_gen.reports.listing import Listing, cut_unfinished
from process_gen.services.pool import LOOK_SECONDS, workers_of
from process_gen.trajectory.record import Record, to_json

STATES = ("all", "final")
"""Which images of a trajectory are judged."""

_EVERY, _WITHOUT_NEWS = 1.0, 10.0  # least seconds between two progress lines: with new verdicts, and without

FINAL = "final"
"""The role of an image of another program; of `STATES`, the final images alone."""


@dataclasses.dataclass(frozen=True)
class State:
    """One image to judge.

    Attributes:
      key: names it: uid, step (from 1) and role (`draft`, `refined`, `refined2`, or `final`).
      doc: the prompt it is for.
      image: the file.
      shown: its path in the line.
      fields: other fields of the line.
      exact: counts its trajectory's steps (`Task.process`), called once it is judged; None unless the image
        is final and the task `traced`.
    """

    key: tuple[str, int, str]
    doc: Doc
    image: pathlib.Path
    shown: str
    fields: Mapping[str, Any]
    exact: Callable[[], Mapping[str, Any]] | None = None


def verdicts_path(folder: pathlib.Path, judge: Judge) -> pathlib.Path:
    """The file of a judge: another revision or protocol has another one."""
    words = [judge.name, judge.revision, judge.protocol]
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]
    return folder / "verdicts" / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', judge.name)}-{digest}.jsonl"


def states_of(task: Task, listing: Listing, wanted: Sequence[Draw], which: str = "all") -> Iterator[State]:
    """Yields the images to judge, `which` of `STATES`; the final one of a trajectory carries its facts."""
    for one, record in listed(listing, wanted):
        places = list(_places(record))
        for number, (step, role, path) in enumerate(places, 1):
            final, exact = number == len(places), None
            if which == FINAL and not final:
                continue
            fields = {"seed": one.seed, "index": one.index, "final": final}
            if final:
                fields["facts"] = facts(record)
            if final and task.traced:
                exact = functools.partial(_exact, task, one.doc, listing, record)
            image = files.inside(listing.folder, path)
            yield State((record.uid, step, role), one.doc, image, f"images/{image.name}", fields, exact)


def _exact(task: Task, doc: Doc, listing: Listing, record: Record) -> Mapping[str, Any]:
    return counts_to_json(task.process(doc, listing.sampled(record)))


def _places(record: Record) -> Iterator[tuple[int, str, str]]:
    """Step, role and image of every turn."""
    step = corrections = 0
    for turn in record.turns:
        refines = turn.fields.get("refines", False)
        step, corrections = (step, corrections + 1) if refines else (step + 1, 0)
        role = "draft" if not corrections else f"refined{'' if corrections == 1 else corrections}"
        yield step, role, turn.image


def facts(record: Record) -> dict[str, Any]:
    """What a trajectory took: steps, images, corrected steps, Euler steps, seconds, and who ended it.

    `doubt`, where it is known, is the sum of the probabilities that the model gave to a correction.
    """
    places, sampled = list(_places(record)), record.sampled
    doubts = {"doubt": sum(sampled["doubts"])} if "doubts" in sampled else {}
    return {
        **doubts,
        "steps": places[-1][0],
        "images": len(places),
        "corrections": sum(role == "refined" for _, role, _ in places),
        "sampling_steps": sampled.get("sampling_steps", 0),
        "stopped": sampled.get("stopped", "model"),
        "seconds": sampled.get("seconds", 0.0),
    }


def foreign_states(task: Task, folder: pathlib.Path, docs: Sequence[Doc]) -> Iterator[State]:
    """Yields the images that another program left in the layout of a task."""
    wanted = {doc.doc_id for doc in docs}
    for doc, index, path in task.read_layout(folder):
        if doc.doc_id in wanted:
            fields = {"seed": 0, "index": index, "final": True}
            shown = path.relative_to(folder).as_posix()
            content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]  # a changed file is judged anew
            yield State((f"{shown} {content}", 0, FINAL), doc, path, shown, fields)


def judge_states(
    judge: Judge,
    states: Iterable[State],
    path: pathlib.Path,
    host: tuple[int, int] = (0, 1),
    show: ProgressFn = silent,
) -> None:
    """Judges what has no verdict yet; a line is written for each image as soon as it is judged.

    Args:
      states: the images of all hosts; this host judges its share.
      path: the file of the judge; each host but the first one writes a part beside it.
      host: index of this host, and how many there are.

    Raises:
      TaskError: an image cannot be read; names the file.
      ServiceError: the judge cannot go on.
      ReportError: the file cannot be written.
    """
    done = judged(path)
    own = path if host[0] == 0 else path.with_suffix(f".{host[0]}.jsonl")
    mine = (one for n, one in enumerate(states) if n % host[1] == host[0] and one.key not in done)
    shown, lock = time.monotonic(), threading.Lock()
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        cut_unfinished(own)
        file = own.open("ab")
    except OSError as error:
        raise files.ReportError(f"cannot write {str(own)!r}: {error.strerror}") from error

    def write(state: State) -> None:
        line = json.dumps(_line(judge, state), allow_nan=False).encode() + b"\n"
        with lock:
            file.write(line)
            file.flush()

    with file, workers_of(judge.workers) as pool:
        waiting, number, told = set(), 0, 0
        try:
            while True:  # few at a time, which bounds memory
                some = itertools.islice(mine, 2 * judge.workers - len(waiting))
                waiting |= {pool.submit(write, state) for state in some}
                if not waiting:
                    return
                ended, waiting = futures.wait(waiting, LOOK_SECONDS, futures.FIRST_COMPLETED)
                for one in ended:
                    one.result()
                number += len(ended)
                if time.monotonic() > shown + (_EVERY if number > told else _WITHOUT_NEWS):
                    shown, told = time.monotonic(), number
                    show(f"{path.parent.parent.name}: {number} images judged by {judge.name}")
        except Exception as problem:
            if not getattr(problem, "at_once", False):  # set by a second signal, which waits for nothing
                pool.shutdown(cancel_futures=True)  # verdicts under way may cost money, so they are written
            raise


def _line(judge: Judge, state: State) -> dict[str, Any]:
    """The verdict on one image as a line of the file."""
    uid, step, role = state.key
    line = {
        **{"uid": uid, "doc_id": state.doc.doc_id, "doc_hash": state.doc.doc_hash, "group": state.doc.group},
        **{"input": state.doc.input, "target": to_json(dict(state.doc.target))},
        **{"step": step, "role": role, "image": state.shown, **state.fields},
        **{"judge": judge.name, "revision": judge.revision, "protocol": judge.protocol},
    }
    try:
        found: Judgement = judge(state.doc, read_image(state.image))
    except Unjudged as error:
        return {**line, "error": str(error), "resps": to_json(error.raw)}
    if state.exact:
        line["process"] = state.exact()
    said = to_json({f.name: getattr(found, f.name) for f in dataclasses.fields(found)})
    return {**line, "resps": said.pop("raw"), **said}


def read_verdicts(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a judge's file and of its parts; a last line that was never finished is left out.

    Raises:
      TaskError: a line is no verdict; names file and line.
    """
    for part in sorted(path.parent.glob(f"{path.stem}*.jsonl")):
        with part.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    continue
                try:
                    row = from_json(line)
                    _check(row)
                except (ValueError, KeyError, TypeError) as error:
                    raise TaskError(f"{part}:{number} is no verdict ({error})") from None
                yield row


def _check(row: Mapping[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError where a line lacks a field that scores are made from."""
    named = all(isinstance(row[name], str) for name in ("uid", "role", "doc_id", "doc_hash"))
    numbered = all(isinstance(row[name], int) for name in ("step", "seed", "index", "final"))
    if not named or not numbered or not ("error" in row or isinstance(row["score"], int | float)):
        raise ValueError("a field is missing or of another kind")


def judged(path: pathlib.Path) -> set[tuple[str, int, str]]:
    """The keys of the states that a judge has a verdict on."""
    return {key_of(row) for row in read_verdicts(path) if "error" not in row}


def key_of(row: Mapping[str, Any]) -> tuple[str, int, str]:
    """The key of the state that a line is about."""
    return row["uid"], row["step"], row["role"]
