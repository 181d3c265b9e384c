"""The kinds of input, each with a good folder to start from, what damages it, and what reads it."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image

from process_gen.checkpoints.errors import CheckpointError
from process_gen.checkpoints.published.bagel import read_published
from process_gen.data.encode import encode_trajectory
from process_gen.data.errors import BadTrajectory
from process_gen.data.formats import writers
from process_gen.data.formats.jsonl import LISTING
from process_gen.data.formats.opening import open_stored
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.experiment import builders, cli
from process_gen.models.config import model_config
from process_gen.models.unified import UnifiedModel
from process_gen.sampling.config import PromptError
from process_gen.sampling.prompts import encode_prompt, encode_turn, make_prompt
from process_gen.scenes import get_level, read_request
from process_gen.trajectory import markup
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Turn
from process_gen.weights import restore
from tests.fuzz.commands import run_command, run_config
from tests.fuzz.damage import damaged_bytes, damaged_text, pick

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bagel_tiny"
LAYOUT = Layout(image_size=(16, 16), latent_grid=(2, 2), turns=6, prompt_image=True, instruction=20)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
      prepare: fills a folder with what is good.
      run: damages a copy of that folder and reads it.
      refuses: the errors that commands print as one line.
    """

    prepare: Callable[[pathlib.Path], None]
    run: Callable[[pathlib.Path, np.random.Generator], None]
    refuses: tuple[type[Exception], ...]


# -------------------------------------------------------------------- listings


def picture(rng: np.random.Generator, mode: str = "RGB", size: tuple[int, int] = (20, 18)) -> PIL.Image.Image:
    made = PIL.Image.fromarray(rng.integers(0, 256, (size[1], size[0], 4), np.uint8), "RGBA")
    return made.convert(mode)


RECORDS = [
    {
        "prompt": "a red circle",
        "metadata": {"by": "hand"},
        "steps": [
            {"instruction": "draw", "description": "a circle", "sketch": "a.png", "inspect": "no"},
            {"instruction": "a", "description": "b", "sketch": "a.png", "refine": "c", "refined": "b.png"},
        ],
    },
    {
        "prompt": "a star",
        "image": "a.png",
        "instruction": "make it red",
        "turns": [
            {
                "before": "<ins>a</ins><des>b</des>",
                "image": "a.png",
                "inspect": "it is blue",
                "image_ok": False,
            },
            {"refine": "make it red", "image": "b.png", "before_weight": 0.5},
        ],
    },
]


def prepare_listing(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        picture(rng).save(folder / name)
    (folder / LISTING).write_text("\n".join(map(json.dumps, RECORDS)))


def run_listing(folder: pathlib.Path, rng: np.random.Generator) -> None:
    lines = [json.dumps(record).encode() for record in RECORDS]
    number = int(rng.integers(len(lines)))
    if rng.integers(10):
        lines[number] = damaged_text(rng, RECORDS[number])
    (folder / LISTING).write_bytes(b"\n".join(lines))
    source, tokenizer, problems = open_stored(folder, LAYOUT.image_size), scenes_tokenizer(), []
    for index in range(len(source)):
        try:
            encode_trajectory(tokenizer, LAYOUT, source[index])
        except BadTrajectory as error:
            problems.append(error)
    if problems:
        raise problems[0]


def prepare_forms(folder: pathlib.Path) -> None:
    prepare_listing(folder)
    source = open_stored(folder, LAYOUT.image_size)
    for name, write in (("p", writers.write_parquet), ("w", writers.write_webdataset)):
        write(folder / name, writers.objects(source))


def run_forms(folder: pathlib.Path, rng: np.random.Generator) -> None:
    file = folder / pick(rng, ["p/part-00000.parquet", "w/shard-00000.tar"])
    file.write_bytes(damaged_bytes(rng, file.read_bytes()))
    source = open_stored(file, LAYOUT.image_size)
    source.shapes()
    for index in range(len(source)):
        source[index], source.object(index)


# ---------------------------------------------------------------------- images


def run_image(folder: pathlib.Path, rng: np.random.Generator) -> None:
    mode = pick(rng, ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "I", "F", "HSV", "I;16"])
    form = pick(rng, ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "ICO", "PPM"])
    size = (int(rng.integers(1, 60)), int(rng.integers(1, 60)))
    made, held = picture(rng, "RGB", size), io.BytesIO()
    exif = PIL.Image.Exif()
    for tag in rng.choice([0x0112, 0x011A, 0x0132, 0x8769, 0x8825, 0x9286], 2):
        exif[int(tag)] = pick(rng, [int(rng.integers(0, 12)), "a", 1.5])
    try:
        made.convert(mode).save(held, form, exif=exif)
    except Exception:  # a format that does not know the mode, or the EXIF
        held = io.BytesIO()
        made.save(held, form)
    data = held.getvalue()
    (folder / "a.png").write_bytes(data if rng.integers(5) == 0 else damaged_bytes(rng, data))
    (folder / LISTING).write_text(json.dumps({"prompt": "a", "turns": [{"image": "a.png"}]}))
    source = open_stored(folder, LAYOUT.image_size)
    found = source[0].image
    assert found.shape == (*LAYOUT.image_size, 3) and found.dtype == np.uint8
    assert len(source.shapes()) == 1


