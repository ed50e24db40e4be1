"""Trains the playground's Llama: it reads scenes as text, answers questions about them, copies boxes, writes captions.

Rows are conversations in LLaVA's v1 template (a scene as text, then questions of every type in a random order), plain
text (scene, caption, newline, again and again: the shape of stage 1's `plain` template, with a scene where the image will
stand), and drills (a scene, then look-ups in it, one after another, without a question around them). Answers carry the
loss; other tokens count a twentieth, enough to be a language model of them.

Looking something up by two attributes is the skill that decides everything else, and it arrives suddenly or not at all.
What brings it on: Muon instead of AdamW for the layers' matrices (playground/lookup_trial.py, one seed: 99 % of one-word
look-ups after 200 steps against 33 %), drills of single words first, then with boxes, and scenes of few objects first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from playground import text, world
from playground.fit import fit
from playground.vocabulary import V1_SYSTEM

MAX_TOKENS = 304
BACKGROUND_WEIGHT = 0.05  # of the tokens that are not answers
PLAIN_SHARE = 1 / 7
DRILL_SHARE = 0.5, 0.2  # at first, later
WORDS_ONLY = 0.1  # until this share of the run, every row is a drill without boxes
CURRICULUM = (0.15, 2), (0.2, 3)  # until this share of the run, scenes of this many objects


@dataclass
class Document:
    """Text, and which parts of it are answers: (type, start, end) in characters."""

    text: str = ""
    answers: list[tuple[str, int, int]] = field(default_factory=list)

    def say(self, words: str) -> None:
        self.text += words

    def answer(self, kind: str, words: str) -> None:
        self.answers.append((kind, len(self.text), len(self.text) + len(words)))
        self.text += words


def llama_config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def conversation(scene: world.Scene, rng: np.random.Generator, system: bool = True) -> Document:
    """The scene as text, then a question of every type, boxes both ways and a caption, shuffled."""
    asked = text.questions(scene, rng)
    order = rng.permutation(len(scene.things))
    asked += [text.rec(scene, scene.things[i], rng) for i in order[:2]]
    asked += [text.reg(scene, scene.things[order[-1]]), text.describe(scene, rng)]
    rng.shuffle(asked)
    document = Document((V1_SYSTEM + " ") if system else "")
    hint = rng.random() < 0.3
    for index, qa in enumerate(asked):
        scene_text = f"Scene: {text.scene_as_text(scene, rng)}\n" if index == 0 else ""
        short = hint and qa.type in text.QUESTION_TYPES
        hint = hint and not short  # once in a conversation, as in LLaVA's data
        document.say(f"USER: {scene_text}{qa.question}{chr(10) + text.SHORT_ANSWER if short else ''} ASSISTANT: ")
        document.answer(qa.type, qa.answer + "</s>")
    return document


def plain(seed: int, split: str, index: int, rng: np.random.Generator) -> Document:
    """Three scenes with a caption each, in stage 1's shape."""
    document = Document()
    for offset in range(3):
        scene = world.scene(seed + 1, split, 3 * index + offset)
        document.say(text.scene_as_text(scene, rng) + " ")
        document.answer("plain", text.caption(scene, rng) + "\n")
    return document


def word_drill(scene: world.Scene, rng: np.random.Generator) -> Document:
    """The scene's labels, then look-ups of one word: kind to colour, colour to kind."""
    document = Document("; ".join(thing.label for thing in scene.things) + ".")
    return ask_once(document, _word_facts(scene), rng)


def drill(scene: world.Scene, rng: np.random.Generator) -> Document:
    """The scene, then look-ups: label to box, box to label, kind to colour, colour to kind."""
    boxes = [(thing.label, text.write_box(scene, thing.box)) for thing in scene.things]
    back = [(box, label) for label, box in boxes if rng.random() < 0.5]
    return ask_once(Document(text.scene_as_text(scene, rng)), _word_facts(scene) + boxes + back, rng)


