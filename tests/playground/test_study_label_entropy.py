"""The entropy of the labels' own words, against a formula for two directions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llava_pat.data.tokenize import encode_words, load_tokenizer
from playground.study.label_entropy import label_entropy

MODEL = Path(__file__).parents[2] / "playground" / "models" / "llama"


def write(path: Path, labels: list[str]) -> Path:
    regions = [{"label": label, "bbox": [0, 0, 5, 5]} for label in labels]
    path.write_text(json.dumps({"id": "1", "image": "1.png", "width": 9, "height": 9, "regions": regions}))
    return path


def test_one_label_is_one_direction(tmp_path: Path) -> None:
    found = label_entropy(write(tmp_path / "r.jsonl", ["red circle", "red circle"]), MODEL)
    assert found["labels"] == 1 and found["regions"] == 2 and found["entropy"] == pytest.approx(0, abs=1e-4)


def test_two_labels(tmp_path: Path) -> None:
    """Two unit vectors of cosine c, shares 3/4 and 1/4: eigenvalues 1/2 +- sqrt(1/4 - 3/16 (1 - c^2))."""
    labels = ["red circle", "blue nine"]
    found = label_entropy(write(tmp_path / "r.jsonl", [labels[0]] * 3 + [labels[1]]), MODEL)
    tokenizer = load_tokenizer(MODEL)
    words = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64).get_input_embeddings().weight.detach()
    a, b = (words[torch.tensor(encode_words(label, tokenizer))].mean(0) for label in labels)
    cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    half = math.sqrt(1 / 4 - 3 / 16 * (1 - cosine**2))
    expected = -sum(value * math.log(value) for value in (0.5 + half, 0.5 - half))
    assert found["entropy"] == pytest.approx(expected, abs=1e-5)
