"""Attention kernels against explicit masks, on random layouts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from process_gen.models import kernels, masked
from process_gen.models.attention import attend_chunk
from process_gen.models.masked import Keys
from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.visibility import Chunk
from tests.models.dense import Places
from tests.models.tiny import CONFIG, VIT, layout
from tests.models.ways import WAYS, attended_rows, rows_of_turns, using

ways = pytest.mark.parametrize("kernel", WAYS)
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
def turns(draw) -> Chunk:
    """The chunk of a training turn."""
    fields = {name: draw(st.integers(0, 6)) for name in ("before", "after")} | {
        "copies": draw(st.integers(1, 2))
    }
    vit_grid = draw(st.sampled_from([(0, 0), (2, 2)]))
    return Chunk(Layout(latent_grid=(2, 2), vit_grid=vit_grid, **fields).turn_segments)


@dataclasses.dataclass
class Problem:
    """A chunk after a history and a prompt, padding in all of them.

    Attributes:
      own, own_mask, history, history_mask, prompt, prompt_mask: as `attend_chunk` takes them.
    """

    own: tuple
    own_mask: jax.Array
    history: tuple
    history_mask: jax.Array
    prompt: tuple
    prompt_mask: jax.Array

    def run(self, config, chunk, tensors=None, block=None):
        own, history, prompt = tensors or (self.own, self.history, self.prompt)
        history, prompt = Keys(*history, self.history_mask), Keys(*prompt, self.prompt_mask)
        block = block or self.history_mask.shape[1] or 1
        return attend_chunk(config, chunk, own, self.own_mask, history, [prompt], block)  # [B, N, L, H]

    def mask(self, chunk: Chunk) -> np.ndarray:
        """[B, L, history + prompt + L] bool."""
        before = np.concatenate([self.history_mask, self.prompt_mask], axis=1)[:, None]
        before = np.broadcast_to(before, (ROWS, chunk.tokens, before.shape[2]))
        return np.concatenate([before, np.asarray(self.own_mask)[:, None] & chunk.mask[None]], axis=2)


def problem(chunk: Chunk, history: int, prompt: int, head: int, seed: int) -> Problem:
    rng = np.random.default_rng(seed)

    def normal(heads, length):
        return jnp.asarray(rng.standard_normal((ROWS, heads, length, head)), jnp.float32)

    def there(length, share):
        return jnp.asarray(rng.random((ROWS, length)) < share)

    own = tuple(normal(heads, chunk.tokens) for heads in (HEADS, KV_HEADS, KV_HEADS))
    pairs = [tuple(normal(KV_HEADS, length) for _ in "kv") for length in (history, prompt)]
    masks = there(chunk.tokens, 0.8), there(history, 0.5), there(prompt, 0.7)
    return Problem(own, masks[0], pairs[0], masks[1], pairs[1], masks[2])


def found_mask(kernel, chunk: Chunk, case: Problem) -> np.ndarray:
    """Like `Problem.mask`: every value is a unit vector, so that attention gives its own weights."""
    head, total = case.own[0].shape[-1], case.mask(chunk).shape[2]
    assert total <= head
    units = jnp.broadcast_to(jnp.eye(total, head)[None, None], (ROWS, KV_HEADS, total, head))
    cuts = np.cumsum([case.history_mask.shape[1], case.prompt_mask.shape[1]])
    values = jnp.split(units, cuts, axis=2)
    tensors = (*case.own[:2], values[2]), (case.history[0], values[0]), (case.prompt[0], values[1])
    with using(kernel) as (config, _):
        run = jax.jit(lambda tensors: case.run(config, chunk, tensors))
        weights = np.asarray(run(tensors))[..., :total]
    assert np.isfinite(weights).all()
    masks = np.moveaxis(weights > 0, 1, 0)
    assert (masks == masks[0]).all(), "all heads see the same"
    return masks[0]


def check_mask(kernel, chunk: Chunk, history: int, prompt: int, seed: int) -> None:
    case = problem(chunk, history, prompt, 128, seed)
    wanted = case.mask(chunk)
    sees = wanted.any(-1)
    np.testing.assert_array_equal(found_mask(kernel, chunk, case)[sees], wanted[sees])


RANDOM = settings(
    deadline=None, max_examples=5, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)


EXAMPLES = given(st.one_of(chunks(), turns()), st.integers(0, 10), st.integers(0, 10), st.integers(0, 2**31))


@pytest.mark.parametrize("kernel", ["blocked", "cudnn"])
@RANDOM
@EXAMPLES
def test_a_kernel_sees_what_the_reference_mask_says(kernel, chunk, history, prompt, seed):
    check_mask(kernel, chunk, history, prompt, seed)


@pytest.mark.slow
@settings(RANDOM, max_examples=3)
@EXAMPLES
def test_splash_sees_what_the_reference_mask_says(chunk, history, prompt, seed):
    check_mask("splash", chunk, history, prompt, seed)


@settings(RANDOM, max_examples=100)
@given(st.one_of(chunks(), turns()))
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
    chunk = Chunk([Segment("a", "text", 3), Segment("b", "text", 4)])
    chunk.mask[5:, :3] = False  # as if the first text were seen up to there
    with pytest.raises(ValueError, match="use a masked attention"):
        _ = chunk.calls


TURN = Chunk(Layout(before=5, after=3, latent_grid=(2, 2), vit_grid=(2, 2)).turn_segments)


@ways
def test_outputs_and_gradients_equal_those_of_dense_attention(kernel, monkeypatch):
    monkeypatch.setattr(kernels, "_SCORES", 64)  # several blocks
    case = problem(TURN, 8, 3, 16, 0)
    sees = case.mask(TURN).any(-1)[:, None, :, None]
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(case.own[0].shape), jnp.float32) * sees

    def run(kernel):
        with using(kernel) as (config, _):

            def loss(tensors):
                out = case.run(config, TURN, tensors)
                return (out * weights).sum(), jnp.where(sees, out, 0.0)

            tensors = case.own, case.history, case.prompt
            return jax.jit(jax.value_and_grad(loss, has_aux=True))(tensors)

    for a, b in zip(jax.tree.leaves(run(kernel)), jax.tree.leaves(run(None)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@ways
def test_hidden_keys_and_values_change_no_bit(kernel):
    case = problem(TURN, 4, 2, 16, 3)
    mask = case.mask(TURN)
    with using(kernel) as (config, _):
        run = jax.jit(lambda *tensors: jnp.moveaxis(case.run(config, TURN, tensors), 1, 2))
        old, sees = np.asarray(run(case.own, case.history, case.prompt)), mask.any(-1)
    noised = 6 + TURN.latents["noised_0"].start
    slot = next(i for i in range(4) if mask[..., i].any() and (sees & ~mask[..., i]).any())
    for key in (slot, noised):
        own, history = case.own, case.history
        if key < 4:
            history = tuple(x.at[:, :, key].add(7.0) for x in history)
        else:
            own = (own[0], *(x.at[:, :, key - 6].add(7.0) for x in own[1:]))
        new, seeing = np.asarray(run(own, history, case.prompt)), mask[..., key]
        np.testing.assert_array_equal(old[sees & ~seeing], new[sees & ~seeing])
        assert (old[seeing] != new[seeing]).any((-1, -2)).all()


@pytest.mark.parametrize("empty", [0, 1, 3])
def test_turns_of_a_history_that_nobody_sees_change_nothing_when_they_are_left_out(empty, monkeypatch):
    """Whole turns, the oldest first, are left out where no row sees anything of them."""
    case, block = problem(TURN, 12, 3, 16, 5), 4
    seen = case.history_mask.at[:, : empty * block].set(False)
    seen = seen.at[1, : min(2, 3 - empty) * block].set(False)  # a row that sees less than the other one
    case = dataclasses.replace(case, history_mask=seen)
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(case.own[0].shape), jnp.float32)
    weights *= case.mask(TURN).any(-1)[:, None, :, None]

    def run(keys):
        monkeypatch.setattr(masked, "KEYS", keys)

        def loss(tensors):
            out = case.run(CONFIG, TURN, tensors, block)
            return (out * weights).sum(), out * (weights != 0)

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        return step((case.own, case.history, case.prompt))

    for a, b in zip(jax.tree.leaves(run(block)), jax.tree.leaves(run(1_000)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(masked, "KEYS", block)
    unread = min(empty, 2) * block  # the newest turn is always read
    holes = tuple(x.at[:, :, :unread].set(jnp.nan) for x in case.history)
    out = jax.jit(lambda: case.run(CONFIG, TURN, (case.own, holes, case.prompt), block))()
    assert jnp.isfinite(out).all(), "what is left out is not read"


SLOTS = dict(context="step", before=3, after=3, prompt=3, copies=1, corrections=1)
ROW_LAYOUTS = {
    "blocked": ("blocked", layout(**SLOTS, vit_grid=VIT)),
    "cudnn": ("cudnn", layout(**SLOTS, vit_grid=VIT)),
    "dense": (None, layout(**SLOTS, vit_grid=VIT)),
    "dense-last": (None, layout(**SLOTS | {"context": "last"})),
    "splash": ("splash", layout(**SLOTS, turns=2, trajectories=1)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "slots"), ROW_LAYOUTS.values(), ids=ROW_LAYOUTS)
def test_rows_of_turns_equal_one_attention_with_an_explicit_mask(kernel, slots, rng):
    there, masks, wanted_mask = rows_of_turns(slots, ROWS, rng)
    length = Places(slots).tokens
    q, k, v = (
        jnp.asarray(rng.standard_normal((ROWS, length, heads, 16)), jnp.float32)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    weights = jnp.asarray(rng.standard_normal((ROWS, length, HEADS * 16)), jnp.float32) * there[..., None]

    def attended(q, k, v):
        return attended_rows(config, slots, masks, q, k, v)

    def explicit(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=wanted_mask[:, None]).reshape(weights.shape)

    def run(function):
        def loss(tensors):
            out = function(*tensors)
            return (out * weights).sum(), jnp.where(there[..., None], out, 0.0)

        return jax.jit(jax.grad(loss, has_aux=True))((q, k, v))

    with using(kernel) as (config, _):
        found = run(attended)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(run(explicit)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
