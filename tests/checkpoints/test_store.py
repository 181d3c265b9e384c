from __future__ import annotations

import json
import shutil
import threading
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging

from process_gen.checkpoints import manifest, store
from process_gen.checkpoints.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointMismatch,
    CheckpointNotFound,
    CheckpointNotSaved,
)
from process_gen.checkpoints.load import open_saved
from process_gen.checkpoints.store import CheckpointStore

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    ema: Any
    opt_state: Any
    key: Any


def make_state(seed=0, width=4, dtype=jnp.float32, ema=True):
    key = jax.random.key(seed)
    params = {
        "blocks": {"up": jax.random.normal(key, (2, 3, width), dtype), "scale": jnp.ones((2, 3), dtype)},
        "embed": jax.random.normal(key, (7, 3), jnp.bfloat16),
    }
    return State(
        step=jnp.asarray(seed, jnp.int32),
        params=params,
        ema=jax.tree.map(lambda x: x / 2, params) if ema else None,
        opt_state=TX.init(params),
        key=jax.random.fold_in(key, 1),
    )


class Counting:
    """A data iterator of one row, which counts."""

    def __init__(self, at=0):
        self.at = at

    def __next__(self):
        self.at += 1
        return self.at

    def get_state(self):
        return {"rows": {"0": self.at}, "identity": {}}

    def set_state(self, state):
        self.at = state["rows"]["0"]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        x, y = (jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in (x, y))
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with steps 1 and 2, and batches that a reader at step 2 has yet to see."""
    workdir, data = tmp_path_factory.mktemp("run"), Counting()
    with CheckpointStore(str(workdir), {"config": {"size": "debug", "lr": 0.1}}) as checkpoints:
        for step in (1, 2):
            next(data)
            checkpoints.save(step, make_state(step), data)
    return workdir, [next(data) for _ in range(3)]


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of that workdir to break."""
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run"


def test_round_trip_is_exact(saved):
    workdir, batches = saved
    data = Counting()
    with CheckpointStore(str(workdir)) as checkpoints:
        assert checkpoints.steps() == [1, 2] and checkpoints.latest_step() == 2
        like = jax.eval_shape(make_state)
        state = checkpoints.restore(like, data)
        assert_same(state, make_state(2))
        assert isinstance(state.opt_state[1][0], optax.ScaleByAdamState)
        for batch in batches:
            assert next(data) == batch
        assert_same(checkpoints.restore(make_state(5), step=1), make_state(1))
        about = checkpoints.metadata()
        assert about["config"] == {"size": "debug", "lr": 0.1} and about["step"] == 2
        assert about["versions"]["jax"] == jax.__version__


def test_weights_alone(saved):
    workdir, _ = saved
    for path in (workdir, workdir / "checkpoints", workdir / "checkpoints" / "2"):
        found = open_saved(str(path))
        assert_same(found.params(), jax.tree.map(np.asarray, make_state(2).ema))
        assert found.metadata["config"]["size"] == "debug" and found.place.name == "2"
        assert {"ema", "params", "opt_state"} < set(found.items)
    first = open_saved(workdir / "checkpoints" / "1").params("params")
    assert_same(first, jax.tree.map(np.asarray, make_state(1).params))


def test_a_relative_path_will_do(saved, monkeypatch):
    monkeypatch.chdir(saved[0].parent)
    name = saved[0].name
    for path in (name, f"./{name}/checkpoints/2"):
        assert_same(open_saved(path).params(), jax.tree.map(np.asarray, make_state(2).ema))
    with CheckpointStore(name) as checkpoints:
        assert checkpoints.newest_whole_step() == 2


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    with CheckpointStore(str(tmp_path)) as checkpoints:
        state = {"params": {"w": jnp.arange(1 << 20, dtype=jnp.float32)}}
        checkpoints.save(1, state)
        add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
        for _ in range(3):
            state = add(state)
        checkpoints.wait()
        restored = checkpoints.restore(state)
        np.testing.assert_array_equal(restored["params"]["w"], np.arange(1 << 20, dtype=np.float32))


def test_old_steps_go_and_chosen_ones_stay(tmp_path):
    with CheckpointStore(str(tmp_path), save_every=2, keep=1, keep_every=4) as checkpoints:
        for step in (2, 4, 6, 8, 10):
            assert checkpoints.due(step) and not checkpoints.due(step + 1)
            checkpoints.save(step, {"params": {"w": jnp.zeros(2)}})
        checkpoints.wait()
    assert CheckpointStore(str(tmp_path)).steps() == [4, 8, 10]
    assert not checkpoints.due(0)


