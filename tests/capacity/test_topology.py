"""Names of devices that are not there, chips, and what an estimate of the time is made of."""

from __future__ import annotations

import importlib.util
import pathlib

import jax
import pytest

from process_gen.capacity import roofline, topology
from process_gen.capacity.collectives import Traffic
from process_gen.capacity.topology import Name, TopologyError
from process_gen.distributed.chips import CHIPS, GIB, chip_of
from tests.own_process import printed

HERE = pathlib.Path(__file__).parent


@pytest.mark.parametrize(
    ("text", "slices", "name"),
    [
        ("v5p:4x4x4", 1, Name("v5p", (4, 4, 4))),
        ("V5E:16x16", 2, Name("v5e", (16, 16), 2)),
        ("h100:8", 4, Name("h100", (8,), 4)),
        ("cpu:8", 1, Name("cpu", (8,))),
        ("gpu", 1, Name("gpu", ())),
    ],
)
def test_names(text, slices, name):
    assert topology.parse(text, slices) == name


@pytest.mark.parametrize(
    ("text", "slices", "message"),
    [
        ("v9:2x2", 1, "unknown topology 'v9:2x2'; known are v5e, .*, tpu7x, a100, h100, h200, b200, cpu"),
        ("h100:4x8", 1, "not of the form h100:8"),
        ("v5p:4x4", 1, "not of the form v5p:4x4x4"),
        ("v5e", 1, "not of the form v5e:4x4"),
        ("cpu", 1, "not of the form cpu:8"),
        ("cpu:0", 1, "not of the form cpu:8"),
        ("gpu", 2, "leave --slices out"),
    ],
)
def test_bad_names_say_what_would_work(text, slices, message):
    with pytest.raises(TopologyError, match=message):
        topology.parse(text, slices)


def test_a_missing_compiler_or_plugin_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TopologyError, match="pip install libtpu"):
        topology.get(topology.parse("v5e:4x4"))
    with pytest.raises(
        TopologyError, match=r"takes JAX's GPU plugin, not a GPU: `pip install -e '.\[cuda13\]'"
    ):
        topology.get(topology.parse("h100:8"))
    with pytest.raises(TopologyError, match=r"pip install -e '.\[cuda13\]'.*`.\[cuda12\]` for older drivers"):
        topology.get(topology.parse("gpu"))
    with pytest.raises(TopologyError, match="unknown chip 'h1000'; known are v4"):
        topology.get(topology.parse("cpu:1"), "h1000")


def test_the_devices_of_a_cpu_may_stand_for_a_chip():
    found = topology.get(topology.parse("cpu:1"), "h100")
    assert (found.platform, len(found.devices), found.slices) == ("cpu", 1, 1)
    assert found.chip is CHIPS["h100"] and found.devices[0] in jax.devices()
    assert topology.get(topology.parse("cpu:1")).chip is None


def test_chips_are_known_by_the_longest_beginning():
    assert chip_of("TPU v5 lite").name == "v5e" and chip_of("TPU v5").name == "v5p"
    assert chip_of("TPU v6e").name == "v6e" and chip_of("TPU v4").name == "v4" and chip_of("TPU v9") is None
    assert chip_of("NVIDIA H100 80GB HBM3").name == "h100" and chip_of("cpu") is None
    assert all(chip.hbm > 10 * GIB and chip.link_bandwidth < chip.hbm_bandwidth for chip in CHIPS.values())


def test_an_estimate_is_four_divisions():
    chip = CHIPS["v5p"]
    over_links = Traffic("all-gather", ("fsdp",), 64, False, 0.8 * 600e9, 10)
    over_network = Traffic("all-reduce", ("data",), 2, True, 0.8 * 6.25e9, 1)
    traffic = [over_links, over_network]
    found = roofline.estimate(chip, 459e12, 2765e9, traffic, efficiency=0.5, sides=3)
    assert [found[name] for name in ("compute", "memory", "links", "network")] == [2.0, 1.0, 1.0, 1.0]
    # 64 devices are a cube of 4: two hops along each of three sides; two devices are one hop along each.
    assert found["hops"] == pytest.approx((10 * 3 * 2 + 3 * 1) * 1e-6)
    assert found["best"] == 2.0 and found["bound"] == "compute"
    assert found["worst"] == pytest.approx(4.0 + found["hops"])
    assert any("50% of 459" in line for line in roofline.assumptions(chip, 0.5))


def test_links_of_gpus_end_at_the_host():
    wide = [Traffic("all-gather", ("fsdp",), 16, False, 50e9, 1)]
    assert roofline.estimate(CHIPS["h100"], 0.0, 0.0, wide)["links"] == 0.0
    narrow = [Traffic("all-gather", ("fsdp",), 8, False, 50e9, 1)]
    assert roofline.estimate(CHIPS["h100"], 0.0, 0.0, narrow)["network"] == 0.0


def test_exchanges_of_a_real_program():
    assert printed(HERE / "eight_devices_exchange.py") == ["ok"] * 3


@pytest.mark.skipif(
    not topology.is_installed("jax_plugins.xla_cuda13"), reason="needs JAX's GPU plugin: the cuda13 extra"
)
def test_the_gpu_compiler_needs_no_gpu():
    assert printed(HERE / "gpu_attention.py", XLA_FLAGS="") == ["ok"]
