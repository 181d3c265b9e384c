"""Finds the tokenizer of a config or a checkpoint, and checks that a given one is the same.

A checkpoint has the name and the fingerprint of its tokenizer. A tokenizer from a
folder is copied into the workdir beside the checkpoints, so that a run can be moved,
sampled and resumed without the original folder.
"""

from __future__ import annotations

import atexit
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging
from etils import epath

from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.common import buckets
from process_gen.data.qwen2 import CONFIG, MERGES, VOCABULARY, WHOLE, Qwen2Tokenizer
from process_gen.data.tokenizers import SCENES, Tokenizer, TokenizerError, scenes_tokenizer
from process_gen.experiment.builders import as_config_error
from process_gen.trajectory.markup import MEANINGS

FOLDER = "tokenizer"
"""Subfolder of a workdir with the files of its tokenizer."""
NAME, FINGERPRINT = "tokenizer", "tokenizer_fingerprint"
NEW = "new_tokens"
"""Metadata key: token -> id of those that the tokenizer files beside published weights lack."""


def build_tokenizer(config: ml_collections.ConfigDict) -> Tokenizer:
    """Builds the tokenizer of `config.data.tokenizer`: `scenes`, or the folder of a published one.

    Old configs without the key mean `scenes`.

    Raises:
      ConfigError: the folder holds no tokenizer that can be read.
    """
    with as_config_error():
        return _open(config.data.get("tokenizer", SCENES))


def describe(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> dict[str, str]:
    """The checkpoint metadata about a tokenizer: its name and its fingerprint."""
    return {NAME: config.data.get("tokenizer", SCENES), FINGERPRINT: tokenizer.fingerprint}


def describe_files(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of the tokenizer in a folder of published weights; {} if there is none to read."""
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
    """Finds the tokens whose embedding and head rows some weights have not trained.

    Runs of this project (with a config in the metadata) have none, and neither have exports
    of them, whose tokenizer files name all tokens. For weights without tokenizer files these
    are the tokens that `tokenizer` adds to its own files.

    Returns:
      Token -> its id, and the ids of the words that it stands for (`markup.MEANINGS`).
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
      CheckpointMismatch: the fingerprints differ.
    """
    wanted = metadata.get(FINGERPRINT, tokenizer.fingerprint)
    if tokenizer.fingerprint != wanted:
        raise CheckpointMismatch(
            f"{source} was trained with the tokenizer {metadata.get(NAME, SCENES)!r} (fingerprint {wanted}), "
            f"and this is another one (fingerprint {tokenizer.fingerprint}), whose ids mean other texts. "
            "Give the folder of the tokenizer it was trained with, or train anew in another workdir"
        )


def tokenizer_of(metadata: Mapping[str, Any], source: str, folder: str | None = None) -> Tokenizer:
    """Opens the tokenizer that a checkpoint was trained with.

    Args:
      source: file of the checkpoint or folder of its step. A tokenizer folder there is preferred to the one
        that it names.
      folder: where to look instead of both.

    Raises:
      CheckpointMismatch: no tokenizer is found, or one with another fingerprint.
    """
    name = metadata.get(NAME, SCENES)
    if folder is None and name != SCENES:
        parents = [at for at in list(epath.Path(source).parents)[:2] if os.fspath(at) != "gs://"]
        copies = [parent / FOLDER for parent in parents]
        folder = str(next((copy for copy in copies if copy.is_dir()), name))
    try:
        tokenizer = _open(folder or name)
    except TokenizerError as error:
        raise CheckpointMismatch(f"{source} needs the tokenizer {name!r}: {error}") from error
    check_same(tokenizer, metadata, source)
    return tokenizer


def _open(name: str) -> Tokenizer:
    if name == SCENES:
        return scenes_tokenizer()
    if buckets.is_bucket(name):
        copy = tempfile.TemporaryDirectory(prefix="process_gen_")
        atexit.register(copy.cleanup)  # not earlier: `keep` may copy it
        buckets.fetch(name, (WHOLE, VOCABULARY, MERGES, CONFIG), pathlib.Path(copy.name))
        name = copy.name
    return Qwen2Tokenizer(name)
