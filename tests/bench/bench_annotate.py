"""Where annotation spends its time: seconds an image of every step, and what threads beside the models save.

    python tests/bench/bench_annotate.py                          # Grounding DINO tiny and SAM 2.1 tiny, random weights
    python tests/bench/bench_annotate.py --device cuda --dtype bfloat16 --images 256
    python tests/bench/bench_annotate.py --config my.yaml --images 64       # published models, as my.yaml names them

Images are made up, JPEG, 640 x 480. With random weights a detector finds noise, so its boxes are replaced by --boxes of
a quarter of the image's sides; its own time is measured all the same. JSON goes to --out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    Sam2Config,
    Sam2Model,
)

from llava_pat.annotation.config import AnnotationConfig, load_config, parse_config
from llava_pat.annotation.engine.local import run_local
from llava_pat.annotation.engine.shards import ShardFolder
from llava_pat.annotation.engine.work import Plan
from llava_pat.annotation.items import Item, open_item
from llava_pat.annotation.pipeline import Annotator, finish
from llava_pat.annotation.stages import Detection, Detections
from tests.annotation.tiny_models import bert_tokenizer

LABELS = ("red circle", "blue square", "green car", "fire")
HEIGHT, WIDTH = 480, 640


class Timed:
    """A stage that counts its seconds; a detector's findings may be replaced."""

    def __init__(self, stage, method: str, seconds: Counter, boxes: int = 0) -> None:
        self.version, self._run, self._name = stage.version, getattr(stage, method), method
        self._seconds, self._boxes = seconds, boxes
        setattr(self, method, self._timed)

    def _timed(self, *inputs):
        start = time.perf_counter()
        results = self._run(*inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds[self._name] += time.perf_counter() - start
        return [self._found(own) for own in inputs[1]] if self._boxes else results

    def _found(self, labels) -> Detections:
        rng = np.random.default_rng(0)
        corners = rng.uniform(0, 0.75, (self._boxes, 2)) * (WIDTH, HEIGHT)
        return Detections(
            [
                Detection(labels[i % len(labels)], (x, y, x + WIDTH / 4, y + HEIGHT / 4), 0.9)
                for i, (x, y) in enumerate(corners.tolist())
            ]
        )


def write_images(folder: Path, count: int) -> list[Item]:
    """Clouds of colour: they decode like photographs."""
    rng = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        noise = rng.normal(0, 8, (HEIGHT, WIDTH, 3))
        pixels = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    caption = ", ".join(f"a {label}" for label in LABELS)
    return [Item(str(number), f"{number}.jpg", caption, f"image {number}") for number in range(count)]


def made_up_models(folder: Path, options: argparse.Namespace) -> AnnotationConfig:
    """Grounding DINO with Swin-T and SAM 2.1 with Hiera-T, transformers' default shapes."""
    torch.manual_seed(0)
    detector, segmenter = folder / "detector", folder / "segmenter"
    GroundingDinoForObjectDetection(GroundingDinoConfig()).save_pretrained(detector)
    GroundingDinoImageProcessorPil().save_pretrained(detector)
    bert_tokenizer().save_pretrained(detector)
    Sam2Model(Sam2Config()).save_pretrained(segmenter)
    sides = {"height": 1024, "width": 1024}
    numbers = {"size": sides, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (segmenter / "preprocessor_config.json").write_text(json.dumps(numbers))
    return parse_config(
        {
            "tagger": {"kind": "caption", "engine": "rules"},
            "detector": {"kind": "grounding_dino", "model": str(detector)},
            "segmenter": {"kind": "sam2", "model": str(segmenter)},
            "selection": {"bad_mask": "box", "nms_iou": 1.0},
            "device": options.device,
            "dtype": options.dtype,
            "batch_size": options.batch_size,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="settings of annotation, with published models; default: made up")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--boxes", type=int, default=8, help="an image, in place of the detector's; 0: its own")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seconds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        items = write_images(folder, options.images)
        config = made_up_models(folder, options) if options.config is None else load_config(options.config)
        annotator = Annotator(
            config,
            Timed(config.build_tagger(), "tag", seconds),
            Timed(config.build_detector(), "detect", seconds, options.boxes),
            Timed(config.build_segmenter(), "segment", seconds),
        )
        batches = Plan(items, len(items), config.batch_size).batches_of(0)
        annotator.infer(batches[0].items, [open_item(one, folder) for one in batches[0].items])  # warm-up
        seconds.clear()
        answers = []
        for batch in batches:
            start = time.perf_counter()
            opened = [open_item(one, folder) for one in batch.items]
            seconds["open"] += time.perf_counter() - start
            start, models = time.perf_counter(), sum(seconds[name] for name in ("tag", "detect", "segment"))
            masked = annotator.infer(batch.items, opened)
            models = sum(seconds[name] for name in ("tag", "detect", "segment")) - models
            seconds["select"] += time.perf_counter() - start - models
            start = time.perf_counter()
            answers += [finish(one, config.selection, annotator.tools) for one in masked]
            seconds["code masks"] += time.perf_counter() - start
        start = time.perf_counter()
        ShardFolder(folder / "out", "jsonl").write(0, answers)
        seconds["write"] += time.perf_counter() - start
        steps = {name: seconds[name] / len(items) for name in STEPS}
        start = time.perf_counter()
        for _ in run_local(annotator, folder, batches, options.threads):
            pass
        together = (time.perf_counter() - start) / len(items)
    serial = sum(steps.values())
    for name, value in steps.items():
        print(f"{name:<12}{value * 1000:>10.1f} ms an image{value / serial:>8.1%}")
    print(f"{'one by one':<12}{serial * 1000:>10.1f} ms an image")
    print(f"{'local engine':<12}{together * 1000:>10.1f} ms an image, {serial / together:.2f} times as fast")
    if options.out is not None:
        shown = {key: str(value) for key, value in vars(options).items()}
        options.out.write_text(json.dumps({"steps": steps, "engine": together, "options": shown}, indent=2) + "\n")


STEPS = ("open", "tag", "detect", "select", "segment", "code masks", "write")

if __name__ == "__main__":
    main()
