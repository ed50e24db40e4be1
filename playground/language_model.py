"""Trains the playground's Llama: it reads scenes as text, answers questions about them, copies boxes, writes captions.

Rows are conversations in LLaVA's v1 template (a scene as text, then questions of every type in a random order), plain
text (scene, caption, newline, again and again: the shape of stage 1's `plain` template, with a scene where the image
will stand), drills (a scene, then look-ups in it, one after another, without a question around them) and quizzes
(a scene, then as many questions of one hard type as it allows). Answers carry the loss; other tokens count a
twentieth, enough to be a language model of them. A step's rows are of one kind, so that little is padding.

Looking something up by two attributes is the skill that decides everything else. From a random start it takes
thousands of steps to appear; what makes it a matter of 200 steps is a start that can nearly do it (`begin`), with Muon
instead of AdamW for the layers' matrices. playground/lookup_trial.py measures starts and optimizers.
"""

from __future__ import annotations

import json
import re
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
SCHEDULE = {
    0.08: {"drill": 1.0},
    0.25: {"drill": 0.3, "quiz": 0.5, "conversation": 0.1, "plain": 0.1},
    0.70: {"drill": 0.1, "quiz": 0.5, "conversation": 0.25, "plain": 0.15},
    1.00: {"drill": 0.05, "quiz": 0.35, "conversation": 0.45, "plain": 0.15},
}
"""Until this share of the run: how often a step's rows are of each kind."""
HARD_TYPES = ("count", "existence", "relation", "rec")
FEW_THINGS = 0.10  # until this share of the run, scenes of two or three objects
ROWS = {"drill": 2.0, "quiz": 1.0, "conversation": 1.0, "plain": 1.0}  # times the batch size: drills are short
QUIZ_QUESTIONS = 12  # at most, in a row
NUMBER = re.compile(r"^\W*[01]\.\d\d\W?$")  # the pieces that stand for a number of two decimals
MUON_RATE = 0.01
BACK = (1, 1, 2, 3)  # how far back the first layer's heads look at the start


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


@torch.no_grad()
def begin(model: LlamaForCausalLM, numbers: dict[int, float]) -> None:
    """A start from which look-ups are learned quickly. All random but for four structures, which training may undo.

    - The first layer's heads look BACK tokens back, whatever the tokens are: all embeddings share one direction, which
      is all that these heads' queries and keys read, turned by RoPE's own angles for the wanted distance.
    - In the other layers queries equal keys, and in all of them the output projection is the transposed value
      projection, so that tokens attend to what resembles them and take it over (mimetic initialisation, Trockman and
      Kolter, arXiv 2305.09828).
    - The head's rows point where the embeddings do: what is taken over is said.
    - One direction of the embeddings holds the value, 0-1, of the tokens that are `numbers`.
    """
    config = model.config
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    shared = F.normalize(torch.randn(width), dim=0)
    embeddings = torch.randn(config.vocab_size, width)
    model.lm_head.weight.copy_(embeddings * 0.05)
    value_axis = torch.randn(width)
    for token, value in numbers.items():
        embeddings[token] += 0.6 * (2 * value - 1) * value_axis
    embeddings -= (embeddings @ shared)[:, None] * shared
    # all of one length, because the look back multiplies it: a long neighbour would draw the look to itself
    embeddings = 0.5 * width**0.5 * (F.normalize(embeddings, dim=1) + 0.4 * shared)
    model.model.embed_tokens.weight.copy_(embeddings)
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.q_proj.weight.copy_(torch.cat([_orthonormal(width, size).T for _ in BACK]) * 0.7)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        value = _orthonormal(width, width)
        attention.v_proj.weight.copy_(value)
        attention.o_proj.weight.copy_(value.T * 0.5)
    attention = model.model.layers[0].self_attn
    angles = 10000.0 ** (-torch.arange(size // 2) / (size // 2))  # RoPE's, a token
    fast = (angles > 0.05).float()  # the slow ones tell near distances badly
    # the right distance's logit is 8 above its neighbours'; the shared direction is this long in a normalised embedding
    amplitude = (8 * size**0.5 / (fast * (1 - angles.cos())).sum()).sqrt()
    length = 0.4 / (1 + 0.4**2) ** 0.5 * width**0.5
    for head, distance in enumerate(BACK):
        rows = slice(head * size, (head + 1) * size)
        query = torch.cat([fast, torch.zeros_like(fast)]) * amplitude / length
        key = torch.cat([fast * (distance * angles).cos(), fast * (distance * angles).sin()]) * amplitude / length
        attention.q_proj.weight[rows] = query[:, None] * shared
        attention.k_proj.weight[rows] = key[:, None] * shared


def number_values(tokenizer) -> dict[int, float]:
    """The ids of pieces that are a number of two decimals, with or without a bracket, space and comma: their values."""
    return {i: float(piece.strip("▁[,]")) for piece, i in tokenizer.get_vocab().items() if NUMBER.search(piece)}


def _orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns))[0]


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


