"""The scenes world from a terminal.

    python -m process_gen.scenes prompts --count=3 --split=heldout
    python -m process_gen.scenes render --prompt="a red circle left of a blue square" --out=scene.png
    python -m process_gen.scenes judge --prompt="a red circle" --image=scene.png
    python -m process_gen.scenes show --category=four_objects --seed=7 --out=trajectory.png
    python -m process_gen.scenes noise

Exit code 0 if all went well (`judge`: whatever the verdict), 2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from process_gen import scenes
from process_gen.common import files
from process_gen.scenes import bench
from process_gen.scenes.levels import BACKGROUND, LEVELS, Level, get_level
from process_gen.scenes.picture import draw_trajectory
from process_gen.scenes.render import upscale
from process_gen.scenes.splits import SPLITS
from process_gen.trajectory.markup import Malformed

ODDS = (("wrong", 0.3), ("misplan", 0.1), ("slip", 0.08), ("detour", 0.25), ("pair", 0.5))
"""What a shown trajectory may hold, and how often by default."""


class BadInput(Exception):
    """Something that the user gave cannot be used; the message says what and why."""


def read_prompt(text: str, level: Level) -> scenes.Request:
    """Reads a prompt or raises `BadInput`."""
    request = scenes.read_request(text, level)
    if isinstance(request, Malformed):
        raise BadInput(f"prompt {text!r}: {request.reason}")
    return request


def read_image(path: str, level: Level) -> np.ndarray:
    """Reads an image file of any size and mode as an image of the level, [H, W, 3] uint8."""
    try:
        with Image.open(path) as image:
            image = image.convert("RGBA")
    except FileNotFoundError:
        raise BadInput(f"no image at {path}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"cannot read {path} as an image: {error}") from None
    canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    image = Image.alpha_composite(canvas, image).convert("RGB")
    side = level.image_size
    if image.size != (side, side):
        # BOX takes the mean of the pixels that fall into one: exact for whole multiples.
        image = image.resize((side, side), Image.Resampling.BOX)
    return np.asarray(image)


def prompts_command(args: argparse.Namespace) -> None:
    """Prints sample prompts of every category and split."""
    rng = np.random.default_rng(args.seed)
    known = scenes.categories(args.level)
    for category in args.category or known:
        _check_category(category, args.level)
        for split in args.split or SPLITS:
            for _ in range(args.count):
                request = scenes.sample_request(rng, args.level, category, split)
                if args.jsonl:
                    print(json.dumps({**request.metadata(), "split": split}))
                else:
                    print(f"{category:14} {split:8} {request.text}")


def render_command(args: argparse.Namespace) -> None:
    """Draws a prompt, or a scene given as JSON, into a PNG file."""
    level = get_level(args.level)
    if args.scene is not None:
        scene = _read_scene(args.scene, level)
    else:
        request = read_prompt(args.prompt, level)
        rng = np.random.default_rng(args.seed)
        trajectory = _make(scenes.baseline, request, rng, level, "single_pass", args.split)
        scene = scenes.scene_from_json(trajectory.metadata["scenes"][-1], level)
    image = _make(scenes.render, scene, level)
    _save(Image.fromarray(upscale(image, args.scale)), args.out)
    print(json.dumps(scene.to_json()))


def judge_command(args: argparse.Namespace) -> None:
    """Judges an image against a prompt; prints the verdict as JSON."""
    level = get_level(args.level)
    request = read_prompt(args.prompt, level)
    image = read_image(args.image, level)
    scene = scenes.parse(image, level)
    verdict = scenes.judge(request, scene, level)
    print(json.dumps({"prompt": args.prompt, **verdict.to_json(), "scene": scene.to_json()}, indent=2))


def show_command(args: argparse.Namespace) -> None:
    """Draws a trajectory of the teacher as one picture."""
    level = get_level(args.level)
    rng = np.random.default_rng(args.seed)
    if args.prompt is not None:
        request = read_prompt(args.prompt, level)
    else:
        _check_category(args.category, args.level)
        request = scenes.sample_request(rng, level, args.category, args.split)
    odds = {name: getattr(args, name) for name, _ in ODDS}
    trajectory = _make(scenes.teach, request, rng, level, split=args.split, **odds)
    _save(draw_trajectory(trajectory), args.out)
    print(f"{trajectory.prompt}: {len(trajectory.steps)} steps, written to {args.out}")


def noise_command(args: argparse.Namespace) -> None:
    """Prints how often rendered scenes are read back exactly under noise."""
    for sigma, share, milliseconds in bench.noise_curve(args.level, args.count, args.seed):
        print(f"sigma {sigma:.3f}  read back {share:7.2%}  {milliseconds:.3f} ms an image")


def _make(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Calls `make`; what it refuses is bad input."""
    try:
        return make(*args, **options)
    except ValueError as error:
        raise BadInput(str(error)) from None


def _check_category(category: str, level: str) -> None:
    if category not in scenes.categories(level):
        known = ", ".join(scenes.categories(level))
        raise BadInput(f"level {level} has no category {category!r}; it has {known}")


def _read_scene(source: str, level: Level) -> scenes.Scene:
    """Reads a scene from a JSON file, or from the argument itself if it starts with a brace."""
    try:
        text = source if source.lstrip().startswith("{") else pathlib.Path(source).read_text("utf-8")
        return scenes.scene_from_json(files.from_json(text), level)
    except (OSError, ValueError) as error:
        raise BadInput(f"scene {source}: {error}") from None


def _save(image: Image.Image, path: str) -> None:
    try:
        image.save(path)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"cannot write {path}: {error}") from None


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


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
            sub.add_argument("--seed", type=_seed, default=0)
        return sub

    prompts = command("prompts", prompts_command)
    prompts.add_argument("--count", type=_positive, default=3, help="prompts of each category and split")
    prompts.add_argument("--category", action="append", help="only this one; may be repeated")
    prompts.add_argument("--split", action="append", choices=SPLITS, help="only this one; may be repeated")
    prompts.add_argument("--jsonl", action="store_true", help="one line of metadata each")

    render = command("render", render_command)
    what = render.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="what to draw; what it leaves open is drawn at random")
    what.add_argument("--scene", help="a scene as JSON, or a file that holds one")
    render.add_argument("--split", default="heldout", choices=SPLITS, help="train: no held-out colours")
    render.add_argument("--scale", type=_positive, default=1, help="times as large")
    render.add_argument("--out", required=True, help="the PNG file to write")

    judging = command("judge", judge_command)
    judging.add_argument("--prompt", required=True)
    judging.add_argument("--image", required=True, help="any size; resized to the level's")

    show = command("show", show_command)
    show.add_argument("--prompt", help="what to draw; a sampled prompt by default")
    show.add_argument("--category", default="four_objects", help="of the sampled prompt")
    show.add_argument("--split", default="train", choices=SPLITS)
    for name, default in ODDS:
        show.add_argument(f"--{name}", type=_share, default=default, help="probability, see teacher.teach")
    show.add_argument("--out", required=True, help="the PNG file to write")

    noise = command("noise", noise_command)
    noise.add_argument("--count", type=_positive, default=500, help="scenes")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
