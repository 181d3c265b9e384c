"""Which tokenizer a config or a checkpoint means, and whether a given one is it.

A checkpoint names its tokenizer and carries its fingerprint. A tokenizer that
came from a folder is copied into the workdir beside the checkpoints, so that a
run can be moved, sampled and resumed without the folder it was started with.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.data.qwen2 import VOCABULARY, WHOLE, Qwen2Tokenizer
from process_gen.data.tokenizers import SCENES, Tokenizer, TokenizerError, scenes_tokenizer
from process_gen.experiment.builders import as_config_error
from process_gen.trajectory.markup import MEANINGS

FOLDER = "tokenizer"
"""Where a workdir keeps the files of its tokenizer."""
NAME, FINGERPRINT = "tokenizer", "tokenizer_fingerprint"
NEW = "new_tokens"
"""Tokens, with their ids, that the files beside published weights do not name: their rows are untrained."""


def build_tokenizer(config: ml_collections.ConfigDict) -> Tokenizer:
    """`config.data.tokenizer`: `scenes`, or the folder of a published one.

    Configs from before there was a choice mean `scenes`.

    Raises:
      ConfigError: the folder holds no tokenizer that can be read.
    """
    with as_config_error():
        return _open(config.data.get("tokenizer", SCENES))


def describe(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> dict[str, str]:
    """What a checkpoint has to say about its tokenizer."""
    return {NAME: config.data.get("tokenizer", SCENES), FINGERPRINT: tokenizer.fingerprint}


def describe_files(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What published weights say about the tokenizer beside them; nothing where none can be read."""
    place = pathlib.Path(folder)
    if not any((place / name).is_file() for name in (WHOLE, VOCABULARY)):
        return {}
    try:
        tokenizer = Qwen2Tokenizer(place)
    except TokenizerError as error:
        logging.warning("nothing will tell the tokenizer of these weights from another one: %s", error)
        return {}
    return {NAME: str(place), FINGERPRINT: tokenizer.fingerprint, NEW: tokenizer.added}


def untrained(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> dict[str, tuple[int, list[int]]]:
    """The tokens that some weights have no trained rows for.

    There are none in a run of ours (it carries its config), nor in what was exported
    from one: its tokenizer's files name them all. Weights without a tokenizer beside
    them lack what the given one adds to its own files.

    Returns:
      By token: its id, and the ids of the words that it stands for (`markup.MEANINGS`).
    """
    if "config" in metadata or not isinstance(tokenizer, Qwen2Tokenizer):
        return {}
    new = metadata.get(NEW, tokenizer.added)
    return {token: (number, tokenizer.encode(f" {MEANINGS[token]}")) for token, number in new.items()}


def keep(tokenizer: Tokenizer, workdir: str | pathlib.Path) -> None:
    """Copies a tokenizer that came from a folder into the workdir."""
    if isinstance(tokenizer, Qwen2Tokenizer):
        tokenizer.save(pathlib.Path(workdir) / FOLDER)


def check_same(tokenizer: Tokenizer, metadata: Mapping[str, Any], source: str) -> None:
    """Refuses a tokenizer that is not the one a checkpoint was trained with.

    Raises:
      CheckpointMismatch: its ids mean something else.
    """
    wanted = metadata.get(FINGERPRINT, tokenizer.fingerprint)
    if tokenizer.fingerprint != wanted:
        raise CheckpointMismatch(
            f"{source} was trained with the tokenizer {metadata.get(NAME, SCENES)!r} (fingerprint {wanted}), "
            f"and this is another one (fingerprint {tokenizer.fingerprint}), whose ids mean other texts. "
            "Give the folder of the tokenizer it was trained with, or train anew in another workdir"
        )


def tokenizer_of(metadata: Mapping[str, Any], source: str, folder: str | None = None) -> Tokenizer:
    """The tokenizer that a checkpoint was trained with.

    Args:
      metadata: of the checkpoint.
      source: its file or its step's folder. A copy beside it comes before the folder it names.
      folder: where to look instead.

    Raises:
      CheckpointMismatch: it is not to be found, or what is found is another one.
    """
    name = metadata.get(NAME, SCENES)
    if folder is None and name != SCENES:
        copies = [parent / FOLDER for parent in list(pathlib.Path(source).parents)[:2]]
        folder = str(next((copy for copy in copies if copy.is_dir()), name))
    try:
        tokenizer = _open(folder or name)
    except TokenizerError as error:
        raise CheckpointMismatch(f"{source} needs the tokenizer {name!r}: {error}") from error
    check_same(tokenizer, metadata, source)
    return tokenizer


def _open(name: str) -> Tokenizer:
    return scenes_tokenizer() if name == SCENES else Qwen2Tokenizer(name)
