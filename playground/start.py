"""The weights that the playground's Llama begins with: a random model that can nearly do look-ups.

From random weights look-ups by two attributes take thousands of steps to appear, and what needs two of them (is the
red three left of the blue star?) does not come at all. Here a few heads are written by hand; everything else is random,
and training may undo all of it. playground/lookup_trial.py measures starts.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

BACK = (1, 2, 3, 4, 5)  # how far back the first layer's heads look: a box's last number sees all of its object
ANSWER_BACK = 3  # the last layer's first head, at "ASSISTANT:": the question's last word
LABELS_BACK = (4, 5)  # the third layer's first heads: the other label of "is the red three left of the blue star"
NUMBER = re.compile(r"^\W*[01]\.\d\d\W?$")  # the pieces that stand for a number of two decimals
WAVES = (0.5, 1.0, 2.0, 4.0, 8.0)  # periods from 0 to 1 of a number's code
SHARED = 0.4  # of an embedding, beside its own part of length 1: the direction in which heads look back
SLOT, LOOK, SAY, SPOKEN = 0.5, 2.5, 1.2, 2.0  # how strongly the written heads write, look, and are said


def number_values(tokenizer) -> dict[int, float]:
    """The ids of pieces that are a number of two decimals, with or without a bracket, space and comma: their values."""
    return {i: float(piece.strip("▁[,]")) for piece, i in tokenizer.get_vocab().items() if NUMBER.search(piece)}


@torch.no_grad()
def begin(model: LlamaForCausalLM, numbers: dict[int, float]) -> None:
    """Writes the start into `model`, of len(BACK) heads; `numbers` are token ids with their values, 0-1.

    - Embeddings have half of the width. A number's is mostly a smooth code of its value (the value itself, and waves of
      WAVES periods, as in real language models: Kantamneni and Tegmark, arXiv 2502.00873), so that what is learned of
      a number holds for its neighbours. The head's rows have the same codes: what a head writes as a code is said.
    - First layer: head k looks BACK[k] back, whatever the tokens are (all embeddings share one direction, which is all
      that its queries and keys read, turned by RoPE's own angles for the distance), and writes what it finds into a
      slot of its own, outside of the embeddings.
    - Second layer, three heads that compare slots: a label's last word finds the last number of that label's box and
      takes the box over; any token finds what came after the same three tokens before, and says it (an induction
      head); a box's last number finds the same box, and says the label before it.
    - Third layer: two heads take over the box that the label LABELS_BACK back has found.
    - Last layer: one head takes over what the question's last word knows, ANSWER_BACK back.
    - All other heads: queries equal keys and the output projection is the transposed value projection, so that tokens
      attend to what resembles them and take it over (mimetic initialisation, Trockman and Kolter, arXiv 2305.09828).
    """
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    if heads != len(BACK) or width % (4 * heads):
        raise ValueError(f"the start is for {len(BACK)} heads of an even size; here {heads} of width {width}")
    size = width // heads
    code = size // 2
    basis = _orthonormal(width, width)
    slots = [basis[code * i : code * (i + 1)] for i in range(heads)]
    shared, smooth = basis[code * heads], basis[code * heads + 1 :][: 1 + 2 * len(WAVES)]
    words = basis[code * heads + 1 + len(smooth) :]
    # the parts of a token that heads take over, [code, width] and [size, width]: first of words, then of numbers
    coded = torch.cat([words[: code - len(smooth)], smooth])
    codes = torch.cat([coded, words[code - len(smooth) : size - len(smooth)]])
    embeddings = F.normalize(torch.randn(model.config.vocab_size, len(words)), dim=1) @ words
    for token, value in numbers.items():
        embeddings[token] = 0.65 * embeddings[token] + _smooth_code(value) @ smooth
    spoken = _orthonormal(width, size)  # what is written in these directions is said
    model.lm_head.weight.copy_(F.normalize(embeddings @ codes.T, dim=1) @ spoken.T * SAY)
    # all of one length, because the look back multiplies it: a long neighbour would draw the look to itself
    embeddings = 0.5 * width**0.5 * (F.normalize(embeddings, dim=1) + SHARED * shared)
    model.model.embed_tokens.weight.copy_(embeddings)
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.q_proj.weight.copy_(torch.cat([_orthonormal(width, size).T for _ in range(heads)]) * 0.7)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        value = _orthonormal(width, width)
        attention.v_proj.weight.copy_(value)
        attention.o_proj.weight.copy_(value.T * 0.5)
    rows = [slice(size * head, size * (head + 1)) for head in range(heads)]
    first, second, third = (layer.self_attn for layer in model.model.layers[:3])
    for head, distance in enumerate(BACK):
        _look_back(first, rows[head], distance, shared, 1.0)
        first.v_proj.weight[rows[head]][:code] = coded
        first.o_proj.weight[:, rows[head]] *= 0.2
        first.o_proj.weight[:, rows[head]][:, :code] = slots[head].T * SLOT
    _compare(second, rows[0], [(coded, slots[3]), (slots[0], slots[4])])
    numeric = slice(code // 2, code)
    second.v_proj.weight[rows[0]] = torch.cat([*(slots[i][numeric] for i in (2, 1, 0)), coded[numeric]])
    found = _orthonormal(width, size)
    second.o_proj.weight[:, rows[0]] = found * 0.5
    _compare(second, rows[1], [(coded, slots[0]), (slots[0], slots[1]), (slots[1], slots[2])])
    second.v_proj.weight[rows[1]] = codes
    second.o_proj.weight[:, rows[1]] = spoken * SPOKEN
    _compare(second, rows[2], [(coded, coded), (slots[0], slots[0]), (slots[1], slots[1])])
    second.v_proj.weight[rows[2]] = torch.cat([slots[4], slots[3]])
    second.o_proj.weight[:, rows[2]][:, :code] = spoken[:, :code] * 0.5
    for head, distance in enumerate(LABELS_BACK):
        _look_back(third, rows[head], distance, shared, 0.45)
        third.v_proj.weight[rows[head]] = found.T
        third.o_proj.weight[:, rows[head]] = _orthonormal(width, size) * 0.5
    _look_back(model.model.layers[-1].self_attn, rows[0], ANSWER_BACK, shared, 0.35)


def _orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns))[0]


def _smooth_code(value: float) -> Tensor:
    """[1 + 2 len(WAVES)]: the value around 0, and its waves; about three quarters of a number's length."""
    turns = torch.tensor(WAVES) * 2 * math.pi * value
    return torch.cat([torch.tensor([0.4 * (2 * value - 1)]), 0.28 * turns.cos(), 0.28 * turns.sin()])


def _look_back(attention, rows: slice, distance: int, shared: Tensor, share: float) -> None:
    """A head that attends `distance` back; `share`: the shared direction's part of a normalised hidden state, relative
    to an embedding's."""
    size, width = rows.stop - rows.start, len(shared)
    angles = 10000.0 ** (-torch.arange(size // 2) / (size // 2))  # RoPE's, a token
    fast = (angles > 0.05).float()  # the slow ones tell near distances badly
    # the right distance's logit is 8 above its neighbours'
    amplitude = (8 * size**0.5 / (fast * (1 - angles.cos())).sum()).sqrt()
    amplitude /= share * SHARED / (1 + SHARED**2) ** 0.5 * width**0.5
    query = torch.cat([fast, torch.zeros_like(fast)]) * amplitude
    key = torch.cat([fast * (distance * angles).cos(), fast * (distance * angles).sin()]) * amplitude
    attention.q_proj.weight[rows] = query[:, None] * shared
    attention.k_proj.weight[rows] = key[:, None] * shared


def _compare(attention, rows: slice, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """A head that attends where the keys' codes, the second of each pair, are the queries', the first.

    Only RoPE's 12 slowest frequencies, which turn little over a row, are compared.
    """
    query, key = attention.q_proj.weight[rows], attention.k_proj.weight[rows]
    query.mul_(0.2), key.mul_(0.2)
    half = len(query) // 2
    slow = [*range(half - 12, half), *range(2 * half - 12, 2 * half)]
    part = len(slow) // len(pairs)
    for index, (asks, has) in enumerate(pairs):
        at = slow[index * part : (index + 1) * part]
        query[at], key[at] = asks[:part] * LOOK, has[:part] * LOOK
