"""Plots as PNG files: results with intervals, losses over steps."""

from __future__ import annotations

import io
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from process_gen.reports import files
from process_gen.reports.text import one_line

COLOURS = ("#2563a8", "#d98324", "#4c9a6b", "#8a5fb0", "#b8434e", "#6b7280", "#1f8a99", "#9a7b2d")
LOOKS = cycler(linestyle=("-", "--", ":")) * cycler(color=COLOURS)
"""Styles of successive lines: all colours solid, then all dashed, then all dotted."""

MARKS = "osD^vPX*"
"""Marker shapes of successive series in `points`."""


def bars(
    results: Mapping[str, Mapping[str, tuple[float, float, float]]],
    path: str | os.PathLike[str],
    title: str = "",
    ylabel: str = "share right, 95% interval",
) -> pathlib.Path:
    """Writes a PNG of grouped bars with whiskers: a group of bars per prompt group, one bar per mode.

    Args:
      results: mode -> group -> (mean, low, high), shares between 0 and 1. Modes may have different groups.
      path: the PNG to write.
    """
    groups = list(dict.fromkeys(group for row in results.values() for group in row))
    figure, axes = _axes((max(5.0, 1.6 + 1.05 * len(groups)), 4.2), title, "", ylabel)
    width = 0.8 / len(results)
    for i, (mode, row) in enumerate(results.items()):
        places = [k - 0.4 + width * (i + 0.5) for k, group in enumerate(groups) if group in row]
        mean, low, high = np.array([row[group] for group in groups if group in row]).T
        axes.bar(
            places,
            mean,
            width * 0.92,
            yerr=[mean - low, high - mean],
            label=_plain(mode),
            error_kw={"elinewidth": 1.2, "capsize": 2.5, "ecolor": "#30363d"},
        )
    axes.set_xticks(range(len(groups)), [_plain(group).replace("_", "\n") for group in groups])
    axes.set_ylim(0, 1.03)
    return _save(figure, path, ncols=min(4, len(results)))


def points(
    results: Mapping[str, Sequence[tuple[float, tuple[float, float, float]]]],
    path: str | os.PathLike[str],
    title: str,
    xlabel: str,
    ylabel: str,
) -> pathlib.Path:
    """Writes a PNG of points with whiskers, joined by a line, for each series.

    Args:
      results: name -> points, each x and (mean, low, high).
      path: the PNG to write.
    """
    figure, axes = _axes((7.0, 4.2 + 0.2 * -(-len(results) // 2)), title, xlabel, ylabel)
    for i, (name, found) in enumerate(results.items()):
        x, values = zip(*sorted(found), strict=True)
        mean, low, high = np.array(values).T
        # Hollow marks of different shapes, each smaller than the last, stay visible where series coincide.
        size = max(13.0 - 2.5 * i, 4.0)
        mark = {"marker": MARKS[i % len(MARKS)], "markersize": size, "markerfacecolor": "none"}
        whisker = {"elinewidth": size / 5, "capsize": size / 3}
        axes.errorbar(x, mean, yerr=[mean - low, high - mean], label=_plain(name), **mark, **whisker)
    return _save(figure, path, ncols=2, fontsize=8)


def curves(
    losses: Mapping[str, Sequence[tuple[float, float]]],
    path: str | os.PathLike[str],
    title: str = "",
) -> pathlib.Path:
    """Writes a PNG with a curve per loss, on a logarithmic scale if all finite values are positive.

    Args:
      losses: name -> (step, value) pairs; values that are not finite leave a gap.
      path: the PNG to write.
    """
    figure, axes = _axes((7.2, 4.2), title, "step", "loss")
    for name, points in losses.items():
        steps = [float(step) for step, _ in points]
        values = [float(value) if math.isfinite(value) else math.nan for _, value in points]
        axes.plot(steps, values, label=_plain(name), lw=1.6, marker="o" if len(points) == 1 else None)
    finite = [value for points in losses.values() for _, value in points if math.isfinite(value)]
    if finite and min(finite) > 0:
        axes.set_yscale("log")
    return _save(figure, path, ncols=3)


def bands(panels: Mapping[str, Mapping[str, Sequence[Sequence[tuple[float, float]]]]]) -> bytes:
    """Returns a PNG with a panel per metric: for each name the mean over seeds, and a band of their range.

    Args:
      panels: title -> name -> curves of (step, value) pairs, one per seed. At each step, mean and band are
        over the seeds that have it.
    """
    columns, lines = min(3, len(panels)), -(-len(panels) // 3)
    figure = Figure(figsize=(4.4 * columns, 3.0 * lines), dpi=110, layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, (title, series) in zip(grid, panels.items(), strict=False):
        axes.set_prop_cycle(LOOKS)
        axes.set_title(_plain(title), loc="left", fontsize=9)
        for name, seeds in series.items():
            steps = sorted({step for points in seeds for step, _ in points})
            held = [dict(points) for points in seeds]
            values = [[one[step] for one in held if step in one] for step in steps]
            mean = [float(np.mean(found)) for found in values]
            mark = "o" if len(steps) < 12 else None
            (line,) = axes.plot(steps, mean, label=_plain(name), lw=1.4, marker=mark, markersize=3)
            low, high = list(map(np.min, values)), list(map(np.max, values))
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.18, lw=0)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return _png(figure)


def _axes(size: tuple[float, float], title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=144, layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(LOOKS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e6ea", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_title(_plain(title), loc="left", fontweight="bold")
    axes.set_xlabel(_plain(xlabel))
    axes.set_ylabel(_plain(ylabel))
    return figure, axes


def _plain(text: str) -> str:
    """Escapes text so that matplotlib draws it literally, without reading $...$ as mathematics."""
    return one_line(text).replace("$", r"\$")


def _save(figure: Figure, path: str | os.PathLike[str], **legend: Any) -> pathlib.Path:
    figure.legend(loc="outside lower center", frameon=False, **legend)
    return files.write_bytes(path, _png(figure))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
