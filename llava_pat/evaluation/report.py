"""What an evaluation leaves: results.json, and results.md with the published rows beside ours.

results.json: {"checkpoint", "name", "settings", "benchmarks": {NAME: {...}}, "sources", "statements"}; a benchmark has

    title, status ("scored", "to be scored by a server", "missing files" or "failed"), metrics (the first is the
    headline), questions, answered, partial, limit, answer_seconds, answered_in_this_run, score_seconds, answers,
    provenance, submission, notes, needs, error, published
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llava_pat.evaluation.published import ROWS, STATEMENTS, published

RESULTS = "results.json"
TABLE = "results.md"
SCORED, SERVER, MISSING, FAILED = "scored", "to be scored by a server", "missing files", "failed"


@dataclass
class Result:
    """One benchmark's line in results.json."""

    title: str
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    questions: int = 0
    """How many the benchmark has."""
    answered: int = 0
    limit: int | None = None
    """--limit, if it left questions out."""
    answer_seconds: float = 0.0
    """Of this run alone: answers that were there already took none."""
    answered_in_this_run: int = 0
    score_seconds: float = 0.0
    answers: str | None = None
    provenance: dict[str, Any] | None = None
    submission: str | None = None
    notes: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    """What is missing, and where it comes from."""
    error: str | None = None

    @property
    def partial(self) -> bool:
        """Whether the figures are of some of the questions only."""
        return self.answered < self.questions


class Report:
    """Results of one checkpoint, on the disk after every benchmark; a later run adds to them."""

    def __init__(self, out: Path, checkpoint: str, name: str, settings: dict[str, Any]) -> None:
        """settings: all that figures depend on, a hash of the weights among it; JSON.

        Results of other settings that lie in `out` are moved to results.json.old, which `replaced` then names.
        """
        self.file = out / RESULTS
        self.table = out / TABLE
        self.head = {"checkpoint": checkpoint, "name": name, "settings": settings}
        self.benchmarks: dict[str, dict[str, Any]] = {}
        self.replaced: Path | None = None
        if self.file.exists():
            earlier = json.loads(self.file.read_text(encoding="utf-8"))
            if earlier["settings"] == settings:
                self.benchmarks = earlier["benchmarks"]
            else:
                self.replaced = self.file.with_name(f"{RESULTS}.old")
                os.replace(self.file, self.replaced)

    def add(self, name: str, result: Result) -> None:
        """Adds or replaces a benchmark's result and writes both files."""
        entry = asdict(result) | {"partial": result.partial, "published": published(name)}
        earlier = self.benchmarks.get(name)
        if result.status == SCORED and not result.answered_in_this_run and earlier and earlier["status"] == SCORED:
            entry["answer_seconds"] = earlier["answer_seconds"]  # nothing was answered anew: its time still holds
            entry["answered_in_this_run"] = earlier["answered_in_this_run"]
        self.benchmarks[name] = entry
        self.file.parent.mkdir(parents=True, exist_ok=True)
        sources = {row.name: row.source for row in ROWS}
        content = self.head | {"benchmarks": self.benchmarks, "sources": sources, "statements": list(STATEMENTS)}
        _replace(self.file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        _replace(self.table, self.markdown())

    def markdown(self) -> str:
        """The table, one line a benchmark, and below it whatever a reader of the numbers must know."""
        rows = [row for row in ROWS if any(row.name in entry["published"] for entry in self.benchmarks.values())]
        head = ["benchmark", "metric", str(self.head["name"]), *(row.name for row in rows)]
        lines = [[*self._ours(name, entry), *(_figure(entry["published"].get(row.name)) for row in rows)]
                 for name, entry in sorted(self.benchmarks.items())]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        text = ["# Evaluation", "", f"Checkpoint: {self.head['checkpoint']}", ""]
        rule = ["-" * width for width in widths]
        for cells in (head, rule, *lines):
            text.append("| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |")
        text += ["", *self._remarks(), *self._further(), ""]
        if rows:
            text += ["Sources of the published rows:", "", *(f"- {row.name}: {row.source}" for row in rows)]
            text += [f"- {statement}" for statement in STATEMENTS]
            text.append("")
        return "\n".join(text)

    def _ours(self, name: str, entry: dict[str, Any]) -> list[str]:
        if entry["status"] != SCORED:
            return [name, "", entry["status"]]
        metric, value = next(iter(entry["metrics"].items()))
        part = f" ({entry['answered']} of {entry['questions']} questions)" if entry["partial"] else ""
        return [name, metric, _figure(value) + part]

    def _remarks(self) -> list[str]:
        remarks = []
        for name, entry in sorted(self.benchmarks.items()):
            told = [*entry["notes"], *entry["needs"], *([entry["error"]] if entry["error"] else [])]
            if entry["submission"]:
                told.append(f"submission file: {entry['submission']}")
            remarks += [f"- {name}: {line}" for line in told]
        return ["Remarks:", "", *remarks, ""] if remarks else []

    def _further(self) -> list[str]:
        further = [
            f"- {name}: " + ", ".join(f"{key} {_figure(value)}" for key, value in entry["metrics"].items())
            for name, entry in sorted(self.benchmarks.items())
            if len(entry["metrics"]) > 1
        ]
        return ["All metrics:", "", *further] if further else []


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _replace(file: Path, text: str) -> None:
    beside = file.with_name(f"{file.name}.partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, file)
