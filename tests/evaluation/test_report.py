"""results.json and its table: what is beside what, what is marked, what a later run keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_pat.evaluation.benchmark import registry
from llava_pat.evaluation.published import BENCHMARKS, COLUMN, ROWS, STATEMENTS, published
from llava_pat.evaluation.report import FAILED, MISSING, SCORED, SERVER, Report, Result

SETTINGS = {"checkpoint": "abc", "template": "v1"}


def scored(value: float, **more) -> Result:
    return Result("Title", SCORED, {"f1": value, "accuracy": 1.25}, questions=10, answered=10, **more)


def report(out: Path, settings: dict = SETTINGS) -> Report:
    return Report(out, "checkpoints/llava-v1.5-7b-pat", "llava-v1.5-7b-pat", settings)


def test_published_numbers_are_those_of_the_sources() -> None:
    """A few by hand: MODEL_ZOO's 7B and 13B rows, SEA's tables."""
    assert published("pope") == {
        "LLaVA-1.5-7B": 85.9,
        "LLaVA-1.5-13B": 85.9,
        "SEA's LLaVA 7B": 86.5,
        "SEA 7B": 87.6,
        "SEA's LLaVA 13B": 87.6,
        "SEA 13B": 87.6,
    }
    assert published("mme") == {"LLaVA-1.5-7B": 1510.7, "LLaVA-1.5-13B": 1531.3}
    assert published("vizwiz")["SEA 7B"] == 48.8 and published("textvqa")["SEA's LLaVA 7B"] == 58.3
    assert published("playground_pope") == published("textvqa_no_ocr") == published("vqav2_val") == {}
    assert all(row.source and set(row.figures) <= set(BENCHMARKS) for row in ROWS)
    assert "relative or absolute" in STATEMENTS[0] and not any("PAT" in row.name for row in ROWS)


def test_every_column_belongs_to_a_benchmark() -> None:
    assert set(COLUMN) <= set(registry())
    assert sorted(COLUMN.values()) == sorted(BENCHMARKS)


def test_table_beside_the_published_rows(tmp_path: Path) -> None:
    ours = report(tmp_path)
    ours.add("pope", scored(86.04, notes=["three categories"]))
    ours.add("gqa", Result("GQA", MISSING, needs=["x.json is missing: labels, from there"]))
    ours.add("vqav2", Result("VQAv2", SERVER, questions=5, answered=5, submission="out/vqav2.json"))
    ours.add("mme", Result("MME", FAILED, questions=5, answered=5, error="labels are broken"))
    ours.add("refcoco_val", Result("REC", SCORED, {"accuracy@0.5": 50.0}, questions=100, answered=20, limit=20))
    table = (tmp_path / "results.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n") if "|" in line]
    rows = {name: others for name, *others in cells}
    assert rows["benchmark"] == ["metric", "llava-v1.5-7b-pat", *(row.name for row in ROWS)]
    assert rows["pope"] == ["f1", "86.0", "85.9", "85.9", "86.5", "87.6", "87.6", "87.6"]
    assert rows["refcoco_val"][:2] == ["accuracy@0.5", "50.0 (20 of 100 questions)"]
    assert [rows[name][1] for name in ("gqa", "vqav2", "mme")] == [MISSING, SERVER, FAILED]
    for told in ("three categories", "x.json is missing", "out/vqav2.json", "labels are broken", "arXiv 2505.17316"):
        assert told in table
    assert all(row.source in table for row in ROWS)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["benchmarks"]["refcoco_val"]["partial"] and not content["benchmarks"]["pope"]["partial"]
    assert content["benchmarks"]["pope"]["published"]["SEA 7B"] == 87.6
    assert content["settings"] == SETTINGS


def test_a_later_run_adds_and_keeps_what_it_did_not_do_anew(tmp_path: Path) -> None:
    report(tmp_path).add("pope", scored(86.0, answer_seconds=120.0, answered_in_this_run=10))
    later = report(tmp_path)
    later.add("gqa", scored(62.0))
    later.add("pope", scored(86.5, answer_seconds=0.1))  # scored again, nothing answered
    benchmarks = json.loads((tmp_path / "results.json").read_text())["benchmarks"]
    assert benchmarks["gqa"]["metrics"]["f1"] == 62
    assert benchmarks["pope"]["metrics"]["f1"] == 86.5
    assert benchmarks["pope"]["answer_seconds"] == 120 and benchmarks["pope"]["answered_in_this_run"] == 10


def test_results_of_another_checkpoint_are_not_mixed(tmp_path: Path) -> None:
    report(tmp_path).add("pope", scored(86.0))
    other = report(tmp_path, {**SETTINGS, "checkpoint": "def"})
    assert other.replaced == tmp_path / "results.json.old"
    other.add("gqa", scored(62.0))
    assert list(json.loads((tmp_path / "results.json").read_text())["benchmarks"]) == ["gqa"]
    assert list(json.loads(other.replaced.read_text())["benchmarks"]) == ["pope"]


def test_playground_alone_has_no_published_rows(tmp_path: Path) -> None:
    ours = report(tmp_path)
    ours.add("playground_pope", scored(90.0))
    assert "LLaVA-1.5-7B" not in ours.markdown() and "Sources" not in ours.markdown()


@pytest.mark.parametrize("value", [1510.7, 85.9])
def test_figures_have_one_decimal(tmp_path: Path, value: float) -> None:
    ours = report(tmp_path)
    ours.add("mme", scored(value + 0.04))
    assert f"| {value} " in ours.markdown()
