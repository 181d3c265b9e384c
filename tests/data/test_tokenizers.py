import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from process_gen.data.tokenizers import SentencePieceTokenizer, Tokenizer, scenes_tokenizer, words_of
from process_gen.scenes.levels import LEVELS
from process_gen.scenes.words import count_tokens
from process_gen.trajectory import markup
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.stages import Plan
from tests.data.train_tokenizer import MAX_VOCABULARY, corpus, train, vocabulary

TOKENIZER = scenes_tokenizer()
CONTROL = {
    TOKENIZER.end_of_text,
    TOKENIZER.im_start,
    TOKENIZER.im_end,
    TOKENIZER.vision_start,
    TOKENIZER.vision_end,
}


def test_the_shipped_tokenizer_is_small_and_keeps_its_ids():
    assert isinstance(TOKENIZER, Tokenizer)
    assert TOKENIZER.vocab_size <= MAX_VOCABULARY
    assert (TOKENIZER.end_of_text, TOKENIZER.im_start, TOKENIZER.im_end) == (2, 3, 4)
    assert (TOKENIZER.vision_start, TOKENIZER.vision_end) == (5, 6)
    assert [TOKENIZER.encode(token) for token in markup.MARKUP_TOKENS] == [[7], [8], [9], [10], [11], [12]]


def test_words_and_punctuation_are_one_token_each():
    text = "a red circle, left of two blue squares; a star at b2."
    assert len(TOKENIZER.encode(text)) == 15
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.unknown(text) == []


@pytest.mark.parametrize("level", LEVELS)
def test_the_whole_scenes_language_is_one_token_a_word(level):
    words = [word for word in vocabulary(level) if word.isalnum()]
    assert len(words) > 100 and not TOKENIZER.unknown(" ".join(words))
    for text in corpus(np.random.default_rng(7), level, 60):
        ids = TOKENIZER.encode(text)
        assert len(ids) == count_tokens(text), "the budgets of the levels count tokens as they are"
        assert TOKENIZER.decode(ids) == text


def test_markup_round_trips_through_the_parser():
    plan = Plan("draw a red circle at a1.", "a red circle, and a blue square.")
    ids = TOKENIZER.encode(markup.write_plan(plan))
    assert len(set(ids) & {7, 8, 9, 10}) == 4
    framed = [TOKENIZER.im_start, *ids, TOKENIZER.im_end, PAD_ID, PAD_ID]
    assert markup.parse_plan(TOKENIZER.decode(framed)) == plan


def test_case_is_folded_and_spaces_are_single():
    assert TOKENIZER.encode("A  Red\tCircle\n") == TOKENIZER.encode("a red circle")


@pytest.mark.parametrize("token", markup.CONTROL_TOKENS)
@pytest.mark.parametrize("form", ["{}", "a {} b", "a{}b", "{}{}"])
def test_a_typed_control_token_is_plain_text(token, form):
    for text in (form.format(token, token), form.format(token, token).upper()):
        ids = TOKENIZER.encode(text)
        assert not CONTROL & set(ids)
        assert TOKENIZER.decode(ids) == text.lower()


def test_words_from_outside_are_spelt_and_named():
    text = "a Zebra, two zebras and a red zebra with 47 circles"
    assert TOKENIZER.unknown(text) == ["Zebra", "zebras", "zebra", "47"]
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text.lower()
    assert TOKENIZER.unknown("<ins>a red circle</ins>") == []


def test_characters_from_outside_read_as_unknown():
    ids = TOKENIZER.encode("a \N{SNOWMAN} circle")
    assert TOKENIZER.decode(ids) == "a <unk> circle"
    assert TOKENIZER.unknown("a \N{SNOWMAN} circle") == ["\N{SNOWMAN}"]


def test_any_ids_decode():
    size = TOKENIZER.vocab_size
    assert TOKENIZER.decode([size, size + 100, -2, PAD_ID]) == "<unk><unk><unk>"
    assert TOKENIZER.decode(range(size)).startswith("<unk><ins></ins>")
    assert TOKENIZER.decode([]) == ""


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_ascii_text_round_trips(text):
    ids = TOKENIZER.encode(text)
    assert not CONTROL & set(ids) and all(0 < token < TOKENIZER.vocab_size for token in ids)
    assert TOKENIZER.decode(ids) == " ".join(text.lower().split())


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_no_text_yields_control_tokens(text):
    ids = TOKENIZER.encode(text)
    assert not CONTROL & set(ids)
    assert isinstance(TOKENIZER.decode(ids), str)


def test_training_gives_the_same_bytes_for_the_same_corpus(toy_tokenizer):
    corpus = ["a red circle.", "two red squares", "a red a"]
    assert train(corpus) == train(list(corpus))
    tokenizer = SentencePieceTokenizer(train(corpus))
    assert tokenizer.fingerprint != SentencePieceTokenizer(train(["a"])).fingerprint
    assert tokenizer.encode("a red") == [13, 14], "words come in the order of their frequency"
    assert pickle.loads(pickle.dumps(tokenizer)).encode("two squares") == tokenizer.encode("two squares")
    with pytest.raises(ValueError, match="exceed the vocabulary of 512"):
        train([" ".join(f"word{i}" for i in range(500))])


def test_a_model_without_the_special_tokens_is_refused(tmp_path):
    import io

    import sentencepiece

    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"]), model_writer=output, model_type="char", vocab_size=7, minloglevel=2
    )
    path = tmp_path / "plain.model"
    path.write_bytes(output.getvalue())
    with pytest.raises(ValueError, match=r"lacks the special tokens <\|endoftext\|>, .*</refine>"):
        SentencePieceTokenizer(path)


def test_words_are_split_from_their_punctuation():
    assert words_of('Say "a red, top-left <ins>one" (twice)!') == "Say a red top-left one twice".split()
