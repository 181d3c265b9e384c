"""Attention kernels against explicit masks, on random layouts."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from process_gen.models import kernels
from process_gen.models.attention import Visible, attend_dense, attend_kernel
from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.visibility import Chunk

BLOCKED = kernels.KERNELS["blocked"]
SPLASH = dataclasses.replace(
    kernels.KERNELS["splash"], prepare=functools.partial(kernels.splash_kernel, interpret=True)
)
"""The TPU kernels, interpreted."""
ROWS, HEADS, KV_HEADS = 2, 4, 2


@st.composite
def chunks(draw) -> Chunk:
    """Up to six segments: texts, clean images of latents or ViT tokens, noised copies."""
    segments = []
    for i in range(draw(st.integers(1, 6))):
        kind, size = draw(st.sampled_from(["text", "clean", "vit", "noised"])), draw(st.integers(1, 5))
        sizes = {"text": (size,), "clean": (2, size), "vit": (2, 0, size), "noised": (2, size)}[kind]
        segments.append(Segment(f"s{i}", "clean" if kind == "vit" else kind, *sizes))
    return Chunk(segments)


@st.composite
def steps(draw) -> Chunk:
    """The chunk of a training step."""
    fields = {name: draw(st.integers(1, 6)) for name in ("plan", "inspect", "refine")}
    fields |= {name: draw(st.integers(1, 2)) for name in ("sketch_copies", "refined_copies")}
    vit_grid = draw(st.sampled_from([(0, 0), (2, 2)]))
    return Chunk(Layout(latent_grid=(2, 2), vit_grid=vit_grid, **fields).step_segments)


def visibility(chunk: Chunk, context: int, seed: int):
    """What each group of queries may see: padding for all, and something more hidden from noised copies."""
    rng = np.random.default_rng(seed)
    there, valid = rng.random((ROWS, context)) < 0.7, rng.random((ROWS, chunk.tokens)) < 0.8
    dropped = rng.random((ROWS, context)) < 0.3

    def visible_to(group) -> Visible:
        return Visible(jnp.asarray(there & ~dropped if group.noised else there), jnp.asarray(valid))

    return visible_to


def reference_mask(chunk: Chunk, visible_to) -> np.ndarray:
    """[B, L, C + L] bool, from the mask of the chunk."""
    rows = []
    for query in range(chunk.tokens):
        (group,) = [g for g in chunk.groups if any(s.start <= query < s.stop for s in g.queries)]
        seen = visible_to(group)
        inside = np.asarray(seen.chunk) & chunk.mask[query]
        rows.append(np.concatenate([seen.context, inside], axis=1))
    return np.stack(rows, axis=1)


def tensors(chunk: Chunk, context: int, head: int, seed: int):
    rng = np.random.default_rng(seed)
    shapes = [(ROWS, chunk.tokens, n, head) for n in (HEADS, KV_HEADS, KV_HEADS)]
    q, k, v = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
    pair = tuple(jnp.asarray(rng.standard_normal((ROWS, KV_HEADS, context, head)), jnp.float32) for _ in "kv")
    return q, k, v, pair


def kernel_mask(kernel, chunk: Chunk, context: int, visible_to, seed: int) -> np.ndarray:
    """[B, L, C + L] bool: every value is a unit vector, so that attention gives its own weights."""
    total = context + chunk.tokens
    assert total <= 128
    q, k, _, (keys, _) = tensors(chunk, context, 128, seed)
    units = jnp.eye(total, 128)
    values = jnp.broadcast_to(units[None, None, :context], keys.shape)
    own = jnp.broadcast_to(units[None, context:, None], k.shape)
    out = attend_kernel(kernel, chunk, visible_to)(q, k, own, [(keys, values)])
    weights = out.reshape(ROWS, chunk.tokens, HEADS, 128)[..., :total]
    assert np.isfinite(weights).all()
    masks = np.moveaxis(np.asarray(weights) > 0, 2, 0)
    assert (masks == masks[0]).all(), "all heads see the same"
    return masks[0]


def check_mask(kernel, chunk: Chunk, context: int, seed: int) -> None:
    visible_to = visibility(chunk, context, seed)
    wanted = reference_mask(chunk, visible_to)
    sees = wanted.any(-1)
    found = kernel_mask(kernel, chunk, context, visible_to, seed)
    np.testing.assert_array_equal(found[sees], wanted[sees])


RANDOM = settings(
    deadline=None, max_examples=5, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)


@RANDOM
@given(st.one_of(chunks(), steps()), st.integers(0, 20), st.integers(0, 2**31))
def test_blocked_sees_what_the_reference_mask_says(chunk, context, seed):
    check_mask(BLOCKED, chunk, context, seed)


@pytest.mark.slow
@settings(RANDOM, max_examples=3)
@given(st.one_of(chunks(), steps()), st.integers(0, 20), st.integers(0, 2**31))
def test_splash_sees_what_the_reference_mask_says(chunk, context, seed):
    check_mask(SPLASH, chunk, context, seed)


@settings(RANDOM, max_examples=100)
@given(st.one_of(chunks(), steps()))
def test_calls_cover_the_mask_without_a_mask(chunk):
    covered = np.zeros((chunk.tokens, chunk.tokens), int)
    tokens = np.arange(chunk.tokens)
    for call in chunk.calls:
        queries, keys = (np.concatenate([tokens[s] for s in part]) for part in (call.queries, call.keys))
        np.testing.assert_array_equal(keys[len(keys) - len(queries) :], queries)
        seen = np.ones((len(queries), len(keys)), bool)
        covered[np.ix_(queries, keys)] += np.tril(seen, len(keys) - len(queries)) if call.causal else seen
    np.testing.assert_array_equal(covered, chunk.mask)


def test_a_segment_that_is_seen_in_part_needs_a_mask():
    chunk = Chunk([Segment("a", "text", 3), Segment("b", "text", 4)], {"a": 5})
    with pytest.raises(ValueError, match="use a masked attention"):
        _ = chunk.calls


STEP = Chunk(Layout(plan=5, inspect=3, refine=4, latent_grid=(2, 2), vit_grid=(2, 2)).step_segments)


@pytest.mark.parametrize("kernel", [BLOCKED, SPLASH], ids=lambda kernel: kernel.name)
def test_outputs_and_gradients_equal_those_of_dense_attention(kernel, monkeypatch):
    monkeypatch.setattr(kernels, "_SCORES", 64)  # several blocks
    context = 11
    visible_to = visibility(STEP, context, 0)
    sees = reference_mask(STEP, visible_to).any(-1)
    q, k, v, pair = tensors(STEP, context, 16, 1)
    weights = jnp.asarray(
        np.random.default_rng(2).standard_normal((ROWS, STEP.tokens, HEADS * 16)), jnp.float32
    )
    weights = jnp.where(sees[..., None], weights, 0.0)

    def run(attention):
        def loss(q, k, v, pair):
            out = attention(q, k, v, [pair])
            return (out * weights).sum(), jnp.where(sees[..., None], out, 0.0)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, pair)

    found = run(attend_kernel(kernel, STEP, visible_to))
    wanted = run(attend_dense(STEP, visible_to))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [BLOCKED, SPLASH], ids=lambda kernel: kernel.name)
def test_hidden_keys_and_values_change_no_bit(kernel):
    context = 6
    visible_to = visibility(STEP, context, 3)
    mask = reference_mask(STEP, visible_to)
    q, k, v, pair = tensors(STEP, context, 16, 4)
    run = jax.jit(lambda k, v, pair: attend_kernel(kernel, STEP, visible_to)(q, k, v, [pair]))
    old, sees = np.asarray(run(k, v, pair)), mask.any(-1)
    noised = context + STEP.latents("sketch_noised_0").start
    slot = next(i for i in range(context) if mask[..., i].any() and (sees & ~mask[..., i]).any())
    for key in (slot, noised):
        if key < context:
            new = run(k, v, tuple(x.at[:, :, key].add(7.0) for x in pair))
        else:
            new = run(k.at[:, key - context].add(7.0), v.at[:, key - context].add(7.0), pair)
        seeing = mask[..., key]
        np.testing.assert_array_equal(old[sees & ~seeing], np.asarray(new)[sees & ~seeing])
        assert (old[seeing] != np.asarray(new)[seeing]).any(-1).all()


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
    found = run(SPLASH, q, *holes)
    kernels.splash_kernel.cache_clear()
    for a, b in zip(found, run(BLOCKED, q, k, v), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [BLOCKED, SPLASH], ids=lambda kernel: kernel.name)
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
        assert kernels.choose("splash", 128, "bfloat16").name == "blocked"
    assert lines == [
        "attention splash: blocked instead of splash, because its kernels run on TPUs, this is for cpu"
    ]
    assert kernels.choose("flash", 128, "bfloat16").name == "blocked" and len(lines) == 1
    for platform, wanted in (("tpu", "splash"), ("cuda", "cudnn"), ("rocm", "blocked")):
        monkeypatch.setattr(kernels.partition, "platform", lambda platform=platform: platform)
        assert kernels.choose("flash", 128, "bfloat16").name == wanted
    monkeypatch.setattr(kernels.partition, "platform", lambda: "cuda")
    assert kernels.choose("flash", 128, "float32").name == "blocked"
    assert kernels.choose("flash", 12, "bfloat16").name == "blocked"
    assert len(lines) == 3


def test_nothing_of_the_size_of_the_scores_is_ever_made():
    queries, keys = 2048, 8192

    def loss(q, k, v, visible):
        return kernels.run(BLOCKED, q, k, v, visible, keys - queries).sum()

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
