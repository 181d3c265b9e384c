"""Nothing whole on a device that should be in parts: the real train step on eight of them."""

import pytest

from tests.scripts import printed


@pytest.mark.long
def test_eight_devices_hold_and_receive_parts_only(tmp_path):
    """Two whole train steps are compiled, one of them for eight devices: most of a minute."""
    assert printed("training/eight_devices_memory.py", str(tmp_path)).split() == ["ok"] * 3
