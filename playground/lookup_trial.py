"""How fast a small Llama learns to look things up in a list: a trial of starts, optimizers, pieces and curricula.

    python -m playground.lookup_trial --plan box:200                                           # the shipped recipe
    python -m playground.lookup_trial --start random --numbers spaced --plan words:250 number:300 box:500
    python -m playground.lookup_trial --start random --optimizer adamw --plan words:250

Each row lists two to four objects ("red three 0.31; blue star 0.72."), then asks for each fact once. Printed every 50
steps: the share of exact answers, and of right pieces in them. Nothing is written; the model card quotes this.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from llava_pat.data.tokenize import load_tokenizer
from playground import language_model, rows, vocabulary, world
from playground.start import begin, number_values

TENTHS, HUNDREDTHS = vocabulary.TENTHS, vocabulary.HUNDREDTHS
NUMBERS = {
    "boxed": vocabulary.NUMBER_MERGES,  # "▁[0.31,": the bracket, space and comma belong to the piece, as shipped
    "whole": (*TENTHS, *HUNDREDTHS),  # one piece a number
    "split": TENTHS,  # "0.3" "1", the space before them a piece of its own
    "spaced": (*TENTHS, *(f"▁{tenth}" for tenth in TENTHS if len(tenth) == 3)),  # "▁0.3" "1"
}
LEARNED_PIECES = vocabulary.LLAMA_PIECES - len(vocabulary.NUMBER_MERGES)
VALUES = {"words": 0, "number": 1, "box": 4}
ROWS = {"words": 48, "number": 48, "box": 24}


def document(mode: str, rng: np.random.Generator) -> rows.Document:
    """A list of objects and, behind it, its facts in another order."""
    size = int(rng.integers(2, 5))
    kinds = [str(kind) for kind in rng.choice(world.KINDS, size, replace=False)]
    colours = [str(colour) for colour in rng.choice(list(world.COLOURS), size, replace=False)]
    labels = [f"{colour} {kind}" for colour, kind in zip(colours, kinds, strict=True)]
    words = [(f"{kind} is", colour) for colour, kind in zip(colours, kinds, strict=True)]
    if mode == "words":
        facts = words + [(f"{colour} is", kind) for colour, kind in zip(colours, kinds, strict=True)]
        return rows.ask_once(rows.Document("; ".join(labels) + "."), facts, rng)
    values = [", ".join(f"{rng.random():.2f}" for _ in range(VALUES[mode])) for _ in labels]
    values = [f"[{value}]" for value in values] if mode == "box" else values
    facts = list(zip(labels, values, strict=True))
    listed = "; ".join(f"{label} {value}" for label, value in facts) + "."
    return rows.ask_once(rows.Document(listed), facts + (words if mode == "number" else []), rng)


def trial(tokenizer, start: str, optimizer: str, plan: list[tuple[str, int]], seed: int) -> None:
    """Trains through the plan's stages and prints what is learned."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(language_model.llama_config(len(tokenizer)))
    model.set_attn_implementation("eager")  # see tower.py
    if start == "begun":
        begin(model, number_values(tokenizer))
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2] if optimizer == "muon" else []
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    peaks = {torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01): 2e-3}
    if matrices:
        rate = language_model.MUON_RATE
        peaks[torch.optim.Muon(matrices, lr=rate, momentum=0.95, weight_decay=0.01)] = rate
    started, step = time.perf_counter(), 0
    for mode, steps in plan:
        exact: list[bool] = []
        pieces: list[float] = []
        for stage_step in range(1, steps + 1):
            step += 1
            for each, peak in peaks.items():
                each.param_groups[0]["lr"] = peak * min(1, step / 50)
            made = [document(mode, np.random.default_rng([seed, step, row])) for row in range(ROWS[mode])]
            ids, weights, spans = rows.encode(tokenizer, made)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=ids).logits[:, :-1]
            losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            wanted = weights[:, 1:].flatten()
            model.zero_grad(set_to_none=True)
            ((losses * wanted).sum() / wanted.sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for each in peaks:
                each.step()
            best = logits.argmax(-1)
            for row, found in enumerate(spans):
                for _, start, end in found:
                    right = best[row, start - 1 : end - 1] == ids[row, start:end]
                    exact.append(bool(right.all()))
                    pieces.append(float(right.float().mean()))
            if stage_step % 50 == 0:
                seconds = time.perf_counter() - started
                shown = f"exact {np.mean(exact):.3f} pieces {np.mean(pieces):.3f} {seconds:.0f} s"
                print(f"{mode} {step}: {shown}", flush=True)
                exact, pieces = [], []


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", choices=list(NUMBERS), default="boxed", help="which pieces numbers are made of")
    parser.add_argument("--start", choices=("begun", "random"), default="begun", help="weights before the first step")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="for the layers' matrices")
    parser.add_argument("--plan", nargs="+", default=["box:200"], help="stages, MODE:STEPS with words, number or box")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    plan = [(mode, int(steps)) for mode, _, steps in (stage.partition(":") for stage in arguments.plan)]
    unknown = [mode for mode, _ in plan if mode not in VALUES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}; there are {', '.join(VALUES)}")
    with tempfile.TemporaryDirectory() as folder:
        merges = NUMBERS[arguments.numbers]
        vocabulary.build_llama_tokenizer(Path(folder), merges, LEARNED_PIECES + len(merges))
        trial(load_tokenizer(folder, 2048), arguments.start, arguments.optimizer, plan, arguments.seed)


if __name__ == "__main__":
    main()
