"""A tiny tokenizer in the files of a published Qwen2, trained on a few sentences."""

from __future__ import annotations

import json
import pathlib

import tokenizers

from process_gen.data.qwen2 import PRETOKENIZE_PATTERN
from process_gen.trajectory import markup

SENTENCES = (
    "a red circle left of a blue square!",
    "draw a blue square, then the cat on the mat.",
    "the circle isn't left of the square: it's 2 stars in b2",
    "na\u00efve caf\u00e9s don't paint \u4e00 \u56fe, they SKETCH it\n\n  twice",
)
PUBLISHED = (
    markup.END_OF_TEXT,
    markup.IM_START,
    markup.IM_END,
    "<|object_ref_start|>",
    markup.VISION_START,
    markup.VISION_END,
    "<tool_call>",
)
"""Added tokens in the order of their ids; the last one is not special, as in Qwen2.5."""


def write_tiny_qwen2(
    folder: pathlib.Path, added: tuple[str, ...] = PUBLISHED, whole: bool = True, size: int = 330
) -> pathlib.Path:
    """Writes `tokenizer.json`, or the other pair of files; either with `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.normalizer = tokenizers.normalizers.NFC()
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE_PATTERN), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(SENTENCES * 4, trainer)
    bpe.add_tokens(
        [tokenizers.AddedToken(token, special=_special(token), normalized=False) for token in added]
    )
    if whole:
        bpe.save(str(folder / "tokenizer.json"))
    else:
        bpe.model.save(str(folder))
    ids = {str(bpe.token_to_id(token)): {"content": token, "special": _special(token)} for token in added}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": ids}))
    return folder


def _special(token: str) -> bool:
    return token.startswith("<|")
