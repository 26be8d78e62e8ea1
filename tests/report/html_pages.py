"""Reading a page back, as strictly as a browser is lenient."""

import re
from html.parser import HTMLParser

VOID = ("meta", "img", "br", "hr")
ADDRESSES = ("src", "href", "data", "action", "srcset")


class Page(HTMLParser):
    """Text, headings, table rows and addresses of a page whose tags must be balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [(tag, value or "") for name, value in attrs if name in ADDRESSES]
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            assert not re.search(r"url\(|@import", data)
            return
        self.text += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data
        if "h2" in self.open:
            self.headings[-1] += data


def is_self_contained(page: Page) -> bool:
    """Pictures lie in the page; only citations lead out of it; no script runs."""
    links = all(tag == "a" and value.startswith("https://") for tag, value in page.addresses if tag != "img")
    pictures = all(value.startswith("data:image/") for tag, value in page.addresses if tag == "img")
    return links and pictures and not {"script", "link", "iframe", "object"} & page.tags