def quiz(scene: world.Scene, rng: np.random.Generator) -> Document:
    """The scene as text, then questions of one type (now and then of all), none of which answers another."""
    only = (*HARD_TYPES, None)[rng.integers(len(HARD_TYPES) + 1)]
    asked: dict[frozenset[str] | str, text.QA] = {}
    if only == "rec":
        things = [scene.things[i] for i in rng.permutation(len(scene.things))]
        asked = {thing.label: text.rec(scene, thing, rng) for thing in things}
    else:
        drawn = [text.questions(scene, rng) for _ in range(2 * QUIZ_QUESTIONS)]
        for qa in (qa for questions in drawn for qa in questions if only in (None, qa.type)):
            if len(asked) < QUIZ_QUESTIONS:
                asked.setdefault(_subject(qa), qa)
    document = Document()
    for qa in asked.values():
        scene_text = f"Scene: {text.scene_as_text(scene, rng)}\n" if not document.text else ""
        document.say(f"USER: {scene_text}{qa.question} ASSISTANT: ")
        document.answer(qa.type, qa.answer + "</s>")
    return document


def _subject(qa: text.QA) -> frozenset[str] | str:
    """Questions of one subject answer each other: a relation's is its pair of objects and the axis."""
    if qa.type != "relation":
        return qa.question
    words = qa.question.removesuffix("?").replace(" of ", " ").split()  # is the red three left the blue star
    axis = "across" if words[4] in ("left", "right") else "along"
    return frozenset((" ".join(words[2:4]), " ".join(words[-2:]), axis))


def row_kind(seed: int, step: int, progress: float) -> str:
    """The kind of the rows of a step; `progress` is the share of the run that is over."""
    shares = next(shares for until, shares in SCHEDULE.items() if progress <= until)
    rng = np.random.default_rng([seed, step, 4])
    return str(rng.choice(list(shares), p=list(shares.values())))


def batch(seed: int, step: int, steps: int, batch_size: int) -> tuple[str, list[Document]]:
    """The rows of a step and their kind. No scene comes twice."""
    kind, few = row_kind(seed, step, step / steps), step / steps < FEW_THINGS
    first, rows = 3 * step * batch_size, int(ROWS[kind] * batch_size)
    return kind, [document(seed, "train", first + i, kind, few) for i in range(rows)]


def document(seed: int, split: str, index: int, kind: str, few: bool = False) -> Document:
    """Row `index` of a kind (one of ROWS); `few`: of a scene of two or three objects."""
    rng = np.random.default_rng([seed, world.SPLITS[split], index, 2])
    if kind == "plain":
        return plain(seed, split, index, rng)
    scene = world.scene(seed, split, index, int(rng.integers(2, 4)) if few else None)
    if kind == "conversation":
        return conversation(scene, rng, system=bool(rng.integers(2)))
    return {"drill": drill, "quiz": quiz}[kind](scene, rng)


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
    begin(model, number_values(tokenizer))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        kind, made = batch(seed, step, steps, batch_size)
        loss = loss_on(model, tokenizer, made)
        return loss, {kind: float(loss.detach())}

    def report(step: int) -> None:
        found = accuracy(model, tokenizer, seed, 96)
        print(f"\n{step}: " + "  ".join(f"{kind} {value:.3f}" for kind, value in found.items()), flush=True)

    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rates = {"learning_rate": 2e-3, "muon": (MUON_RATE, matrices), "weight_decay": 0.01, "warmup": 50}
    fit(model, loss_of, steps=steps, state=work / "llm.pt", report=report, **rates)
    export(model, folder)


def loss_on(model: LlamaForCausalLM, tokenizer, documents: list[Document]) -> Tensor:
    """Mean cross entropy of the documents' tokens, weighted as `encode` says."""
    ids, weights, _ = encode(tokenizer, documents)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids).logits[:, :-1]
    each = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (each * weights[:, 1:].flatten()).sum() / weights.sum()


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
