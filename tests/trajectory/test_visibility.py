"""Who sees whom, against the drawing and against a second statement of the rule."""

import itertools

import numpy as np
import pytest

from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.visibility import Chunk, seen_parts

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
    Segment("before", "text", 2),
    Segment("noised", "noised", 2, 1),
    Segment("image", "clean", 2, 1),
    Segment("after", "text", 2),
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


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("vit_grid", [(0, 0), (2, 3)])
def test_calls_cover_every_query_once_and_say_exactly_what_the_mask_says(vit_grid, copies):
    layout = Layout(copies=copies, vit_grid=vit_grid)
    visible = [segment for part in layout.visible_parts.values() for segment in part]
    for segments in (layout.turn_segments, visible):
        chunk = Chunk(segments)
        asked, said = np.zeros(chunk.tokens, int), np.zeros_like(chunk.mask)
        for call in chunk.calls:
            queries, keys = (
                np.concatenate([np.arange(chunk.tokens)[p] for p in x]) for x in (call.queries, call.keys)
            )
            asked[queries] += 1
            block = np.ones((len(queries), len(keys)), bool)
            if call.causal:  # the queries' own keys come last
                block[:, -len(queries) :] = np.tril(np.ones((len(queries),) * 2, bool))
            assert (keys[-len(queries) :] == queries).all()
            said[np.ix_(queries, keys)] = block
        assert (asked == 1).all()
        np.testing.assert_array_equal(said, chunk.mask)
        assert len(chunk.calls) == len([s for s in segments if s.kind != "text"]) + 2
        assert sum(call.causal for call in chunk.calls) == 2


def test_texts_in_a_row_are_one_call_and_what_sees_only_a_part_is_refused():
    texts = Chunk([Segment("a", "text", 2), Segment("b", "text", 3), Segment("image", "clean", 2, 1)])
    assert [call.causal for call in texts.calls] == [True, False]
    partly = Chunk(SEGMENTS)
    partly.mask[partly.text["image"].start, 0] = False
    with pytest.raises(ValueError, match="the tokens of image do not all see the same: use a masked"):
        _ = partly.calls


def test_vocabulary_tokens_stand_before_latents_in_packed_order():
    chunk = Chunk(Layout().turn_segments)
    ends = [chunk.text[s.name].stop for s in chunk.segments]
    starts = [chunk.latents[s.name].start for s in chunk.segments if s.latents]
    assert max(ends) == chunk.text_tokens == min(starts)
    assert sorted(chunk.order) == list(range(chunk.tokens))
    image = chunk.order[chunk.text["image"]]
    assert image[1] - image[0] == Layout().latents + 1  # the vision tokens bracket the image


def _state_tokens(layout: Layout) -> int:
    return sum(s.tokens for s in layout.state_slots("image"))


def test_vit_tokens_stand_between_vocabulary_tokens_and_latents_in_packed_order():
    layout = Layout(vit_grid=(2, 3))
    chunk = Chunk(layout.turn_segments)
    vit = [chunk.vit[s.name] for s in chunk.segments if s.vit]
    assert [v.stop - v.start for v in vit] == [6]
    assert (vit[0].start, vit[0].stop) == (chunk.text_tokens, chunk.und_tokens)
    assert min(chunk.latents[s.name].start for s in chunk.segments if s.latents) == chunk.und_tokens
    assert sorted(chunk.order) == list(range(chunk.tokens))
    pieces = chunk.packed("image", "image_vit")
    state = np.concatenate([chunk.order[piece] for piece in pieces])
    assert sorted(state) == list(range(state.min(), state.min() + _state_tokens(layout)))
    first, last = chunk.order[chunk.text["image_vit"]]
    np.testing.assert_array_equal(chunk.order[vit[0]], np.arange(first + 1, last))


def test_vit_tokens_follow_the_latents_of_the_clean_image_and_of_nothing_else():
    layout, plain = Layout(vit_grid=(2, 3), copies=2), Layout(copies=2)
    names = [s.name for s in layout.turn_segments]
    assert names == ["before", "noised_0", "noised_1", "image", "image_vit", "after"]
    assert [name for name in names if not name.endswith("_vit")] == [s.name for s in plain.turn_segments]
    assert (layout.state_positions, _state_tokens(layout)) == (2, 16 + 2 + 6 + 2)
    assert (plain.state_positions, _state_tokens(plain)) == (1, 16 + 2)
    seen = logical(Chunk(layout.turn_segments).mask, Chunk(layout.turn_segments))
    ends = np.cumsum([s.tokens for s in layout.turn_segments])
    image, behind = (slice(ends[names.index(n) - 1], ends[names.index(n)]) for n in ("image", "image_vit"))
    assert seen[behind, image].all() and seen[behind, behind].all() and not seen[image, behind].any()
    assert seen[behind.stop :, behind].all(), "texts that follow see it"


