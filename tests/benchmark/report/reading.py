"""Reads the files of a report again, and checks their form."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

from ickd_pl.benchmark.report.write import write_report

VOID = {"meta", "input", "br", "path", "polyline", "circle", "use"}


def report(folder: Path) -> dict[str, str]:
    paths = write_report(folder)
    assert [p.name for p in paths] == ["report.md", "report.csv", "report.tex", "report.html"]
    assert [p.parent for p in paths] == [folder] * 4
    return {p.suffix[1:]: p.read_text(encoding="utf-8") for p in paths}


def table_of(markdown: str, heading: str) -> dict[str, list[str]]:
    """The first table below a heading: its rows by first column."""
    lines = markdown.split(f"## {heading}\n", 1)[1].splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]])
    assert len({len(r) for r in rows}) == 1, "a name broke a row"
    return {r[0]: r[1:] for r in rows}


class Page(HTMLParser):
    """Checks that elements are nested, and keeps text, addresses and cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.scripts = 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def check_page(text: str) -> Page:
    page = Page(text)
    assert not re.search(r"https?://|@import|url\(", text), "the page needs something from outside"
    assert page.scripts == 1
    assert all(a.startswith("#") and a[1:] in page.ids for a in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    return page


def check_tex(text: str) -> None:
    """Braces and environments close; every row of a table has the declared number of columns."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    plain = re.sub(r"\\[{}%&#$_]|\\textbackslash\{\}", "", body)
    assert plain.count("{") == plain.count("}")
    inner = body.split(r"\makeatother", 1)[1]
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", inner):
        assert kind == "begin" or stack[-1] == name
        stack = [*stack, name] if kind == "begin" else stack[:-1]
    assert stack == []
    for columns, rows in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", inner, re.S):
        for row in re.findall(r"^(.*) \\\\$", rows, re.M):
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1, row
    assert body.isascii() or all(ord(c) < 0x100 for c in body)


def check_all(files: dict[str, str]) -> Page:
    check_tex(files["tex"])
    list(csv.DictReader(files["csv"].splitlines(), strict=True))
    return check_page(files["html"])
