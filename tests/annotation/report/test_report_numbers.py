"""The command's numbers, found by hand in the world of conftest.py."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_pat.annotation.report.command import ASPECTS, main
from llava_pat.annotation.report.definitions import METRICS
from llava_pat.data.geometry import ASPECTS as TRAINING_ASPECTS
from tests.annotation.report.conftest import CAPTIONS, GRID, lines, write_lines, write_records, write_run


@pytest.fixture(autouse=True)
def without_plots(monkeypatch) -> None:
    """They take most of the time, and have tests of their own."""
    monkeypatch.setattr("llava_pat.annotation.report.page.PLOTS", ())


def report(capsys, source: Path, *flags: object, out: Path | None = None) -> dict[str, Any]:
    """metrics.json of a report that must succeed."""
    folder = source.parent / "out" if out is None else out
    status = main([str(source), "--out", str(folder), *GRID, "--num_workers", "1", *map(str, flags)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def fails(capsys, source: Path, *flags: object) -> str:
    """The error's line."""
    assert main([str(source), *map(str, flags)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


def test_a_regions_file_with_records_and_images(capsys, world) -> None:
    found = report(
        capsys, world / "regions.jsonl", "--records", world / "records.json", "--image_folder", world / "images"
    )
    expected = {
        "finished": None, "images_expected": None,
        "images_with_regions": 2, "images_without_regions": 1, "images_measured": 2,
        "images_missing": 0, "images_unknown": 0, "lines_refused": 0,
        "regions": 4, "regions_per_image_mean": 2.0, "regions_per_image_median": 2.0, "regions_per_image_p95": 2.0,
        "regions_per_image_max": 2,
        # shares: cat 16 / 1024, dog 64 / 2048, dog 128 / 1024, sky 512 / 2048; percentiles between sorted values
        "area_median": (64 / 2048 + 128 / 1024) / 2, "area_p05": 16 / 1024 + 0.15 * (64 / 2048 - 16 / 1024),
        "area_p95": 128 / 1024 + 0.85 * (512 / 2048 - 128 / 1024),
        "regions_without_mask": 3 / 4, "regions_with_score": 3 / 4,
        "score_mean": 0.7, "score_median": 0.7, "score_p05": 0.52,
        "labels": 3, "labels_once": 2, "labels_for_half": 1, "labels_per_image_mean": 2.0,
        # a: dog, bird; b: brown dog, sky; c: cat
        "nouns_per_image": 2.0, "noun_coverage_with_regions": 2 / 4, "noun_coverage_loose": 3 / 4,
        "noun_coverage": 2 / 5, "nouns_distinct": 5,
        # a: patches 0 and 1, b: patch 0, of 16 each
        "patches_labelled": 3 / 32, "patches_labelled_all_images": 3 / 48, "patches_touched": 3 / 32,
        "patches_several": 1 / 32, "images_without_labelled_patch": 0, "regions_removed": 1 / 4,
    }  # fmt: skip
    assert set(expected) == {metric.name for metric in METRICS}
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name
    assert found["images without regions: no line in the regions file"] == 1
    assert found["nouns_by"].startswith("caption (") and found["patch_size"] == 8
    assert not any(isinstance(value, (dict, list)) for value in found.values()), "metrics.json is flat"


def test_padding_keeps_what_the_crop_cuts_away(capsys, world) -> None:
    """b.png is halved and centred: sky covers two patches of the first column, dog a quarter of the one beside."""
    found = report(capsys, world / "regions.jsonl", "--image_aspect_ratio", "pad")
    assert found["regions_removed"] == 0
    assert found["patches_labelled"] == (2 + 3) / 32
    assert found["patches_several"] == 1 / 32


def test_min_coverage_decides_what_is_labelled_and_not_what_is_touched(capsys, world) -> None:
    found = report(capsys, world / "regions.jsonl", "--min_coverage", "0.26")
    assert found["patches_several"] == 0  # cat covers 0.25
    assert found["patches_labelled"] == found["patches_touched"] == 3 / 32
    content = lines()[:1]
    content[0]["regions"] = [{"label": "cat", "bbox": [8, 8, 1, 1]}]
    small = write_lines(world / "small.jsonl", content)
    found = report(capsys, small)
    assert found["images_without_labelled_patch"] == 1 and found["patches_labelled"] == 0
    assert found["patches_touched"] == 1 / 16
    assert report(capsys, small, "--min_coverage", "0")["patches_labelled"] == 1 / 16, "0 is still some of it"


def test_two_regions_of_one_label_are_one_label(capsys, world) -> None:
    content = lines()[:1]
    content[0]["regions"][1]["label"] = "dog"
    found = report(capsys, write_lines(world / "dogs.jsonl", content))
    assert found["patches_several"] == 0 and found["labels_per_image_mean"] == 1
    assert (world / "out" / "labels.csv").read_text() == "label,regions,images\ndog,2,1\n"


def test_without_records_and_images_what_is_not_known_is_null(capsys, world) -> None:
    report(capsys, world / "regions.jsonl", "--records", world / "records.json")
    assert (world / "out" / "nouns.csv").is_file()
    found = report(capsys, world / "regions.jsonl")
    for name in ("images_without_regions", "images_missing", "images_unknown", "noun_coverage", "nouns_per_image",
                 "patches_labelled_all_images", "nouns_by"):  # fmt: skip
        assert found[name] is None, name
    assert not (world / "out" / "nouns.csv").exists(), "of the report before"


def test_all_labels_and_nouns_are_listed(capsys, world) -> None:
    report(capsys, world / "regions.jsonl", "--records", world / "records.json")
    rows = list(csv.reader((world / "out" / "nouns.csv").open(encoding="utf-8", newline="")))
    assert rows[0] == ["noun", "images", "images_with_region"]
    assert sorted(rows[1:]) == [
        ["bird", "1", "0"], ["brown dog", "1", "0"], ["cat", "1", "0"], ["dog", "1", "1"], ["sky", "1", "1"],
    ]  # fmt: skip


def test_a_run_knows_its_records_images_and_settings(capsys, world) -> None:
    run = write_run(world)
    assert main([str(run), *GRID]) == 0
    printed = capsys.readouterr().out
    found = json.loads((run / "report" / "metrics.json").read_text())
    assert found["finished"] is True and found["images_expected"] == 3
    assert found["images_with_regions"] == 2 and found["images_without_regions"] == 1
    assert found["noun_coverage"] == 2 / 5 and found["nouns_by"] == "caption (rules)"
    assert found["images without regions: no such image file"] == 1
    assert found["labels, boxes and regions: nearly the whole image"] == 3
    assert found["labels, boxes and regions: smaller than min_area"] == 5
    assert not any("not counted" in name for name in found), "a shard without regions is not finished"
    assert "nearly the whole image. First: " in printed and "left_out/part-00000.json" in printed
    assert "not finished" not in printed


def test_a_run_that_goes_on_says_so(capsys, world) -> None:
    run = write_run(world, finished=False, images=10)
    found = report(capsys, run)
    assert found["finished"] is False and found["images_expected"] == 10
    page = (world / "out" / "report.html").read_text()
    assert "its shards so far hold 3 of 10 images" in page


def test_a_run_whose_records_and_images_are_elsewhere(capsys, world) -> None:
    run = write_run(world)
    records, images = world / "records.json", world / "images"
    moved = records.rename(world / "moved.json"), images.rename(world / "moved")
    assert main([str(run), *GRID]) == 0
    printed = capsys.readouterr().out
    assert f"note: {records}, the run's records, is not here" in printed
    assert f"note: {images}, the run's image folder, is not here" in printed
    found = report(capsys, run, "--records", moved[0], "--image_folder", moved[1])
    assert found["noun_coverage"] == 2 / 5 and found["images_missing"] == 0


def test_a_run_of_the_first_images_is_not_asked_about_the_others(capsys, world) -> None:
    run = write_run(world)
    settings = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(settings | {"limit": 1}))
    assert report(capsys, run)["images_unknown"] == 1


def test_synonyms_of_the_run_hold(capsys, world) -> None:
    run = write_run(world)
    names = world / "synonyms.yaml"
    names.write_text("dog: [bird, cat]\n")
    (run / "annotation.yaml").write_text(f"tagger: {{kind: caption, engine: rules}}\nlabels: {{synonyms: {names}}}\n")
    found = report(capsys, run)
    assert found["noun_coverage"] == 2 / 4, "dog and bird are one noun, which is covered"


def test_a_run_without_any_region(capsys, world) -> None:
    run = write_run(world)
    write_lines(run / "regions" / "part-00000.jsonl", [])
    found = report(capsys, run)
    assert found["images_measured"] == found["regions"] == found["labels"] == 0
    assert found["patches_labelled"] is found["area_median"] is found["regions_per_image_mean"] is None
    assert found["noun_coverage"] == 0


def test_bad_lines_are_counted_and_named(capsys, world) -> None:
    a, b = lines()
    broken_mask = lines()[0] | {"image": "m.png"}
    broken_mask["regions"] = [{"label": "x", "segmentation": {"size": [32, 32], "counts": [5]}}]
    odd = [a, "{no json", a, {"image": "x.png"}, broken_mask, b | {"image": "e.png", "regions": []}, b]
    found = report(capsys, write_lines(world / "odd.jsonl", odd), "--image_folder", world / "images")
    assert found["images_measured"] == 2 and found["regions"] == 4 and found["lines_refused"] == 4
    assert found["lines that training refuses: an image on two lines"] == 1
    assert found["lines that training refuses: a mask that cannot be read"] == 1
    assert found["lines that training refuses: a line that is no annotation of an image"] == 2
    assert found["images without regions: a line without regions"] == 1
    assert "odd.jsonl:2: bad JSON" in (world / "out" / "report.html").read_text()


def test_missing_images_and_names_that_leave_the_folder_are_counted(capsys, world) -> None:
    (world / "images" / "b.png").unlink()
    outside = lines()[0] | {"image": "../regions.jsonl"}
    found = report(capsys, write_lines(world / "three.jsonl", [*lines(), outside]), "--image_folder", world / "images")
    assert found["images_measured"] == 3 and found["images_missing"] == 1
    assert found["images with regions: no such image file"] == 1
    assert sum("leads out of the folder" in name and count == 1 for name, count in found.items()) == 1


def test_records_of_other_names(capsys, world) -> None:
    other = write_records(world / "other.json", {f"coco/{name}": text for name, text in CAPTIONS.items()})
    found = report(capsys, world / "regions.jsonl", "--records", other)
    assert found["images_unknown"] == 2 and found["noun_coverage_with_regions"] is None
    assert found["images_without_regions"] == 3
    assert "names must be spelt alike" in (world / "out" / "report.html").read_text()


def test_a_quick_look(capsys, world) -> None:
    found = report(capsys, world / "regions.jsonl", "--records", world / "records.json", "--max_images", "1")
    assert found["images_measured"] == 1 and found["regions"] == 2
    assert found["images_with_regions"] == 2 and found["images_without_regions"] == 1
    assert found["noun_coverage_with_regions"] == 1 / 2 and found["noun_coverage"] is None
    assert "A quick look" in (world / "out" / "report.html").read_text()
    whole = report(capsys, world / "regions.jsonl", "--records", world / "records.json", "--max_images", "2")
    assert whole["noun_coverage"] == 2 / 5, "all lines are no quick look"


def test_processes_make_no_difference(capsys, world) -> None:
    many = [line | {"image": f"{n}{line['image']}"} for n in range(150) for line in lines()]
    file = write_lines(world / "many.jsonl", many)
    for workers in ("1", "2"):
        report(capsys, file, "--num_workers", workers, "--samples", "3", out=world / workers)
    for name in ("metrics.json", "labels.csv", "report.html"):
        assert (world / "1" / name).read_bytes() == (world / "2" / name).read_bytes(), name


def test_where_the_report_goes(capsys, world) -> None:
    assert main([str(world / "regions.jsonl"), *GRID]) == 0
    assert {path.name for path in (world / "regions_report").iterdir()} == {"metrics.json", "report.html", "labels.csv"}
    shards = world / "shards"
    write_lines(shards / "part-00000.jsonl", lines()[:1])
    write_lines(shards / "part-00001.jsonl", lines()[1:])
    assert main([str(shards), *GRID]) == 0
    assert json.loads((world / "shards_report" / "metrics.json").read_text())["regions"] == 4


def test_what_the_user_can_mend_is_one_line(capsys, world) -> None:
    file = world / "regions.jsonl"
    assert "no such file" in fails(capsys, world / "nothing.jsonl")
    assert "--records is the LLaVA JSON" in fails(capsys, file, "--records", world / "nothing.json")
    assert "--image_folder is what" in fails(capsys, file, "--image_folder", world / "nothing")
    assert "--patch_size 14 is more than --image_size 8" in fails(capsys, file, "--image_size", "8")
    assert "--out is a folder" in fails(capsys, file, "--out", file)
    run = write_run(world)
    for shard in (run / "regions").iterdir():
        shard.unlink()
    assert "no shard of this run is finished yet" in fails(capsys, run)


def test_a_run_that_lacks_a_file_is_named(capsys, world) -> None:
    run = write_run(world)
    (run / "left_out" / "part-00001.json").unlink()
    assert "part-00001.json: no such file" in fails(capsys, run)
    (run / "annotation.yaml").write_text("labels: {max_label: 3}\n")
    assert "has no 'max_label'" in fails(capsys, run)


def test_without_matplotlib_nothing_is_begun(capsys, world, monkeypatch) -> None:
    monkeypatch.setattr("llava_pat.pages.find_spec", lambda name: None)
    assert "pip install -e '.[report]'" in fails(capsys, world / "nothing.jsonl")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, llava_pat.annotation.report.command as command; command.build_parser().format_help(); "
        "print([m for m in ('torch', 'transformers', 'numpy', 'matplotlib', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert ASPECTS == TRAINING_ASPECTS
