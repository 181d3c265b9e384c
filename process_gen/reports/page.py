"""Writes one HTML file that shows trajectories step by step.

Images are embedded, and there are no scripts or requests to other places: a content
security policy allows data: images and inline style alone. Texts come from users and
models, so each is escaped by `_text`, `_line` or `_cell`.
"""

from __future__ import annotations

import html
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.reports import files, images
from process_gen.reports.style import CSS
from process_gen.reports.table import cell, is_numeric
from process_gen.reports.text import one_line, visible
from process_gen.trajectory.markup import Malformed, Plan
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Turn

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_page(
    path: str | os.PathLike[str],
    trajectories: Sequence[SampledTrajectory],
    title: str,
    summary: Mapping[str, Any],
    results: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None,
    links: Mapping[str, Sequence[str]] | None = None,
) -> pathlib.Path:
    """Writes the page; raises ReportError.

    Args:
      summary: names and values for its head: mode, checkpoint, steps, ...
      results: (headers, rows) of a table for its head.
      links: uid of a trajectory -> the image file of each turn, in order, relative to the page.
    """
    thumbnails = [_thumbnail(number, one) for number, one in enumerate(trajectories, 1)]
    gallery = ['<nav class="gallery" aria-label="Final images">', *thumbnails, "</nav>"] if thumbnails else []
    content = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">',
        f"<title>{_line(title)}</title><style>{CSS}</style></head><body>",
        f'<header><p class="eyebrow">{_count(len(trajectories), "trajectory", "trajectories")}</p>',
        f'<h1 dir="auto">{_line(title)}</h1>{_facts(summary)}</header>',
        *([_results(*results)] if results else []),
        *gallery,
        "<main>",
        *(
            _article(number, one, (links or {}).get(one.uid, ()))
            for number, one in enumerate(trajectories, 1)
        ),
        "</main></body></html>\n",
    ]
    return files.write_bytes(path, "\n".join(content).encode("utf-8"))


