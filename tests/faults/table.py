"""The suite's table, as Markdown and between the markers of a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.faults.runner import Result

BEGIN, END = "<!-- fault suite: begin -->", "<!-- fault suite: end -->"


def table(results: Sequence[Result]) -> str:
    """One line a kind, and one for all."""
    lines = ["| Faults | Survived means | Injected | Survived | Seconds |", "| --- | --- | ---: | ---: | ---: |"]
    for result in results:
        kind = result.kind
        lines.append(_line(kind.name, kind.survived_means, result.injected, result.survived, result.seconds))
    sums = [sum(values) for values in zip(*((r.injected, r.survived, r.seconds) for r in results), strict=True)]
    return "\n".join([*lines, _line("all", "", *sums)])


def _line(name: str, means: str, injected: int, survived: int, seconds: float) -> str:
    mark = "" if survived == injected else "**"
    return f"| {name} | {means} | {injected:,} | {mark}{survived:,}{mark} | {seconds:.0f} |"


def write_between_markers(file: Path, content: str) -> None:
    """Puts the content between the file's markers. ValueError when it has none."""
    text = file.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{file}: expected {BEGIN} and behind it {END}, once each")
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    file.write_text(pattern.sub(lambda _: f"{BEGIN}\n{content}\n{END}", text), encoding="utf-8")
