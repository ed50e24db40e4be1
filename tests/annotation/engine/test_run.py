"""The command: what it leaves, that it goes on after SIGKILL, and whose folder it takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from llava_pat.annotation import annotate, pipeline
from llava_pat.annotation.config import parse_config
from llava_pat.annotation.engine import ray_data
from llava_pat.annotation.engine.claim import claimed
from llava_pat.annotation.engine.shards import ShardFolder
from llava_pat.annotation.engine.work import Plan
from llava_pat.annotation.items import REASONS, Item, find_items
from llava_pat.annotation.pipeline import Annotator
from llava_pat.data.images import BROKEN, MISSING
from llava_pat.data.records import load_records
from llava_pat.data.regions import load_regions, to_mask
from llava_pat.types import DataError
from tests.annotation import tiny_models
from tests.annotation.engine.killing import kill_and_resume
from tests.annotation.engine.world import COLOURS, SETTINGS, read_tree, write_world


def run(world: tuple[Path, Path], out: Path, *more: str) -> int:
    return annotate.main([*map(str, world), str(out), "--set", *SETTINGS, "batch_size=4", "--shard_size", "10", *more])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path]:
    return write_world(tmp_path_factory.mktemp("world"), 45)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(world, out) == 0
    return out


def test_every_image_is_annotated_or_has_a_reason(world, whole: Path) -> None:
    lines = {}
    for number in range(5):
        part = [json.loads(line) for line in (whole / f"regions/part-{number:05d}.jsonl").read_text().splitlines()]
        left = json.loads((whole / f"left_out/part-{number:05d}.json").read_text())
        assert left["annotated"] == len(part) and len(part) + len(left["images"]) == (10 if number < 4 else 5)
        names = [line["image"] for line in part]
        assert names == sorted(names), "in the records' order"
        lines |= {line["image"]: None for line in part} | {one["image"]: one["reason"] for one in left["images"]}
    expected = {}
    for number in range(45):
        reason = pipeline.NOT_FOUND if number % 13 == 0 else None
        reason = REASONS[MISSING] if number % 7 == 3 else REASONS[BROKEN] if number % 11 == 5 else reason
        expected[f"{number:04d}.png"] = reason
    assert lines == expected
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["images"] == 45 and summary["annotated"] == sum(reason is None for reason in expected.values())
    counts = {entry["reason"]: entry["count"] for entry in summary["left_out"]}
    assert counts == {reason: list(expected.values()).count(reason) for reason in set(expected.values()) - {None}}
    assert all(entry["first"] for entry in summary["left_out"])


def test_stage_1_reads_the_folder_and_masks_are_the_pixels(world, whole: Path) -> None:
    found = load_regions(whole / "regions")
    assert len(found) > 20
    for name, entry in found.items():
        pixels = np.asarray(Image.open(world[1] / name))
        for region in entry.regions:
            assert (to_mask(region, *pixels.shape[:2]) == (pixels == COLOURS[region.label]).all(-1)).all()


def test_the_settings_that_are_left_make_the_same_run(world, whole: Path, tmp_path: Path) -> None:
    again = [*map(str, world), str(tmp_path / "out"), "--config", str(whole / "annotation.yaml"), "--shard_size", "10"]
    assert annotate.main(again) == 0
    assert read_tree(tmp_path / "out") == read_tree(whole)


def test_parquet_shards_hold_the_same(world, whole: Path, tmp_path: Path) -> None:
    assert run(world, tmp_path / "out", "--format", "parquet") == 0
    parquet, jsonl = load_regions(tmp_path / "out/regions"), load_regions(whole / "regions")
    assert parquet.keys() == jsonl.keys()
    for name, entry in parquet.items():
        assert entry.regions == jsonl[name].regions


def test_a_finished_run_does_nothing(world, whole: Path, monkeypatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("regions/*")}
    monkeypatch.setattr("llava_pat.annotation.engine.run.Annotator", None)  # models are not loaded
    assert run(world, whole) == 0
    assert {path: path.stat().st_mtime_ns for path in whole.glob("regions/*")} == before


def test_only_lacking_shards_are_done_again(world, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(world, out) == 0
    tree = read_tree(out)
    (out / "regions/part-00002.jsonl").unlink()
    (out / "regions/.part-00003.jsonl.partial").write_text("half a line")
    kept = (out / "regions/part-00001.jsonl").stat().st_mtime_ns
    assert run(world, out) == 0
    assert read_tree(out) == tree and (out / "regions/part-00001.jsonl").stat().st_mtime_ns == kept


def test_killed_at_any_moment_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    counts = kill_and_resume(tmp_path, "local", kills=20)
    assert counts["kills"] == 20 and counts["in the middle"] >= 10, counts


def test_killed_under_ray(tmp_path: Path) -> None:
    """A few kills; docs/annotation.md says how to do 20."""
    counts = kill_and_resume(tmp_path, "ray", kills=2)
    assert counts["kills"] == 2, counts


def test_an_error_in_the_middle_leaves_whole_shards(world, whole: Path, tmp_path: Path, monkeypatch) -> None:
    write, written = ShardFolder.write, []

    def fail(self, shard, answers):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(shard)
        write(self, shard, answers)

    monkeypatch.setattr(ShardFolder, "write", fail)
    assert run(world, tmp_path / "out") == 2
    assert sorted(path.name for path in (tmp_path / "out/regions").iterdir()) == [
        "part-00000.jsonl", "part-00001.jsonl",
    ]  # fmt: skip
    monkeypatch.setattr(ShardFolder, "write", write)
    assert run(world, tmp_path / "out") == 0
    assert read_tree(tmp_path / "out") == read_tree(whole)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--shard_size", "9"), "shard_size: 10 there, 9 now"),
        (("--limit", "40"), "images: 45 there, 40 now; limit: None there, 40 now"),
        (("--format", "parquet"), "format: 'jsonl' there, 'parquet' now"),
        (("--set", "max_pixels=100"), "max_pixels: 89478485 there, 100 now"),
    ],
)
def test_another_run_is_refused(world, whole: Path, capsys, more, said: str) -> None:
    before = read_tree(whole)
    assert run(world, whole, *more) == 2
    assert said in capsys.readouterr().err and read_tree(whole) == before


def test_overwrite_begins_anew(world, tmp_path: Path) -> None:
    assert run(world, tmp_path / "out", "--limit", "30") == 0
    assert run(world, tmp_path / "out", "--limit", "12", "--overwrite") == 0
    assert sorted(path.name for path in (tmp_path / "out/regions").iterdir()) == [
        "part-00000.jsonl", "part-00001.jsonl",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out/run.json").read_text())["images"] == 12


def test_what_is_left_of_an_older_run_is_not_taken(world, whole: Path, tmp_path: Path) -> None:
    """--overwrite, killed after run.json went."""
    out = tmp_path / "out"
    assert run(world, out, "--limit", "30") == 0
    (out / "run.json").unlink()
    (out / "regions/part-00000.jsonl").write_text("of another time")
    assert run(world, out) == 0
    assert read_tree(out) == read_tree(whole)


def test_a_folder_in_use_or_of_others_is_refused(world, tmp_path: Path, capsys) -> None:
    settings = {"device": "cpu"}
    with claimed(tmp_path / "out", settings, {}):
        assert run(world, tmp_path / "out") == 2
        assert "another run is writing it" in capsys.readouterr().err
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("")
    assert run(world, tmp_path / "thesis", "--overwrite") == 2
    assert "'chapter.tex' and no run.json" in capsys.readouterr().err
    assert (tmp_path / "thesis/chapter.tex").exists()


def test_what_can_be_mended_is_said_before_models_are_loaded(world, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("llava_pat.annotation.engine.run.Annotator", None)
    assert run((world[0], tmp_path / "nowhere"), tmp_path / "out") == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "text.json").write_text(
        json.dumps([{"id": 1, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi"}]}])
    )
    assert run((tmp_path / "text.json", world[1]), tmp_path / "out") == 2
    assert "none of its 1 records has an image" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert run(world, tmp_path / "out", "--engine", "ray") == 2
    assert "pip install 'ray[data]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_records_are_counted(world, tmp_path: Path, capsys) -> None:
    records = json.loads(world[0].read_text())[:6]
    records[1]["conversations"][1]["value"] = " "
    (tmp_path / "records.json").write_text(json.dumps(records))
    assert run((tmp_path / "records.json", world[1]), tmp_path / "out") == 2
    assert "empty answer" in capsys.readouterr().err
    assert run((tmp_path / "records.json", world[1]), tmp_path / "out", "--bad_records", "skip") == 0
    assert re.search(r"records +1  cannot be trained on. First: .*empty answer", capsys.readouterr().out)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert {"records": 1}.items() <= {entry["unit"]: entry["count"] for entry in summary["left_out"]}.items()


def test_no_region_at_all_is_an_error(world, tmp_path: Path, capsys) -> None:
    assert run(world, tmp_path / "out", "--set", "selection.min_area=100000") == 2
    said = capsys.readouterr().err
    assert "none of its 45 images has a region" in said and pipeline.NO_REGION in said


def test_an_image_on_which_a_model_fails_is_listed_and_the_others_are_not_lost(world, tmp_path: Path) -> None:
    size = "{}x{}".format(*Image.open(world[1] / "0001.png").size)
    assert run(world, tmp_path / "out", "--set", f"detector.fails_on={size}") == 0
    left = json.loads((tmp_path / "out/left_out/part-00000.json").read_text())["images"]
    failed = {one["image"]: one for one in left if one["reason"] == pipeline.FAILED}
    assert "0001.png" in failed and "RuntimeError: out of memory" in failed["0001.png"]["where"]
    assert {"0002.png", "0004.png"} <= load_regions(tmp_path / "out/regions").keys(), "the others of its batch"


def test_a_model_that_always_fails_ends_the_run(world, tmp_path: Path, capsys) -> None:
    assert run(world, tmp_path / "out", "--set", "detector.fails_on=all") == 2
    assert "a model failed on 16 images in a row" in capsys.readouterr().err


def test_batches_never_reach_over_a_shard() -> None:
    items = [Item(str(i), f"{i}.png", "", "") for i in range(11)]
    plan = Plan(items, shard_size=5, batch_size=2)
    assert [(b.shard, b.place, [one.id for one in b.items]) for b in plan.batches(done={1})] == [
        (0, 0, ["0", "1"]), (0, 1, ["2", "3"]), (0, 2, ["4"]), (2, 0, ["10"]),
    ]  # fmt: skip
    assert plan.shards == 3


def test_settings_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("detector: owlv2\nselection: {min_area: 9}\n")
    (tmp_path / "two.yaml").write_text("batch_size: 2\n")
    config = annotate.build_config(
        tmp_path / "my.yaml", ["detector.threshold=0.3", "segmenter.multimask=true", "batch_size=2"]
    )
    assert config.detector.kind == "owlv2" and config.detector.options == {"threshold": 0.3}
    assert config.segmenter.kind == "sam2" and config.segmenter.options == {"multimask": True}
    assert config.selection.min_area == 9 and config.batch_size == 2
    for text, said in (
        ("detector", "expected key=value"),
        ("batch_size.x=1", "batch_size is 2, which has no x"),
        ("dtype=half", "dtype is 'half'"),
        ("device=[cpu", "no YAML"),
    ):
        with pytest.raises(DataError, match=said):
            annotate.build_config(tmp_path / "two.yaml", [text])


def test_ray_deals_out_gpus() -> None:
    class Cluster:
        @staticmethod
        def cluster_resources():
            return {"CPU": 8, "GPU": 4}

    cuda = parse_config({"device": "cuda"})
    resources = ray_data._resources
    assert resources(Cluster, cuda, ray_data.RayOptions()) == (4, 1.0)
    assert resources(Cluster, cuda, ray_data.RayOptions(gpus_per_worker=0.5)) == (8, 0.5)
    assert resources(Cluster, parse_config({}), ray_data.RayOptions(workers=3)) == (3, 0.0)
    with pytest.raises(DataError, match="5 workers with 1.0 GPUs each, but Ray's cluster has 4 GPUs"):
        resources(Cluster, cuda, ray_data.RayOptions(workers=5))
    with pytest.raises(DataError, match="device is 'cuda:1'"):
        resources(Cluster, parse_config({"device": "cuda:1"}), ray_data.RayOptions())


def test_tiny_models_under_both_engines(world, tmp_path: Path) -> None:
    """A detector and a segmenter with random weights, as folders: what one process writes, Ray's actors write."""
    settings = {
        "detector": {
            "kind": "grounding_dino",
            "model": str(tiny_models.save_grounding_dino(tmp_path / "detector")),
            "box_threshold": 0.2,
        },
        "segmenter": {"kind": "sam2", "model": str(tiny_models.save_sam2(tmp_path / "segmenter"))},
        "selection": {"bad_mask": "box", "min_area": 4},
        "batch_size": 3,
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings))
    trees = []
    for engine in ("local", "ray"):
        out = tmp_path / engine
        command = [*map(str, world), str(out), "--config", str(tmp_path / "my.yaml"), "--shard_size", "7"]
        assert annotate.main([*command, "--limit", "16", "--engine", engine]) == 0
        trees.append(read_tree(out))
        assert json.loads((out / "summary.json").read_text())["annotated"] > 3
    assert trees[0] == trees[1]


def test_the_engine_writes_what_the_pipeline_says(world, whole: Path) -> None:
    config = parse_config(yaml.safe_load((whole / "annotation.yaml").read_text()))
    items = find_items(load_records(world[0]))
    lines = [one.line for one in Annotator(config).annotate(items, world[1]) if one.line is not None]
    text = "".join(part.read_text() for part in sorted((whole / "regions").iterdir()))
    assert [json.loads(line) for line in text.splitlines()] == lines