def test_the_best_steps_stay_even_after_a_restart(tmp_path):
    scores = {1: 0.1, 2: 0.9, 3: 0.3, 4: None, 5: 0.2, 6: None}
    for first in (1, 4):
        with CheckpointStore(str(tmp_path), keep=1, keep_best=1) as checkpoints:
            for step in range(first, first + 3):
                checkpoints.save(step, {"params": {"w": jnp.zeros(2)}}, score=scores[step])
    assert checkpoints.steps() == [2, 6]
    assert checkpoints.metadata(2)["score"] == pytest.approx(0.9)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    with CheckpointStore(str(tmp_path)) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.wait()
        broken = make_state(2)
        broken.params["blocks"]["up"] = broken.params["blocks"]["up"].at[0, 0, 0].set(jnp.nan)
        with pytest.raises(CheckpointNotSaved, match=r"params/blocks/up.*last good step .* is 1"):
            checkpoints.save(2, broken)
    assert checkpoints.latest_step() == 1


def test_a_save_that_will_not_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    with CheckpointStore(str(tmp_path)) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.wait()
        full = type(shutil.disk_usage("/"))(10**9, 10**9, 100)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
        with pytest.raises(CheckpointNotSaved, match=r"step 2 needs .* last good one is step 1"):
            checkpoints.save(2, make_state(2))
    assert checkpoints.steps() == [1]


def test_a_run_says_what_its_checkpoints_take(tmp_path, monkeypatch):
    state = make_state(1)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    told = []
    monkeypatch.setattr(store.logging, "log", lambda level, text, *has: told.append((level, text % has)))
    with CheckpointStore(str(tmp_path), keep=4) as checkpoints:
        for free, level in ((5 * size, logging.INFO), (5 * size - 1, logging.WARNING)):
            monkeypatch.setattr(
                shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(0, 0, free)
            )
            checkpoints.announce(state)
            assert told[-1][0] == level
            assert f"takes {size / 1e9:.3g} GB, {5 * size / 1e9:.3g} GB with" in told[-1][1]


def test_a_broken_step_is_set_aside_and_the_one_before_is_taken(copy, caplog):
    file = copy / "checkpoints" / "2" / "metadata" / "metadata"
    file.write_bytes(file.read_bytes()[:-1])
    with CheckpointStore(str(copy)) as checkpoints:
        assert checkpoints.newest_whole_step() == 1
        assert checkpoints.steps() == [1]
        assert "metadata" in caplog.text and "quarantine" in caplog.text
        assert "bytes instead of" in (copy / "quarantine" / "2.txt").read_text()
        assert_same(checkpoints.restore(make_state(), step=1).params, make_state(1).params)
        checkpoints.save(2, make_state(2))
        checkpoints.wait()
        file.write_bytes(b"{}")
        assert checkpoints.newest_whole_step() == 1
    assert sorted(p.name for p in (copy / "quarantine").iterdir()) == ["2", "2-2", "2-2.txt", "2.txt"]


def test_no_whole_step_is_an_error_and_no_step_is_none(copy, tmp_path):
    for step in ("1", "2"):
        (copy / "checkpoints" / step / manifest.NAME).unlink()
    with CheckpointStore(str(copy)) as checkpoints:
        with pytest.raises(CheckpointCorrupt, match="no step of .* is whole"):
            checkpoints.newest_whole_step()
        assert sorted(p.name for p in (copy / "quarantine").iterdir() if p.is_dir()) == ["1", "2"]
    with CheckpointStore(str(tmp_path / "new")) as checkpoints:
        assert checkpoints.newest_whole_step() is None


def test_hosts_check_shares_that_cover_every_file(saved):
    step_dir = store.epath.Path(saved[0]) / "checkpoints" / "2"
    files = manifest._read(step_dir)
    for name in list(files)[:4]:
        original = (step_dir / name).read_bytes()
        (step_dir / name).write_bytes(original + b"x")
        found = []
        for host in range(3):
            try:
                manifest.verify(step_dir, share=(host, 3))
            except CheckpointCorrupt:
                found.append(host)
        (step_dir / name).write_bytes(original)
        assert len(found) == 1


