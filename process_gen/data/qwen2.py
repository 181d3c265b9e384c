"""The Qwen2 tokenizer, read from the files of a published checkpoint alone.

Byte-level BPE: any text has ids, and decoding returns it, normalized to NFC. The files
are `tokenizer.json`, or `vocab.json` with `merges.txt`, and `tokenizer_config.json`
for its added tokens.

Published ids stay as they are. Tokens of this project that the files lack get the
ids after the last published one, in this order: first the control tokens that BAGEL
adds too, then the markup. The published embedding table already has rows for them:
Qwen2.5 names 151,665 ids and has 152,064 rows, so nothing is extended. Those rows
are untrained; `process_gen.weights.start` fills them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from process_gen.common import files
from process_gen.data.tokenizers import UNKNOWN, Tokenizer, TokenizerError, words_of
from process_gen.trajectory.markup import (
    CONTROL_TOKENS,
    END_OF_TEXT,
    IM_END,
    IM_START,
    MARKUP_TOKENS,
    VISION_END,
    VISION_START,
)

WHOLE, VOCABULARY, MERGES, CONFIG = "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"
PROJECT_TOKENS = (IM_START, IM_END, VISION_START, VISION_END, END_OF_TEXT, *MARKUP_TOKENS)
"""Tokens that the project needs, in the order in which missing ones are added."""
PRETOKENIZE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenization pattern: the pieces inside which BPE merges bytes."""
PIPELINE = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": PRETOKENIZE_PATTERN},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
}
"""Normalizer, pre-tokenizer and decoder for `vocab.json` with `merges.txt`; `tokenizer.json` has its own."""
_PROBE = "It's 2024: na\u00efve cafe\u0301s,\n\n\u56fe  of THREE\u2019s <ins>.</ins>\t"
"""A text whose ids depend on normalization and pre-tokenization, for the fingerprint."""


class Qwen2Tokenizer(Tokenizer):
    """A published vocabulary behind the project's `Tokenizer`.

    Attributes:
      folder: where it was read from.
      added: the ids that published files do not have, by token.
    """

    def __init__(self, folder: str | pathlib.Path):
        """Reads the files of a folder.

        Raises TokenizerError: the library or a file is missing, or the files hold something else.
        """
        self.folder = pathlib.Path(folder)
        self._bpe, vocabulary, merges, added = _read(self.folder)
        ids = {**vocabulary, **{token: number for token, (number, _) in added.items()}}
        new, first = [token for token in PROJECT_TOKENS if token not in ids], max(ids.values()) + 1
        self.added = {token: first + i for i, token in enumerate(new)}
        ids |= self.added
        self.vocab_size = max(ids.values()) + 1
        # Special tokens in a text are encoded as plain characters, markup and other added tokens as ids.
        special = {token for token, (_, is_special) in added.items() if is_special}
        special = (special | set(CONTROL_TOKENS)) - set(MARKUP_TOKENS)
        super().__init__(ids, [*MARKUP_TOKENS, *(token for token in added if token not in special)])
        silent = {ids[token] for token in special}
        self.reserved = frozenset(silent | (set(range(self.vocab_size)) - set(ids.values())))
        self._ordinary = frozenset(vocabulary.values()) - self.reserved - self._names.keys()
        special = sorted((number, token) for token, number in ids.items() if token not in vocabulary)
        content = [sorted(vocabulary.items()), merges, special, sorted(self.reserved), self.encode(_PROBE)]
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def _encode(self, text: str) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids

    def _decode(self, run: list[int]) -> str:
        """Bytes that are not UTF-8 become the replacement character."""
        return "".join(
            self._bpe.decode([*part], skip_special_tokens=False) if known else UNKNOWN * len([*part])
            for known, part in itertools.groupby(run, self._ordinary.__contains__)
        )

    def unknown(self, text: str) -> list[str]:
        """Returns the words that do not survive encoding and decoding: none, in a published vocabulary."""
        normalize = self._bpe.normalizer.normalize_str if self._bpe.normalizer else str
        words = dict.fromkeys(words_of(text))
        return [word for word in words if self.decode(self.encode(word)) != normalize(word)]

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the tokenizer's files with this project's added tokens; published tools read them too."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WHOLE, VOCABULARY, MERGES, CONFIG):
            if (self.folder / name).is_file() and self.folder.resolve() != folder.resolve():
                shutil.copyfile(self.folder / name, folder / name)
        new = {number: _entry(token) for token, number in self.added.items()}
        config = _json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        known = config.get("added_tokens_decoder") or {}
        config["added_tokens_decoder"] = known | {str(number): entry for number, entry in new.items()}
        files.write_json(folder / CONFIG, config, indent=2, ensure_ascii=False)
        if (folder / WHOLE).is_file():
            whole = _json(folder / WHOLE)
            there = [entry for entry in whole.get("added_tokens") or [] if entry["id"] not in new]
            ours = [{"id": number, **entry} for number, entry in new.items()]
            whole["added_tokens"] = there + ours
            (folder / WHOLE).write_text(json.dumps(whole, ensure_ascii=False), "utf-8")


