"""Nothing whole on a device that should be in parts: the real train step on eight of them."""

import pathlib

import pytest

from tests.own_process import printed


@pytest.mark.long
def test_eight_devices_hold_and_receive_parts_only(tmp_path):
    """Two whole train steps are compiled, one of them for eight devices: most of a minute."""
    script = pathlib.Path(__file__).with_name("eight_devices_memory.py")
    assert printed(script, tmp_path) == ["ok"] * 3
