"""One HTML file that shows trajectories step by step.

It holds its images, needs no script and reaches for nothing outside: a
content policy forbids all but data: images and its own style. Every text in
it came from a user or a model, so every text passes through `_text`.
"""

from __future__ import annotations

import html
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.reports import files, images
from process_gen.reports.records import Record, StepRecord
from process_gen.reports.style import CSS
from process_gen.reports.table import cell, is_numeric
from process_gen.reports.text import one_line, visible

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
Results = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""A table: headers and rows."""


def write_page(
    path: str | os.PathLike[str],
    records: Sequence[Record],
    title: str,
    summary: Mapping[str, Any] | None = None,
    results: Results | None = None,
) -> pathlib.Path:
    """Writes the page.

    Args:
      path: the HTML file; the images of the records lie relative to its folder.
      records: in the order in which they are shown.
      title: of the page.
      summary: names and values for its head: mode, checkpoint, steps, ...
      results: (headers, rows) of a table for its head.
    """
    folder = pathlib.Path(path).parent
    articles, thumbnails = [], []
    for number, record in enumerate(records, 1):
        pictures = _pictures(folder, record)
        thumbnails.append(_thumbnail(number, record, pictures))
        articles.append(_article(number, record, pictures))
    head = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">',
        f"<title>{_line(title)}</title><style>{CSS}</style></head><body>",
        f'<header><p class="eyebrow">{_count(len(records), "trajectory", "trajectories")}</p>',
        f'<h1 dir="auto">{_line(title)}</h1>{_facts(summary or {})}</header>',
    ]
    gallery = ['<nav class="gallery" aria-label="Final images">', *thumbnails, "</nav>"] if records else []
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


def _pictures(folder: pathlib.Path, record: Record) -> dict[str, np.ndarray]:
    return {path: images.read_png(files.inside(folder, path)) for path in record.images}


def _article(number: int, record: Record, pictures: Mapping[str, np.ndarray]) -> str:
    steps = "".join(_step(i, step, pictures) for i, step in enumerate(record.steps, 1))
    stopped = record.stopped == "model"
    chips = [
        _judged(record),
        _chip(record.mode.replace("_", " ")),
        _chip(_count(len(record.steps), "step", "steps")),
        _chip("stopped by the model", "blue") if stopped else _chip("step limit reached"),
        _chip(_count(record.sampling_steps, "sampling step", "sampling steps")),
        _chip(f"{record.seconds:.2f} s"),
        _chip(f"seed {record.seed}"),
    ]
    return (
        f'<article id="t{number}"><p class="eyebrow">{_line(record.uid)}</p>'
        f'<h2 dir="auto">{_text(record.prompt) or "(empty prompt)"}</h2>'
        f'<div class="chips">{"".join(chips)}</div>{_figure(record.prompt_image, "input image", pictures)}'
        f'<ol class="steps">{steps}</ol>{_verdict(record.verdict)}</article>'
    )


def _step(number: int, step: StepRecord, pictures: Mapping[str, np.ndarray]) -> str:
    marks = [_chip("refined", "amber") if step.refined else _chip("accepted", "green") if step.sketch else ""]
    marks.append({"stop": _chip("stopped", "blue"), "cap": _chip("step limit")}.get(step.decision, ""))
    cells = [
        f'<div class="head"><b>Step {number}</b>{"".join(marks)}</div>',
        f"<div>{_plan(step)}</div>",
        _figure(step.sketch, "draft", pictures) or '<div class="none">no image</div>',
        f"<div>{_said('Inspection', step.inspect_text)}</div>",
        f"<div>{_refine(step)}</div>",
        _figure(step.refined, "refined", pictures) or "<div></div>",
    ]
    return f'<li class="step">{"".join(cells)}</li>'


def _plan(step: StepRecord) -> str:
    if step.plan_malformed is not None:
        return _malformed("plan", step.plan_malformed, step.plan_text)
    if step.plan is None:
        return ""
    instruction, description = (
        _text(step.plan.get("instruction", "")),
        _text(step.plan.get("description", "")),
    )
    return f'<p class="ins" dir="auto">{instruction}</p><p class="des" dir="auto">{description}</p>'


def _refine(step: StepRecord) -> str:
    if step.refine_malformed is not None:
        return _malformed("refine instruction", step.refine_malformed, step.refine_text)
    return _said("Refine", step.refine, "amber")


def _said(what: str, text: str | None, colour: str = "") -> str:
    if text is None:
        return ""
    shown = _text(text) or "(no text)"
    return f'<span class="what">{what}</span><p class="said {colour}" dir="auto">{shown}</p>'


def _malformed(what: str, reason: str, text: str | None) -> str:
    raw = _text(text or "") or "(no text)"
    return f'<div class="bad"><b>Malformed {what}</b>: {_text(reason)}<pre dir="auto">{raw}</pre></div>'


def _figure(path: str | None, caption: str, pictures: Mapping[str, np.ndarray]) -> str:
    if path is None:
        return ""
    return f"<figure>{_image(pictures[path], caption)}<figcaption>{caption}</figcaption></figure>"


def _image(image: np.ndarray, alt: str, largest: int = 640) -> str:
    """An <img>; both texts of it are ours."""
    url, width, height = images.data_url(image, largest)
    kind = ' class="px"' if max(image.shape[:2]) < images.SMALL else ""
    return f'<img{kind} src="{url}" width="{width}" height="{height}" alt="{alt}">'


def _thumbnail(number: int, record: Record, pictures: Mapping[str, np.ndarray]) -> str:
    ok = None if record.verdict is None else record.verdict.get("ok")
    kind = "" if ok is None else "right" if ok else "wrong"
    shown = '<span class="none">no image</span>'
    if record.image:
        shown = _image(pictures[record.image], "final image", 224)
    prompt = _line(record.prompt[:300]) or "(empty prompt)"
    return f'<a class="{kind}" href="#t{number}">{shown}<span class="t" dir="auto">{prompt}</span></a>'


def _judged(record: Record) -> str:
    if record.verdict is None or record.verdict.get("ok") is None:
        return ""
    return _chip("right", "green") if record.verdict["ok"] else _chip("wrong", "red")


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
