"""Held-out caption loss, patch alignment and entropy of a finished run of either stage, on the split that is asked for.

    python -m playground.study measure RUN_FOLDER --split test --out FILE.json

The measures and their code are those of training itself (llava_pat/training/measure.py), which measures on `val` alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from llava_pat.analysis.vocabulary import load_vocabulary
from llava_pat.training.arguments import parse_pretrain
from llava_pat.training.finetune_arguments import parse_finetune
from llava_pat.training.measure import Probe
from llava_pat.training.parts import build_parts
from playground.study.files import read_json, write_json
from playground.world import SPLITS

BATCH = 32


def measure(folder: Path, data: Path, split: str) -> dict[str, float]:
    """What metrics.json of the run calls <name>_final, about another split."""
    stage = read_json(folder / "metrics.json")["stage"]
    kind, parse = ("pretrain", parse_pretrain) if stage == 1 else ("instruct", parse_finetune)
    flags = {
        "config": folder / "config.yaml",
        "alignment": "none",  # objectives have no part in what is measured
        "patch_words_path": "",
        "data_path": data / f"{kind}_{split}.json",  # nothing is trained: the shorter to read, the better
        "regions_path": data / f"regions_{split}.jsonl",
        "eval_data_path": data / f"{kind}_{split}.json",
        "eval_regions_path": data / f"regions_{split}.jsonl",
        "image_folder": data / "images",
        "pretrain_mm_mlp_adapter": folder / "mm_projector.bin" if stage == 1 else "",
    }
    if stage == 2:
        flags["model_name_or_path"] = folder
    with tempfile.TemporaryDirectory() as scratch:
        arguments = parse([f"--{name}={value}" for name, value in flags.items()] + [f"--output_dir={scratch}/llava"])
    parts = build_parts(arguments)
    vocabulary = load_vocabulary(data / "vocabulary.json")
    probe = Probe.build(parts.held_out.regions, vocabulary, parts.tokenizer)
    model = parts.model.to("cuda" if torch.cuda.is_available() else "cpu")
    device = next(model.parameters()).device
    loader = DataLoader(parts.held_out, BATCH, collate_fn=parts.collator)
    batches = ({name: value.to(device) for name, value in batch.items()} for batch in loader)
    return probe.measure(model, batches)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("study measure", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("playground/data"))
    parser.add_argument("--split", choices=[split for split in SPLITS if split != "train"], default="val")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    measured = measure(arguments.folder, arguments.data, arguments.split)
    write_json(arguments.out, measured)
    print(json.dumps(measured, indent=1))
