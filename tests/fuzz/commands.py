"""Command lines: every command with words that it was not made for, and overrides of its config."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pathlib
import re
import runpy
import sys
from typing import Any

import numpy as np
from absl import flags

from process_gen.experiment import builders, cli
from tests.fuzz.damage import damaged_bytes, pick

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = {
    "process_gen.sample": ["--workdir=nothing", "--output_dir=out"],
    "process_gen.evaluate": ["--workdir=nothing", "--output_dir=out"],
    "process_gen.convert": [],
    "process_gen.compile": ["--topology=nothing"],
    "process_gen.sweep": ["--workdir=out", "--jobs=print"],
    "process_gen.verify_checkpoint": [],
    "process_gen.data": ["--processes=1"],
    "process_gen.scenes": [],
    "process_gen.recipe": ["--workdir=out", "--part=stages"],
}
"""Modules that `python -m` runs, and last words with which nothing is drawn, compiled or built."""
_FIRST = {
    "process_gen.compile": [["--config=configs/scenes.py:debug"], []],
    "process_gen.sweep": [["--config=configs/sweeps/guidance.py"], []],
    "process_gen.verify_checkpoint": [[f"--checkpoint={ROOT}/tests/golden/bagel_tiny"], []],
    "process_gen.data": [["check", "."], ["convert", ".", "out", "--to=parquet"], ["convert", "."], []],
    "process_gen.scenes": [
        ["prompts"], ["render", "--prompt=a star", "--out=a.png"], ["render", "--scene={}"],
        ["judge", "--prompt=a star", "--image=a.png"], ["show", "--out=b.png"], ["show"], [],
    ],
    "process_gen.recipe": [["--config=configs/recipe/paper.py:scenes"], []],
}  # fmt: skip
for _name in COMMANDS:  # the child of a fork finds all of it imported
    importlib.import_module(_name if hasattr(importlib.import_module(_name), "main") else f"{_name}.__main__")

WORDS = (
    "",
    " ",
    "abc",
    "-1",
    "0",
    "1e9",
    "nan",
    "None",
    "True",
    "()",
    "(1,)",
    "[1, 2",
    "{'a': 1}",
    "\0",
    "é",
    "~",
)


def forget_flags() -> None:
    for name in list(flags.FLAGS):
        delattr(flags.FLAGS, name)


def override(rng: np.random.Generator, config: Any) -> str:
    key = pick(rng, cli.leaves(config))
    key = pick(rng, [key, key, key, key.rpartition(".")[0], key[:-1], f"{key}.x", key.upper()])
    value = pick(rng, [*WORDS, *[str(int(rng.integers(-5, 5000))), str(rng.normal())] * 10])
    return pick(
        rng,
        [f"--config.{key}={value}"] * 4 + [f"--config.{key}", f"--noconfig.{key}", f"-config.{key}={value}"],
    )


def run_config(folder: pathlib.Path, rng: np.random.Generator) -> None:
    spec = pick(rng, ["configs/scenes.py:debug", "configs/scenes.py:quick", "configs/bagel_7b.py:paper"])
    config = cli.load_config(spec)
    if rng.integers(6) == 0:
        text = (ROOT / "configs" / "scenes.py").read_bytes()
        (folder / "mine.py").write_bytes(damaged_bytes(rng, text))
        spec = f"{folder}/mine.py{pick(rng, ['', ':debug', ':nothing', ':'])}"
    words = [override(rng, config) for _ in range(int(rng.integers(1, 3)))]
    forget_flags()
    # The library of the config flags looks for overrides in the command line of the process.
    sys.argv = ["train", f"--config={spec}", "--workdir=w", *words]
    cli.read_flags(config="configs/scenes.py:debug", workdir="folder")
    builders.check(flags.FLAGS.config)


def flags_of(command: str) -> list[str]:
    """The names of a command's flags, as they stand in its code or as it defines them."""
    module = sys.modules.get(f"{command}.__main__", sys.modules[command])
    before = set(flags.FLAGS)
    getattr(module, "define_flags", lambda: None)()
    defined = sorted(set(flags.FLAGS) - before)
    for name in defined:
        delattr(flags.FLAGS, name)
    code = pathlib.Path(module.__file__).read_text()
    return defined or re.findall(r"""(?:DEFINE_\w+\(\s*"|add_argument\(\s*"--)(\w+)""", code)


def run_command(folder: pathlib.Path, rng: np.random.Generator) -> None:
    command = pick(rng, list(COMMANDS))
    os.environ["HOME"] = str(folder)  # what `~` stands for
    known, words = flags_of(command), list(pick(rng, _FIRST.get(command, [[]])))
    for _ in range(int(rng.integers(1, 4))):  # of many, one is refused before the others are looked at
        name = pick(rng, known)
        value = pick(rng, [*WORDS, str(folder / "nothing"), str(int(rng.integers(-5, 100))), "a=b", "full=x"])
        odd = [f"--{name}", f"--no{name}", f"--{name[:-1]}={value}", value]
        words.append(pick(rng, [f"--{name}={value}"] * 12 + odd))
    if words[0].startswith("--config=") and rng.integers(2):
        with contextlib.suppress(cli.CommandError):  # a sweep is no config
            words.append(override(rng, cli.load_config(words[0].partition("=")[2])))
    if command != "process_gen.data" or words[0] == "check":
        words += COMMANDS[command][:1] + COMMANDS[command]  # a flag that lacks its value takes one more word
    sys.argv = [command, *words]
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            runpy.run_module(command, run_name="__main__")
        except SystemExit as end:
            if end.code == 2:
                assert re.search(r"error:\s+\S", told.getvalue()), "exit code 2 without a message"
            if end.code:
                raise
