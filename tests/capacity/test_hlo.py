"""Reading compiled programs: loops, groups of devices, and what they exchange."""

from __future__ import annotations

import numpy as np
import pytest

from process_gen.capacity import collectives, hlo

# Written by hand in the form that XLA prints: a loop of 5 trips around an all-gather and a reduce-scatter,
# a chain of fusions that is one asynchronous exchange, and an all-reduce at the end.
TEXT = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[4,8]{1,0})->f32[]}, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%condition (state: (s32[], bf16[16,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(6)
  %state = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT, metadata={op_name="jit(f)/while/cond/lt"}
}

%chained.1 (a: bf16[4,8]) -> bf16[16,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  ROOT %gather.1 = bf16[16,8]{1,0} all-gather(%a), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="7"}
}

%chained.2 (a: bf16[4,8]) -> bf16[16,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  ROOT %gather.2 = bf16[16,8]{1,0} all-gather(%a), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="7"}
}

%all-reduce-scatter.4 (a: f32[16,8]) -> f32[4,8] {
  %a = f32[16,8]{1,0} parameter(0)
  %whole = f32[16,8]{1,0} all-reduce(%a), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %own = f32[4,8]{1,0} dynamic-slice(%whole, %zero, %zero), dynamic_slice_sizes={4,8}
}

%body (state: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %state = (s32[]{:T(128)}, bf16[16,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %part = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %first = bf16[16,8]{1,0} fusion(%part), kind=kCustom, calls=%chained.1
  %second = bf16[16,8]{1,0} fusion(%part), kind=kCustom, calls=%chained.2
  %scattered = f32[4,8]{1,0} fusion(%second), kind=kCustom, calls=%all-reduce-scatter.4
  %moved = (f32[3]{0}, f32[3]{0}, u32[], u32[]) collective-permute-start(%i), channel_id=9, source_target_pairs={{0,1},{1,0}}
  ROOT %next = (s32[], bf16[16,8]{1,0}) tuple(%i, %second)
}

ENTRY %main (x: f32[4,8]) -> f32[] {
  %x = f32[4,8]{1,0} parameter(0)
  %one = s32[] constant(1)
  %start = (s32[], bf16[16,8]{1,0}) tuple(%one, %x)
  %loop = (s32[]{:T(128)}, bf16[16,8]{1,0}) while(%start), condition=%condition, body=%body
  %started = ((f32[4,8]{1,0}), f32[8,8]{1,0}) all-gather-start(%x), channel_id=5, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %spread = ((f32[8,8]{1,0}, f32[4]{0}), (f32[4,8]{1,0}, f32[2]{0})) reduce-scatter-start(%started, %x), channel_id=8, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add
  %sent = (f32[10]{0}, u32[], token[]) send(%x, %x), channel_id=6, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %total = f32[]{:T(256)} all-reduce(%x), channel_id=2, replica_groups=mesh['axis_0'=8] {'axis_0'}, use_global_device_ids=true, to_apply=%add
}
"""  # noqa: E501

MESH = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}


def test_a_loop_runs_as_often_as_its_condition_says():
    program = hlo.parse(TEXT)
    assert program.partitions == 8 and program.entry == "main" and not program.unknown_loops
    assert program.runs["body"] == 5  # it counts from 1 to 6
    assert program.runs["chained.1"] == 5 and "add" not in program.runs


def test_the_compilers_own_note_comes_first():
    noted = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"9"}}')
    assert hlo.parse(noted).runs["body"] == 9
    unknown = TEXT.replace("direction=LT", "direction=NE")
    assert hlo.parse(unknown).unknown_loops == ["loop"] and hlo.parse(unknown).runs["body"] == 1


def test_bytes_by_kind_and_axes():
    found = collectives.traffic(hlo.parse(TEXT), MESH, {})
    by_kind = {(one.kind, one.axes, one.network): one for one in found}
    gathered = by_kind["all-gather", ("fsdp",), False]
    assert (gathered.bytes, gathered.runs) == (5 * 16 * 8 * 2 * 3 / 4, 5)  # two fusions are one exchange
    scattered = by_kind["reduce-scatter", ("fsdp",), False]
    assert scattered.bytes == 5 * 16 * 8 * 4 * 3 / 4
    started = by_kind["reduce-scatter", ("data",), False]  # as GPUs write it: operands, then results
    assert started.bytes == (8 * 8 + 4) * 4 / 2
    across = by_kind["all-gather", ("data",), False]
    assert across.bytes == 8 * 8 * 4 / 2
    total = by_kind["all-reduce", ("data", "fsdp"), False]
    assert total.bytes == 2 * 4 * 7 / 8
    moved = by_kind["collective-permute", ("fsdp",), False]
    assert moved.bytes == 5 * 12 * 2 / 8  # two of eight devices receive something


def test_what_goes_between_slices_is_told_apart():
    """Of two slices of 8 devices, a TPU's program knows 8."""
    mesh = {"data": 4, "fsdp": 4, "tensor": 1, "context": 1}
    found = collectives.traffic(hlo.parse(TEXT), mesh, {"data": 2})
    (sent,) = [one for one in found if one.network]
    assert (sent.kind, sent.bytes, sent.axes) == ("all-reduce", 2 * 40 / 2, ("data",))
    inside = {one.axes for one in found if not one.network}
    assert inside == {("fsdp",), ("data",), ("data", "fsdp")}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("{}", [[0, 1, 2, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=(0,3,2,1) {'b'}", [[0, 3], [1, 2]]),
        ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ],
)
def test_every_form_of_groups(text, groups):
    one = hlo.Instruction("x", "f32[]", "all-reduce", f"%y), replica_groups={text}, x=y", "main")
    read = one.attribute("replica_groups")
    found = collectives.device_groups(read, 4)
    np.testing.assert_array_equal(np.sort(found, axis=1), groups)


def test_other_forms_of_groups_are_refused():
    with pytest.raises(ValueError, match="has a form that is not known here"):
        collectives.device_groups("nonsense", 4)


def test_bytes_of_types():
    assert hlo.type_bytes("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}") == 12
    assert hlo.type_bytes("(f32[4]{0}, u32[], token[], pred[3])") == 16 + 4 + 3
    assert hlo.type_bytes("f8e4m3fn[10]") == 10 and hlo.type_bytes("s4[10]") == 5
    assert hlo.members("((f32[4,8]{1,0}, f32[2]{0}), f32[8,8]{1,0})") == [
        "(f32[4,8]{1,0}, f32[2]{0})",
        "f32[8,8]{1,0}",
    ]
