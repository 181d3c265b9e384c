"""An unknown name is answered with the nearest known ones."""

import pytest

from process_gen.common import names


def test_the_nearest_names_are_told():
    with pytest.raises(KeyError, match="unknown loss 'flow_msee'; did you mean flow_mse?"):
        names.check_name("flow_msee", ["flow_mse", "text_cross_entropy"], "loss", KeyError)


def test_all_are_told_where_none_is_near():
    assert names.hint("zzz", {"b": 1, "a": 2}) == "known are a, b"


def test_what_is_no_text_is_unknown_as_well():
    with pytest.raises(ValueError, match="unknown stage 254; known are ground, refine"):
        names.check_name(254, ["refine", "ground"], "stage")


def test_a_known_name_comes_back():
    assert names.check_name("a", {"a": 1}, "letter") == "a"