DRAWN_PARTS = {
    "step": """
        .   .   .
        bi  .   .
        bi  bia .
        .   b   bi
        .   .   .   bi
    """,
    "last": """
        .   .   .
        i   .   .
        i   bia .
        .   .   i
        .   .   .   i
    """,
    "full": """
        .   .   .
        bia .   .
        bia bia .
        bia bia bia
        bia bia bia bia
    """,
}
"""Rows are turns that ask (draft, draft, refine, draft, draft), columns the turns before them."""
STEPS, REFINES = (0, 1, 1, 2, 3), (False, False, True, False, False)


@pytest.mark.parametrize("context", DRAWN_PARTS)
def test_what_is_seen_of_earlier_turns_is_what_is_drawn(context):
    rows = [line.split() for line in DRAWN_PARTS[context].strip().splitlines()]
    for now, drawn in enumerate(rows):
        if not now:
            continue
        steps, refines = np.array(STEPS[:now]), np.array(REFINES[:now])
        found = seen_parts(context, steps, refines, np.array(STEPS[now]), np.array(REFINES[now]))
        for turn in range(now):
            seen = "".join(part[0] for part in ("before", "image", "after") if found[part][turn])
            assert (seen or ".") == drawn[turn], (context, now, turn)


def test_of_a_draft_that_is_corrected_twice_only_the_last_image_stays():
    steps, refines = np.array([0, 0, 0]), np.array([False, True, True])
    found = seen_parts("step", steps, refines, np.array(1), np.array(False))
    assert found["image"].tolist() == [False, False, True] and found["before"].tolist() == [True] * 3
    assert not found["after"].any()
    inside = seen_parts("last", steps[:2], refines[:2], np.array(0), np.array(True))
    assert all(part.all() for part in inside.values()), "a step sees all of itself"


def test_seen_parts_takes_rows_of_many_turns():
    steps, refines = np.array([[0, 1], [1, 1]]), np.array([[False, False], [False, True]])
    found = seen_parts("step", steps, refines, np.array([1, 2]), np.array([True, False]))
    assert found["image"].tolist() == [[True, True], [False, True]]
    assert found["before"].tolist() == [[True, True], [True, True]]
    assert found["after"].tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize(
    ("context", "turns", "corrections", "history"),
    [("full", 6, 1, 5), ("step", 20, 1, 3), ("step", 20, 2, 5), ("last", 20, 0, 1), ("step", 3, 1, 2)],
)
def test_the_history_of_a_layout_holds_all_that_is_seen(context, turns, corrections, history):
    layout = Layout(context=context, turns=turns, corrections=corrections)
    assert layout.window == history
    steps = np.repeat(np.arange(turns), 1 + corrections)[
        :turns
    ]  # every draft is corrected as often as may be
    refines = np.arange(turns) % (1 + corrections) > 0
    for now in range(1, turns):
        found = seen_parts(context, steps[:now], refines[:now], steps[now], refines[now])
        oldest = min(int(np.argmax(part)) for part in found.values() if part.any())
        assert now - oldest <= layout.window


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(before=-1), "layout.before must be at least 0"),
        (dict(after=-1), "layout.after must be at least 0"),
        (dict(prompt=0), "layout.prompt must be at least 1"),
        (dict(copies=0), "layout.copies must be at least 1"),
        (dict(turns=2, trajectories=3), "exceeds layout.turns"),
        (dict(vit_grid=(0, 3)), "layout.vit_grid must be rows and columns"),
        (dict(context="some"), "'full', 'step' or 'last'"),
    ],
)
def test_layouts_refuse_what_cannot_work(fields, message):
    with pytest.raises(ValueError, match=message):
        Layout(**fields)


def test_slots_that_a_layout_leaves_out_cost_nothing():
    whole, bare = Layout(), Layout(before=0, after=0)
    assert [s.name for s in bare.turn_segments] == ["noised_0", "image"]
    assert whole.row_tokens - bare.row_tokens == whole.turns * (whole.before + whole.after)
    assert bare.visible_tokens == bare.latents + 2
