"""How many directions the labels' own words use: the entropy that patches would have if each were its label's words.

python -m playground.study.label_entropy --split test

Rows are the word vectors of every region's label (means over pieces, as PAT has them), a row a region, at length 1. An
objective that pulls patches to these words pulls their entropy towards this one, be it above or below.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from llava_pat.analysis.entropy import von_neumann_entropy
from llava_pat.data.regions import load_regions
from llava_pat.data.tokenize import encode_words, load_tokenizer

HERE = Path(__file__).parents[1]


def label_entropy(regions_path: Path, model: Path) -> dict[str, float]:
    """{labels, regions, entropy, entropy_centred}, in nats."""
    labels = [region.label for entry in load_regions(regions_path).values() for region in entry.regions]
    tokenizer = load_tokenizer(model)
    llm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, trust_remote_code=False)
    words = llm.get_input_embeddings().weight.detach()
    vectors = {label: words[torch.tensor(encode_words(label, tokenizer))].mean(0) for label in set(labels)}
    rows = torch.stack([vectors[label] for label in labels])
    return {
        "labels": len(vectors),
        "regions": len(labels),
        "entropy": float(von_neumann_entropy(rows)),
        "entropy_centred": float(von_neumann_entropy(rows, centred=True)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--model", type=Path, default=HERE / "models" / "llama")
    options = parser.parse_args()
    print(json.dumps(label_entropy(options.data / f"regions_{options.split}.jsonl", options.model)))