# --------------------------------------------------------------- published files


def prepare_published(folder: pathlib.Path) -> None:
    for path in GOLDEN.iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copy(path, folder / path.name)


def run_published(folder: pathlib.Path, rng: np.random.Generator) -> None:
    path = pick(rng, sorted(folder.iterdir()))
    if path.suffix == ".json":
        path.write_bytes(damaged_text(rng, json.loads(path.read_text())))
    else:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        if rng.integers(3):
            header = damaged_text(rng, json.loads(data[8 : 8 + size]))
            length = len(header) if rng.integers(4) else int(pick(rng, [0, 1, 2**31, 2**62, len(data)]))
            data = length.to_bytes(8, "little") + header + data[8 + size :]
        else:
            data = damaged_bytes(rng, data)
        path.write_bytes(data)
    published = read_published(folder)
    for source in (published.params, published.autoencoder):
        for name in source.spec:
            source.read(name)


# ---------------------------------------------------------------- words, prompts


def run_words(folder: pathlib.Path, rng: np.random.Generator) -> None:
    model, tokenizer = _tiny_model()
    words = [
        "a",
        "red",
        "circle",
        "star",
        "left",
        "of",
        "and",
        "two",
        "<ins>",
        "</ins>",
        "<des>",
        "</des>",
        "Ω",
    ]
    pieces = [
        *markup.SPECIAL_TOKENS,
        "a red circle",
        " left of ",
        "\ud83d",
        "\0",
        "é",
        "\n",
        "circle " * 40,
        "",
    ]
    space, choices = (" ", words) if rng.integers(3) else ("", pieces)
    text = space.join(pick(rng, choices) for _ in range(int(rng.integers(0, 12))))
    for parse in (markup.parse_plan, markup.parse_refine):
        assert parse(text) is not None
    read_request(text, get_level("default"))
    if rng.integers(2):
        encode_prompt(model, tokenizer, make_prompt(model, text, None))
        return
    image = rng.integers(0, 256, (*pick(rng, [(16, 16), (16, 16), (1, 1), (0, 3), (16, 17)]), 3), np.uint8)
    before, after = (pick(rng, [None, text]) for _ in range(2))
    encode_turn(model, tokenizer, Turn(image, before, after, bool(rng.integers(2))))
    encode_prompt(model, tokenizer, make_prompt(model, text, pick(rng, [None, image])))


def _tiny_model() -> tuple[UnifiedModel, Any]:
    tokenizer = scenes_tokenizer()
    return UnifiedModel(model_config("scenes_s"), LAYOUT, ControlIds.of(tokenizer)), tokenizer


# ------------------------------------------------------------------ checkpoints


def prepare_checkpoint(folder: pathlib.Path) -> None:
    """A run of three steps at the smallest size."""
    from process_gen.train import train

    config = cli.load_config("configs/scenes.py:debug")
    with config.unlocked():
        config.data.data_dir = str(folder.parent / "data")
        config.train.steps = config.train.checkpoint_every = 3
        config.eval.final_per_group = 0
    train(config, str(folder))


def run_checkpoint(folder: pathlib.Path, rng: np.random.Generator) -> None:
    inside = folder / "checkpoints"
    for _ in range(int(rng.integers(1, 3))):
        path = pick(rng, sorted(path for path in inside.rglob("*") if path.is_file()))
        way = int(rng.integers(4))
        if way == 0:
            path.unlink()
        elif way == 1:
            path.unlink()
            path.mkdir()
        else:
            data = path.read_bytes()
            try:
                value = json.loads(data)
            except ValueError:
                value = None
            path.write_bytes(damaged_bytes(rng, data) if value is None else damaged_text(rng, value))
    restore.load_model(str(folder))


NOTHING: Callable[[pathlib.Path], None] = lambda folder: None  # noqa: E731

KINDS = {
    "listings": Kind(prepare_listing, run_listing, (BadTrajectory, OSError)),
    "forms": Kind(prepare_forms, run_forms, (BadTrajectory, OSError)),
    "images": Kind(NOTHING, run_image, (BadTrajectory,)),
    "published": Kind(prepare_published, run_published, (CheckpointError, OSError)),
    "configs": Kind(NOTHING, run_config, (builders.ConfigError, cli.CommandError)),
    "commands": Kind(prepare_listing, run_command, ()),  # they end with exit code 2 themselves
    "words": Kind(NOTHING, run_words, (PromptError,)),
    "checkpoints": Kind(prepare_checkpoint, run_checkpoint, (*restore.ERRORS, OSError)),
}
