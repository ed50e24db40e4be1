"""Trains the playground's Llama: it reads scenes as text, answers questions about them, copies boxes, writes captions.

What it learns from is in rows.py. Three things make it a matter of minutes on a CPU core: a start that can nearly do
look-ups (start.py), read-outs that ask its hidden states for what a token ought to know (lessons.py), and Muon instead
of AdamW for the layers' matrices.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from playground import rows, world
from playground.fit import fit
from playground.lessons import Lessons, marked
from playground.rows import Document, conversation, document, encode
from playground.start import begin, number_values

MUON_RATE = 0.008
PHASES = (("llm", rows.SCHEDULE, 1.0, 1.0), ("llm_polish", rows.POLISH, 0.2, 0.4))
"""Name of the training state, what is learned, share of the steps, and of the rates."""
READ_OUT_ROWS = 144  # of drills and relations, from which the read-outs begin


def llama_config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=320,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def train(folder: Path, work: Path, steps: int, batch_size: int, seed: int) -> None:
    """Trains through PHASES and writes a LlamaForCausalLM folder (bf16 safetensors) beside the tokenizer there.

    `steps` are the first phase's.
    """
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = LlamaForCausalLM(llama_config(len(tokenizer)))
    model.set_attn_implementation("eager")  # see tower.py
    begin(model, number_values(tokenizer))
    lessons = Lessons(model)
    behind = 3 * steps * batch_size  # scenes that no step of the first phase has
    kinds = ("drill", "relation")
    lessons.begin(tokenizer, [document(seed, "train", behind + i, kinds[i % len(kinds)]) for i in range(READ_OUT_ROWS)])

    def report(step: int) -> None:
        found = accuracy(model, tokenizer, seed, 96)
        print(f"\n{step}: " + "  ".join(f"{kind} {value:.3f}" for kind, value in found.items()), flush=True)

    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    for phase, (name, schedule, share, rate) in enumerate(PHASES):
        of_phase = int(share * steps)

        def loss_of(step: int, first: int = 2 * phase * steps, schedule=schedule, of_phase: int = of_phase):
            kind, made = rows.batch(seed, first + step, step / of_phase, schedule, batch_size)
            loss, taught = loss_on(lessons, tokenizer, made)
            return loss + taught, {kind: float(loss.detach())}

        rates = {"learning_rate": 2e-3 * rate, "muon": (MUON_RATE * rate, matrices), "weight_decay": 0.01, "warmup": 30}
        fit(lessons, loss_of, steps=of_phase, state=work / f"{name}.pt", save_every=100, report=report, **rates)
    export(model, folder)


def loss_on(lessons: Lessons, tokenizer, documents: list[Document]) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of the documents' tokens, weighted as `encode` says, and the read-outs' loss."""
    ids, weights, _ = encode(tokenizer, documents)
    with torch.autocast("cpu", torch.bfloat16):
        output = lessons.model(input_ids=ids, output_hidden_states=True)
    each = F.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    loss = (each * weights[:, 1:].flatten()).sum() / weights.sum()
    return loss, lessons.loss(output.hidden_states, marked(tokenizer, documents))


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, tokenizer, seed: int, scenes: int) -> dict[str, float]:
    """Share of answers on held-out scenes that greedy decoding gives exactly, by type.

    One forward pass over the true text: greedy decoding writes an answer exactly when each of its tokens is the most
    likely one after the true ones before it.
    """
    right: dict[str, list[bool]] = {}
    for first in range(0, scenes, 16):
        made = []
        for index in range(first, min(first + 16, scenes)):
            rng = np.random.default_rng([seed, world.SPLITS["val"], index, 3])
            made.append(conversation(world.scene(seed, "val", index), rng))
        ids, _, spans = encode(tokenizer, made)
        best = model(input_ids=ids).logits.argmax(-1)
        for row, found in enumerate(spans):
            for kind, start, end in found:
                right.setdefault(kind, []).append(bool((best[row, start - 1 : end - 1] == ids[row, start:end]).all()))
    return {kind: float(np.mean(right[kind])) for kind in sorted(right)}


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """Weights and a config that transformers 4.37 and 5 both read (old keys for dtype and rope)."""
    from safetensors.torch import save_file

    state = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    config |= {"rope_theta": 10000.0, "rope_scaling": None, "pretraining_tp": 1}
    for newer in ("dtype", "rope_parameters"):
        config.pop(newer, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
