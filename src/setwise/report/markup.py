"""HTML from small functions. Every text is escaped unless it is :class:`Html` already: names are a user's."""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Html", "details", "document", "element", "image", "joined", "linked", "section", "table"]

LINK = re.compile(r"https?://[^\s;,)]+")

STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --faint: #626268; --page: #fff; --line: #dcdce0; --soft: #f5f5f7;
  --good: #0b6b3a; --bad: #a32015; --open: #7a5900; --mark: #fdf0e6; --more: 213, 94, 0; --less: 0, 114, 178; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececef; --faint: #a5a5ad; --page: #17181b; --line: #3a3b40;
  --soft: #222327; --good: #63cf97; --bad: #ff8f83; --open: #e3b95a; --mark: #3a2a1d; } }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--faint); margin: 0; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem; }
p, ol, ul { max-width: 46rem; }
.verdict { font-size: 1.4rem; line-height: 1.35; font-weight: 650; margin: .3rem 0 1rem; max-width: none; }
.gain { color: var(--good); } .loss { color: var(--bad); } .open { color: var(--open); }
.faint { color: var(--faint); font-size: .9rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; white-space: normal; }
th[scope=row] { text-align: left; font-weight: inherit; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
thead th:first-child { text-align: left; }
tr.primary { background: var(--mark); font-weight: 650; }
table.heat td { padding: .2rem .3rem; text-align: center; font-size: .75rem; min-width: 2.1rem;
  border: 1px solid var(--page); }
table.heat td.same { outline: 1px solid var(--faint); outline-offset: -1px; }
table.heat th { border: 0; font-size: .75rem; padding: .2rem .4rem; }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; font-size: .82rem; }
code { background: var(--soft); padding: .1em .3em; border-radius: 4px; }
summary { cursor: pointer; color: var(--faint); padding: .3rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: str | None, **attributes: str) -> Html:
    """One element; ``class_`` stands for the attribute class, None among the children for nothing.

    >>> element("td", "<a> & b", class_="x")
    '<td class="x">&lt;a&gt; &amp; b</td>'
    """
    opened = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{opened}>{joined(children)}</{tag}>")


def joined(parts: Iterable[str | None]) -> Html:
    """Parts one after the other, texts escaped, None left out."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts if part is not None))


def image(kind: str, data: bytes, *, alt: str) -> Html:
    """A picture inside the page; ``kind`` is its media type."""
    coded = base64.b64encode(data).decode("ascii")
    return Html(f'<img alt="{escape(alt)}" src="data:{kind};base64,{coded}">')


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, marked: Iterable[int] = (), class_: str = "numbers"
) -> Html:
    """A table whose first column names the rows; rows numbered in ``marked`` (0-based) stand out."""
    chosen = set(marked)
    top = element("thead", element("tr", *(element("th", head, scope="col") for head in heads)))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(cell if cell.startswith("<td") and isinstance(cell, Html) else element("td", cell) for cell in row[1:]),
            **({"class_": "primary"} if number in chosen else {}),
        )
        for number, row in enumerate(rows)
    ]
    return element("div", element("table", top, element("tbody", *body), class_=class_), class_="wide")


def section(title: str, *parts: str | None) -> Html | None:
    """A headed part of the page; None if all its parts are, so that no heading stands alone."""
    held = [part for part in parts if part is not None]
    return element("section", element("h2", title), *held) if held else None


def details(summary: str, *parts: str) -> Html:
    """Parts that open on a click."""
    return element("details", element("summary", summary), *parts)


def linked(text: str) -> Html:
    """A text whose web addresses can be followed.

    >>> linked("Hou, https://arxiv.org/abs/2203.01522")
    'Hou, <a href="https://arxiv.org/abs/2203.01522">https://arxiv.org/abs/2203.01522</a>'
    """
    parts: list[str] = []
    end = 0
    for found in LINK.finditer(text):
        parts += [text[end : found.start()], element("a", found[0], href=found[0])]
        end = found.end()
    return joined([*parts, text[end:]])


def document(title: str, *parts: str | None) -> str:
    """A whole page that needs nothing outside itself."""
    head = element(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", title),
        element("style", Html(STYLE)),
    )
    return f"<!doctype html>\n{element('html', head, element('body', *parts), lang='en')}\n"
