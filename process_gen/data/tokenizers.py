"""Text to token ids and back.

A text is plain words with markup tokens between them. Markup (`<ins>` ...)
becomes one id each. Control tokens (`<|im_end|>` ...) exist only as ids that
the data and the sampler place: typed by a user they are ordinary characters.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece

from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.markup import CONTROL_TOKENS, MARKUP_TOKENS

PAD, UNKNOWN = "<pad>", "<unk>"
SCENES = "scenes"
"""How a config names the tokenizer that ships with the package."""
SPACE = "\u2581"
"""What SentencePiece writes for the space in front of a word."""
PUNCTUATION = ".,;:!?()\"'"
"""Characters that do not belong to the word they touch."""

_MARKUP = re.compile("|".join(map(re.escape, MARKUP_TOKENS)))


class TokenizerError(ValueError):
    """A tokenizer that cannot be read, or that is not the one a model was trained with."""


class Tokenizer:
    """Gives one id each to tokens that are whole in a text, such as markup; subclasses do the text between.

    Attributes:
      vocab_size: ids are in [0, vocab_size).
      im_start, im_end, vision_start, vision_end, end_of_text: control ids.
      reserved: ids below vocab_size that stand for no text: control and padding tokens, unused ids.
      fingerprint: hash of all that the ids depend on; ids of another fingerprint have other meanings.
      unknown_id: id of characters that the vocabulary does not hold; None where it holds all.
    """

    vocab_size: int
    reserved: frozenset[int]
    fingerprint: str
    unknown_id: int | None = None

    def __init__(self, ids: Mapping[str, int], whole: Sequence[str]):
        """`ids` are those of all special tokens, of which those in `whole` may stand in a text."""
        self.end_of_text, self.im_start, self.im_end, self.vision_start, self.vision_end = (
            ids[token] for token in CONTROL_TOKENS
        )
        self._whole = {token: ids[token] for token in whole}
        self._names = {number: token for token, number in self._whole.items()}
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(whole, key=len, reverse=True))) + ")")

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text without control tokens around it."""
        ids: list[int] = []
        for part in self._split.split(text):
            if part in self._whole:
                ids.append(self._whole[part])
            elif part:
                ids += self._encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`: markup is kept, control tokens and padding are dropped.

        Ids without a token (a model's vocabulary may be padded) decode as `UNKNOWN`.
        """
        text: list[str] = []
        run: list[int] = []
        for token in map(int, ids):
            if token in self._names:
                text += [self._decode(run), self._names[token]]
                run = []
            elif token != PAD_ID and token not in self.reserved:
                run.append(token)
        return "".join(text) + self._decode(run)

    def unknown(self, text: str) -> list[str]:
        """Returns the words of `text` that the vocabulary does not hold, each once."""
        raise NotImplementedError

    def _encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def _decode(self, run: list[int]) -> str:
        raise NotImplementedError


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with the special tokens of `trajectory.markup`."""

    def __init__(self, model: str | pathlib.Path | bytes):
        """Loads a serialized model, or the file that holds one.

        Raises ValueError: the model lacks a special token.
        """
        proto = model if isinstance(model, bytes) else pathlib.Path(model).read_bytes()
        self.fingerprint = hashlib.sha256(proto).hexdigest()[:16]
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self._pieces = [self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size())]
        ids = {piece: i for i, piece in enumerate(self._pieces)}
        missing = [token for token in CONTROL_TOKENS + MARKUP_TOKENS if token not in ids]
        if missing:
            raise ValueError(f"the SentencePiece model lacks the special tokens {', '.join(missing)}")
        super().__init__(ids, MARKUP_TOKENS)
        self.vocab_size, self.unknown_id = len(self._pieces), self._processor.unk_id()
        silent = {self._processor.pad_id(), *(ids[token] for token in CONTROL_TOKENS)}
        self.reserved = frozenset(silent - {PAD_ID})

    def unknown(self, text: str) -> list[str]:
        """Returns the words that are not one known piece of the vocabulary, in order, each once."""
        ids = {word: self._processor.encode(word) for word in words_of(text)}
        return [
            word for word, found in ids.items() if len(found) != 1 or self._processor.is_unknown(found[0])
        ]

    def _encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def _decode(self, run: list[int]) -> str:
        known = range(self.vocab_size)
        pieces = [self._pieces[i] if i in known and i != self.unknown_id else UNKNOWN for i in run]
        # SentencePiece puts a space in front of the first word.
        return "".join(pieces).replace(SPACE, " ").removeprefix(" ")


def words_of(text: str) -> list[str]:
    """Returns the words of a text, without its markup and the punctuation around them."""
    return [word for chunk in _MARKUP.sub(" ", text).split() if (word := chunk.strip(PUNCTUATION))]


@functools.cache
def scenes_tokenizer() -> SentencePieceTokenizer:
    """Returns the tokenizer of the scenes language, which ships with the package."""
    asset = importlib.resources.files("process_gen.data") / "assets" / "scenes.model"
    return SentencePieceTokenizer(asset.read_bytes())
