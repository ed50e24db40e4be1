"""Writes the playground's data: images, and the files that a LLaVA run and its evaluations read.

    python -m playground.generate                         # playground/data: 6,000 scenes to train on, 400 + 600 others
    python -m playground.generate --train 10000 --seed 1  # another world

What it writes, each in the format of the real thing:

    images/<split>/NNNNNN.png
    pretrain_<split>.json       LLaVA-Pretrain: one image, one caption
    instruct_<split>.json       LLaVA instruct: conversations with an image, and text-only ones in between
    regions_<split>.jsonl       one line per image: labels with COCO RLE masks and boxes in original pixels
    vocabulary.json             the words for kinds and colours, for nearest-word figures
    eval/instances.json, refs.json         RefCOCO (COCO instances, and refs(unc) as JSON)
    eval/pope_{random,popular,adversarial}.jsonl   POPE: question_id, image, text, label
    eval/vqa_questions.json, vqa_annotations.json  VQAv2
    eval/captions.json                     COCO captions, five references an image
    eval/instruct.json                     the conversations of instruct_val.json, with the type of every turn
    eval_test/                             the same files about the scenes of `test`

The splits are train, val (eval/) and test (eval_test/): `val` is for choosing settings, `test` for the last look. Both
have scenes and handwritten digits of their own. Everything follows from --seed, in any number of processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from playground import text, world

HERE = Path(__file__).parent
TEXT_ONLY_SHARE = 0.1
LABELS = tuple(f"{colour} {kind}" for colour in world.COLOURS for kind in world.KINDS)
MANIFEST = "manifest.json"
EVAL_FOLDERS = {"val": "eval", "test": "eval_test"}


def generate(out: Path, train: int, val: int, seed: int, workers: int, test: int = 0) -> dict:
    """Writes everything below `out` and returns the manifest, which is written last: a killed run leaves none."""
    from tqdm import tqdm

    manifest = {"train": train, "val": val, "test": test, "seed": seed, "made_by": made_by()}
    made: dict[str, list[dict]] = {}
    with ProcessPoolExecutor(workers) as pool:
        for split, count in (("train", train), ("val", val), ("test", test)):
            if not count:
                continue
            (out / "images" / split).mkdir(parents=True, exist_ok=True)
            one = partial(_one_scene, out, split, seed)
            made[split] = list(tqdm(pool.map(one, range(count), chunksize=50), total=count, desc=split, disable=None))
    for split, scenes in made.items():
        _write(out / f"pretrain_{split}.json", [scene["pretrain"] for scene in scenes])
        _write(out / f"instruct_{split}.json", [record for scene in scenes for record in scene["instruct"]])
        lines = (json.dumps(scene["regions"]) + "\n" for scene in scenes)
        (out / f"regions_{split}.jsonl").write_text("".join(lines))
    _write(out / "vocabulary.json", {"kind": list(world.KINDS), "colour": list(world.COLOURS)})
    for split, folder in EVAL_FOLDERS.items():
        if split in made:
            _write_eval(out / folder, made[split], split, seed)
    things = [thing for scene in made["train"] for thing in scene["sharing"]]
    manifest |= {"objects": len(things), "sharing_kind_or_colour": round(float(np.mean(things)), 4)}
    _write(out / MANIFEST, manifest)
    return manifest


def made_by() -> str:
    """Hash of the code that decides what is in the files: data of older code is not this very data."""
    digest = hashlib.sha256()
    for module in (world, text):
        digest.update(Path(module.__file__).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def _one_scene(out: Path, split: str, seed: int, index: int) -> dict:
    """Draws and saves one scene, and says everything that the files hold about it."""
    scene = world.scene(seed, split, index)
    rng = np.random.default_rng([seed, world.SPLITS[split], index, 4])
    width, height = scene.size
    image = f"{split}/{index:06d}.png"
    Image.fromarray(scene.pixels).save(out / "images" / image, compress_level=1)
    regions = [
        {
            "label": thing.label,
            "segmentation": rle(scene.instances == i),
            "bbox": [thing.box[0], thing.box[1], thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]],
        }
        for i, thing in enumerate(scene.things)
    ]
    kinds, colours = Counter(t.kind for t in scene.things), Counter(t.colour for t in scene.things)
    name = f"{split}-{index:06d}"
    pretrain = _record(name, image, [("<image>\n" + _prompt(rng), text.caption(scene, rng))])
    instruct, types = _instructions(scene, rng, name, image)
    return {
        "pretrain": pretrain,
        "instruct": instruct,
        "types": types,
        "regions": {"id": name, "image": image, "width": width, "height": height, "regions": regions},
        "sharing": [kinds[t.kind] > 1 or colours[t.colour] > 1 for t in scene.things],
        "eval": _held_out(scene, rng) if split in EVAL_FOLDERS else None,
    }


def rle(mask: np.ndarray) -> dict:
    """[h, w] bool -> COCO's compressed run-length encoding, as JSON takes it."""
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def mask_area(encoded: dict) -> int:
    """Pixels under a mask: what COCO's `area` is for an annotation with a segmentation."""
    from pycocotools import mask as coco

    return int(coco.area(encoded))


