"""Sets of trajectories from a terminal.

    python -m process_gen.data check mine --config=configs/bagel_7b.py:paper
    python -m process_gen.data convert mine data/mine --to=parquet
    python -m process_gen.data convert GenRef-wds data/genref --from=genref --to=webdataset
    python -m process_gen.data convert data/mine gs://bucket/mine --to=parquet --on_error=skip

`check` reads every text and image on all cores: what is in the set, what is wrong with it, whether it
holds prompts of GenEval, what layout it needs, and how its first trajectory will be trained.

Exit code 0 if all went well, 2 for bad input, 141 where the reader of the output is gone, as after `| head`.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import operator
import os
import sys
from collections.abc import Callable, Iterable

import tensorflow_datasets as tfds
import tqdm
from absl import logging

from process_gen.data import checking, mix
from process_gen.data.encode import encode_parts
from process_gen.data.errors import BadTrajectory, TooManyBadTrajectories, check_budget
from process_gen.data.formats import writers
from process_gen.data.formats.opening import FORMATS, RECORDS, open_stored
from process_gen.data.importers import IMPORTERS
from process_gen.data.importers.verl_omni import write_verl_omni
from process_gen.data.loader import Source
from process_gen.data.packing import join_row
from process_gen.data.tokenizers import Tokenizer
from process_gen.evaluation.geneval.prompts import tag_of
from process_gen.experiment import builders, cli, vocabulary
from process_gen.losses import LossTable
from process_gen.losses.anatomy import HEADERS, anatomy, lines
from process_gen.reports.table import table
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.record import PROVENANCE_KEYS

WRITERS: dict[str, Callable[[str, Iterable[writers.Object]], int]] = {
    "folder": writers.write_folder,
    "parquet": writers.write_parquet,
    "webdataset": writers.write_webdataset,
    "verl_omni": write_verl_omni,
}
"""Forms that keep image files as they are; `records` holds pixels."""


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
    source = open_stored(args.source, args.image_size or (1, 1), args.on_error, args.form, args.budget)
    if pixels and source.image_size != args.image_size:
        raise ValueError(f"{args.source} holds pixels of {source.image_size}, not of {args.image_size}")
    errors = list(getattr(source, "skipped", ()))
    total = len(source) + len(errors)

    def leave_out(error: BadTrajectory) -> None:
        if args.on_error == "fail":
            raise error
        errors.append(str(error))
        logging.warning("left out (%d so far): %s", len(errors), error)
        check_budget(len(errors), total, args.budget, error, flag=" (--budget)")

    found = writers.objects(source, leave_out, operator.getitem if pixels else writers.read_object)
    found = tqdm.tqdm(found, total=len(source), unit=" trajectories", mininterval=1.0)
    if pixels:
        tfds.disable_progress_bar()  # there is one already
        count = writers.write_records(args.target, found, args.image_size, args.prompt_image)
    else:
        count = WRITERS[args.to](args.target, found)
    print(f"{args.target}: {count:,} trajectories, {len(errors):,} left out")
    kinds = collections.Counter(text.partition(": ")[2][:80] for text in errors)  # without the place
    for problem, times in kinds.most_common(10):
        print(f"  {times:,} times: {problem}")


def check_command(args: argparse.Namespace) -> None:
    """Reads all of a set, and says what is in it, what is wrong with it and how it will be trained."""
    config = cli.config_with(args.config, args.overrides)
    layout, tokenizer = builders.build_layout(config), vocabulary.build_tokenizer(config)
    source = open_stored(
        args.source, layout.image_size, "skip", args.form, 1.0, dict(config.data.get("fields", {}))
    )
    leaks, split = None if args.leaks == "none" else tag_of, config.data.on_long == "split"
    encode = functools.partial(encode_parts, tokenizer, mix.without_size(layout), split)
    found = checking.examine_all(source, tokenizer, encode, leaks, args.processes, args.limit)
    print(f"\n{args.source}: {getattr(source, 'name', '')}\n")
    _print_contents(found)
    _print_layout(found, layout, tokenizer, split)
    if args.show >= 0 and found.good:
        _print_trajectory(source, args.show, tokenizer, layout, builders.build_losses(config), split)
    if bad := found.bad + found.unfit:
        budget = 0.0 if args.budget is None and config.data.on_error == "fail" else args.budget
        check_budget(bad, found.good + found.bad, budget, found.last_bad, flag=" (--budget)")


def _print_contents(found: checking.Findings) -> None:
    counts = found.counts
    rows = [
        ("trajectories", found.good),
        ("bad trajectories", found.bad),
        ("do not fit this layout", found.unfit),
        *((name, count) for name, count in sorted(counts["stages"].items()) if count),
        ("texts with characters that the tokenizer does not know", counts["lost"].total()),
        ("names (uid) that come more than once", sum(n for n in counts["uids"].values() if n > 1)),
        ("prompts that come more than once", sum(n for n in counts["prompts"].values() if n > 1)),
        ("the same prompt and last image again", sum(n - 1 for n in counts["digests"].values())),
        ("prompts of GenEval", counts["leaked"].total()),
    ]
    print(table(rows, ("what", "count")))
    for name in ("turns", "steps", "corrections"):
        numbers = ", ".join(f"{n}: {count:,}" for n, count in sorted(counts[name].items()))
        print(f"\n{name} of a trajectory: {numbers}")
    for key in PROVENANCE_KEYS:
        if counts[key]:
            print(f"{key}: {_common(counts[key])}")
    titles = {"unknown": "unknown fields", "problems": "problems", "leaked": "prompts of GenEval"}
    for key, title in titles.items():
        if counts[key]:
            print(f"\n{title}:")
            print("\n".join(f"  {count:,} x {name}" for name, count in counts[key].most_common(10)))
    if found.named:
        print("\nbad ones by name:\n" + "\n".join(f"  {name}" for name in found.named))
    for title in ("sizes", "modes", "formats"):
        if one := counts[title]:
            more = f", and {len(one) - 8:,} others" if len(one) > 8 else ""
            print(f"{title} of images: {_common(one)}{more}")


def _common(counts: collections.Counter) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(8))


def _print_layout(found: checking.Findings, layout: Layout, tokenizer: Tokenizer, split: bool) -> None:
    print("\ntokens of the texts, two brackets included")
    print(table(checking.slots_table(found, layout), checking.SLOTS_HEADERS))
    for name in checking.SLOTS:
        if counts := found.counts[name]:
            print(f"\n{name}, tokens of a text")
            print("\n".join(checking.histogram(counts)))
    other = checking.suggest(found, layout)
    for title, one in (("this layout", layout), ("the suggested one", other)):
        try:
            useful = mix.loader_of(one, found.trajectories, tokenizer, split).report(None).useful
            print(f"{title}: {useful:.1%} of {one.row_tokens:,} tokens of a row useful")
        except ValueError:
            print(f"{title}: no trajectory fits")
    print(f"suggested: {checking.flags(layout, other) or 'the layout as it is'}")


def _print_trajectory(
    source: Source, index: int, tokenizer: Tokenizer, layout: Layout, losses: LossTable, split: bool
) -> None:
    """Prints how a trajectory is trained, token by token, or why it is not."""
    if index >= len(source):
        raise ValueError(f"--show={index}: the last one of {len(source)} trajectories is {len(source) - 1}")
    layout = dataclasses.replace(layout, fields=())  # losses on user-defined fields are not shown
    try:
        trajectory = source[index]
        part = encode_parts(tokenizer, layout, split, trajectory)[0]
    except BadTrajectory as error:
        print(f"\ntrajectory {index} cannot be trained (choose another with --show=NUMBER): {error}")
        return
    row = Batch(**{name: value[None] for name, value in join_row([part], layout).items()})
    found = anatomy(layout, row, losses, ControlIds.of(tokenizer))
    print(f"\ntrajectory {trajectory.uid!r} as it is trained")
    print(table(list(lines(found, tokenizer)), HEADERS))


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
    parser.add_argument("target", type=os.path.expanduser, help="the new folder, or a URL")
    parser.add_argument("--to", required=True, choices=(*WRITERS, RECORDS))
    parser.add_argument("--image_size", type=_size, help="of the pixels of --to=records, HEIGHT,WIDTH")
    parser.add_argument("--prompt_image", action="store_true", help="records have a place for input images")
    parser.add_argument("--on_error", default="fail", choices=("fail", "skip"))
    parser.add_argument("--budget", type=_share, help="share that skip may leave out; training's by default")


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        default="configs/scenes.py:quick",
        help="its layout, tokenizer and losses; --config.layout.turns=9 and the like change it",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="all cores by default")
    parser.add_argument("--limit", type=int, default=0, help="how many trajectories are read; 0 for all")
    parser.add_argument(
        "--show", type=int, default=0, help="the trajectory that is shown by token; -1 for none"
    )
    parser.add_argument("--leaks", default="geneval", choices=("geneval", "none"), help="prompts to look for")
    parser.add_argument("--budget", type=_share, help="share that may be bad; training's by default")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m process_gen.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, add, run in (("check", _add_check, check_command), ("convert", _add_convert, convert_command)):
        sub = commands.add_parser(name, help=run.__doc__.splitlines()[0], description=run.__doc__)
        sub.set_defaults(run=run)
        sub.add_argument(
            "source", type=os.path.expanduser, help="a folder, a file, a pattern of names, or a URL"
        )
        forms = (*FORMATS, RECORDS, *IMPORTERS)
        sub.add_argument(
            "--from", dest="form", default="", choices=forms, help="found by default", metavar="FORM"
        )
        add(sub)
    args, rest = parser.parse_known_args(cli.words_at_home(sys.argv[1:] if argv is None else argv))
    args.overrides = [word for word in rest if args.command == "check" and word.startswith("--config.")]
    if len(args.overrides) < len(rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        args.run(args)
        sys.stdout.flush()
    except (ValueError, OSError, TooManyBadTrajectories, cli.CommandError) as error:
        if isinstance(error, BrokenPipeError) and cli.nobody_reads():
            return cli.UNREAD
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
