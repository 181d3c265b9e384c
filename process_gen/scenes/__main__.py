"""The scenes world from a terminal.

    python -m process_gen.scenes prompts --count=3 --split=heldout
    python -m process_gen.scenes render --prompt="a red circle left of a blue square" --out=scene.png
    python -m process_gen.scenes judge --prompt="a red circle" --image=scene.png
    python -m process_gen.scenes show --category=four_objects --seed=7 --out=trajectory.png

Exit code 0 if all went well (`judge`: whatever the verdict), 2 for bad input, 141 where nobody reads the
output any more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from process_gen import scenes
from process_gen.common import files
from process_gen.experiment import cli
from process_gen.reports.strip import strip
from process_gen.scenes.levels import BACKGROUND, LEVELS, Level
from process_gen.scenes.splits import SPLITS
from process_gen.trajectory.markup import Malformed
from process_gen.trajectory.stages import Mode

ODDS = scenes.teach.__kwdefaults__
"""The probabilities of `teacher.teach` and their defaults; each is a flag of `show`."""


def read_prompt(text: str, level: Level) -> scenes.Request:
    """Reads a prompt; raises ValueError where it cannot."""
    request = scenes.read_request(text, level)
    if isinstance(request, Malformed):
        raise ValueError(f"prompt {text!r}: {request.reason}")
    return request


def read_image(path: str, level: Level) -> np.ndarray:
    """Reads an image file and resizes it to the level's size, [H, W, 3] uint8. Raises ValueError."""
    try:
        with Image.open(path) as image:
            image = image.convert("RGBA")
    except FileNotFoundError:
        raise ValueError(f"no image at {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path} as an image: {error}") from None
    canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    image = Image.alpha_composite(canvas, image).convert("RGB")
    # BOX takes the mean of the pixels that fall into one: exact for whole multiples.
    return np.asarray(image.resize((level.image_size, level.image_size), Image.Resampling.BOX))


def prompts_command(args: argparse.Namespace, level: Level) -> None:
    """Prints sample prompts of every category and split."""
    rng = np.random.default_rng(args.seed)
    kinds = itertools.product(args.category or scenes.categories(level), args.split or SPLITS)
    for category, split in kinds:
        for _ in range(args.count):
            request = scenes.sample_request(rng, level, category, split)
            if args.jsonl:
                print(json.dumps({**request.metadata(), "split": split}))
            else:
                print(f"{category:14} {split:8} {request.text}")


def render_command(args: argparse.Namespace, level: Level) -> None:
    """Draws a prompt, or a scene given as JSON, into a PNG file."""
    if args.scene is not None:
        scene = _read_scene(args.scene, level)
    else:
        rng = np.random.default_rng(args.seed)
        trajectory = scenes.baseline(read_prompt(args.prompt, level), rng, Mode.SINGLE_PASS)
        scene = scenes.scene_from_json(trajectory.metadata["scenes"][-1], level)
    side = level.image_size * args.scale
    image = Image.fromarray(scenes.render(scene, level))
    _save(image.resize((side, side), Image.Resampling.NEAREST), args.out)
    print(json.dumps(scene.to_json()))


def judge_command(args: argparse.Namespace, level: Level) -> None:
    """Judges an image against a prompt; prints the verdict as JSON."""
    request = read_prompt(args.prompt, level)
    scene = scenes.parse(read_image(args.image, level), level)
    verdict = scenes.judge(request, scene)
    print(json.dumps({"prompt": args.prompt, **verdict.to_json(), "scene": scene.to_json()}, indent=2))


def show_command(args: argparse.Namespace, level: Level) -> None:
    """Draws a trajectory of the teacher as one picture and prints what is said in it."""
    rng = np.random.default_rng(args.seed)
    if args.prompt is not None:
        request = read_prompt(args.prompt, level)
    else:
        request = scenes.sample_request(rng, level, args.category, args.split)
    trajectory = scenes.teach(request, rng, **{name: getattr(args, name) for name in ODDS})
    _save(strip(trajectory), args.out)
    print("\n".join(scenes.texts(trajectory)))
    print(f"{len(trajectory.steps)} steps, written to {args.out}")


def _read_scene(source: str, level: Level) -> scenes.Scene:
    """Reads a scene from a JSON file, or from the argument itself if it starts with a brace."""
    try:
        text = source if source.lstrip().startswith("{") else pathlib.Path(source).read_text("utf-8")
        return scenes.scene_from_json(files.from_json(text), level)
    except (OSError, ValueError) as error:
        raise ValueError(f"scene {source}: {error}") from None


def _save(image: Image.Image, path: str) -> None:
    try:
        image.save(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot write {path}: {error}") from None


def _number(kind: type, least: float, most: float = math.inf) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return value

    return number


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m process_gen.scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__.splitlines()[0], description=run.__doc__)
        sub.set_defaults(run=run)
        sub.add_argument("--level", default="default", choices=list(LEVELS), help="how hard the world is")
        if name != "judge":
            sub.add_argument("--seed", type=_number(int, 0), default=0)
        return sub

    prompts = command("prompts", prompts_command)
    prompts.add_argument("--count", type=_number(int, 1), default=3, help="of each category and split")
    prompts.add_argument("--category", action="append", help="only this one; may be repeated")
    prompts.add_argument("--split", action="append", choices=SPLITS, help="only this one; may be repeated")
    prompts.add_argument("--jsonl", action="store_true", help="one line of metadata each")

    render = command("render", render_command)
    what = render.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="what to draw; what it leaves open is drawn at random")
    what.add_argument("--scene", help="a scene as JSON, or a file that holds one")
    render.add_argument("--scale", type=_number(int, 1), default=1, help="times as large")
    render.add_argument("--out", required=True, help="the PNG file to write")

    judging = command("judge", judge_command)
    judging.add_argument("--prompt", required=True)
    judging.add_argument("--image", required=True, help="any size; resized to the level's")

    show = command("show", show_command)
    show.add_argument("--prompt", help="what to draw; a sampled prompt by default")
    show.add_argument("--category", default="four_objects", help="of the sampled prompt")
    show.add_argument("--split", default="train", choices=SPLITS)
    share = _number(float, 0, 1)
    for name, default in ODDS.items():
        show.add_argument(f"--{name}", type=share, default=default, help="probability, see teacher.teach")
    show.add_argument("--out", required=True, help="the PNG file to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args = build_parser().parse_args(cli.words_at_home(sys.argv[1:] if argv is None else argv))
    try:
        args.run(args, LEVELS[args.level])
        sys.stdout.flush()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        if cli.nobody_reads():
            return cli.UNREAD
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
