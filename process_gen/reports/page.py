"""One HTML file that shows trajectories step by step.

It holds its images, needs no script and reaches for nothing outside: a
content policy forbids all but data: images and its own style. Every text in
it came from a user or a model, so every text passes through `_text`.
"""

from __future__ import annotations

import html
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
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
Results = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""A table: headers and rows."""


def write_page(
    path: str | os.PathLike[str],
    trajectories: Sequence[SampledTrajectory],
    title: str,
    summary: Mapping[str, Any] | None = None,
    results: Results | None = None,
) -> pathlib.Path:
    """Writes the page.

    Args:
      path: the HTML file.
      trajectories: in the order in which they are shown; their verdicts are plain JSON.
      title: of the page.
      summary: names and values for its head: mode, checkpoint, steps, ...
      results: (headers, rows) of a table for its head.
    """
    articles = [_article(number, one) for number, one in enumerate(trajectories, 1)]
    thumbnails = [_thumbnail(number, one) for number, one in enumerate(trajectories, 1)]
    head = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">',
        f"<title>{_line(title)}</title><style>{CSS}</style></head><body>",
        f'<header><p class="eyebrow">{_count(len(trajectories), "trajectory", "trajectories")}</p>',
        f'<h1 dir="auto">{_line(title)}</h1>{_facts(summary or {})}</header>',
    ]
    shown = ['<nav class="gallery" aria-label="Final images">', *thumbnails, "</nav>"]
    gallery = shown if trajectories else []
    body = [_results(*results)] if results else []
    content = "\n".join([*head, *body, *gallery, "<main>", *articles, "</main></body></html>", ""])
    return files.write_bytes(path, content.encode("utf-8"))


def verdict_line(verdict: Mapping[str, Any] | None) -> str | None:
    """A verdict in one line: right, or what is wrong."""
    if verdict is None:
        return None
    ok = verdict.get("ok")
    if ok is None:
        return "judged"
    if ok:
        return "right"
    reasons = [why or text for good, text, why in _constraints(verdict) if good is False]
    return "wrong: " + "; ".join(filter(None, reasons)) if any(reasons) else "wrong"


def _constraints(verdict: Mapping[str, Any]) -> list[tuple[bool | None, str, str]]:
    """(kept or not, constraint, reason); what has another form is shown as it is."""
    found = []
    listed = verdict.get("constraints")
    for item in listed if isinstance(listed, (list, tuple)) else []:
        if isinstance(item, Mapping):
            ok, text, reason = item.get("ok"), item.get("text"), item.get("reason")
            found.append((None if ok is None else bool(ok), str(text or ""), str(reason or "")))
        else:
            found.append((None, str(item), ""))
    return found


def _article(number: int, trajectory: SampledTrajectory) -> str:
    stopped = trajectory.stopped == "model"
    chips = [
        _judged(trajectory.verdict),
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
        f"{_steps(trajectory)}{_verdict(trajectory.verdict)}</article>"
    )


def _steps(trajectory: SampledTrajectory) -> str:
    """Every turn of every step, steps side by side; what no step has takes no row."""
    steps, given = trajectory.steps, trajectory.given
    end = _chip("stopped", "blue") if trajectory.stopped == "model" else _chip("limit")
    columns = []
    for number, step in enumerate(steps, 1):
        went = _chip("refined", "amber") if step.refines else _chip("accepted", "green")
        marks = went + (end if number == len(steps) else "")
        cells = [f'<div class="head"><b>Step {number}</b>{marks}</div>']
        for i, turn in enumerate(step.turns):
            cells += _turn(turn, given > 0, "Inspection" if i == 0 else "Inspection of the correction")
            given -= 1
        columns.append(cells)
    rows = [row for row in itertools.zip_longest(*columns, fillvalue="") if any(row)]
    items = ("".join(cell or "<div></div>" for cell in column) for column in zip(*rows, strict=True))
    listed = "".join(f'<li class="step">{item}</li>' for item in items)
    return f'<ol class="steps" style="--rows: {len(rows)}">{listed}</ol>'


def _turn(turn: Turn, given: bool, inspection: str) -> list[str]:
    """A cell for each slot of a turn, empty where nothing is in it."""
    before = _refine(turn.instruction, turn.before) if turn.refines else _plan(turn.plan, turn.before)
    caption = ("refined" if turn.refines else "draft") + (", given" if given else "")
    after = _said(inspection, turn.after)
    return [before and f"<div>{before}</div>", _figure(turn.image, caption), after and f"<div>{after}</div>"]


def _plan(plan: Plan | Malformed | None, text: str | None) -> str:
    if plan is None:
        return ""
    if isinstance(plan, Malformed):
        return _malformed("plan", plan.reason, text)
    instruction, description = _text(plan.instruction), _text(plan.description)
    return f'<p class="ins" dir="auto">{instruction}</p><p class="des" dir="auto">{description}</p>'


def _refine(instruction: str | Malformed | None, text: str | None) -> str:
    if isinstance(instruction, Malformed):
        return _malformed("refine instruction", instruction.reason, text)
    return _said("Refine", instruction, "amber")


def _said(what: str, text: str | None, colour: str = "") -> str:
    if text is None:
        return ""
    shown = _text(text) or "(no text)"
    return f'<span class="what">{what}</span><p class="said {colour}" dir="auto">{shown}</p>'


def _malformed(what: str, reason: str, text: str | None) -> str:
    raw = _text(text or "") or "(no text)"
    return f'<div class="bad"><b>Malformed {what}</b>: {_text(reason)}<pre dir="auto">{raw}</pre></div>'


def _figure(image: np.ndarray, caption: str) -> str:
    return f"<figure>{_image(image, caption)}<figcaption>{caption}</figcaption></figure>"


def _image(image: np.ndarray, alt: str, largest: int = 640) -> str:
    """An <img>; both texts of it are ours."""
    url, width, height = images.data_url(image, largest)
    kind = ' class="px"' if max(image.shape[:2]) < images.SMALL else ""
    return f'<img{kind} src="{url}" width="{width}" height="{height}" alt="{alt}">'


def _thumbnail(number: int, trajectory: SampledTrajectory) -> str:
    ok = None if trajectory.verdict is None else trajectory.verdict.get("ok")
    kind = "" if ok is None else "right" if ok else "wrong"
    shown = _image(trajectory.image, "final image", 224)
    prompt = _line((trajectory.prompt or trajectory.instruction)[:300]) or "(empty prompt)"
    return f'<a class="{kind}" href="#t{number}">{shown}<span class="t" dir="auto">{prompt}</span></a>'


def _judged(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None or verdict.get("ok") is None:
        return ""
    return _chip("right", "green") if verdict["ok"] else _chip("wrong", "red")


def _verdict(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return ""
    items = []
    for ok, text, reason in _constraints(verdict):
        kind, sign = {True: ("right", "✓"), False: ("wrong", "✗"), None: ("", "·")}[ok]
        why = f' <span class="why">{_text(reason)}</span>' if reason else ""
        items.append(f'<li class="{kind}"><i>{sign}</i><span dir="auto">{_text(text)}{why}</span></li>')
    rest = {key: value for key, value in verdict.items() if key not in ("ok", "constraints")}
    pairs = [f"{key}: {_spelled(value)}" for key, value in rest.items() if value not in (None, [], {}, "")]
    more = f'<p class="des">{_text(" · ".join(pairs))}</p>' if pairs else ""
    listed = f"<ul>{''.join(items)}</ul>" if items else ""
    return f'<section class="verdict"><span class="what">Verdict</span>{listed}{more}</section>'


def _spelled(value: Any) -> str:
    """A value of a verdict for people."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _facts(summary: Mapping[str, Any]) -> str:
    if not summary:
        return ""
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in summary.items()}
    pairs = (f"<div><dt>{_line(k)}</dt><dd>{_cell(v)}</dd></div>" for k, v in shown.items())
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def _results(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numeric = [is_numeric([row[i] for row in rows]) for i in range(len(headers))]

    def line(tag: str, cells: Iterable[str]) -> str:
        kinds = (' class="n"' if number else "" for number in numeric)
        return (
            "<tr>"
            + "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in zip(kinds, cells, strict=True))
            + "</tr>"
        )

    body = "".join(line("td", map(_cell, row)) for row in rows)
    head = line("th", map(_line, headers))
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _chip(text: str, colour: str = "") -> str:
    return f'<span class="chip {colour}">{_line(text)}</span>'


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _cell(value: Any) -> str:
    return html.escape(cell(value))


def _line(text: str) -> str:
    """Any text, on one line, fit to stand in HTML and in a quoted attribute."""
    return html.escape(one_line(str(text)))


def _text(text: str) -> str:
    """Any text, fit to stand in HTML and in a quoted attribute."""
    return html.escape(visible(str(text)))
