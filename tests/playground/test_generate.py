"""The playground's training files: read back by llava_pat, and compared with the scenes that they are about."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.geometry import CenterCrop, Pad
from llava_pat.data.records import load_records, resolve_image
from llava_pat.data.regions import load_regions, to_mask
from llava_pat.data.templates import get_template
from llava_pat.data.tokenize import load_tokenizer
from playground import generate, text, world

ROOT = Path(__file__).parents[2]
SEED, TRAIN, VAL, TEST = 5, 60, 12, 7  # of conftest's `made`; more than a chunk of 50: two workers share the scenes


def run(out: Path, *more: str, workers: int = 1, train: int = TRAIN) -> None:
    sizes = ["--train", str(train), "--val", str(VAL), "--test", str(TEST)]
    generate.main(["--out", str(out), *sizes, "--seed", str(SEED), "--workers", str(workers), *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read(path: Path):
    return json.loads(path.read_text())


def test_any_number_of_workers_writes_the_same_bytes(made, tmp_path):
    run(tmp_path, workers=2)
    one, two = contents(made), contents(tmp_path)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert sum(name.endswith(".png") for name in one) == TRAIN + VAL + TEST
    assert not [name for name in one if name.endswith(".part")]


def test_the_seed_matters(made, tmp_path):
    sizes = ["--train", "1", "--val", "1", "--test", "0"]
    generate.main(["--out", str(tmp_path), *sizes, "--seed", str(SEED + 1), "--workers", "1"])
    first = "images/train/000000.png"
    assert (tmp_path / first).read_bytes() != (made / first).read_bytes()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_images_are_the_scenes(made, split):
    for index in range(TEST):
        with Image.open(made / "images" / split / f"{index:06d}.png") as image:
            assert np.array_equal(np.asarray(image), world.scene(SEED, split, index).pixels)


@pytest.mark.parametrize(("split", "count"), [("train", TRAIN), ("val", VAL), ("test", TEST)])
def test_regions_are_the_scenes_masks(made, split, count):
    regions = load_regions(made / f"regions_{split}.jsonl")
    assert list(regions) == [f"{split}/{index:06d}.png" for index in range(count)]
    for index, annotated in enumerate(regions.values()):
        scene = world.scene(SEED, split, index)
        assert (annotated.width, annotated.height) == scene.size
        assert [region.label for region in annotated.regions] == [thing.label for thing in scene.things]
        for number, region in enumerate(annotated.regions):
            mask = to_mask(region, annotated.height, annotated.width)
            assert np.array_equal(mask.astype(bool), scene.instances == number)
            x, y, width, height = region.bbox
            assert (x, y, x + width, y + height) == scene.things[number].box


def test_pretraining_records(made):
    records = load_records(made / "pretrain_train.json")
    assert [record.images for record in records] == [(f"train/{index:06d}.png",) for index in range(TRAIN)]
    for index, record in enumerate(records):
        human, gpt = record.turns
        assert human.value.removeprefix("<image>\n") in text.CAPTION_PROMPTS
        for thing in world.scene(SEED, "train", index).things:
            assert gpt.value.count(thing.label) == 1
        assert resolve_image(made / "images", record.images[0]).is_file()


def test_instruction_records(made):
    records = load_records(made / "instruct_train.json")
    with_image = [record for record in records if record.images]
    alone = [record for record in records if not record.images]
    assert [record.images[0] for record in with_image] == [f"train/{index:06d}.png" for index in range(TRAIN)]
    assert len({record.id for record in records}) == len(records)
    assert 0 < len(alone) < 0.25 * TRAIN, "a few text-only records in between"
    for index, record in enumerate(with_image):
        asked = [turn.value for turn in record.turns if turn.role == "human"]
        assert asked[0].startswith("<image>\n")
        assert sum(text.SHORT_ANSWER in question for question in asked) == 1, "the hint comes once"
        hinted = next(question for question in asked if text.SHORT_ANSWER in question)
        assert hinted.endswith("\n" + text.SHORT_ANSWER)
        assert sum(question.removeprefix("<image>\n").startswith(text.REG_PROMPT) for question in asked) == 1
        boxes = [turn.value for turn in record.turns if turn.role == "gpt" and turn.value.startswith("[")]
        assert len(boxes) == len(world.scene(SEED, "train", index).things), "the box of every object"
    for record in alone:
        scene = world.scene(SEED, "train", int(re.search(r"train-(\d+)-text", record.id)[1]))
        first = record.turns[0].value
        assert first.startswith("Scene: ")
        said = first.removeprefix("Scene: ").split("\n")[0]
        things = sorted(f"{thing.label} {text.write_box(scene, thing.box)}" for thing in scene.things)
        assert sorted(said[:-1].split("; ")) == things


@pytest.mark.parametrize(("kind", "template", "geometry"), [("pretrain", "plain", CenterCrop), ("instruct", "v1", Pad)])
def test_llava_pat_trains_on_it(made, kind, template, geometry):
    """The start-up check of a real run passes over every file, and samples come out of it."""
    data = LlavaDataset(
        load_records(made / f"{kind}_train.json"),
        made / "images",
        get_template(template),
        load_tokenizer(ROOT / "playground" / "models" / "llama"),
        geometry(80, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)),
        patch_size=8,
        regions=load_regions(made / "regions_train.jsonl"),
    )
    report = data.check(num_patches=100, progress=False)
    assert report.images == report.images_with_regions == TRAIN
    assert report.truncated == report.region_images_unused == 0
    assert report.labelled_patches > 10 * TRAIN
    if geometry is Pad:
        assert report.regions_removed == 0, "padding loses nothing"
    sample = data[0]
    coverage, label_ids = sample["regions"][0]
    things = world.scene(SEED, "train", 0).things
    assert len(label_ids) == len(coverage) <= len(things)
    assert all(len(ids) == 2 for ids in label_ids), "a colour and a kind, a token each"


def test_vocabulary(made):
    assert read(made / "vocabulary.json") == {"kind": list(world.KINDS), "colour": list(world.COLOURS)}


def test_manifest(made):
    things = [world.scene(SEED, "train", index).things for index in range(TRAIN)]
    sharing = [any(o is not t and (o.kind == t.kind or o.colour == t.colour) for o in s) for s in things for t in s]
    assert read(made / generate.MANIFEST) == {
        "train": TRAIN,
        "val": VAL,
        "test": TEST,
        "seed": SEED,
        "made_by": generate.made_by(),
        "objects": len(sharing),
        "sharing_kind_or_colour": round(sum(sharing) / len(sharing), 4),
    }


def test_if_absent(made, tmp_path, capsys, monkeypatch):
    before = contents(made)
    with monkeypatch.context() as patch:
        patch.setattr(generate, "generate", lambda *_, **__: pytest.fail("it is there already"))
        run(made, "--if_absent")
    assert "holds it already" in capsys.readouterr().out
    assert contents(made) == before
    called = []
    monkeypatch.setattr(generate, "generate", lambda *arguments, **more: called.append(more))
    other = {"train": TRAIN + 1, "val": VAL, "test": TEST, "seed": SEED}
    (tmp_path / generate.MANIFEST).write_text(json.dumps(other))
    run(tmp_path, "--if_absent")
    assert len(called) == 1, "another size is other data"
    older = {"train": TRAIN, "val": VAL, "test": TEST, "seed": SEED, "made_by": "0" * 16}
    (tmp_path / generate.MANIFEST).write_text(json.dumps(older))
    run(tmp_path, "--if_absent")
    assert len(called) == 2, "older code made other data"
    assert not (tmp_path / generate.MANIFEST).exists(), "what was there is no longer whole"
    run(tmp_path)
    assert len(called) == 3


def test_a_killed_run_leaves_no_manifest(tmp_path):
    older = {"train": 3000, "val": VAL, "test": TEST, "seed": 1}
    (tmp_path / generate.MANIFEST).write_text(json.dumps(older))
    command = [sys.executable, "-m", "playground.generate", "--out", str(tmp_path), "--train", "3000", "--workers", "1"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **silent)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "images" / "train" / "000020.png").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / generate.MANIFEST).exists()
    run(tmp_path, "--if_absent", train=1)
    assert read(tmp_path / generate.MANIFEST)["train"] == 1, "and the next run makes it whole"
