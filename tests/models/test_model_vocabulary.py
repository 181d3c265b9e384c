"""Cross-entropy in chunks of the vocabulary, with the numbers of whole logits, and the look-up of words."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.losses import LossTable
from process_gen.models.config import SIZES
from process_gen.models.unified import UnifiedModel
from process_gen.models.unroll import unroll
from process_gen.models.vocabulary import chunked_cross_entropy, cross_entropy, lookup
from process_gen.trajectory.controls import labels
from tests.models.tiny import IDS, VOCAB, make_batch, make_model

KEY = jax.random.key(0)
ROWS = {
    f"{stage}_{kind}": dict(loss=loss, stage=stage, weight=0.5)
    for kind, loss in (("text", "text_cross_entropy"), ("decision", "decision_cross_entropy"))
    for stage in ("plan", "sketch", "inspect", "refine")
    if (kind, stage) != ("text", "sketch")
}


def problem(rng, words=24):
    hidden = jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32)
    kernel = jnp.asarray(3 * rng.standard_normal((8, words)), jnp.float32)
    return hidden, kernel, jnp.asarray(rng.integers(0, words, (2, 5)), jnp.int32)


@pytest.mark.parametrize("chunk", [1, 6, 24])
def test_values_and_gradients_are_those_of_whole_logits(rng, chunk):
    hidden, kernel, targets = problem(rng)
    weights = jnp.asarray(rng.standard_normal(targets.shape), jnp.float32)

    def whole(hidden, kernel):
        values = cross_entropy(hidden @ kernel, targets)
        return (weights * values).sum(), values

    def parts(hidden, kernel):
        values = chunked_cross_entropy(hidden, kernel, targets, chunk)
        return (weights * values).sum(), values

    wanted, wanted_values = jax.grad(whole, (0, 1), has_aux=True)(hidden, kernel)
    found, values = jax.grad(parts, (0, 1), has_aux=True)(hidden, kernel)
    np.testing.assert_allclose(values, wanted_values, rtol=1e-5, atol=1e-6)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_large_logits_stay_finite_and_padding_does_not_matter(rng):
    hidden, kernel, targets = problem(rng)
    values = chunked_cross_entropy(1e4 * hidden, kernel, targets.at[0].set(-1), 4)
    np.testing.assert_allclose(values[1], cross_entropy(1e4 * hidden @ kernel, targets)[1], rtol=1e-5)
    assert np.isfinite(values).all()


def test_half_precision_sums_in_single(rng):
    hidden, kernel, targets = problem(rng)
    low, exact = (
        hidden.astype(jnp.bfloat16),
        cross_entropy(
            hidden.astype(jnp.bfloat16).astype(jnp.float32) @ kernel.astype(jnp.bfloat16).astype(jnp.float32),
            targets,
        ),
    )
    values = chunked_cross_entropy(low, kernel, targets, 6)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, exact, rtol=1e-5, atol=1e-5)


def terms_of(chunk: int, table: LossTable, batch, params, with_text: bool = False):
    whole, _ = make_model()
    model = UnifiedModel(dataclasses.replace(whole.config, logit_chunk=chunk), whole.layout, IDS)

    def loss(params):
        outputs = unroll(model, params, batch, KEY)
        sums, counts = table.terms(outputs, batch, labels(batch, IDS), KEY)
        return table.total(sums, counts), (sums, counts)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    if with_text:
        return step.lower(params).as_text()
    (_, (sums, counts)), gradients = step(params)
    return sums, counts, gradients


def test_every_stock_loss_is_that_of_whole_logits():
    table, batch, (_, params) = LossTable(ROWS), make_batch(3, seed=2), make_model()
    wanted, found = (terms_of(chunk, table, batch, params) for chunk in (0, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), found, wanted)


def test_no_array_holds_the_vocabulary_of_a_token():
    table, batch, (_, params) = LossTable(ROWS), make_batch(3, seed=2), make_model()
    width = params["head"]["kernel"].shape[0]

    def widest(chunk):
        shapes = re.findall(r"tensor<([\dx]+)x[fb]", terms_of(chunk, table, batch, params, with_text=True))
        shapes = {tuple(map(int, shape.split("x"))) for shape in shapes}
        return {shape for shape in shapes if shape[-1] == VOCAB and shape != (width, VOCAB)}

    assert widest(0) and not widest(8)


def test_losses_of_users_may_ask_for_logits_or_for_their_own_labels():
    batch, (whole, params) = make_batch(2), make_model()
    model = UnifiedModel(dataclasses.replace(whole.config, logit_chunk=8), whole.layout, IDS)
    outputs = jax.jit(lambda params: _asked(unroll(model, params, batch, KEY)))(params)
    logits, scored, targets = outputs
    np.testing.assert_allclose(scored, cross_entropy(logits, targets), rtol=1e-5, atol=1e-5)


def _asked(outputs):
    hidden = outputs.hidden["noised_end"]
    targets = jnp.full(hidden.shape[:-1], 3)
    return outputs.logits(hidden), outputs.nll(hidden, targets), targets


def test_a_chunk_of_all_words_is_none():
    assert not dataclasses.replace(SIZES["debug"], logit_chunk=320).logits_in_chunks
    assert SIZES["bagel_7b"].logits_in_chunks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk", [4, 12, 24])
def test_rows_and_gradients_are_those_of_a_plain_lookup(chunk, dtype):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((24, 5)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 24, (3, 40)), jnp.int32)  # words come again and again
    slopes = jnp.asarray(rng.standard_normal((3, 40, 5)), jnp.dtype(dtype))

    def loss(table, look):
        return (look(table) * slopes).astype(jnp.float32).sum()

    def plain(table):
        return jnp.take(table, tokens, axis=0).astype(jnp.dtype(dtype))

    def ours(table):
        return lookup(table, tokens, chunk, dtype)

    np.testing.assert_array_equal(ours(table), plain(table))
    wanted, found = (jax.jit(jax.grad(loss), static_argnums=1)(table, look) for look in (plain, ours))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
