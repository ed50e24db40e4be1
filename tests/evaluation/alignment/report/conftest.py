"""A measuring run made up from random vectors, in the layout of llava_pat/evaluation/alignment/report/files.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

COLOURS = ("red", "green", "blue")
KINDS = ("circle", "square", "star", "ring")
WORDS = (*KINDS, *COLOURS)
LABELS = ("red circle", "blue star")
RANDOM, MEAN = "random_projector", "mean_vector"
CHECKPOINTS = ("run-none-seed0", "run-none-seed1", "run-pat-seed0")


def write_run(
    out: Path,
    checkpoints: Sequence[str] = CHECKPOINTS,
    grid: tuple[int, int] = (4, 4),
    patch: int = 8,
    images: int = 2,
    width: int = 16,
) -> dict[str, Any]:
    """Writes metrics.json and data/; returns the content of metrics.json."""
    rng = np.random.default_rng(0)
    (out / "data").mkdir(parents=True, exist_ok=True)
    features = rng.standard_normal((300, width))
    shapes = [_image(rng, grid, patch) for _ in range(images)]
    rows: dict[str, dict[str, dict[str, float]]] = {"checkpoints": {}, "baselines": {}}
    means = {f"{MEAN}-of-{name}": f"mean patch of {name}" for name in checkpoints}
    baselines = {RANDOM: "random projector", **means}
    for number, name in enumerate((*checkpoints, *baselines)):
        quality = 0.01 * number if name in baselines else 0.4 + 0.35 * ("pat" in name) + 0.02 * number
        metrics, curves = _measured(rng, features, quality)
        rows["baselines" if name in baselines else "checkpoints"][name] = metrics
        np.savez_compressed(out / "data" / f"{name}.npz", **curves)
        if name not in baselines:
            _write_pictures(out / "data", name, rng, shapes, grid, quality)
    settings = {
        "command": ["eval/alignment.py", *checkpoints, "--out", "a folder"],
        "seed": 0, "images": 50, "labelled_patches": 1234, "min_coverage": 0.25, "template": "",
        "vocabulary_size": len(WORDS), "word_pieces": 900, "grid": list(grid), "date": "2026-11-21",
        "versions": {"torch": "2.13.0"}, "git_commit": None, "hashes": {"regions.jsonl": "ab12"},
        "rows": {name: {"title": name, "path": f"checkpoints/{name}"} for name in checkpoints}
        | {name: {"title": title, "note": "made up"} for name, title in baselines.items()},
    }  # fmt: skip
    content = {**rows, "settings": settings}
    (out / "metrics.json").write_text(json.dumps(content, indent=2))
    return content


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(**keywords of write_run) -> the run's folder."""

    def make(**keywords: Any) -> Path:
        write_run(tmp_path, **keywords)
        return tmp_path

    return make


def _image(rng, grid, patch):
    """pixels, masks of a circle and a square, labels."""
    height, width = grid[0] * patch, grid[1] * patch
    y, x = np.mgrid[:height, :width]
    circle = (y - 0.3 * height) ** 2 + (x - 0.3 * width) ** 2 < (0.22 * height) ** 2
    square = (abs(y - 0.7 * height) < 0.18 * height) & (abs(x - 0.68 * width) < 0.18 * width)
    pixels = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
    pixels[circle] = (220, 40, 40)
    pixels[square] = (60, 90, 230)
    return pixels, np.stack([circle, square]), LABELS


