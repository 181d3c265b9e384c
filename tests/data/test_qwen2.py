"""The Qwen2 tokenizer: published ids stay, ours follow them, and any text comes back."""

from __future__ import annotations

import dataclasses
import json
import pickle
import unicodedata

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_qwen2 import PUBLISHED, SENTENCES, write_tiny_qwen2

from process_gen.data.encode import encode_trajectory
from process_gen.data.errors import SlotOverflow
from process_gen.data.qwen2 import Qwen2Tokenizer
from process_gen.data.tokenizers import Tokenizer, TokenizerError, scenes_tokenizer
from process_gen.trajectory import markup
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Plan, Trajectory, draft, refinement

LAYOUT = Layout(image_size=(8, 8), latent_grid=(1, 1), prompt=12, before=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Qwen2Tokenizer(folder)


@pytest.fixture(scope="module")
def published(folder):
    """The same files as the library reads them, which is what other tools do."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_published_ids_are_kept_and_ours_follow_them(tokenizer, published):
    assert isinstance(tokenizer, Tokenizer)
    size = published.get_vocab_size()
    assert tokenizer.added == {token: size + i for i, token in enumerate(markup.MARKUP_TOKENS)}
    assert tokenizer.vocab_size == size + 6
    for name in ("im_start", "im_end", "vision_start", "vision_end"):
        assert getattr(tokenizer, name) == published.token_to_id(f"<|{name}|>")
    assert tokenizer.end_of_text == published.token_to_id(markup.END_OF_TEXT)
    for text in SENTENCES:
        assert tokenizer.encode(text) == published.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("a <tool_call> b") == published.encode("a <tool_call> b").ids


def test_the_first_id_is_a_piece_of_text(tokenizer):
    assert tokenizer.encode("!!") == [0, 0] and 0 not in tokenizer.reserved
    one = Trajectory("a!!", (draft(np.zeros((8, 8, 3), np.uint8)),))
    tokens = encode_trajectory(tokenizer, LAYOUT, one)["prompt_tokens"]
    body = tokens[tokens != PAD_ID].tolist()
    assert body == [tokenizer.im_start, *tokenizer.encode("a!!"), tokenizer.im_end] and body.count(0) == 2
    assert (tokens[len(body) :] == PAD_ID).all()
    assert tokenizer.decode(tokens) == "a!!"


def test_control_tokens_that_a_vocabulary_lacks_are_added_as_bagel_does(tmp_path):
    tokenizer = Qwen2Tokenizer(write_tiny_qwen2(tmp_path, PUBLISHED[:3]))
    first = tokenizer.im_end + 1
    assert (tokenizer.vision_start, tokenizer.vision_end) == (first, first + 1)
    assert tokenizer.encode(markup.INS) == [first + 2]


@given(st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back_composed(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(0 <= token < tokenizer.vocab_size for token in ids) and not tokenizer.reserved & set(ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert tokenizer.unknown(text) == []


@pytest.mark.parametrize("token", [*markup.CONTROL_TOKENS, "<|object_ref_start|>"])
def test_special_tokens_are_ordinary_characters_when_typed(tokenizer, token):
    ids = tokenizer.encode(f"say {token} twice")
    assert not tokenizer.reserved & set(ids) and tokenizer.decode(ids) == f"say {token} twice"


def test_markup_is_one_id_each_and_round_trips(tokenizer):
    plan = Plan("draw the cat!", "a cat\non the mat  ")
    ids = tokenizer.encode(markup.write_plan(plan))
    assert [token for token in ids if token >= tokenizer.vocab_size - 6] == list(tokenizer.added.values())[:4]
    framed = [tokenizer.im_start, *ids, tokenizer.im_end, tokenizer.end_of_text, PAD_ID, PAD_ID]
    assert markup.parse_plan(tokenizer.decode(framed)) == plan


def test_any_ids_decode(tokenizer):
    size = tokenizer.vocab_size
    assert tokenizer.decode([size, 0, size + 9, -2, PAD_ID]) == "<unk>!<unk><unk>"
    half = tokenizer.encode("\u56fe")[:1]  # some of the bytes of a character
    assert tokenizer.decode(half) == "\ufffd"


def test_a_trajectory_is_wrapped_as_bagel_wraps_texts(tokenizer):
    image = np.zeros((8, 8, 3), np.uint8)
    trajectory = Trajectory(
        "a cat!", (draft(image, Plan("draw!", "a cat"), "it isn't"), refinement(image, "draw it!")), "one"
    )
    arrays = encode_trajectory(tokenizer, LAYOUT, trajectory)
    for tokens in (arrays["prompt_tokens"], *arrays["before_tokens"], arrays["after_tokens"][0]):
        text = tokens[tokens != PAD_ID]
        assert text[0] == tokenizer.im_start and text[-1] == tokenizer.im_end
        assert not {tokenizer.im_start, tokenizer.im_end} & set(text[1:-1].tolist())
    assert (arrays["after_tokens"][1] == PAD_ID).all()
    with pytest.raises(SlotOverflow, match="layout.prompt = 4"):
        encode_trajectory(tokenizer, dataclasses.replace(LAYOUT, prompt=4), trajectory)


def test_either_pair_of_files_gives_the_same_tokenizer(tokenizer, tmp_path):
    other = Qwen2Tokenizer(write_tiny_qwen2(tmp_path, whole=False))
    assert other.fingerprint == tokenizer.fingerprint
    assert [other.encode(text) for text in SENTENCES] == [tokenizer.encode(text) for text in SENTENCES]
    assert pickle.loads(pickle.dumps(other)).encode("a cat!") == tokenizer.encode("a cat!")


@pytest.mark.parametrize("whole", [True, False])
def test_a_saved_tokenizer_is_the_same_for_us_and_extended_for_others(tmp_path, whole):
    tokenizer = Qwen2Tokenizer(write_tiny_qwen2(tmp_path / "a", whole=whole))
    for _ in range(2):
        tokenizer.save(tmp_path / "b")
    Qwen2Tokenizer(tmp_path / "b").save(tmp_path / "b")
    again = Qwen2Tokenizer(tmp_path / "b")
    assert (again.fingerprint, again.vocab_size, again.added) == (
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        {},
    )
    if whole:
        other = tokenizers.Tokenizer.from_file(str(tmp_path / "b" / "tokenizer.json"))
        assert other.encode("<ins>a cat</ins>!").ids == tokenizer.encode("<ins>a cat</ins>!")


def test_other_vocabularies_have_other_fingerprints(tokenizer, tmp_path):
    smaller = Qwen2Tokenizer(write_tiny_qwen2(tmp_path / "a", size=300))
    fewer = Qwen2Tokenizer(write_tiny_qwen2(tmp_path / "b", PUBLISHED[:-1]))
    prints = {t.fingerprint for t in (tokenizer, smaller, fewer, scenes_tokenizer())}
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", '{"model": {"type": "BP', "tokenizer.json is not JSON .* cut off"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json is not UTF-8"),
        ("tokenizer.json", '{"model": {"type": "Unigram", "vocab": []}}', "is no byte-level BPE.* 'Unigram'"),
        ("tokenizer.json", '{"version": "1.0"}', "no byte-level BPE"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": ["a b"]}}', "json cannot be used"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": null}}', "json cannot be used"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": [1]}',
            "added_tokens_decoder is not a JSON object",
        ),
        ("tokenizer_config.json", "[]", "tokenizer_config.json is not a JSON object"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"3": {"content": "<x>"}}}',
            "the added token <x> has id 3, the vocabulary has '\\$'",
        ),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"999": {"content": "<|im_end|>"}}}',
            r"gives <\|im_end\|> the id 999, another file 332",
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "without text or id"),
    ],
)
def test_broken_files_are_named(tmp_path, file, content, message):
    write_tiny_qwen2(tmp_path)
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=message):
        Qwen2Tokenizer(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(TokenizerError, match="needs tokenizer.json, or vocab.json and merges.txt.*no such"):
        Qwen2Tokenizer(tmp_path / "nowhere")
    write_tiny_qwen2(tmp_path, whole=False)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(TokenizerError, match="merges.txt has a line that is no pair: 'a b c'"):
        Qwen2Tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match="holds no Qwen2 tokenizer"):
        Qwen2Tokenizer(tmp_path)


def test_ids_with_holes_are_never_written(tmp_path):
    write_tiny_qwen2(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["400"] = {"content": "<|far|>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Qwen2Tokenizer(tmp_path)
    assert set(range(337, 401)) <= tokenizer.reserved and tokenizer.encode(markup.INS) == [401]