def _read(folder: pathlib.Path) -> tuple[Any, dict[str, int], list[str], dict[str, tuple[int, bool]]]:
    """Returns the BPE itself, its vocabulary and merges, and the added tokens: (id, whether special)."""
    try:
        import tokenizers
    except ImportError:
        raise TokenizerError(
            f"the tokenizer in {folder} needs the library tokenizers: pip install 'process_gen[bagel]'"
        ) from None
    added: dict[str, tuple[int, bool]] = {}
    if (folder / WHOLE).is_file():
        path, whole = folder / WHOLE, _json(folder / WHOLE)
    elif (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        path = folder / VOCABULARY
        model = {"type": "BPE", "vocab": _json(path), "merges": _merges(folder / MERGES)}
        whole = {"version": "1.0", "model": model, **PIPELINE}
    else:
        raise TokenizerError(
            f"{folder} holds no Qwen2 tokenizer: it needs {WHOLE}, or {VOCABULARY} and {MERGES}"
            + ("" if folder.is_dir() else " (there is no such folder)")
        )
    model = whole.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "vocab" not in model:
        kind = model.get("type") if isinstance(model, dict) else model
        raise TokenizerError(f"{path} is no byte-level BPE, as Qwen2 has it: its model is {kind!r}")
    vocabulary = model["vocab"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or []]
    for entry in whole.get("added_tokens") or []:
        _add(path, added, entry, entry.get("id") if isinstance(entry, dict) else None)
    # `encode` splits off added tokens itself, and the library must add none around a text.
    whole |= dict(added_tokens=[], post_processor=None, truncation=None, padding=None)
    try:
        bpe = tokenizers.Tokenizer.from_str(json.dumps(whole))
    except Exception as error:  # the library raises Exception itself
        raise TokenizerError(f"{path} cannot be used as a tokenizer: {error}") from error
    if not vocabulary:
        raise TokenizerError(f"the tokenizer in {folder} has an empty vocabulary")
    if (folder / CONFIG).is_file():
        known = _json(folder / CONFIG).get("added_tokens_decoder") or {}
        if not isinstance(known, dict):
            raise TokenizerError(f"{folder / CONFIG}: added_tokens_decoder is not a JSON object")
        for number, entry in known.items():
            _add(folder / CONFIG, added, entry, number)
    _check_ids(folder, vocabulary, added)
    return bpe, vocabulary, merges, added


def _add(path: pathlib.Path, added: dict[str, tuple[int, bool]], entry: Any, number: Any) -> None:
    token = entry.get("content") if isinstance(entry, dict) else None
    try:
        number = int(number)
    except (TypeError, ValueError):
        number = -1
    if not isinstance(token, str) or not token or number < 0:
        raise TokenizerError(f"{path} has an added token without text or id: {entry}")
    if token in added and added[token][0] != number:
        raise TokenizerError(f"{path} gives {token} the id {number}, another file {added[token][0]}")
    added[token] = (number, bool(entry.get("special", False)))


def _check_ids(folder: pathlib.Path, vocabulary: Mapping[str, int], added: Mapping[str, tuple]) -> None:
    """Raises TokenizerError where an id belongs to several tokens, or a token has two ids."""
    owners = {number: token for token, number in vocabulary.items()}
    if len(owners) < len(vocabulary):
        raise TokenizerError(f"the vocabulary in {folder} gives one id to several tokens")
    for token, (number, _) in added.items():
        if vocabulary.get(token, number) != number or owners.setdefault(number, token) != token:
            raise TokenizerError(
                f"the files in {folder} disagree: the added token {token} has id {number}, "
                f"the vocabulary has {owners[number]!r} there"
            )


def _merges(path: pathlib.Path) -> list[str]:
    lines = [line.rstrip("\r") for line in _text(path).split("\n")]
    lines = [line for line in lines if line and not line.startswith("#version")]
    for line in lines:
        if line.count(" ") != 1:
            raise TokenizerError(f"{path} has a line that is no pair: {line[:40]!r}")
    return lines


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = files.from_json(_text(path))
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON ({error}): cut off, or a download that failed?") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} is not a JSON object")
    return content


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8: {error.reason}") from None


def _entry(token: str) -> dict[str, Any]:
    """Returns the entry of an added token in the published files' format."""
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    return {"content": token, **plain, "special": token in CONTROL_TOKENS}