def _measured(rng, features, quality):
    mixed = features @ np.diag(np.linspace(1, 1 - quality, features.shape[1]))
    spectra = {}
    metrics = {"images": 50, "labelled_patches": 1234}
    for key, vectors in (("features", features), ("patches", mixed)):
        for end in ("", "_centred"):
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            shares = np.linalg.eigvalsh(np.cov(unit.T) if end else unit.T @ unit)[::-1].clip(0)
            shares = shares / shares.sum()
            spectra[f"spectrum_{key}{end}"] = shares
            metrics[f"entropy_{key}{end}"] = float(-(shares * np.log(shares.clip(1e-300))).sum())
            spread = rng.normal(metrics[f"entropy_{key}{end}"], 0.1, 50).astype(np.float32)
            spectra[f"entropy_{key}_image{end}"] = spread
            metrics[f"entropy_{key}_image{end}"] = float(spread.mean())
    for end in ("", "_centred"):
        metrics[f"entropy_change{end}"] = metrics[f"entropy_patches{end}"] - metrics[f"entropy_features{end}"]
    edges = np.linspace(-1, 1, 201)
    right = np.histogram(rng.normal(quality, 0.12, 1500).clip(-1, 1), edges)[0]
    wrong = np.histogram(rng.normal(0.05, 0.12, 9000).clip(-1, 1), edges)[0]
    ranks = np.bincount(rng.geometric(0.15 + 0.8 * quality, 1234).clip(1, len(WORDS)) - 1, minlength=len(WORDS))
    hits = ranks.cumsum() / ranks.sum()
    patches = rng.integers(20, 300, len(WORDS))
    patches[-1] = 0
    each = np.where(patches > 0, rng.uniform(quality, min(1, quality + 0.3), len(WORDS)), np.nan)
    steps = 1 - (0.75 - 0.5 * quality) ** np.arange(1, 6)
    layers = np.linspace(0.05 + quality / 2, 0.6, 5)
    metrics |= {
        "patch_cosine": quality, "hit_at_1": float(hits[0]), "hit_at_5": float(hits[4]), "hit_kind": float(hits[1]),
        "patches_kind": 1000, "hit_colour": float(hits[1]), "median_rank": 2.0, "patchdis_miou": quality * 0.8,
        "omp_explained": float(steps[-1]), "omp_overlap": quality, "tacs": quality + 0.05, "modality_distance": 14.2,
        "visual_norm": 17.0, "word_norm": 1.3, "ima_first": layers[0], "ima_last": layers[-1],
        "ima_mean": float(layers.mean()), "something_new": 3.25,
    }  # fmt: skip
    curves = spectra | {
        "cosine_edges": edges, "cosine_right": right, "cosine_wrong": wrong, "rank_counts": ranks,
        "label_words": np.array(WORDS), "label_patches": patches, "label_cosine": each, "label_hit_at_1": each,
        "label_iou": each, "ima": layers, "omp_explained": steps, "omp_explained_nonnegative": 0.9 * steps,
    }  # fmt: skip
    return metrics, curves


def _write_pictures(data, name, rng, shapes, grid, quality):
    patches = grid[0] * grid[1]
    arrays, entries = {}, []
    pool = np.array([*WORDS, "the", "left", "background", "extraordinary", "$x_1$"])
    for i, (pixels, masks, labels) in enumerate(shapes):
        size = pixels.shape[0] // grid[0]
        covered = masks.reshape(len(masks), grid[0], size, grid[1], size).mean((2, 4)).reshape(len(masks), -1)
        cosine = rng.normal(0.05, 0.12, (patches, len(WORDS)))
        for share, label in zip(covered, labels, strict=True):
            for word in label.split():
                cosine[:, WORDS.index(word)] += quality * share
        cosine = cosine.clip(-1, 1).astype(np.float16)
        order = np.argsort(-cosine.astype(np.float32), axis=1)
        nearest = pool[order[:, :5]]
        outside = covered.max(0) < 0.1
        nearest[outside, 0] = rng.choice(pool[len(WORDS) :], outside.sum())
        arrays |= {
            f"pixels_{i}": pixels, f"masks_{i}": masks, f"cosine_{i}": cosine, f"nearest_words_{i}": nearest,
            f"nearest_cosine_{i}": np.take_along_axis(cosine, order[:, :5], 1), f"nearest_entry_{i}": order[:, 0],
        }  # fmt: skip
        decompositions = [
            {
                "patch": patch, "labels": [label], "explained": [0.5, 0.7, 0.75], "nonnegative": True,
                "atoms": [
                    {"word": word, "coefficient": weight}
                    for word, weight in zip([*label.split(), "the"], (2.1, 0.9, 0.4), strict=True)
                ],
            }
            for patch, label in zip(covered.argmax(1).tolist(), labels, strict=True)
        ]  # fmt: skip
        entries.append({
            "id": str(i), "image": f"val/{i:05}.png", "grid": list(grid), "caption": "a red circle <left> & more",
            "regions": [{"label": label} for label in labels], "decompositions": decompositions,
        })  # fmt: skip
    np.savez_compressed(data / f"{name}-pictures.npz", **arrays)
    head = {"words": list(WORDS), "vocabulary_size": len(WORDS), "images": entries}
    (data / f"{name}-pictures.json").write_text(json.dumps(head))
