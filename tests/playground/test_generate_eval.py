"""The playground's evaluation files: COCO's, VQA's and POPE's structures, and true about the held-out scenes."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from playground import generate, text, world

SEED = 5  # of conftest's `made`
SCENES = {"val": 12, "test": 7}


@pytest.fixture(scope="module", params=SCENES)
def split(request):
    return request.param


@pytest.fixture(scope="module")
def folder(made, split):
    return made / {"val": "eval", "test": "eval_test"}[split]


@pytest.fixture(scope="module")
def held_out(oracle, split):
    drawn = [world.scene(SEED, split, index) for index in range(SCENES[split])]
    return [(scene, oracle.look(scene)) for scene in drawn]


def read(path: Path):
    return json.loads(path.read_text())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_refcoco(folder, split, held_out, oracle, capsys):
    coco = COCO(str(folder / "instances.json"))
    refs = read(folder / "refs.json")
    assert len(refs) == len(coco.anns) == sum(len(scene.things) for scene, _ in held_out)
    assert len({ref["ref_id"] for ref in refs}) == len({ref["sentences"][0]["sent_id"] for ref in refs}) == len(refs)
    assert [coco.imgs[i]["file_name"] for i in range(SCENES[split])] == [
        f"{split}/{index:06d}.png" for index in range(SCENES[split])
    ]
    for ref in refs:
        annotation = coco.anns[ref["ann_id"]]
        assert (ref["image_id"], ref["category_id"]) == (annotation["image_id"], annotation["category_id"])
        scene, seen = held_out[ref["image_id"]]
        (sentence,) = ref["sentences"]
        assert sentence["tokens"] == sentence["sent"].split() and ref["split"] == split
        (index,) = oracle.meant_by(sentence["sent"], seen)
        mask = coco.annToMask(annotation).astype(bool)
        assert np.array_equal(mask, scene.instances == index), "the phrase means this mask"
        assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
        assert coco.cats[ref["category_id"]]["name"] == scene.things[index].label
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == scene.things[index].box


def test_captions(folder, split, held_out, capsys):
    coco = COCO(str(folder / "captions.json"))
    for image, (scene, _) in enumerate(held_out):
        captions = [coco.anns[i]["caption"] for i in coco.getAnnIds(imgIds=[image])]
        assert len(captions) == 5
        assert all(caption.count(thing.label) == 1 for caption in captions for thing in scene.things)
    found = coco.loadRes([{"image_id": image, "caption": "a red three"} for image in range(SCENES[split])])
    assert len(found.anns) == SCENES[split], "results in COCO's format go with it"


def test_vqa(folder, split, held_out):
    questions = read(folder / "vqa_questions.json")["questions"]
    annotations = read(folder / "vqa_annotations.json")["annotations"]
    assert [q["question_id"] for q in questions] == [a["question_id"] for a in annotations] == [*range(len(questions))]
    types = Counter()
    for question, annotation in zip(questions, annotations, strict=True):
        assert question["image_id"] == annotation["image_id"] < SCENES[split]
        answer = annotation["multiple_choice_answer"]
        assert [one["answer"] for one in annotation["answers"]] == [answer] * 10
        kind = annotation["question_type"]
        types[kind] += 1
        wanted = {"existence": "yes/no", "relation": "yes/no", "count": "number"}.get(kind, "other")
        assert annotation["answer_type"] == wanted, annotation
        if kind == "colour":
            named = re.search(r"(\w+)\?$", question["question"])[1]
            assert [t.colour for t in held_out[question["image_id"]][0].things if t.kind == named] == [answer]
    assert set(types) == set(text.QUESTION_TYPES)


@pytest.mark.parametrize("category", ["random", "popular", "adversarial"])
def test_pope(folder, split, held_out, category):
    asked = lines(folder / f"pope_{category}.jsonl")
    assert [one["question_id"] for one in asked] == [*range(1, len(asked) + 1)]
    assert Counter(one["label"] for one in asked)["yes"] * 2 == len(asked), "yes and no equally often"
    frequency = Counter(thing.label for scene, _ in held_out for thing in scene.things)
    by_image: dict[str, list[dict]] = {}
    for one in asked:
        assert set(one) == {"question_id", "image", "text", "label"}
        by_image.setdefault(one["image"], []).append(one)
    assert list(by_image) == [f"{split}/{index:06d}.png" for index in range(SCENES[split])]
    for (scene, seen), questions in zip(held_out, by_image.values(), strict=True):
        labels = [re.fullmatch(r"Is there an? (\w+ \w+) in the image\?", one["text"])[1] for one in questions]
        present = {thing.label for thing in scene.things}
        assert len(set(labels)) == len(labels) == 2 * min(3, len(present))
        assert [one["label"] for one in questions] == ["yes" if label in present else "no" for label in labels]
        absent = [label for label in labels if label not in present]
        if category == "popular":
            least = min(frequency[label] for label in absent)
            others = set(frequency) - present - set(absent)
            assert all(frequency[label] <= least for label in others)
        if category == "adversarial":
            mixed = {f"{a.colour} {b.kind}" for a in seen for b in seen} - present
            assert sum(label in mixed for label in absent) == min(len(absent), len(mixed))


def test_pope_of_one_scene_asks_for_absent_labels_too(tmp_path):
    generate.main(["--out", str(tmp_path), "--train", "1", "--val", "1", "--test", "0", "--workers", "1"])
    for category in ("random", "popular", "adversarial"):
        said = Counter(one["label"] for one in lines(tmp_path / "eval" / f"pope_{category}.jsonl"))
        assert said["yes"] == said["no"] > 0, said


def test_conversations_are_the_records_with_the_type_of_every_turn(made, folder, split):
    records, typed = read(made / f"instruct_{split}.json"), read(folder / "instruct.json")
    assert [entry["id"] for entry in typed] == [record["id"] for record in records]
    for entry, record in zip(typed, records, strict=True):
        said = [turn["value"] for turn in record["conversations"]]
        assert entry.get("image") == record.get("image")
        assert [turn["question"] for turn in entry["turns"]] == said[::2]
        assert [turn["answer"] for turn in entry["turns"]] == said[1::2]
        for turn in entry["turns"]:
            assert (turn["type"] == "rec") == turn["answer"].startswith("["), turn
            assert (turn["type"] == "reg") == (text.REG_PROMPT in turn["question"]), turn
            assert turn["type"] not in ("existence", "relation") or turn["answer"] in ("yes", "no"), turn
            assert turn["type"] != "kind" or turn["answer"] in world.KINDS, turn
            assert turn["type"] != "colour" or turn["answer"] in world.COLOURS, turn
            assert turn["type"] != "count" or turn["answer"].isdigit(), turn
    assert {turn["type"] for entry in typed for turn in entry["turns"]} >= {*text.QUESTION_TYPES, "rec", "reg"}
