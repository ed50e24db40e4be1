"""The start does what it says before any training: heads look where they should, and boxes are copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from playground import language_model, rows, start, world

FOLDER = Path(start.__file__).parent / "models" / "llama"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def begun(tokenizer):
    torch.manual_seed(0)
    model = LlamaForCausalLM(language_model.llama_config(len(tokenizer)))
    model.set_attn_implementation("eager")
    start.begin(model, start.number_values(tokenizer))
    return model.eval()


SCENE = "red three [0.10, 0.30, 0.55, 0.90]; blue star [0.60, 0.05, 0.85, 0.25]. "


def looks(model, tokenizer, words: str) -> tuple[list[str], list[torch.Tensor]]:
    """The pieces of a row, and each layer's attentions [heads, T, T]."""
    ids = torch.tensor([tokenizer.encode(SCENE + words)])
    with torch.no_grad():
        attentions = model(input_ids=ids, output_attentions=True).attentions
    return tokenizer.convert_ids_to_tokens(ids[0]), [layer[0] for layer in attentions]


def places(pieces: list[str], *wanted: str) -> list[int]:
    return [i for i, piece in enumerate(pieces) if piece in wanted]


def test_the_first_layer_looks_back(begun, tokenizer):
    pieces, attentions = looks(begun, tokenizer, "Where is the blue star? ASSISTANT: ")
    for head, distance in enumerate(start.BACK):
        share = torch.stack([attentions[0][head, at, at - distance] for at in range(6, len(pieces))])
        assert share.min() > 0.9, (head, share)


def test_a_label_finds_its_box(begun, tokenizer):
    pieces, attentions = looks(begun, tokenizer, "Is the blue star right of the red three?")
    boxes = {"▁three": pieces.index("▁0.90]"), "▁star": pieces.index("▁0.25]")}
    for at in places(pieces, "▁three", "▁star")[2:]:
        assert attentions[1][0, at, boxes[pieces[at]]] > 0.8


def test_a_copy_goes_on_and_a_box_finds_its_like(begun, tokenizer):
    pieces, attentions = looks(begun, tokenizer, "blue star [0.60, 0.05, 0.85, 0.25]")
    first, last = places(pieces, "▁0.25]")
    for back in range(1, 4):  # in front of each number but the first: what came behind the same pieces before
        assert attentions[1][1, last - back].argmax() == first - back + 1
    same = attentions[1][2, last]
    assert same[first] > 0.15 and same[first] > 5 * same[pieces.index("▁0.90]")]


@pytest.mark.parametrize(("words", "distance"), [("right of", 5), ("above", 4)])
def test_a_relations_second_label_finds_the_first(begun, tokenizer, words, distance):
    pieces, attentions = looks(begun, tokenizer, f"Is the blue star {words} the red three?")
    first, second = places(pieces, "▁three", "▁star")[2:]
    assert second - first == distance
    assert attentions[2][start.LABELS_BACK.index(distance), second].argmax() == first


@torch.no_grad()
def test_boxes_are_copied_before_any_training(begun, tokenizer):
    """Of the four numbers behind a label that is said again; guessing gives one in 21."""
    drills = [rows.drill(world.scene(0, "val", index), np.random.default_rng(index)) for index in range(16)]
    ids, _, spans = rows.encode(tokenizer, drills)
    said = begun(input_ids=ids).logits.argmax(-1)
    numbers = start.number_values(tokenizer)
    right = [
        bool(said[row, at - 1] == ids[row, at])
        for row, found in enumerate(spans)
        for _, first, last in found
        for at in range(first, last)
        if int(ids[row, at]) in numbers and int(ids[row, first]) in numbers
    ]
    assert len(right) > 150 and np.mean(right) > 0.8, np.mean(right)


def test_neighbouring_numbers_resemble_each_other(begun, tokenizer):
    firsts = [i for i in start.number_values(tokenizer) if tokenizer.convert_ids_to_tokens(i)[1] == "["]
    by_value = {start.number_values(tokenizer)[i]: i for i in firsts}
    for weight in (begun.model.embed_tokens.weight, begun.lm_head.weight):
        vectors = torch.stack([weight[by_value[value]].detach() for value in sorted(by_value)])
        alike = torch.corrcoef(vectors)
        near, far = alike.diagonal(1).mean(), alike.diagonal(30).mean()
        assert near > far + 0.2, (near, far)


def test_number_values(tokenizer):
    found = start.number_values(tokenizer)
    values = {tokenizer.convert_ids_to_tokens(token): value for token, value in found.items()}
    assert values["▁[0.31,"] == values["▁0.31,"] == values["▁0.31]"] == 0.31 and values["▁1.00]"] == 1
    assert len(values) == 6 * 101 and "0.3" not in values


def test_other_shapes_are_refused(tokenizer):
    config = language_model.llama_config(40)
    config.num_attention_heads = config.num_key_value_heads = 4
    with pytest.raises(ValueError, match="5 heads"):
        start.begin(LlamaForCausalLM(config), {})
