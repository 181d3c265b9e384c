"""The report of a train step, its hints and exit codes, and that training runs what was compiled."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from process_gen import compile
from process_gen.capacity import fit, topology
from process_gen.capacity.collectives import Traffic
from process_gen.capacity.measured import Measured, bytes_per_device, measure, needed_bytes
from process_gen.capacity.topology import Topology
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.distributed import sharding
from process_gen.distributed.chips import CHIPS, GIB
from process_gen.distributed.mesh import MeshError
from process_gen.experiment import builders, cli
from process_gen.models import cost
from process_gen.training import amounts
from process_gen.training.program import TrainProgram
from process_gen.trajectory.batch import Batch
from tests.data.fake import fake_batch

ROOT = pathlib.Path(__file__).parents[1]
ASK = fit.Ask(amounts.of_a_full_row, trajectories=1000)
TRAFFIC = (
    Traffic("all-gather", ("fsdp",), 8, False, 3 * GIB, 40),
    Traffic("all-reduce", (), 1, True, 1e6, 1),
)
FITS = Measured("train step", (1.0, 2.0), 2 * GIB, 2 * GIB, 2 * GIB, 5 * GIB, 1000, TRAFFIC)


def config_of(**changes):
    config = cli.load_config(f"{ROOT}/configs/scenes.py:debug")
    config.update_from_flattened_dict(changes)
    return config


def program_of(config) -> TrainProgram:
    topology_of_one = topology.get(topology.parse("cpu:1"))
    mesh, _ = compile.mesh_of(config, topology_of_one)
    return TrainProgram.of(config, builders.build_model(config, scenes_tokenizer()), mesh)


def report_of(found: Measured, ask=ASK, **changes):
    config = config_of(**changes)
    place = Topology("v5p:2x2x1", "tpu", jax.devices()[:1], 1, CHIPS["v5p"])
    return fit.train_report(config, program_of(config), place, found, ask)


def test_a_report_says_what_is_held_sent_and_computed():
    report = json.loads(json.dumps(report_of(FITS)))
    text = fit.describe(report)
    program = program_of(config_of())
    held = report["memory"]
    assert (
        held["parameters"]
        == held["average"]
        == 4 * sum(x.size for x in jax.tree.leaves(program.abstract[0].params))
    )
    assert held["optimizer"] > 0 and held["batch"] > 0 and held["host"] == 0
    assert held["peak"] == 7 * GIB + 1000 and report["fits"] is True
    assert "It fits: 7.00 of 95.73 GiB." in text
    assert ["all-gather", "fsdp", "links", "3.000", "40"] in [line.split() for line in text.splitlines()]
    flops = report["flops_per_device"]
    totals = [sum(flops[kind].values()) for kind in ("useful", "padded", "executed")]
    assert totals == sorted(totals) and set(flops["useful"]) == set(cost.PARTS)
    estimate = report["estimate"]
    assert 0 < estimate["best"] <= estimate["worst"] and estimate["bound"] == "exchange"
    assert report["device_hours"] == pytest.approx(1000 / report["trajectories_per_second"] / 3600)
    assert "Assumed, not measured:" in text and "1,000 trajectories" in text


def test_less_data_in_the_slots_is_less_use_for_about_the_same_time():
    full, half = report_of(FITS), report_of(FITS, dataclasses.replace(ASK, counts=amounts.of_a_row))
    held = half["estimate"]["compute"] / full["estimate"]["compute"]
    assert 0.9 < held < 1.1  # but for how much of the histories is left out
    assert half["executed_flops_per_useful_token"] > full["executed_flops_per_useful_token"]
    assert half["mfu"] < full["mfu"]
    assert half["tokens_per_second_per_device"] < full["tokens_per_second_per_device"]


def test_what_does_not_fit_says_what_to_change():
    report = report_of(FITS, dataclasses.replace(ASK, hbm=4.0 * GIB), **{"train.batch_size": 4})
    text = fit.verdict(report)
    assert report["fits"] is False and "It does NOT fit: it takes 7.00 GiB, a device has 4.00 GiB." in text
    saves = [hint["saves"] for hint in report["hints"]]
    assert saves == sorted(saves, reverse=True)
    changes = [hint["change"] for hint in report["hints"]]
    assert "--config.train.batch_size=1" in changes
    assert "--config.model.attention=flash" in changes
    assert all(change in text for change in changes)


def test_of_the_memory_of_a_gpu_the_share_counts_that_jax_takes(monkeypatch):
    most = dataclasses.replace(FITS, temporaries=68 * GIB)
    config, program = config_of(), program_of(config_of())

    def report(found, chip="h100", ask=ASK, platform="gpu"):
        place = Topology(f"{platform}:1", platform, jax.devices()[:1], 1, CHIPS[chip])
        return fit.train_report(config, program, place, found, ask)

    monkeypatch.delenv(fit.GPU_SHARE, raising=False)
    assert report(FITS)["hbm"] == pytest.approx(0.9 * 80e9)
    assert report(most)["fits"] is False and "has 67.06 GiB, 90% of a GPU's memory" in fit.describe(
        report(most)
    )
    assert report(most, "v5p", platform="tpu")["hbm"] == CHIPS["v5p"].hbm
    assert report(FITS, platform="cpu")["hbm"] == pytest.approx(0.9 * 80e9)  # --chip=h100
    assert report(FITS, ask=dataclasses.replace(ASK, hbm=40.0 * GIB))["hbm"] == pytest.approx(36 * GIB)
    assert f"a program has 90% of a GPU's memory ({fit.GPU_SHARE})" in report(FITS)["assumptions"]
    monkeypatch.setenv(fit.GPU_SHARE, "0.95")
    assert report(most)["fits"] is True and "95% of a GPU's memory" in fit.describe(report(most))
    for text in ("much", "nan", "0", "1.5"):
        monkeypatch.setenv(fit.GPU_SHARE, text)
        with pytest.raises(ValueError, match=f"{fit.GPU_SHARE}={text} is no share"):
            report(FITS)


def test_the_older_name_of_the_share_counts_too_and_is_named(monkeypatch):
    older = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    monkeypatch.delenv(fit.GPU_SHARE, raising=False)
    monkeypatch.setenv(older, "0.5")
    assert fit._share_of_gpu() == 0.5
    monkeypatch.setenv(older, "much")
    with pytest.raises(ValueError, match=f"{older}=much is no share"):
        fit._share_of_gpu()


def test_the_reports_of_launch_still_fit():
    paths = [*(ROOT / "launch" / "capacity").glob("[hv]*.json")]
    assert paths
    for path in paths:
        found = json.loads(path.read_text())
        if found["chip"] in ("h100", "h200"):
            assert found["hbm"] == pytest.approx(0.9 * CHIPS[found["chip"]].hbm), path
        assert found["fits"] and found["memory"]["peak"] <= found["hbm"], path


def test_weights_that_are_gathered_by_sums_are_noted():
    report = report_of(FITS)
    sums = [dataclasses.asdict(Traffic("all-reduce", ("fsdp",), 8, False, 5.0 * GIB, 40))]
    report |= {"traffic": sums, "mesh": {"data": 2, "fsdp": 8, "tensor": 1, "context": 1}}
    model = dataclasses.replace(program_of(config_of()).recipe.model.config, width=64)
    place = Topology("v5e:4x4", "tpu", [], 1, CHIPS["v5e"])
    (note,) = fit.notes(model, place, report)
    assert "64 / 8 = 8 rows" in note and "--config.mesh.data=4 --config.mesh.fsdp=4" in note
    assert not fit.notes(dataclasses.replace(model, width=128), place, report)


def test_what_the_compiler_refuses_keeps_its_words():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required "
        "for HLO temporaries (104.50G) exceeds available HBM (95.73G). HLO module: jit_train_step."
    )
    refused = Measured("train step", (1.0, 2.0), needed=needed_bytes(message), refused=message)
    report = json.loads(json.dumps(report_of(refused)))
    assert report["fits"] is False and report["memory"]["peak"] == 104.5 * GIB and "estimate" not in report
    assert "takes 104.50 GiB" in fit.describe(report) and "CompileTimeHbmOom" in fit.describe(report)
    silent = Measured("train step", (1.0, 2.0), needed=needed_bytes("RESOURCE_EXHAUSTED"), refused="no word")
    assert "it takes more" in fit.describe(json.loads(json.dumps(report_of(silent))))
    assert needed_bytes("Used 17.50G of 15.75G hbm") == 17.5 * GIB


def test_training_runs_what_was_compiled():
    """Shapes with shardings and the arrays of a run lower to the same program."""
    config = config_of()
    program = program_of(config)
    state = program.create_state(jax.random.key(0))
    vocab = scenes_tokenizer().vocab_size
    rows = Batch(**fake_batch(program.recipe.model.layout, config.train.batch_size, seed=0, vocab=vocab))
    batch = sharding.shard_batch(rows, program.mesh)
    there, not_there = program.step.lower(state, batch), program.step.lower(*program.abstract)
    assert there.as_text() == not_there.as_text()
    assert jax.tree.map(lambda x: x.sharding, state) == program.shardings
    assert bytes_per_device(state) == bytes_per_device(program.abstract[0])


def test_of_several_image_shapes_the_one_with_the_most_tokens_is_compiled():
    changes = {"data.source": "folder", "data.path": "x", "data.buckets": ((16, 24), (48, 64), (16, 48))}
    config = config_of(**changes)
    place = topology.get(topology.parse("cpu:1"))
    program, _ = compile.train_program(config, place)
    _, _, largest, _ = builders.build_layouts(config).values()
    assert largest.image_size == (48, 64) and program.recipe.model.layout == largest


def test_slices_of_a_cpu_are_counted():
    devices = [Device(i) for i in range(4)]
    place = Topology("cpu:2", "cpu", devices, 2, None)
    mesh, slices = compile.mesh_of(config_of(**{"mesh.data": 1, "mesh.fsdp": -1}), place)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1, "context": 1} and slices == {"data": 2}
    absent = dataclasses.replace(place, platform="gpu")  # all of whose devices say that they are of slice 0
    sizes = {"mesh.data": 1, "mesh.fsdp": -1, "mesh.dcn.data": -1}
    mesh, slices = compile.mesh_of(config_of(**sizes), absent)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1, "context": 1} and slices == {"data": 2}
    with pytest.raises(MeshError, match="fsdp"):
        compile.mesh_of(config_of(**{"mesh.data": 1, "mesh.fsdp": 3}), place)


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as a mesh asks for."""

    id: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"
    slice_index: int = 0


