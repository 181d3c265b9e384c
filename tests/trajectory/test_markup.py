"""Markup: exact round trips, and values for what is malformed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from process_gen.trajectory import markup
from process_gen.trajectory.markup import Malformed
from process_gen.trajectory.stages import Plan

plain = st.text(max_size=40).filter(lambda s: not any(token in s for token in markup.SPECIAL_TOKENS))


@settings(max_examples=200, deadline=None)
@given(plain, plain)
def test_plans_and_refinements_round_trip(instruction, description):
    plan = Plan(instruction, description)
    assert markup.parse_plan(markup.write_plan(plan)) == plan
    assert markup.parse_refine(markup.write_refine(instruction)) == instruction


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(markup.SPECIAL_TOKENS), plain), max_size=8).map("".join))
def test_any_text_parses_to_a_value(text):
    for parsed in (markup.parse_plan(text), markup.parse_refine(text)):
        if isinstance(parsed, Malformed):
            assert parsed.reason and parsed.text == text
    parsed = markup.parse_plan(text)
    if isinstance(parsed, Plan):
        assert markup.parse_plan(markup.write_plan(parsed)) == parsed


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "expected <ins>"),
        ("draw it", "expected <ins>"),
        ("<ins>a", "<ins> is never closed"),
        ("<ins>a</ins>", "expected <des>"),
        ("<ins>a</ins><des>b", "<des> is never closed"),
        ("<ins>a<ins>b</ins><des>c</des>", "<ins> inside <ins>"),
        ("<ins>a</ins><des>b</des> more", "text after </des>: 'more'"),
        ("<des>b</des><ins>a</ins>", "expected <ins>"),
    ],
)
def test_malformed_plans_say_what_is_wrong(text, reason):
    assert reason in markup.parse_plan(text).reason
