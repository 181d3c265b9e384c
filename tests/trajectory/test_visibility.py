"""Who sees whom, against the drawing and against a second statement of the rule."""

import itertools

import numpy as np
import pytest

from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.visibility import Chunk, intervals

DRAWN = """
#.........
##........
#####.....
#####.....
#####.....
##...###..
##...###..
##...###..
##...####.
##...#####
"""
SEGMENTS = [
    Segment("plan", "text", 2),
    Segment("noised", "noised", 2, 1),
    Segment("sketch", "clean", 2, 1),
    Segment("inspect", "text", 2),
]


def logical(mask: np.ndarray, chunk: Chunk) -> np.ndarray:
    order = np.argsort(chunk.order)
    return mask[order][:, order]


def test_the_mask_is_the_one_drawn_in_the_docstring():
    drawn = np.array([[cell == "#" for cell in row] for row in DRAWN.split()])
    chunk = Chunk(SEGMENTS)
    np.testing.assert_array_equal(logical(chunk.mask, chunk), drawn)


def slow_rule(segments):
    """The table of the base model's specification, pair by pair."""
    tokens = [(i, s.kind, j) for i, s in enumerate(segments) for j in range(s.tokens)]
    mask = np.zeros((len(tokens),) * 2, bool)
    for (a, (i, kind, m)), (b, (j, other, n)) in itertools.product(enumerate(tokens), repeat=2):
        if i == j:
            mask[a, b] = n <= m if kind == "text" else True
        else:
            mask[a, b] = j < i and other != "noised"
    return mask


@pytest.mark.parametrize("seed", range(20))
def test_intervals_equal_the_rule_on_random_layouts(seed):
    rng = np.random.default_rng(seed)
    segments = []
    for i in range(rng.integers(1, 8)):
        kind = rng.choice(["text", "noised", "clean"])
        size = (int(rng.integers(1, 5)), 0) if kind == "text" else (2, int(rng.integers(1, 5)))
        if kind == "clean" and rng.integers(2):
            size = (2, 0, size[1])  # ViT tokens instead of latents
        segments.append(Segment(f"s{i}", str(kind), *size))
    chunk = Chunk(segments)
    np.testing.assert_array_equal(logical(chunk.mask, chunk), slow_rule(segments))
    start, end = intervals(segments)
    q = np.arange(len(start))[:, None]
    np.testing.assert_array_equal((start[None] <= q) & (q < end[None]), slow_rule(segments))


@pytest.mark.parametrize("vit_grid", [(0, 0), (2, 3)])
def test_groups_cover_every_query_once_and_drop_no_visible_key(vit_grid):
    chunk = Chunk(Layout(sketch_copies=3, refined_copies=2, vit_grid=vit_grid).step_segments)
    asked, visible = np.zeros(chunk.tokens, int), 0
    for group in chunk.groups:
        for piece in group.queries:
            asked[piece] += 1
        visible += group.mask.sum()
    assert (asked == 1).all()
    assert visible == chunk.mask.sum()
    assert {g.noised for g in chunk.groups} == {True, False}
    assert all(("noised" in name) == g.noised for g in chunk.groups for name in g.names)


def test_vocabulary_tokens_stand_before_latents_in_memory():
    chunk = Chunk(Layout().step_segments)
    ends = [chunk.text(s.name).stop for s in chunk.segments]
    starts = [chunk.latents(s.name).start for s in chunk.segments if s.latents]
    assert max(ends) == chunk.text_tokens == min(starts)
    assert sorted(chunk.order) == list(range(chunk.tokens))
    sketch = chunk.order[chunk.text("sketch")]
    assert sketch[1] - sketch[0] == Layout().latents + 1  # the vision tokens bracket the image


def _state_tokens(layout: Layout) -> int:
    return sum(s.tokens for s in layout.state_slots("image"))


def test_vit_tokens_stand_between_vocabulary_tokens_and_latents_in_memory():
    layout = Layout(vit_grid=(2, 3))
    chunk = Chunk(layout.step_segments)
    vit = [chunk.vit(s.name) for s in chunk.segments if s.vit]
    assert [v.stop - v.start for v in vit] == [6, 6]
    assert (vit[0].start, vit[1].stop) == (chunk.text_tokens, chunk.und_tokens)
    assert min(chunk.latents(s.name).start for s in chunk.segments if s.latents) == chunk.und_tokens
    assert sorted(chunk.order) == list(range(chunk.tokens))
    pieces = chunk.memory("sketch", "sketch_vit")
    state = np.concatenate([chunk.order[piece] for piece in pieces])
    assert sorted(state) == list(range(state.min(), state.min() + _state_tokens(layout)))
    first, last = chunk.order[chunk.text("sketch_vit")]
    np.testing.assert_array_equal(chunk.order[vit[0]], np.arange(first + 1, last))


def test_vit_tokens_follow_the_latents_of_both_clean_images_and_of_nothing_else():
    layout, plain = Layout(vit_grid=(2, 3)), Layout()
    names = [s.name for s in layout.step_segments]
    assert names[names.index("sketch") + 1] == "sketch_vit" and names[-2:] == ["refined", "refined_vit"]
    assert [name for name in names if not name.endswith("_vit")] == [s.name for s in plain.step_segments]
    assert (layout.state_ids, _state_tokens(layout)) == (2, 16 + 2 + 6 + 2)
    assert (plain.state_ids, _state_tokens(plain)) == (1, 16 + 2)
    seen = logical(Chunk(layout.step_segments).mask, Chunk(layout.step_segments))
    ends = np.cumsum([s.tokens for s in layout.step_segments])
    sketch, after = (slice(ends[names.index(n) - 1], ends[names.index(n)]) for n in ("sketch", "sketch_vit"))
    assert seen[after, sketch].all() and seen[after, after].all() and not seen[sketch, after].any()
    assert seen[after.stop :, after].all(), "texts and images that follow see it"


def test_seen_until_cuts_a_segment_off():
    chunk = Chunk(SEGMENTS, {"plan": 2})
    assert not logical(chunk.mask, chunk)[2:, :2].any()


def test_layouts_refuse_what_cannot_work():
    with pytest.raises(ValueError, match="layout.plan must be at least 1"):
        Layout(plan=0)
    with pytest.raises(ValueError, match="exceeds layout.steps"):
        Layout(steps=2, trajectories=3)
    with pytest.raises(ValueError, match="layout.vit_grid must be rows and columns"):
        Layout(vit_grid=(0, 3))
    with pytest.raises(ValueError, match="'full', 'step' or 'last'"):
        Layout(context="some")
