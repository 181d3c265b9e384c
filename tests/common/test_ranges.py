import pytest

from process_gen.common.ranges import is_number


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), True, "1", None])
def test_what_is_no_finite_float_is_no_number(value):
    assert not is_number(value)


def test_numbers():
    assert is_number(0) and is_number(-1.5) and is_number(10**300)
