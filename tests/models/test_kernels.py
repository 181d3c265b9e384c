"""Kernels for attention: what they read, what they give where nothing is seen, and which one is taken."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from process_gen.models import kernels
from tests.models.ways import using


@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (4, 7), (5, 6)])
def test_a_masked_call_of_cudnn_is_of_even_lengths_and_gives_zeros_where_nothing_is_seen(queries, keys, rng):
    q, k, v = (
        jnp.asarray(rng.standard_normal((2, heads, length, 16)), jnp.float32)
        for heads, length in ((4, queries), (2, keys), (2, keys))
    )
    mask = rng.random((2, queries, keys)) < 0.6
    mask[0, 1] = False
    mask[:, 0, 0] = True

    def run(function):
        def loss(q, k, v):
            out = jnp.where(mask.any(2)[:, None, :, None], function(q, k, v, jnp.asarray(mask)), 0.0)
            return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    def explicit(q, k, v, mask):
        heads_last = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return jnp.swapaxes(jax.nn.dot_product_attention(*heads_last, mask=mask[:, None]), 1, 2)

    with using("cudnn") as (_, lengths):
        found = run(kernels.run_masked)
        alone = kernels.run_masked(q, k, v, jnp.asarray(mask))
    assert set(lengths) == {(queries + queries % 2, keys + keys % 2)}
    assert not alone[0, :, 1].any() and alone[1].any()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(run(explicit)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("before", [None, 500])
def test_splash_reads_no_block_of_keys_that_nobody_sees(before, monkeypatch, rng):
    """Values that are no numbers would spoil every sum that they are part of, times zero or not."""
    monkeypatch.setattr(kernels, "BLOCK_Q", 128)
    monkeypatch.setattr(kernels, "BLOCK_KV", 128)
    kernels.splash_kernel.cache_clear()
    q, k, v = (jnp.asarray(rng.standard_normal((2, 2, n, 16)), jnp.float32) for n in (200, 700, 700))
    visible = np.zeros((2, 700), bool)
    visible[0, 130:250] = visible[0, 600:700] = True  # the second and the last two of six blocks
    visible[1, 140:256] = rng.random(116) < 0.5
    hidden = np.zeros_like(visible)
    hidden[:, :128] = hidden[:, 256:512] = True  # rows of a device share their blocks

    def run(kernel, *tensors):
        def loss(q, k, v):
            out = kernels.run(kernel, q, k, v, jnp.asarray(visible), before)
            return (out * out).sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*tensors)
        return out, *gradients

    holes = [jnp.where(hidden[:, None, :, None], jnp.nan, x) for x in (k, v)]
    found = run("splash", q, *holes)
    kernels.splash_kernel.cache_clear()
    for a, b in zip(found, run("blocked", q, k, v), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["blocked", "splash"])
@pytest.mark.parametrize("before", [None, 3])
def test_queries_that_see_nothing_give_zeros_and_zero_gradients(kernel, before):
    q, k, v = (jnp.full((2, 2, n, 16), 0.3) for n in (5, 8, 8))

    visible = jnp.asarray([[False] * 8, [False] * 6 + [True] * 2])

    def loss(q, k, v):
        out = kernels.run(kernel, q, k, v, visible, before)
        return out.sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    assert not out[0].any() and not any(x[0].any() for x in gradients)
    blind = 0 if before is None else 3  # of the second row: its first visible key is the seventh
    assert not out[1, :, :blind].any() and out[1, :, blind:].all()
    assert all(np.isfinite(x).all() for x in gradients) and gradients[2][1, :, 6].all()


def test_full_attention_equals_the_plain_one(rng):
    q, k, v = (jnp.asarray(rng.standard_normal((2, 7, 3, 8)), jnp.float32) for _ in "qkv")
    np.testing.assert_allclose(
        kernels.full("flash", q, k, v), jax.nn.dot_product_attention(q, k, v), rtol=1e-5, atol=1e-5
    )


def test_what_cannot_work_here_falls_back_with_one_line(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    kernels._report.cache_clear()
    for _ in range(2):
        assert kernels.choose("splash", 128, "bfloat16") == "blocked"
    assert lines == [
        "attention splash: blocked instead of splash, because its kernels run on TPUs, this is for cpu"
    ]
    assert kernels.choose("flash", 128, "bfloat16") == "blocked" and len(lines) == 1
    for platform, wanted in (("tpu", "splash"), ("cuda", "cudnn"), ("rocm", "blocked")):
        monkeypatch.setattr(kernels.partition, "platform", lambda platform=platform: platform)
        assert kernels.choose("flash", 128, "bfloat16") == wanted
    monkeypatch.setattr(kernels.partition, "platform", lambda: "cuda")
    assert kernels.choose("flash", 128, "float32") == "blocked"
    assert kernels.choose("flash", 12, "bfloat16") == "blocked"
    for capability, wanted in ((7.5, "blocked"), (8.0, "cudnn"), (9.0, "cudnn")):
        monkeypatch.setattr(kernels.partition, "compute_capability", lambda known=capability: known)
        assert kernels.choose("flash", 128, "bfloat16") == wanted
    assert len(lines) == 4


def test_nothing_of_the_size_of_the_scores_is_ever_made():
    queries, keys = 2048, 8192

    def loss(q, k, v, visible):
        return kernels.run("blocked", q, k, v, visible, keys - queries).sum()

    arrays = [
        jax.ShapeDtypeStruct((1, n, length, 8), jnp.float32)
        for n, length in ((2, queries), (1, keys), (1, keys))
    ]
    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(
        *arrays, jax.ShapeDtypeStruct((1, keys), jnp.bool_)
    )
    largest = max(size for size in sizes(jaxpr.jaxpr))
    assert largest <= 2 * kernels._SCORES < queries * keys


def sizes(jaxpr):
    """Elements of every array that a program makes, inner programs included."""
    seen, waiting = set(), [jaxpr]
    while waiting:
        jaxpr = waiting.pop()
        if id(jaxpr) in seen:
            continue
        seen.add(id(jaxpr))
        for equation in jaxpr.eqns:
            yield from (x.aval.size for x in equation.outvars if hasattr(x.aval, "size"))
            inner = jax.tree.leaves(
                equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
            )
            waiting += [getattr(x, "jaxpr", x) for x in inner if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