def _facts(summary: Mapping[str, Any]) -> str:
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in summary.items()}
    pairs = (f"<div><dt>{_line(name)}</dt><dd>{_cell(value)}</dd></div>" for name, value in shown.items())
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def _results(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    kinds = [' class="n"' if is_numeric([row[i] for row in rows]) else "" for i in range(len(headers))]

    def line(tag: str, cells: Sequence[Any]) -> str:
        shown = (f"<{tag}{kind}>{_cell(one)}</{tag}>" for kind, one in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(shown)}</tr>"

    body = "".join(line("td", row) for row in rows)
    head = line("th", headers)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _thumbnail(number: int, trajectory: SampledTrajectory) -> str:
    kind = "" if trajectory.verdict is None else "right" if trajectory.verdict["ok"] else "wrong"
    shown = _image(trajectory.image, "final image", 224)
    prompt = _line((trajectory.prompt or trajectory.instruction)[:300]) or "(empty prompt)"
    return f'<a class="{kind}" href="#t{number}">{shown}<span class="t" dir="auto">{prompt}</span></a>'


def _article(number: int, trajectory: SampledTrajectory, links: Sequence[str]) -> str:
    verdict, of_verdict = trajectory.verdict, ""
    if verdict is not None:
        of_verdict = _chip("right", "green") if verdict["ok"] else _chip("wrong", "red")
    stopped = trajectory.stopped == "model"
    chips = [
        of_verdict,
        _chip(trajectory.mode.value.replace("_", " ")),
        _chip(_count(len(trajectory.steps), "step", "steps")),
        _chip(_count(trajectory.given, "turn given", "turns given")) if trajectory.given else "",
        _chip("stopped by the model", "blue") if stopped else _chip("limit reached"),
        _chip(_count(trajectory.sampling_steps, "sampling step", "sampling steps")),
        _chip(f"{trajectory.seconds:.2f} s"),
        _chip(f"seed {trajectory.seed}"),
    ]
    given = "" if trajectory.prompt_image is None else _figure(trajectory.prompt_image, "input image")
    after = f'<h2 dir="auto">{_text(trajectory.instruction)}</h2>' if trajectory.instruction else ""
    return (
        f'<article id="t{number}"><p class="eyebrow">{_line(trajectory.uid)}</p>'
        f'<h2 dir="auto">{_text(trajectory.prompt) or "(empty prompt)"}</h2>'
        f'<div class="chips">{"".join(chips)}</div>{given}{after}'
        f"{_steps(trajectory, links)}{_verdict(verdict) if verdict else ''}</article>"
    )


def _steps(trajectory: SampledTrajectory, links: Sequence[str]) -> str:
    """Steps side by side, their turns one below the other; a grid row that is empty in all is left out."""
    steps, given = trajectory.steps, trajectory.given
    end = _chip("stopped", "blue") if trajectory.stopped == "model" else _chip("limit")
    columns, paths = [], iter(links)
    for number, step in enumerate(steps, 1):
        went = _chip("refined", "amber") if step.refines else _chip("accepted", "green")
        marks = went + (end if number == len(steps) else "")
        cells = [f'<div class="head"><b>Step {number}</b>{marks}</div>']
        for turn in step.turns:
            cells += _turn(turn, given > 0, next(paths, None))
            given -= 1
        columns.append(cells)
    rows = [row for row in itertools.zip_longest(*columns, fillvalue="") if any(row)]
    items = ("".join(one or "<div></div>" for one in column) for column in zip(*rows, strict=True))
    listed = "".join(f'<li class="step">{item}</li>' for item in items)
    return f'<ol class="steps" style="--rows: {len(rows)}">{listed}</ol>'


def _turn(turn: Turn, given: bool, link: str | None) -> list[str]:
    """HTML of the text before, the image and the text after of a turn; "" for a text that it lacks."""
    said = turn.parsed
    before = after = ""
    if isinstance(said, Malformed):
        what, raw = "refine instruction" if turn.refines else "plan", _text(said.text) or "(no text)"
        reason = f"<b>Malformed {what}</b>: {_text(said.reason)}"
        before = f'<div><div class="bad">{reason}<pre dir="auto">{raw}</pre></div></div>'
    elif isinstance(said, Plan):
        instruction, description = _text(said.instruction), _text(said.description)
        texts = f'<p class="ins" dir="auto">{instruction}</p><p class="des" dir="auto">{description}</p>'
        before = f"<div>{texts}</div>"
    elif said is not None:
        before = _said("Refine", said, "amber")
    caption = ("refined" if turn.refines else "draft") + (", given" if given else "")
    if turn.after is not None:
        after = _said("Inspection of the correction" if turn.refines else "Inspection", turn.after)
    return [before, _figure(turn.image, caption, link), after]


def _said(what: str, text: str, colour: str = "") -> str:
    shown = _text(text) or "(no text)"
    return f'<div><span class="what">{what}</span><p class="said {colour}" dir="auto">{shown}</p></div>'


def _verdict(verdict: Mapping[str, Any]) -> str:
    items = []
    for check in verdict["constraints"]:
        kind, sign = ("right", "✓") if check["ok"] else ("wrong", "✗")
        why = f' <span class="why">{_text(check["reason"])}</span>' if check["reason"] else ""
        text = _text(check["text"])
        items.append(f'<li class="{kind}"><i>{sign}</i><span dir="auto">{text}{why}</span></li>')
    rest = {name: value for name, value in verdict.items() if name not in ("ok", "constraints")}
    rest = {name: ", ".join(map(str, v)) if isinstance(v, list) else v for name, v in rest.items()}
    pairs = [f"{name}: {value}" for name, value in rest.items() if value not in (None, {}, "")]
    more = f'<p class="des">{_text(" · ".join(pairs))}</p>' if pairs else ""
    return (
        f'<section class="verdict"><span class="what">Verdict</span><ul>{"".join(items)}</ul>{more}</section>'
    )


def _figure(image: np.ndarray, caption: str, link: str | None = None) -> str:
    shown = _image(image, caption, 640)
    if link is not None:
        shown = f'<a href="{html.escape(link)}">{shown}</a>'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _image(image: np.ndarray, alt: str, largest: int) -> str:
    """An <img> of at most `largest` pixels a side; `alt` is not escaped, so never pass a user's text."""
    url, width, height = images.data_url(image, largest)
    kind = ' class="px"' if max(image.shape[:2]) < images.SMALL else ""
    return f'<img{kind} src="{url}" width="{width}" height="{height}" alt="{alt}">'


def _chip(text: str, colour: str = "") -> str:
    return f'<span class="chip {colour}">{_line(text)}</span>'


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _cell(value: Any) -> str:
    return html.escape(cell(value))


def _line(text: str) -> str:
    """Escapes any text for HTML and quoted attributes, as one line."""
    return html.escape(one_line(text))


def _text(text: str) -> str:
    """Escapes any text for HTML and quoted attributes."""
    return html.escape(visible(text))
