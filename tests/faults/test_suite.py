"""The suite itself, and a small share of its cheap kinds. The whole: bash scripts/fault_suite.sh."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.markup import MARKUP, Page, beyond
from tests.faults.registry import FaultKind, Outcome, Run, all_kinds
from tests.faults.runner import Result, run_kind
from tests.faults.table import BEGIN, END, table, write_between_markers

SHARE = 0.02


def kind(inject) -> FaultKind:
    return FaultKind("a kind", "nothing happens", inject, slow=False)


@pytest.mark.parametrize("name", [name for name, one in all_kinds().items() if not one.slow])
def test_a_share_of_every_cheap_kind(name: str) -> None:
    result = run_kind(all_kinds()[name], share=SHARE, limit=120)
    assert not result.lost and result.survived == result.injected > 0


def good(run: Run) -> Iterator[Outcome]:
    yield Outcome(True, "ten", count=10)


def test_outcomes_are_counted() -> None:
    def mixed(run: Run) -> Iterator[Outcome]:
        print("this is not seen")
        yield from good(run)
        yield Outcome(False, "one", f"lost in {run.folder.is_dir()}")

    result = run_kind(kind(mixed))
    assert (result.injected, result.survived) == (11, 10)
    assert [lost.happened for lost in result.lost] == ["lost in True"]


def killed(run: Run) -> Iterator[Outcome]:
    yield from good(run)
    os.kill(os.getpid(), signal.SIGKILL)


def broken(run: Run) -> Iterator[Outcome]:
    yield from good(run)
    print("said before")
    raise RuntimeError("oops")


def hanging(run: Run) -> Iterator[Outcome]:
    yield from good(run)
    if os.fork() == 0:  # a child that would hang for ever, as a run might
        signal.pause()
    time.sleep(1000)


@pytest.mark.parametrize(
    ("inject", "happened"),
    [(killed, "ended the process: SIGKILL"), (broken, "RuntimeError: oops\nsaid before"), (hanging, "hangs for more")],
)
def test_a_kind_that_ends_otherwise_was_not_survived(inject, happened: str) -> None:
    result = run_kind(kind(inject), limit=1)
    assert (result.injected, result.survived) == (11, 10)
    assert happened in result.lost[0].happened


def test_markup_that_is_not_escaped_is_seen() -> None:
    page = '<p class="a"><a href="#b">WORD</a></p><script>let a = 1;</script>'
    plain = Page(page)
    assert beyond(page.replace("WORD", "&lt;b&gt; another"), plain) == []
    seen = {text for text in MARKUP if beyond(page.replace("WORD", text), plain)}
    assert len(seen) > 15 and "<img src=x onerror=alert(1)>" in seen
    assert beyond(page.replace("#b", "javascript:alert(1)"), plain) == ["a link to javascript:alert(1)"]
    assert beyond(page.replace('class="a"', 'class="a" onfocus="x"'), plain) == ["an element <p class onfocus>"]


def test_a_share_is_drawn_by_the_seed(tmp_path: Path) -> None:
    cases = range(1000)
    assert Run(tmp_path, 0, 1).some(cases) == cases
    part = Run(tmp_path, 0, 0.01).some(cases)
    assert len(part) == 10 and part == Run(tmp_path, 0, 0.01).some(cases) != Run(tmp_path, 1, 0.01).some(cases)
    assert len(Run(tmp_path, 0, 0.001).some(range(3))) == 1


def test_the_table_is_written_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nbehind\n")
    results = [Result(kind(good), 1234, 1234, 2.4), Result(kind(good), 10, 9, 61.0)]
    for _ in range(2):
        write_between_markers(page, table(results))
    *_, first, second, sums, _, behind = page.read_text().splitlines()
    assert first == "| a kind | nothing happens | 1,234 | 1,234 | 2 |"
    assert second == "| a kind | nothing happens | 10 | **9** | 61 |"
    assert sums == "| all |  | 1,244 | **1,243** | 63 |" and behind == "behind"
    page.write_text(f"{END}{BEGIN}")
    with pytest.raises(ValueError, match="once each"):
        write_between_markers(page, "")