# --------------------------------------------------------------------- command


def run(*arguments: str, timeout: int = 300) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in cli.QUIET}
    command = [sys.executable, "-m", "process_gen.compile", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:4x4"], "unknown topology 'v9:4x4'; known are v5e, v5p, v6e, tpu7x, a100"),
        ([], "--topology is required: v5p:4x4x4"),
        (["--topology=cpu:8", "--config.train.batch_size=3"], "3 rows does not divide over 8 shards"),
        (["--topology=cpu:8", "--efficiency=2"], "flag --efficiency=2"),
    ],
)
def test_what_cannot_work_is_one_line_and_code_2(arguments, message):
    done = run("--config=configs/scenes.py:debug", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.long  # it compiles the whole step for eight devices
def test_the_command_compiles_for_eight_devices_and_ends_with_3_where_it_does_not_fit(tmp_path):
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=4"]
    done = run(
        "--config=configs/scenes.py:debug", "--topology=cpu:8", "--config.train.batch_size=8", *mesh,
        "--config.optimizer.name=adamw",
        "--chip=h100", "--hbm=0.001", f"--json={tmp_path}/report.json",
    )  # fmt: skip
    assert done.returncode == compile.DOES_NOT_FIT, done.stderr
    assert "It does NOT fit" in done.stdout and "compiled in" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1} and report["devices"] == 8
    axes = {axis for one in report["traffic"] for axis in one["axes"]}
    assert axes == {"data", "fsdp"} and not report["unknown_loops"]
    assert report["memory"]["temporaries"] > 0 and report["hints"]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: libtpu")
