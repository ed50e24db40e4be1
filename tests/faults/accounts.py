"""In = out + reported: what becomes of every record of a file. Used by the tests and by the fault suite."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from llava_pat.data.check.findings import Finding
from llava_pat.data.records import Records, Skipped, load_records
from llava_pat.types import IGNORE_INDEX
from tests.faults.bad_records import BadFile
from tests.faults.small_data import PATCHES, SIDE, SmallData

_LONGEST = 6000  # characters of a reason


def read_and_account(file: Path, bad: BadFile) -> tuple[Records, list[Skipped]]:
    """Reads a file of bad records. AssertionError unless each of its records is kept once or reported once, by name."""
    file.write_text(bad.text, encoding="utf-8")
    broken: list[Skipped] = []
    records = load_records(file, "skip", broken)
    reported = [*records.skipped, *broken]
    places = [record.index for record in records] + [entry.index for entry in reported]
    assert len(set(places)) == len(places), "a record is counted twice"
    assert len(places) == bad.records + bad.is_cut, f"{len(places)} of {bad.records} records are accounted for"
    for entry in records.skipped:
        assert re.match(rf"{re.escape(str(file))}: record {entry.index} (is|\(id )", entry.reason), entry.reason[:200]
    for entry in broken:
        assert entry.reason.startswith(f"{file}:{entry.line}: "), entry.reason[:200]
    assert all(len(entry.reason) < _LONGEST for entry in reported)
    return records, reported


def check_and_account(records: Records, data: SmallData, missing: str) -> tuple[int, list[Finding]]:
    """Checks what was read, as training would. AssertionError unless each record becomes a sample or is reported.

    Returns how many became samples, and what was found.
    """
    dataset = data.dataset(records)
    findings: list[Finding] = []
    report = dataset.check(
        PATCHES, progress=False, on_bad="skip", missing=missing, depth="decode", processes=1, findings=findings
    )
    kept = dataset.without(report.left_out, report.blank)
    assert (
        len(records)
        == report.records + len(report.unusable) + len(report.lost_records)
        == len(kept) + len(report.left_out)
    )
    said = {entry.index for entry in findings}
    for place in report.left_out:
        assert records[place].index in said or place in said, f"record {place} is left out without a word"
    for entry in findings:
        assert entry.index is None or f"record {entry.index} (id {entry.id!r})" in entry.message
    for place in range(len(kept)):
        sample = kept[place]
        assert any(label != IGNORE_INDEX for label in sample["labels"])
        assert all(pixels.shape == (3, SIDE, SIDE) and pixels.isfinite().all() for pixels in sample["pixel_values"])
        assert isinstance(sample["pixel_values"], list) and torch.is_tensor(sum(sample["pixel_values"], torch.zeros(1)))
    return len(kept), findings