def _prompt(rng: np.random.Generator) -> str:
    return text.CAPTION_PROMPTS[rng.integers(len(text.CAPTION_PROMPTS))]


def _record(name: str, image: str | None, turns: list[tuple[str, str]]) -> dict:
    spoken = [{"from": who, "value": words} for turn in turns for who, words in zip(("human", "gpt"), turn)]
    return {"id": name, **({"image": image} if image else {}), "conversations": spoken}


def _instructions(
    scene: world.Scene, rng: np.random.Generator, name: str, image: str
) -> tuple[list[dict], list[list[str]]]:
    """One conversation about the image: questions of every type, the box of every object, sometimes a caption.

    Now and then one without an image comes with it, about the scene as text. Returns the records, and the types of
    their turns.
    """
    asked = text.questions(scene, rng)
    order = rng.permutation(len(scene.things))
    asked += [text.rec(scene, scene.things[i], rng) for i in order]
    asked.append(text.reg(scene, scene.things[order[-1]]))
    if rng.random() < 0.5:
        asked.append(text.describe(scene, rng))
    rng.shuffle(asked)
    turns, hinted = [], False
    for index, qa in enumerate(asked):
        question = ("<image>\n" if index == 0 else "") + qa.question
        if qa.type in text.QUESTION_TYPES and not hinted:
            question, hinted = f"{question}\n{text.SHORT_ANSWER}", True
        turns.append((question, qa.answer))
    records, types = [_record(name, image, turns)], [[qa.type for qa in asked]]
    if rng.random() < TEXT_ONLY_SHARE:
        chosen = [qa for qa in asked if qa.type != "caption"][:4]
        about = [(qa.question, qa.answer) for qa in chosen]
        about[0] = (f"Scene: {text.scene_as_text(scene, rng)}\n{about[0][0]}", about[0][1])
        records.append(_record(f"{name}-text", None, about))
        types.append([qa.type for qa in chosen])
    return records, types


def _held_out(scene: world.Scene, rng: np.random.Generator) -> dict:
    captions: list[str] = []
    while len(captions) < 5:
        captions.append(text.caption(scene, rng))
    return {
        "captions": captions,
        "questions": [(qa.type, qa.question, qa.answer) for qa in text.questions(scene, rng)],
        "refs": [text.referring(scene, thing, rng) for thing in scene.things],
    }


def _write_eval(out: Path, scenes: list[dict], split: str, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": i, "file_name": s["regions"]["image"], "width": s["regions"]["width"], "height": s["regions"]["height"]}
        for i, s in enumerate(scenes)
    ]
    _write_refcoco(out, scenes, images, split)
    _write_vqa(out, scenes)
    _write_pope(out, scenes, np.random.default_rng([seed, 5] if split == "val" else [seed, 5, world.SPLITS[split]]))
    _write_instruct(out, scenes)
    sentences = [(i, words) for i, scene in enumerate(scenes) for words in scene["eval"]["captions"]]
    captions = [{"id": n, "image_id": image, "caption": words} for n, (image, words) in enumerate(sentences)]
    _write(out / "captions.json", {"images": images, "annotations": captions})


def _write_instruct(out: Path, scenes: list[dict]) -> None:
    """Conversations turn by turn: `{"id", "image"?, "turns": [{"type", "question", "answer"}]}`."""
    conversations = []
    for scene in scenes:
        for record, types in zip(scene["instruct"], scene["types"], strict=True):
            said = [turn["value"] for turn in record["conversations"]]
            turns = zip(types, said[::2], said[1::2], strict=True)
            head = {key: record[key] for key in ("id", "image") if key in record}
            conversations.append(head | {"turns": [{"type": t, "question": q, "answer": a} for t, q, a in turns]})
    _write(out / "instruct.json", conversations)