def test_the_tpu_compiler_needs_no_tpu(monkeypatch):
    """A scanned layer whose weights are split over the chips of two slices."""
    monkeypatch.setenv("XLA_FLAGS", "")  # libtpu reads them too, and does not know those of the tests
    name = topology.parse("v5e:2x2", slices=2)
    topology.prepare(name)
    place = topology.get(name)
    assert (len(place.devices), place.slices, place.chip.name) == (8, 2, "v5e")
    sizes = {"mesh.data": 1, "mesh.fsdp": 4, "mesh.dcn.data": -1}
    mesh, slices = compile.mesh_of(config_of(**sizes), place)

    def array(dtype, *shape, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    x = array(jnp.bfloat16, 64, 512, spec=P(("data", "fsdp")))
    weights = array(jnp.bfloat16, 5, 512, 512, spec=P(None, "fsdp"))

    def step(weights, x):
        def loss(weights):
            return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0])

        return weights - jax.grad(loss)(weights)

    lines = []
    jitted = jax.jit(step, out_shardings=weights.sharding, donate_argnums=0)
    found = measure("step", jitted.lower(weights, x), mesh, slices, lines.append)
    assert found.arguments >= (5 * 128 * 512 + 8 * 512) * 2 and found.temporaries > 0
    assert found.aliased >= 5 * 128 * 512 * 2 and found.needed is None and not found.unknown_loops
    assert {one.axes for one in found.traffic if one.network} == {("data",)}
    assert {one.axes for one in found.traffic if not one.network} == {("fsdp",)}
    assert len(lines) == 1 and "compiled in" in lines[0]
