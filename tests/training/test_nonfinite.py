"""Steps without a finite gradient: how many in a row, and what is kept of them."""

from __future__ import annotations

import numpy as np

from process_gen.training import nonfinite
from process_gen.training.nonfinite import FOLDER, NonFiniteGuard
from process_gen.trajectory.batch import Batch
from tests.data.fake import fake_batch
from tests.models.tiny import VOCAB, layout

GOOD = {"finite": 1.0, "loss": 2.0}
BAD = {"finite": 0.0, "loss": float("nan"), "grad_norm": float("inf")}


def test_a_finite_step_starts_the_count_anew(tmp_path):
    guard, batch = NonFiniteGuard(tmp_path, limit=2), {"present": np.ones((1, 2), bool)}
    ends = [guard.record(i, metrics, batch) for i, metrics in enumerate((GOOD, BAD, GOOD, BAD, BAD))]
    assert ends == [False, False, False, False, True]
    kept = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert kept == ["step_0000001.npz", "step_0000003.npz", "step_0000004.npz"]


def test_one_is_enough_by_default_and_the_batch_can_be_fed_again(tmp_path, caplog):
    batch = fake_batch(layout(), 2, 0, VOCAB)
    with caplog.at_level("WARNING"):
        assert NonFiniteGuard(tmp_path, limit=1).record(7, BAD, batch)
    assert "no finite grad_norm, loss" in caplog.text and "step_0000007.npz" in caplog.text
    found = np.load(tmp_path / FOLDER / "step_0000007.npz")
    again = Batch(**{name: found[f"batch/{name}"] for name in batch})
    for name, value in batch.items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert np.isnan(found["metrics/loss"])


def test_a_batch_that_cannot_be_kept_ends_nothing_and_few_are_kept(tmp_path, caplog, monkeypatch):
    batch = {"present": np.ones((1, 2), bool)}
    (tmp_path / "a file").write_text("")
    assert NonFiniteGuard(tmp_path / "a file", limit=1).record(1, BAD, batch)
    assert "could not be written" in caplog.text
    monkeypatch.setattr(nonfinite, "MOST_FILES", 3)
    guard = NonFiniteGuard(tmp_path, limit=100)
    assert not any(guard.record(step, BAD, batch) for step in range(6))
    assert len(list((tmp_path / FOLDER).iterdir())) == 3