def test_weights_that_another_host_finds_broken_are_read_by_none(saved, monkeypatch):
    monkeypatch.setattr(manifest, "first_message", lambda mine: mine or "process 3: params/x has changed")
    with pytest.raises(CheckpointCorrupt, match="process 3: params/x has changed"):
        open_saved(saved[0]).source("params")


def test_a_step_is_saved_once(copy):
    with CheckpointStore(str(copy)) as checkpoints:
        for step in (1, 2):
            with pytest.raises(CheckpointNotSaved, match="already holds step 2"):
                checkpoints.save(step, make_state())
        checkpoints.save(3, make_state(3))
        checkpoints.wait()
        assert checkpoints.latest_step() == 3


def test_a_failed_save_is_heard_of(tmp_path, monkeypatch):
    checkpoints = CheckpointStore(str(tmp_path))
    checkpoints.save(1, {"params": {"w": jnp.zeros(2)}})
    checkpoints.wait()

    def full(step_dir):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    checkpoints.save(2, {"params": {"w": jnp.zeros(2)}})
    with pytest.raises(CheckpointNotSaved, match=r"No space left.*last good one is step 1"):
        checkpoints.wait()
    checkpoints.save(2, {"params": {"w": jnp.zeros(2)}})
    with pytest.raises(CheckpointNotSaved, match="No space left"):
        for _ in range(200):
            time.sleep(0.05)
            checkpoints.poll()
    checkpoints.poll()
    monkeypatch.undo()
    assert checkpoints.latest_step() == 1
    checkpoints.save(2, {"params": {"w": jnp.zeros(2)}})
    checkpoints.close()
    assert CheckpointStore(str(tmp_path)).steps() == [1, 2]


@pytest.mark.parametrize(
    ("error", "code"),
    [(OSError(116, "Stale"), 1), (TimeoutError("a peer"), 1), (OSError(28, "No space"), None)],
)
def test_what_may_go_well_next_time_is_no_refusal(tmp_path, error, code):
    with CheckpointStore(str(tmp_path)) as checkpoints:
        with pytest.raises(CheckpointNotSaved) as found, checkpoints._failures("step 1"):
            raise error
    assert getattr(found.value, "exit_code", None) == code


def test_a_step_is_saved_though_the_one_before_has_failed(tmp_path, monkeypatch, caplog):
    failed = threading.Event()

    def full(step_dir):
        failed.set()
        raise OSError(28, "No space left on device")

    with CheckpointStore(str(tmp_path)) as checkpoints:
        monkeypatch.setattr(manifest, "write", full)
        checkpoints.save(1, {"params": {"w": jnp.zeros(2)}})
        assert failed.wait(30)
        monkeypatch.undo()
        checkpoints.save(2, {"params": {"w": jnp.ones(2)}})
        checkpoints.wait()
        assert checkpoints.steps() == [2] and "No space left" in caplog.text


def test_unfinished_saves_are_no_checkpoints(tmp_path):
    stale = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    stale.mkdir(parents=True)
    (stale / "junk").write_text("x")
    with pytest.raises(CheckpointNotFound, match="never finished"):
        open_saved(tmp_path)
    with CheckpointStore(str(tmp_path)) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(CheckpointNotFound):
            checkpoints.restore(make_state())
    assert not stale.exists()


@pytest.mark.parametrize("which", ["ema", "params"])
def test_nothing_to_load(tmp_path, which):
    def error(path):
        with pytest.raises(CheckpointNotFound) as caught:
            open_saved(path).params(which)
        return str(caught.value)

    assert "no such workdir" in error(tmp_path / "missing")
    assert "is empty" in error(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "2024").mkdir()  # a number for a name does not make it a step
    message = error(tmp_path)
    assert "not the workdir" in message and "checkpoints/<step>" in message and "process_gen.train" in message
    (tmp_path / "weights.bin").write_bytes(b"\x80\x04.")
    assert ".safetensors" in error(tmp_path / "weights.bin")


def test_a_step_or_an_item_that_is_not_there(saved):
    with CheckpointStore(str(saved[0])) as checkpoints:
        with pytest.raises(CheckpointNotFound, match=r"no step 9 .*\[1, 2\]"):
            checkpoints.restore(make_state(), step=9)
    with pytest.raises(CheckpointNotFound, match="no 'teacher' weights, only ema, "):
        open_saved(saved[0]).params("teacher")


