"""The style sheet of the page: plain CSS, light and dark, narrow and wide."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f9; --card: #fff; --ink: #17202a; --muted: #5d6877; --line: #dfe3e8; --soft: #eef1f4;
  --blue: #1d5fbf; --green: #177245; --amber: #a04a08; --red: #b42318;
  --blue-soft: #e6effb; --green-soft: #e2f3ea; --amber-soft: #fdf0e1; --red-soft: #fdeae8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0f1318; --card: #171d24; --ink: #e6eaef; --muted: #98a3b1; --line: #2a323c; --soft: #1f262f;
    --blue: #7fb2ff; --green: #6fcf97; --amber: #f2b266; --red: #ff8f85;
    --blue-soft: #182a44; --green-soft: #15301f; --amber-soft: #38270f; --red-soft: #3d1b19;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 5rem; max-width: 86rem; background: var(--paper);
  color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
h1, h2, p, dl, dd, ol, ul, figure { margin: 0; padding: 0; }
ol, ul { list-style: none; }
h1 { font-size: clamp(1.6rem, 3vw, 2.2rem); line-height: 1.2; letter-spacing: -.02em; }
h2 { font-size: 1.25rem; line-height: 1.35; letter-spacing: -.01em; }
h1, h2, p, dd, td, pre, li { overflow-wrap: anywhere; unicode-bidi: isolate; }
a { color: inherit; }
a:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
.eyebrow, .facts dt, .what, figcaption { color: var(--muted); font-size: .8rem; }
.eyebrow { margin-bottom: .35rem; }
.what { display: block; }
figcaption { margin-top: .35rem; }
.facts { display: flex; flex-wrap: wrap; gap: .9rem 2.2rem; margin-top: 1.4rem; }
.facts dd { font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin-top: 1.6rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .55rem 1rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 500; font-size: .85rem; }
tr:last-child td { border-bottom: 0; }
th.n, td.n { text-align: right; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: .9rem;
  margin: 2rem 0 2.4rem; }
.gallery a { text-decoration: none; font-size: .78rem; line-height: 1.35; color: var(--muted); }
.gallery a:hover { color: var(--ink); }
.gallery img { width: 100%; aspect-ratio: 1; object-fit: contain; }
.gallery span.t { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden;
  margin-top: .35rem; overflow-wrap: anywhere; }
img { display: block; height: auto; max-width: 100%; border-radius: 8px;
  box-shadow: 0 0 0 1px var(--line); background: var(--soft); }
img.px { image-rendering: pixelated; }
.gallery .right img { box-shadow: 0 0 0 2px var(--green); }
.gallery .wrong img { box-shadow: 0 0 0 2px var(--red); }
article { background: var(--card); border: 1px solid var(--line); border-radius: 14px; margin-top: 1.5rem;
  padding: clamp(1rem, 2.5vw, 1.8rem); scroll-margin-top: 1rem; }
article:target { border-color: var(--blue); }
.chips { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem; margin-top: .6rem; }
.chip { border-radius: 99px; padding: .08rem .65rem; font-size: .8rem; line-height: 1.5; white-space: nowrap;
  background: var(--soft); color: var(--muted); }
.chip.green { background: var(--green-soft); color: var(--green); }
.chip.amber { background: var(--amber-soft); color: var(--amber); }
.chip.red { background: var(--red-soft); color: var(--red); }
.chip.blue { background: var(--blue-soft); color: var(--blue); }
.steps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr));
  gap: 0 1.8rem; margin-top: 1.4rem; }
.step { display: grid; grid-row: span var(--rows); grid-template-rows: subgrid; align-content: start;
  gap: .75rem; padding-bottom: 1.2rem; min-width: 0; }
.step .head { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; padding-top: .8rem;
  border-top: 2px solid var(--line); }
.step .head b { margin-right: .3rem; }
.ins { font-weight: 600; }
.des { color: var(--muted); font-size: .9rem; margin-top: .25rem; white-space: pre-wrap; }
article > figure { margin-top: .9rem; }
figure img { width: 100%; max-width: 17rem; }
.said { border-left: 3px solid var(--line); padding-left: .75rem; white-space: pre-wrap; }
.said.amber { border-color: var(--amber); }
.bad { background: var(--red-soft); border-radius: 8px; padding: .6rem .75rem; font-size: .88rem; }
.bad b { color: var(--red); }
.bad pre { margin: .35rem 0 0; white-space: pre-wrap;
  font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
.verdict { border-top: 1px solid var(--line); margin-top: .4rem; padding-top: 1.1rem; }
.verdict ul { margin-top: .6rem; display: grid; gap: .35rem; }
.verdict li { display: grid; grid-template-columns: 1.4rem 1fr; }
.verdict li > i { font-style: normal; font-weight: 700; color: var(--muted); }
.verdict li.right > i { color: var(--green); }
.verdict li.wrong > i { color: var(--red); }
.verdict .why { color: var(--muted); }
@media print {
  body { max-width: none; padding: 0; }
  article { break-inside: avoid; }
  .gallery { display: none; }
}
"""