def _word_facts(scene: world.Scene) -> list[tuple[str, str]]:
    kinds, colours = [t.kind for t in scene.things], [t.colour for t in scene.things]
    facts = [(f"{t.kind} is", t.colour) for t in scene.things if kinds.count(t.kind) == 1]
    return facts + [(f"{t.colour} is", t.kind) for t in scene.things if colours.count(t.colour) == 1]


def ask_once(document: Document, facts: list[tuple[str, str]], rng: np.random.Generator) -> Document:
    """Each fact once, shuffled: an answer that stands in the row already would be copied, not looked up."""
    for index in rng.permutation(len(facts)):
        document.say(f" {facts[index][0]} ")
        document.answer("drill", f"{facts[index][1]};")
    return document


def document(seed: int, split: str, index: int, progress: float = 1.0) -> Document:
    """Row `index`; `progress` is the share of the run that is over."""
    rng = np.random.default_rng([seed, world.SPLITS[split], index, 2])
    if progress < WORDS_ONLY:
        return word_drill(world.scene(seed, split, index, int(rng.integers(2, 5))), rng)
    things = next((size for until, size in CURRICULUM if progress < until), None)
    early = things is not None
    kind = rng.random()
    if kind < DRILL_SHARE[not early]:
        return drill(world.scene(seed, split, index, things), rng)
    if kind > 1 - PLAIN_SHARE:
        return plain(seed, split, index, rng)
    return conversation(world.scene(seed, split, index, things), rng, system=bool(rng.integers(2)))


def encode(tokenizer, documents: list[Document]) -> tuple[Tensor, Tensor, list[list[tuple[str, int, int]]]]:
    """ids [B, T], weights [B, T] (of predicting that token), and each answer's (type, first, last + 1) in tokens."""
    ids, weights, spans = [], [], []
    for one in documents:
        encoded = tokenizer(one.text, return_offsets_mapping=True, truncation=True, max_length=MAX_TOKENS)
        ends = np.array([end for _, end in encoded.offset_mapping])
        row = torch.full((len(ends),), BACKGROUND_WEIGHT)
        row[0] = 0
        found = []
        for kind, start, end in one.answers:
            # a token belongs to the part of the text in which it ends (a leading space belongs to its word)
            first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, end, side="right")
            row[first:last] = 1
            if end <= ends[-1]:  # not cut off
                found.append((kind, int(first), int(last)))
        ids.append(torch.tensor(encoded.input_ids))
        weights.append(row)
        spans.append(found)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True), pad(weights, batch_first=True), spans


def train(folder: Path, work: Path, steps: int, batch_size: int, seed: int) -> None:
    """Trains and writes a LlamaForCausalLM folder (bf16 safetensors) beside the tokenizer that is there."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM(llama_config(len(tokenizer)))
    model.set_attn_implementation("eager")  # see tower.py

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        early = step / steps < WORDS_ONLY, step / steps < CURRICULUM[-1][0]
        rows = batch_size * (1 + sum(early))  # early rows are short
        first = 3 * step * batch_size
        ids, weights, _ = encode(tokenizer, [document(seed, "train", first + i, step / steps) for i in range(rows)])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids).logits[:, :-1]
        weights = weights[:, 1:]
        each = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(weights)
        loss = (each * weights).sum() / weights.sum()
        answers = each.detach()[weights == 1].mean()
        return loss, {"loss": float(loss.detach()), "answers": float(answers)}

    def report(step: int) -> None:
        if step % 250 == 0 or step == steps:
            print(f"\n{step}: " + "  ".join(f"{k} {v:.3f}" for k, v in accuracy(model, tokenizer, seed, 96).items()))

    state = work / "llm.pt"
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rates = {"learning_rate": 2e-3, "muon": (0.02, matrices)}
    fit(model, loss_of, steps=steps, state=state, weight_decay=0.01, warmup=50, report=report, **rates)
    export(model, folder)


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
