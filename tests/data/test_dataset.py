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

        def build(self, template="v1", aspect="square", with_regions=True, on_bad="error", **more):
            (tmp_path / "r.json").write_text(json.dumps(self.records))
            (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, self.regions)))
            processor = CLIPImageProcessor.from_pretrained(assets / "clip")
            return LlavaDataset(
                load_records(tmp_path / "r.json", on_bad),
                self.folder,
                get_template(template),
                small_tokenizer,
                geometry_for(aspect, processor),
                14,
                regions=load_regions(tmp_path / "g.jsonl") if with_regions else None,
                **more,
            )

        def check(self, on_bad="error", **more):
            return self.build(on_bad=on_bad, **more).check(PATCHES, progress=False, on_bad=on_bad)

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


def say(*messages):
    return [{"from": ("human", "gpt")[k % 2], "value": message} for k, message in enumerate(messages)]


def test_what_is_left_out_is_reported(world):
    world.records.insert(1, world.records[0] | {"conversations": say("<image>", "")})
    world.records.append({"id": "long", "conversations": say("red " * 400, "yes")})
    world.records.append({"id": "late", "image": "0.png", "conversations": say("red " * 400, "yes", "<image>", "no")})
    world.records.append({"id": "headed", "conversations": [{"from": "gpt", "value": "Hi"}, *say("blue?", "no")]})
    report = world.check(on_bad="skip", model_max_length=400)
    assert [entry.index for entry in report.skipped] == [1], "the place in the file"
    assert [entry.index for entry in report.unusable] == [3, 4], "the place in the data set"
    assert "(id 'long'): nothing to learn, 0 of 400 positions" in report.unusable[0].reason
    assert "(id 'late'): an image takes positions" in report.unusable[1].reason
    assert (report.records, report.images, report.text_only, report.leading_answers) == (4, 2, 2, 1)
    for words in ("3 records are left out:", "1 conversations began with an answer", "message 1 is an empty answer"):
        assert words in str(report)
    whole = world.build(on_bad="skip", model_max_length=400)
    kept = whole.without([entry.index for entry in report.unusable])
    assert [record.id for record in kept.records] == ["r0", "r1", "r2", "headed"] and len(whole) == 6
    again = kept.check(PATCHES, progress=False)
    assert (again.unusable, again.skipped, again.leading_answers) == ((), report.skipped, 1)
    assert again.supervised_tokens == report.supervised_tokens
    with pytest.raises(DataError, match="none of 1 records can be used; the first: .*'long'"):
        whole.without([0, 1, 2, 4, 5]).check(PATCHES, progress=False, on_bad="skip")


def test_several_images_in_a_record(world, small_tokenizer):
    """Two images in one question, one of them again in the next; regions and pixels follow the images' order."""
    world.records = [
        {"id": "many", "image": ["1.jpg", "0.png", "1.jpg"],
         "conversations": say("<image> or <image>?", "red circle", "And <image>", "blue")},
        world.records[2],
        world.records[0],
    ]  # fmt: skip
    report = world.check()
    assert (report.images, report.text_only, report.images_with_regions) == (4, 1, 1)
    dataset = world.build()
    sample, single = dataset[0], dataset[2]
    assert sample["input_ids"].count(-200) == 3 and [entry is None for entry in sample["regions"]] == [
        True,
        False,
        True,
    ]
    assert torch.equal(sample["pixel_values"][1], single["pixel_values"][0])
    assert torch.equal(sample["pixel_values"][0], sample["pixel_values"][2])
    learned = small_tokenizer.decode([label for label in sample["labels"] if label != -100])
    assert "red circle" in learned and "blue" in learned and "or" not in learned.split()
    batch = Collator(PATCHES, small_tokenizer.pad_token_id, 2048)([dataset[k] for k in range(3)])
    assert (batch["input_ids"] == -200).sum(1).tolist() == [3 * PATCHES, 0, PATCHES]
    assert batch["image_sequence"].tolist() == [0, 0, 0, 2] and len(batch["pixel_values"]) == 4
    regions = patch_regions(batch)
    assert regions.image.tolist() == [1, 1, 3, 3] and torch.equal(regions.coverage[:2], regions.coverage[2:])


def test_several_images_one_of_another_size_than_its_regions(world):
    world.records[0] |= {"image": ["1.jpg", "0.png"], "conversations": say("<image> or <image>?", "one")}
    world.regions[0] |= {"width": 199}
    for use in (world.check, lambda: world.build()[0]):
        with pytest.raises(DataError, match=r"g\.jsonl:1 .*for 100x199 .*r0.* is 100x200"):
            use()


def test_text_only_batch_of_a_set_with_regions(world, small_tokenizer):
    batch = Collator(PATCHES, small_tokenizer.pad_token_id, 2048)([world.build()[2]])
    assert batch["pixel_values"].shape == (0, 3, 112, 112) and batch["image_sequence"].shape == (0,)
    assert patch_regions(batch).coverage.shape == (0, PATCHES)


def test_lengths_grow_with_text_and_images(world):
    world.records[1] = world.records[1] | {"image": ["1.jpg"] * 2, "conversations": say("<image><image>", "yes " * 100)}
    lengths = world.build().lengths(PATCHES)
    assert lengths[1] > lengths[0] + PATCHES > PATCHES > lengths[2] > 0
    assert world.build(model_max_length=100).lengths(PATCHES) == [lengths[0], 100, lengths[2]]


@pytest.mark.parametrize("bad", [None, 17, 30])
def test_several_processes_report_what_one_does(world, monkeypatch, bad):
    world.records = [dict(world.records[k % 3], id=f"r{k}") for k in range(40)]
    world.records[20] = {"id": "long", "conversations": say("red " * 400, "yes")}
    if bad is not None:
        world.records[bad] = world.records[0] | {"image": "gone.png"}
    alone = world.check(on_bad="skip") if bad is None else None
    monkeypatch.setattr("llava_pat.data.check.scan._BLOCK", 4)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    if bad is None:
        assert world.check(on_bad="skip") == alone and alone.unusable == ()
        shorter = world.check(on_bad="skip", model_max_length=400)
        assert [entry.index for entry in shorter.unusable] == [20] and shorter.longest <= 400
    else:
        with pytest.raises(DataError, match=rf"record {bad} .*gone\.png does not exist"):
            world.check()
