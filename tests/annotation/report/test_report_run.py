"""The report on what the engine really leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llava_pat.annotation import annotate
from llava_pat.annotation.report.command import main
from tests.annotation.engine.world import SETTINGS, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path]:
    return write_world(tmp_path_factory.mktemp("world"), 45)


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    assert annotate.main([*map(str, world), str(out), "--set", *SETTINGS, "--shard_size", "10"]) == 0
    return out


@pytest.fixture(autouse=True)
def without_plots(monkeypatch) -> None:
    """They take most of the time, and have tests of their own."""
    monkeypatch.setattr("llava_pat.annotation.report.page.PLOTS", ())


def metrics(out: Path) -> dict:
    assert main([str(out), "--image_size", "32", "--patch_size", "8", "--num_workers", "1"]) == 0
    return json.loads((out / "report" / "metrics.json").read_text())


def test_it_agrees_with_the_run(world, run: Path) -> None:
    found, summary = metrics(run), json.loads((run / "summary.json").read_text())
    assert found["finished"] is True and found["images_expected"] == summary["images"] == 45
    assert found["images_with_regions"] == found["images_measured"] == summary["annotated"]
    assert found["images_without_regions"] == 45 - summary["annotated"]
    assert (found["regions"], found["labels"]) == (summary["regions"], summary["labels"])
    for entry in summary["left_out"]:
        unit = {"images": "images without regions", "regions": "labels, boxes and regions"}[entry["unit"]]
        assert found[f"{unit}: {entry['reason']}"] == entry["count"]
    # every colour of a caption is in the image, unless there is no image or it shows nothing
    said = {one["image"]: one["conversations"][1]["value"].count(" box") for one in json.loads(world[0].read_text())}
    lines = [line for part in sorted((run / "regions").iterdir()) for line in part.read_text().splitlines()]
    shown = {line["image"] for line in map(json.loads, lines)}
    assert found["noun_coverage_with_regions"] == 1
    assert found["noun_coverage"] == pytest.approx(sum(said[name] for name in shown) / sum(said.values()))
    assert found["regions_with_score"] == 1 and found["score_mean"] == pytest.approx(0.9)
    assert found["images_missing"] == found["images_unknown"] == found["lines_refused"] == 0


def test_of_a_killed_run_the_finished_shards_count(run: Path, tmp_path: Path) -> None:
    killed = shutil.copytree(run, tmp_path / "killed")
    (killed / "summary.json").unlink()
    for number in (1, 4):  # whose images without a line were written before
        (killed / "regions" / f"part-{number:05d}.jsonl").unlink()
    (killed / "regions" / ".part-00001.jsonl.partial").write_text('{"id": ')
    found = metrics(killed)
    assert found["finished"] is False and found["images_expected"] == 45
    assert found["images_with_regions"] + found["images_without_regions"] == 30


def test_a_run_that_was_reported_on_is_still_a_run(world, run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "out")
    metrics(out)
    again = [*map(str, world), str(out), "--set", *SETTINGS, "--shard_size", "10"]
    assert annotate.main(again) == 0 and (out / "report").is_dir()
    (out / "run.json").unlink()  # as a kill in the middle of --overwrite leaves it
    assert annotate.main([*again, "--overwrite"]) == 0
    assert not (out / "report").exists(), "it was about another run"
