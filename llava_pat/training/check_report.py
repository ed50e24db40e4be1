"""What a check of data found: a table to read and a JSON to work with."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_pat.data.check import CheckReport
from llava_pat.data.check.findings import KINDS, Finding
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.records import Skipped
from llava_pat.data.regions import Broken
from llava_pat.types import Record

_FLAGS = ("data_path", "image_folder", "regions_path", "model_name_or_path", "version", "image_aspect_ratio",
          "model_max_length", "bad_records", "max_bad_records", "missing", "max_missing", "quick")  # fmt: skip


def found_in_files(
    options: argparse.Namespace,
    dataset: LlavaDataset,
    broken: Sequence[Skipped],
    broken_lines: Broken,
) -> list[Finding]:
    """What reading the files has shown: `broken` text, records left out, bad lines of regions, ids that come twice."""
    unread = sorted([*broken, *dataset.records.skipped], key=lambda entry: entry.index)
    findings = [Finding(entry.kind, entry.reason, str(options.data_path), entry.line, entry.index) for entry in unread]
    findings += [Finding(error.kind, str(error), file, line) for file, line, error in broken_lines]
    first: dict[str, Record] = {}
    for record in dataset.records:
        earlier = first.setdefault(record.id, record)
        if earlier is not record:
            message = f"{record.where}: has the id of record {earlier.index} on line {earlier.line}"
            findings.append(Finding("duplicate_id", message, record.file, record.line, record.index, record.id))
    return findings


def write_report(
    path: Path,
    options: argparse.Namespace,
    dataset: LlavaDataset,
    report: CheckReport | None,
    findings: Sequence[Finding],
    problems: Sequence[str],
) -> None:
    """JSON, the same for the same data whatever the number of processes."""
    content: dict[str, Any] = {
        "flags": {name: vars(options)[name] for name in _FLAGS},
        "training_starts": not problems,
        "problems": list(problems),
        "counts": _counts(findings),
    }
    if report is not None:
        numbers = {key: value for key, value in asdict(report).items() if isinstance(value, int)}
        records = dataset.records
        left_out = [entry.index for entry in report.skipped] + [records[place].index for place in report.left_out]
        content |= {
            "manifest": report.manifest,
            "manifest_of": "bytes" if options.hash_images else "sizes",
            "data": numbers,
            "left_out": sorted(left_out),  # places in the file
            "blank": list(report.blank),
        }
    content["findings"] = [asdict(entry) for entry in findings]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def render_table(options: argparse.Namespace, findings: Sequence[Finding]) -> str:
    """One line a kind: how many, what training does about it, what it is, the first of them."""
    if not findings:
        return "nothing wrong was found"
    counts = _counts(findings)
    first = {entry.kind: entry for entry in reversed(findings)}
    rows = [("kind", "found", "training", "what it is", "first")]
    for kind, count in counts.items():
        entry = first[kind]
        place = f"{Path(entry.file).name}:{entry.line}" if entry.file else ""
        rows.append((kind, str(count), _does(options, entry), KINDS[kind].meaning, place))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _does(options: argparse.Namespace, entry: Finding) -> str:
    consequence = KINDS[entry.kind].consequence
    if entry.stops(options.bad_records, options.missing):
        return "stops"
    if consequence == "warning":
        return "goes on"
    return "empty image" if consequence == "image" and options.missing == "blank" else "left out"


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    """By kind, in the order of KINDS."""
    kinds = [entry.kind for entry in findings]
    return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}
