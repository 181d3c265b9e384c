from __future__ import annotations

import math

import numpy as np
import pytest

from process_gen.reports import plots
from process_gen.reports.table import table
from process_gen.reports.text import one_line, visible
from tests.reports.samples import read_png


def test_tables_align_and_format():
    rows = [["process", 0.51234, 1200, None], ["plan_only", np.float32(0.5), np.int64(3), 2.0]]
    assert table(rows, ["mode", "mean", "n", "s"]).split("\n") == [
        "mode        mean      n      s",
        "---------  -----  -----  -----",
        "process    0.512  1,200      -",
        "plan_only  0.500      3  2.000",
    ]
    assert table([], ["a", "bb"]) == "a  bb\n-  --"


def test_tables_count_wide_characters_and_disarm_terminal_codes():
    lines = table([["日本", 1], ["\x1b[31mred\nx", 2]], ["name", "n"]).split("\n")
    assert lines[2] == "日本" + " " * 9 + "  1"
    assert lines[3] == "\\x1b[31mred x  2"


def test_tables_refuse_ragged_rows():
    with pytest.raises(ValueError, match="shorter"):
        table([["x"]], ["a", "b"])


def test_hidden_characters_become_visible():
    assert visible("a\0b\u202ec\u200bd\ud800\x85\tz\n") == "ab\\u202ec\\u200bd\\ud800\\x85\tz\n"
    assert visible("क्‍ष 👩‍🚀 ünï") == "क्‍ष 👩‍🚀 ünï"
    assert visible("\U000e0041") == "\\U000e0041"
    assert one_line(" a\n\n b\t") == "a b"


def test_bars_draw_what_they_are_given(tmp_path):
    full = {"process": {"two_objects": (0.9, 0.8, 0.95), "long": (0.4, 0.3, 0.5)}}
    one = read_png(plots.bars(full, tmp_path / "a.png"))
    two = read_png(
        plots.bars({**full, "single_pass": {"long": (0.1, 0.0, 0.2)}}, tmp_path / "b.png", "$x^2 & $y")
    )
    assert one.shape[1] > 400
    orange = (np.abs(two.astype(int) - (0xD9, 0x83, 0x24)) < 8).all(-1).sum()
    assert orange > 200 and not (np.abs(one.astype(int) - (0xD9, 0x83, 0x24)) < 8).all(-1).any()


def test_curves_leave_gaps_for_what_is_not_finite(tmp_path):
    losses = {"loss/plan": [(0, 2.0), (1, math.nan), (2, 1.0)], "loss/sketch": [(0, 0.5)], "none": []}
    picture = read_png(plots.curves(losses, tmp_path / "x" / "curves.png", "Loss"))
    assert picture.std() > 1
    plots.curves({"a": [(0, math.inf)], "b": [(0, -1.0)]}, tmp_path / "odd.png")


def test_points_that_coincide_are_each_seen(tmp_path):
    same = [(8.0, (0.5, 0.4, 0.6)), (16.0, (0.7, 0.6, 0.8))]
    path = plots.points({f"arm {n}": same for n in range(4)}, tmp_path / "cost.png", "t", "steps", "score")
    pixels = read_png(path).astype(int)[..., :3]
    pixels = pixels[: int(0.8 * len(pixels))]  # without the legend
    for colour in plots.COLOURS[:4]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels - wanted).sum(-1) < 12).sum() > 60, colour
