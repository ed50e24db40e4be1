"""The data set from files to batches, and the start-up check with every kind of bad input."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor

from llava_pat.data.collate import Collator, patch_regions
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.geometry import geometry_for
from llava_pat.data.records import load_records
from llava_pat.data.regions import load_regions
from llava_pat.data.templates import get_template
from llava_pat.types import DataError

PATCHES = 64


@pytest.fixture
def world(tmp_path, assets, small_tokenizer):
    """Three records on disk (an annotated image, an unannotated one, text only) and a data set over them."""

    class World:
        folder = tmp_path / "images"
        records = [
            {
                "id": f"r{k}",
                "image": f"{k}.{'jpg' if k else 'png'}",
                "conversations": [
                    {"from": "human", "value": "Describe.\n<image>"},
                    {"from": "gpt", "value": "a red circle"},
                ],
            }
            for k in range(2)
        ] + [{"id": "r2", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "yes"}]}]
        regions = [
            {"id": "0", "image": "0.png", "width": 200, "height": 100, "regions": [
                {"label": "red circle", "bbox": [80, 20, 40, 40]},
                {"label": "red three", "bbox": [90, 30, 20, 20]},
                {"label": "blue circle", "bbox": [0, 0, 20, 100]}]},
            {"id": "9", "image": "9.png", "width": 5, "height": 5, "regions": []},
        ]  # fmt: skip

        def build(self, template="v1", aspect="square", with_regions=True, **more):
            (tmp_path / "r.json").write_text(json.dumps(self.records))
            (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, self.regions)))
            processor = CLIPImageProcessor.from_pretrained(assets / "clip")
            return LlavaDataset(
                load_records(tmp_path / "r.json"),
                self.folder,
                get_template(template),
                small_tokenizer,
                geometry_for(aspect, processor),
                14,
                regions=load_regions(tmp_path / "g.jsonl") if with_regions else None,
                **more,
            )

        def check(self, **more):
            return self.build(**more).check(PATCHES, progress=False)

    World.folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    for name in ("0.png", "1.jpg"):
        Image.fromarray(noise).save(World.folder / name)
    return World()


def test_sample(world):
    dataset = world.build()
    assert len(dataset) == 3
    first, second, third = (dataset[k] for k in range(3))
    assert (first["id"], first["index"]) == ("r0", 0)
    assert first["pixel_values"][0].shape == (3, 112, 112)
    coverage, labels = first["regions"][0]
    assert coverage.shape == (2, PATCHES) and len(labels) == 2, "the crop removes the third region"
    assert second["regions"] == [None]
    assert (third["pixel_values"], third["regions"]) == ([], [])
    assert world.build(with_regions=False)[0]["regions"] is None


def test_through_a_data_loader_with_a_worker(world, small_tokenizer):
    collator = Collator(PATCHES, small_tokenizer.pad_token_id, 2048)
    loader = DataLoader(world.build(), batch_size=3, collate_fn=collator, num_workers=1)
    (batch,) = loader
    assert batch["input_ids"].shape == batch["labels"].shape
    assert (batch["input_ids"] == -200).sum(1).tolist() == [PATCHES, PATCHES, 0]
    assert batch["image_sequence"].tolist() == [0, 1]
    assert patch_regions(batch).image.tolist() == [0, 0]


def test_survives_pickling_for_spawned_workers(world):
    dataset = world.build()
    again = pickle.loads(pickle.dumps(dataset))
    assert again[1]["input_ids"] == dataset[1]["input_ids"]
    assert torch.equal(again[1]["pixel_values"][0], dataset[1]["pixel_values"][0])


def test_report(world):
    report = world.check()
    coverage = world.build()[0]["regions"][0][0]
    expected = {
        "records": 3, "images": 2, "text_only": 1, "truncated": 0,
        "images_with_regions": 1, "regions": 3, "regions_removed": 1,
        "region_images_unused": 1, "region_images_examined": 1,
        "labelled_patches": int((coverage > 0).any(0).sum()), "multi_label_patches": int((coverage > 0).all(0).sum()),
    }  # fmt: skip
    found = dataclasses.asdict(report)
    assert {key: found[key] for key in expected} == expected
    assert report.multi_label_patches > 0
    samples = [world.build()[k] for k in range(3)]
    assert report.supervised_tokens == sum(label != -100 for s in samples for label in s["labels"])
    assert report.longest == max(len(s["input_ids"]) + (PATCHES - 1) * len(s["pixel_values"]) for s in samples)
    assert "1 regions removed by the crop" in str(report)
    assert world.check(aspect="pad").regions_removed == 0
    assert "regions" not in str(world.check(with_regions=False))


def test_missing_image(world):
    (world.folder / "1.jpg").unlink()
    for use in (world.check, lambda: world.build()[1]):
        with pytest.raises(DataError, match=r"r\.json: record 1 \(id 'r1'\): image .*1\.jpg does not exist"):
            use()


@pytest.mark.parametrize(("record", "name"), [(0, "0.png"), (1, "1.jpg")])
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_truncated_image(world, record, name, share):
    content = (world.folder / name).read_bytes()
    (world.folder / name).write_bytes(content[: int(len(content) * share)])
    for use in (world.check, lambda: world.build()[record]):
        with pytest.raises(DataError, match=rf"record {record} \(id 'r{record}'\): image .*{name} cannot be read"):
            use()


def test_image_that_leaves_the_folder(world):
    world.records[1] = world.records[1] | {"image": "../r.json"}
    with pytest.raises(DataError, match=r"record 1 \(id 'r1'\): image '../r.json'"):
        world.check()


def test_regions_of_another_size(world):
    world.regions[0] |= {"width": 100, "height": 200}
    for use in (world.check, lambda: world.build()[0]):
        with pytest.raises(DataError, match=r"g\.jsonl:1 .*for 200x100 \(height x width\) but .*r0.* is 100x200"):
            use()


def test_regions_file_of_other_images(world):
    world.regions[0] |= {"image": "elsewhere/0.png"}
    with pytest.raises(DataError, match=r"none of the 2 images .*'elsewhere/0\.png'.* in the records .*'0\.png'"):
        world.check()


def test_label_without_tokens(world):
    world.regions[0]["regions"][1]["label"] = "\u200b"  # a zero-width space: this tokenizer's normaliser drops it
    with pytest.raises(DataError, match=r"g\.jsonl:1 .*label '\\u200b' has no tokens"):
        world.check()


def test_another_patch_grid(world):
    with pytest.raises(DataError, match="tower gives 49 patches but images of 112 pixels in patches of 14 make 64"):
        world.build().check(49, progress=False)


def test_template_that_does_not_fit(world):
    with pytest.raises(DataError, match="'chatml_direct' and this LlamaTokenizer of 520 tokens do not fit"):
        world.check(template="chatml_direct")


def test_record_that_the_template_cannot_hold(world):
    with pytest.raises(DataError, match=r"record 2 \(id 'r2'\): template 'plain' holds one image and its caption"):
        world.check(template="plain")


def test_truncation(world):
    longest = world.check().longest
    assert world.check(model_max_length=longest - 1).truncated == 2
    with pytest.raises(DataError, match=r"record 0 \(id 'r0'\): nothing to learn, 0 of .*after truncation"):
        world.check(model_max_length=longest - 5)  # the answer's five tokens
    with pytest.raises(DataError, match=r"record 0 \(id 'r0'\): an image takes positions"):
        world.check(model_max_length=90)


def test_region_images_are_sampled(world):
    assert world.build().check(PATCHES, max_region_images=1, progress=False).region_images_examined == 1
