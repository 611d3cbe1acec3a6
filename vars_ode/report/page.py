"""The parts of the HTML page: tables, figures, style sheet. Every text is escaped here; callers pass plain strings."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 17px/1.55 Georgia, "Times New Roman", serif; color: #1a1a1a; background: #fff; max-width: 56rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1, h2, h3, nav, th, .kicker { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; line-height: 1.25; }
h1 { font-size: 1.7rem; margin: .2em 0 .4em; }
h2 { font-size: 1.3rem; margin: 2.2em 0 .5em; border-bottom: 2px solid #0072b2; padding-bottom: .15em; }
h3 { font-size: 1.05rem; margin: 1.6em 0 .3em; }
.kicker { color: #555; margin: 0; font-size: .9rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2em 1.1em; list-style: none; padding: 0; font-size: .9rem; }
a { color: #005a8c; }
.answer { border-left: 4px solid #0072b2; background: #eef5fa; padding: .7em 1em; }
.missing { border-left: 4px solid #d55e00; background: #fdf3ec; padding: .7em 1em; }
.scroll { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 55%; }
.caption { color: #444; font-size: .92rem; margin-bottom: .2em; }
.caption + .scroll { margin-top: 0; }
th, td { padding: .3em .55em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, .text { text-align: left; }
.long th { text-align: left; }
.long td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; white-space: normal; }
tbody tr:nth-child(even) { background: #f7f7f7; }
tbody th { font-weight: 600; }
figure { margin: 1.2em 0 2em; break-inside: avoid; }
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { font-size: .92rem; color: #333; margin-top: .5em; }
pre { background: #f3f3f3; padding: .7em; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
dt { font-weight: bold; margin-top: .7em; } dd { margin-left: 1.2em; }
@media (max-width: 40rem) {
  body { font-size: 16px; }
  table { font-size: .72rem; min-width: 100%; } th, td { white-space: normal; padding: .3em .15em; }
  .wide, .wide tbody, .wide tr, .wide tbody th, .wide td { display: block; } .wide thead { display: none; }
  .wide tr { border-bottom: 2px solid #888; padding: .3em 0; } .wide tbody th { font-size: .88rem; }
  .wide td { display: flex; justify-content: space-between; }
  .wide td::before { content: attr(data-label); color: #444; }
}
@media print { body { font-size: 10.5pt; max-width: none; padding: 0; } nav { display: none; }
  .scroll { overflow: visible; } tr { break-inside: avoid; } h2, h3 { break-after: avoid; } a { color: inherit; } }
"""


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


COLUMNS_OF_A_PHONE = 6  # of numbers with a deviation; with more a row becomes a block, one value below the other


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", texts: int = 1, long: bool = False
) -> str:
    """A table that fits a narrow screen: cells wrap, and the rows of a wide one become blocks.

    Args:
        headings: of the columns.
        rows: cells as text.
        caption: above the table.
        texts: so many columns, the first ones, are words, the others numbers.
        long: the cells after the first hold texts that may be longer than a line.
    """
    kinds = [' class="text"' if i < texts else "" for i in range(len(headings))]
    head = "".join(f'<th scope="col"{k}>{escape(heading)}</th>' for k, heading in zip(kinds, headings, strict=True))
    body = "".join(f"<tr>{_cells(row, headings, texts)}</tr>\n" for row in rows)
    names = [name for name, given in (("long", long), ("wide", len(headings) > COLUMNS_OF_A_PHONE)) if given]
    kind = f' class="{" ".join(names)}"' if names else ""
    title = paragraph(caption, "caption") if caption else ""  # outside, so that it does not scroll with the table
    return (
        f'{title}<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _cells(row: Sequence[str], headings: Sequence[str], texts: int) -> str:
    cells = [f'<th scope="row">{escape(row[0])}</th>']
    for i, cell in enumerate(row[1:], start=1):
        kind = ' class="text"' if i < texts else ""
        cells.append(f'<td{kind} data-label="{escape(headings[i])}">{escape(cell)}</td>')
    return "".join(cells)


def figure(title: str, path: Path, reading: str, heading: bool = True) -> str:
    """An image embedded in the page, with its caption; `heading` off where a section of that title begins with it."""
    above = f"<h3>{escape(title)}</h3>\n" if heading else ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'{above}<figure><img src="data:image/png;base64,{data}" alt="{escape(title)}">\n'
        f"<figcaption>{escape(reading)}</figcaption></figure>"
    )


def definitions(terms: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(t)}</dt><dd>{escape(d)}</dd>" for t, d in terms.items()) + "</dl>"


def page(title: str, kicker: str, sections: dict[str, str]) -> str:
    """The whole document; `sections` maps headings to HTML."""
    anchors = {heading: f"part-{i}" for i, heading in enumerate(sections, start=1)}
    links = "".join(f'<li><a href="#{anchors[h]}">{escape(h)}</a></li>' for h in sections)
    parts = (f'<section id="{anchors[h]}"><h2>{escape(h)}</h2>\n{html}</section>' for h, html in sections.items())
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1></header>\n'
        f"<nav><ul>{links}</ul></nav>\n<main>{body}</main>\n</body></html>\n"
    )
