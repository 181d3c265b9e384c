"""Whether the hosts of a run train on the same data."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from process_gen.distributed import agreement
from process_gen.experiment.builders import ConfigError
from process_gen.training import loading

ITERATOR = SimpleNamespace(get_state=lambda: {"identity": {"data": "1 of 10", "seed": "0"}, "rows": {}})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"data": "2 of 10", "seed": "0", "held-out trajectories": True},
            "data '1 of 10', process 1 has '2 of 10'",
        ),
        ({"data": "1 of 10", "seed": "0", "held-out trajectories": False}, "held-out trajectories True"),
    ],
)
def test_hosts_that_read_other_data_are_named(monkeypatch, other, message):
    monkeypatch.setattr(agreement, "allgather_text", lambda mine: [mine, json.dumps(other, sort_keys=True)])
    with pytest.raises(ConfigError, match=message):
        loading.check_alike(ITERATOR, True)


def test_hosts_that_read_the_same_data_go_on():
    loading.check_alike(ITERATOR, True)
