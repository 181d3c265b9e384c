"""Sets of trajectories from a terminal.

    python -m process_gen.data convert mine data/mine --to=parquet
    python -m process_gen.data convert GenRef-wds data/genref --from=genref --to=webdataset
    python -m process_gen.data convert data/mine gs://bucket/mine --to=parquet --on_error=skip

Exit code 0 if all went well, 2 for bad input.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
from collections.abc import Callable, Iterable, Iterator

import tensorflow_datasets as tfds
import tqdm
from absl import logging

from process_gen.data.encode import BadTrajectory
from process_gen.data.formats import writers
from process_gen.data.formats.opening import FORMATS, RECORDS, detect, open_stored
from process_gen.data.importers import IMPORTERS, open_imported
from process_gen.data.importers.verl_omni import write_verl_omni
from process_gen.data.loader import Source
from process_gen.data.packing import TooManyBadTrajectories, allowance
from process_gen.data.sources import RecordSource
from process_gen.trajectory.stages import Trajectory

WRITERS: dict[str, Callable[[str, Iterable[writers.Object]], int]] = {
    "folder": writers.write_folder,
    "parquet": writers.write_parquet,
    "webdataset": writers.write_webdataset,
    "verl_omni": write_verl_omni,
}
"""Forms that keep image files as they are; `records` holds pixels."""


def open_any(
    path: str, form: str, image_size: tuple[int, int], bad: str, budget: float | None = None
) -> Source:
    """The trajectories of a path, of a form or an importer that is named or found.

    Raises:
      FileNotFoundError, BadTrajectory, TooManyBadTrajectories, ValueError: they cannot be opened.
    """
    form = form or detect(path)
    if form in IMPORTERS:
        return open_imported(form, path, image_size, bad, budget)
    if form == RECORDS:
        return RecordSource(tfds.builder_from_directory(path))
    return open_stored(path, image_size, bad, form, budget)


def convert_command(args: argparse.Namespace) -> None:
    """Writes the trajectories of a set in another form, image files as they are."""
    pixels = args.to == RECORDS
    if pixels != (args.image_size is not None):
        raise ValueError(
            "--to=records holds pixels: say of which --image_size=HEIGHT,WIDTH"
            if pixels
            else f"--image_size is for --to=records, --to={args.to} keeps image files as they are"
        )
    if args.prompt_image and not pixels:
        raise ValueError(f"--prompt_image is for --to=records, --to={args.to} has a place for input images")
    source = open_any(args.source, args.form, args.image_size or (1, 1), args.on_error, args.budget)
    if pixels and source.image_size != args.image_size:
        raise ValueError(f"{args.source} holds pixels of {source.image_size}, not of {args.image_size}")
    bad = _Left(source, args.on_error, args.budget)
    if pixels:
        tfds.disable_progress_bar()  # there is one already
        count = writers.write_records(args.target, _read(source, bad), args.image_size, args.prompt_image)
    else:
        found = tqdm.tqdm(
            writers.objects(source, bad), total=len(source), unit=" trajectories", mininterval=1.0
        )
        count = WRITERS[args.to](args.target, found)
    print(f"{args.target}: {count:,} trajectories, {len(bad.errors) + len(bad.skipped):,} left out")
    for problem, times in bad.kinds().most_common(10):
        print(f"  {times:,} times: {problem}")


class _Left:
    """What a conversion leaves out, as far as it may."""

    def __init__(self, source: Source, policy: str, budget: float | None):
        self.skipped, self.errors = list(getattr(source, "skipped", ())), []
        self._policy, self._count = policy, len(source) + len(self.skipped)
        self._budget = allowance(self._count) if budget is None else budget

    def __call__(self, error: BadTrajectory) -> None:
        if self._policy == "fail":
            raise error
        self.errors.append(str(error))
        logging.warning("left out (%d so far): %s", len(self.errors), error)
        if len(self.errors) + len(self.skipped) > self._budget * self._count:
            raise TooManyBadTrajectories(
                f"{len(self.errors) + len(self.skipped)} of {self._count} trajectories are bad, "
                f"{self._budget:.2%} may be (--budget); the last one: {error}"
            )

    def kinds(self) -> collections.Counter[str]:
        """How often each problem came, without the place."""
        return collections.Counter(text.partition(": ")[2][:80] for text in (*self.skipped, *self.errors))


def _read(source: Source, bad: _Left) -> Iterator[Trajectory]:
    for index in tqdm.trange(len(source), unit=" trajectories", mininterval=1.0):
        try:
            yield source[index]
        except BadTrajectory as error:
            bad(error)


def _size(text: str) -> tuple[int, int]:
    sides = text.strip("()").split(",")
    if len(sides) != 2 or not all(side.strip().isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text} is not HEIGHT,WIDTH")
    return int(sides[0]), int(sides[1])


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a folder, a file, a pattern of names, or a URL")
    parser.add_argument("target", help="the new folder, or a URL")
    forms = (*FORMATS, RECORDS, *IMPORTERS)
    parser.add_argument(
        "--from", dest="form", default="", choices=forms, help="found by default", metavar="FORM"
    )
    parser.add_argument("--to", required=True, choices=(*WRITERS, RECORDS))
    parser.add_argument("--image_size", type=_size, help="of the pixels of --to=records, HEIGHT,WIDTH")
    parser.add_argument("--prompt_image", action="store_true", help="records have a place for input images")
    parser.add_argument("--on_error", default="fail", choices=("fail", "skip"))
    parser.add_argument("--budget", type=_share, help="share that skip may leave out; training's by default")


Command = tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]
COMMANDS: dict[str, Command] = {
    "convert": (_add_convert, convert_command),
}
"""By name: what adds the arguments of a command, and what runs it."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m process_gen.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (add, run) in COMMANDS.items():
        sub = commands.add_parser(name, help=run.__doc__.splitlines()[0], description=run.__doc__)
        sub.set_defaults(run=run)
        add(sub)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    for name in ("source", "target"):
        if "~" in getattr(args, name, ""):
            setattr(args, name, os.path.expanduser(getattr(args, name)))
    try:
        args.run(args)
        sys.stdout.flush()
    except (ValueError, OSError, TooManyBadTrajectories) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
