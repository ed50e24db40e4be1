"""The property tests of tests/, with as many examples as the suite's profile has (tests/conftest.py)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.registry import Outcome, Run, fault_kind

_TESTS = Path(__file__).resolve().parents[2]
_EXAMPLES = 1000
_CONVERSIONS = _EXAMPLES // 20  # tests/convert/test_conversion_properties.py


class Passed:
    """Collects what became of each test."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            count = _CONVERSIONS if "convert" in report.nodeid else _EXAMPLES
            self.outcomes.append(Outcome(report.passed, report.nodeid, report.longreprtext[-1500:], count))


@fault_kind(
    "examples of properties: records, regions, templates, labels, geometry, masks, conversion",
    "every property holds (one that fails counts for all its examples)",
    slow=True,
)
def properties(run: Run) -> Iterator[Outcome]:
    os.environ["HYPOTHESIS_PROFILE"] = "suite"
    found, files = Passed(), sorted(map(str, _TESTS.rglob("test_*_properties.py")))
    pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(_TESTS.parent), *files], plugins=[found])
    yield from found.outcomes
