"""Trains the SentencePiece model of the scenes language.

    python tests/data/train_tokenizer.py [--output=...] [--trajectories=1000]

Every word of the scenes language becomes one token; printable ASCII characters
stay tokens of their own, so that a word from outside still encodes, letter by
letter. Case is folded. The same corpus always gives the same bytes.

SentencePiece's trainer supplies the special tokens, the normalisation and the
characters; the words are then added with their log frequencies, far above
those of the characters, so that a word is never cut.
"""

from __future__ import annotations

import collections
import io
import math
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
import sentencepiece
from absl import app, flags
from sentencepiece import sentencepiece_model_pb2

from process_gen import scenes
from process_gen.data.tokenizers import PAD, SPACE, UNKNOWN, SentencePieceTokenizer, words_of
from process_gen.scenes import language
from process_gen.scenes.grammar import prompt_words
from process_gen.scenes.levels import LEVELS, NUMBERS
from process_gen.trajectory import markup
from process_gen.trajectory.stages import Mode

ASSET = pathlib.Path(__file__).parents[2] / "process_gen" / "data" / "assets" / "scenes.model"

_OUTPUT = flags.DEFINE_string("output", str(ASSET), "File to write.")
_TRAJECTORIES = flags.DEFINE_integer("trajectories", 1_000, "Trajectories of each level to count words in.")

CHARACTERS = "".join(chr(code) for code in range(33, 127) if not chr(code).isupper())
MAX_VOCABULARY = 512
CHARACTER_SCORE = -40.0
"""Log probability of a spelt character: below that of any word."""


def train(texts: Iterable[str]) -> bytes:
    """Returns the serialized model of the language that `texts` are written in.

    Raises:
      ValueError: the language has too many words for the vocabulary.
    """
    counts = collections.Counter(word for text in texts for word in words_of(text.lower()))
    model = sentencepiece_model_pb2.ModelProto.FromString(_train_characters())
    pieces = list(model.pieces)
    words = [word for word in counts if len(word) > 1 or word.isalnum()]
    words.sort(key=lambda word: (-counts[word], word))
    if len(pieces) + len(words) > MAX_VOCABULARY:
        raise ValueError(
            f"{len(words)} words and {len(pieces)} other pieces exceed the vocabulary of {MAX_VOCABULARY}"
        )
    del model.pieces[:]
    specials = [piece for piece in pieces if piece.type != piece.NORMAL]
    characters = sorted((piece for piece in pieces if piece.type == piece.NORMAL), key=lambda p: p.piece)
    model.pieces.extend(specials)
    total = sum(counts.values())
    for word in words:
        model.pieces.add(piece=SPACE + word, score=math.log(counts[word] / total))
    for character in characters:
        model.pieces.add(piece=character.piece, score=CHARACTER_SCORE)
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    model.trainer_spec.vocab_size = len(model.pieces)
    return model.SerializeToString(deterministic=True)


def _train_characters() -> bytes:
    """Returns a model of special tokens and single characters."""
    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(CHARACTERS)]),
        model_writer=output,
        model_type="char",
        vocab_size=2 + len(markup.SPECIAL_TOKENS) + len(CHARACTERS) + 1,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=CHARACTERS,
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        pad_piece=PAD,
        unk_id=1,
        unk_piece=UNKNOWN,
        bos_id=-1,
        eos_id=-1,
        control_symbols=list(markup.CONTROL_TOKENS),
        user_defined_symbols=list(markup.MARKUP_TOKENS),
        num_threads=1,
        minloglevel=2,
    )
    return output.getvalue()


def vocabulary(level: str) -> list[str]:
    """Every word and punctuation mark of prompts and trajectories, sorted; no special tokens."""
    level = scenes.get_level(level)
    changes, faults = language.tables(level)
    said = [*changes.values(), *faults.values(), language.STARTS, language.MISSING, language.EVERYTHING]
    said += [language.FINE, language.TO_COME, language.TO_CHANGE]
    text = " ".join(re.sub(r"\{\w+\}", " ", phrase) for table in said for phrase in table)
    words = set(re.findall(r"\w+|[^\w\s]", text))
    words.update("a at and then nothing yet object objects , ;".split(), prompt_words(level))
    words.update(NUMBERS[1 : level.max_objects + 2])  # a draft may hold one too many
    words.update(() if level.hung else level.cells, *([name] for name, _ in level.sizes if level.sized))
    return sorted(words)


def corpus(rng: np.random.Generator, level: str, trajectories: int) -> Iterator[str]:
    """Yields the texts of so many training trajectories of a level."""
    names = scenes.categories(level)
    for index in range(trajectories):
        request = scenes.sample_request(rng, level, names[index % len(names)])
        if rng.random() < 0.9:
            yield from scenes.texts(scenes.teach(request, rng))
        else:
            yield from scenes.texts(scenes.baseline(request, rng, Mode.PLAN_ONLY))


def scenes_corpus(trajectories: int) -> Iterator[str]:
    """Yields the texts of `trajectories` trajectories of each level, and every word of its language."""
    for level in LEVELS:
        yield from corpus(np.random.default_rng(0), level, trajectories)
        yield " ".join(vocabulary(level))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    output = pathlib.Path(_OUTPUT.value)
    model = train(scenes_corpus(_TRAJECTORIES.value))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(model)
    print(f"{output}: {SentencePieceTokenizer(model).vocab_size} pieces, {len(model):,} bytes")


if __name__ == "__main__":
    app.run(main)