def _write_refcoco(out: Path, scenes: list[dict], images: list[dict], split: str) -> None:
    annotations, refs = [], []
    for image_id, scene in enumerate(scenes):
        for region, phrase in zip(scene["regions"]["regions"], scene["eval"]["refs"], strict=True):
            identity = len(annotations)
            category = LABELS.index(region["label"]) + 1
            area = mask_area(region["segmentation"])
            place = {"image_id": image_id, "category_id": category}
            mask = {"segmentation": region["segmentation"], "bbox": region["bbox"], "area": area, "iscrowd": 0}
            annotations.append({"id": identity, **place, **mask})
            sentence = {"sent_id": identity, "sent": phrase, "raw": phrase, "tokens": phrase.split()}
            refs.append({"ref_id": identity, "ann_id": identity, **place, "split": split, "sentences": [sentence]})
    categories = [{"id": i + 1, "name": label} for i, label in enumerate(LABELS)]
    _write(out / "instances.json", {"images": images, "annotations": annotations, "categories": categories})
    _write(out / "refs.json", refs)


def _write_vqa(out: Path, scenes: list[dict]) -> None:
    questions, annotations = [], []
    for image_id, scene in enumerate(scenes):
        for kind, question, answer in scene["eval"]["questions"]:
            identity = {"question_id": len(questions), "image_id": image_id}
            questions.append({**identity, "question": question})
            answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]
            types = {"question_type": kind, "answer_type": _answer_type(answer)}
            annotations.append({**identity, **types, "multiple_choice_answer": answer, "answers": answers})
    _write(out / "vqa_questions.json", {"questions": questions})
    _write(out / "vqa_annotations.json", {"annotations": annotations})


def _answer_type(answer: str) -> str:
    return "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"


def _write_pope(out: Path, scenes: list[dict], rng: np.random.Generator) -> None:
    """Three present and three absent labels an image, as POPE (arXiv 2305.10355) asks.

    Absent ones: random; popular, the most frequent labels of the set; adversarial, a colour and a kind that are both
    in the image but not together (filled up with labels that share one of them).
    """
    present = [[region["label"] for region in scene["regions"]["regions"]] for scene in scenes]
    frequent = [label for label, _ in Counter(label for labels in present for label in labels).most_common()]
    frequent += [label for label in LABELS if label not in frequent]  # a small set does not show every label
    for category in ("random", "popular", "adversarial"):
        lines = []
        for scene, labels in zip(scenes, present, strict=True):
            absent = [label for label in frequent if label not in labels]
            if category == "adversarial":
                colours, kinds = zip(*(label.split() for label in labels))
                absent.sort(key=lambda label: -(label.split()[0] in colours) - (label.split()[1] in kinds))
            if category == "random":
                rng.shuffle(absent)
            asked = [(label, "yes") for label in labels[:3]] + [(label, "no") for label in absent[: len(labels[:3])]]
            for label, answer in asked:
                question = f"Is there {text.article(label)} in the image?"
                line = {"question_id": len(lines) + 1, "image": scene["regions"]["image"], "text": question}
                lines.append(line | {"label": answer})
        (out / f"pope_{category}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write(path: Path, content) -> None:
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(content))
    os.replace(aside, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "data", help="folder to write to (default: playground/data)")
    parser.add_argument("--train", type=int, default=6000, help="number of training scenes")
    parser.add_argument("--val", type=int, default=400, help="number of held-out scenes, with glyphs of their own")
    parser.add_argument("--test", type=int, default=600, help="number of test scenes, with glyphs of their own too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--if_absent", action="store_true", help="do nothing when --out already holds this very data")
    arguments = parser.parse_args(argv)
    asked = {name: vars(arguments)[name] for name in ("train", "val", "test", "seed")}
    manifest = arguments.out / MANIFEST
    wanted = asked | {"made_by": made_by()}
    if arguments.if_absent and manifest.exists() and wanted.items() <= json.loads(manifest.read_text()).items():
        print(f"playground data: {arguments.out} holds it already")
        return
    manifest.unlink(missing_ok=True)
    written = generate(arguments.out, **asked, workers=arguments.workers)
    print(f"playground data in {arguments.out}: {written}")


if __name__ == "__main__":
    main()