def test_other_models_are_named(saved):
    with CheckpointStore(str(saved[0])) as checkpoints:
        for state, words in (
            (make_state(width=5), ["blocks/up", "(2, 3, 4)", "(2, 3, 5)"]),
            (make_state(dtype=jnp.bfloat16), ["blocks/scale", "float32(2, 3) instead of bfloat16(2, 3)"]),
            (make_state(ema=False), ["holds ema, key", "this run has key"]),
            (make_state().replace(params={"new": jnp.ones(1)}), ["missing: new", "unknown: blocks/scale"]),
        ):
            with pytest.raises(CheckpointMismatch) as error:
                checkpoints.restore(state)
            for word in words:
                assert word in str(error.value)


def test_the_data_iterator_belongs_to_the_state(saved, tmp_path, monkeypatch):
    with CheckpointStore(str(tmp_path)) as checkpoints:
        checkpoints.save(1, make_state())
        checkpoints.wait()
        with pytest.raises(CheckpointMismatch, match="without the state of a data iterator"):
            checkpoints.restore(make_state(), Counting())
    odd, old = Rows(), '{"bytes": false, "state": {"rows": 3}}'
    with CheckpointStore(str(saved[0])) as checkpoints:
        monkeypatch.setattr(store.load, "read_json", lambda *_: {"hosts": [old, old]})
        checkpoints.restore(make_state(), odd)
    assert odd.state == {"rows": 3}, "what an earlier version saved is for the iterator to refuse"


class Rows:
    """An iterator whose state has an entry for every row of the global batch that its host loads."""

    def __init__(self, *rows):
        self.state = {"rows": {str(row): 10 * row for row in rows}, "identity": {"source": "x"}}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_rows_of_several_hosts_are_restored_together(tmp_path, monkeypatch):
    texts = [json.dumps({"state": rows.state}) for rows in (Rows(0, 3), Rows(1, 2))]
    monkeypatch.setattr(store, "allgather_text", lambda _: texts)
    with CheckpointStore(str(tmp_path)) as checkpoints:
        checkpoints.save(1, make_state(), Rows(0, 3))
        checkpoints.wait()
        one = Rows(0)
        checkpoints.restore(make_state(), one)
    assert one.state == Rows(0, 1, 2, 3).state | {"rows": {"0": 0, "1": 10, "2": 20, "3": 30}}


def test_any_damage_to_any_file_is_noticed(copy):
    """Every file that is read, deleted, cut in half and with one bit flipped."""
    step_dir = copy / "checkpoints" / "2"
    files = [p for p in step_dir.rglob("*") if p.is_file()]
    files = [p for p in files if p.name not in ("commit_success.txt", "_CHECKPOINT_METADATA")]
    assert len(files) > 20
    with CheckpointStore(str(copy)) as checkpoints:
        for path in files:
            good = path.read_bytes()
            flipped = bytearray(good)
            flipped[len(good) // 2] ^= 4
            for bad in (None, good[: len(good) // 2], bytes(flipped)):
                path.unlink() if bad is None else path.write_bytes(bad)
                with pytest.raises(CheckpointCorrupt) as error:
                    checkpoints.restore(make_state())
                assert "step 2" in str(error.value)
                if path.name != manifest.NAME:
                    assert str(path.relative_to(step_dir)) in str(error.value)
                path.write_bytes(good)
        assert_same(checkpoints.restore(make_state()), make_state(2))


def test_damage_elsewhere_does_not_matter_to_the_weights(copy):
    (copy / "checkpoints" / "2" / "opt_state" / "_METADATA").write_text("{")
    open_saved(copy).params()
    (copy / "checkpoints" / "2" / "ema" / "_METADATA").write_text("{")
    with pytest.raises(CheckpointCorrupt, match="ema/_METADATA"):
        open_saved(copy).params()


def test_a_manifest_of_another_shape_is_corrupt(copy):
    path = copy / "checkpoints" / "2" / manifest.NAME
    for text in ("[]", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": {"a": 1}}'):
        path.write_text(text)
        with pytest.raises(CheckpointCorrupt, match=manifest.NAME):
            open_saved(copy)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="a file is in the way"):
        CheckpointStore(str(tmp_path / "file"))
