"""Templates and labels on whatever people say: what is learned is the answers and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_pat.data.templates import TEMPLATES, get_template, place_images
from llava_pat.data.tokenize import encode
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN, IMAGE_TOKEN_INDEX, DataError, Turn

# pieces that are known to upset tokenizers, and any text besides
_ODD = [
    "</s>",
    "<s>",
    "<|im_end|>",
    "USER:",
    "ASSISTANT:",
    "###",
    "\n",
    " ",
    "  ",
    "\u00a0",
    "故宫",
    "🙂",
    "é",
    "e\u0301",
    "a",
]
_ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
pieces = st.lists(st.sampled_from(_ODD) | _ANY, min_size=1, max_size=4).map("".join)
texts = pieces.filter(lambda text: text.strip() and IMAGE_TOKEN not in text)
FAMILIES = [
    ("mpt", "byte_level_tokenizer"), ("qwen_2_5", "byte_level_tokenizer"), ("llava_llama_3", "llama_3_tokenizer"),
    ("gemma_instruct", "gemma_tokenizer"),
]  # fmt: skip


@st.composite
def talks(draw: st.DrawFn) -> list[Turn]:
    said = draw(st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
    images = draw(st.integers(0, 2))
    turns = [Turn(role, text) for pair in said for role, text in zip(("human", "gpt"), pair, strict=True)]
    for _ in range(images):
        place = 2 * draw(st.integers(0, len(said) - 1))
        turns[place] = Turn("human", f"{IMAGE_TOKEN}\n{turns[place].value}")
    return turns


@given(talks(), st.sampled_from(sorted(set(TEMPLATES) - {"plain"})))
def test_spans_join_to_the_prompt_and_answers_are_what_is_supervised(turns: list[Turn], name: str) -> None:
    template = get_template(name)
    placed = place_images(turns)
    spans = template.render(placed)
    supervised = "".join(span.text for span in spans if span.supervised)
    assert supervised == "".join(template.lead + turn.value + template.close for turn in placed if turn.role == "gpt")
    text = "".join(span.text for span in spans)
    assert text.count(IMAGE_TOKEN) == sum(turn.value.count(IMAGE_TOKEN) for turn in turns)
    for turn in placed:
        assert turn.value in text


@given(talks())
def test_an_image_alone_moves_to_the_front_and_no_letter_is_lost(turns: list[Turn]) -> None:
    for before, after in zip(turns, place_images(turns), strict=True):
        assert before.role == after.role
        if before != after:
            assert after.value == f"{IMAGE_TOKEN}\n{before.value.replace(IMAGE_TOKEN, '').strip()}"


@pytest.mark.parametrize(("name", "tokenizer"), FAMILIES)
@given(turns=talks(), other=texts)
def test_labels_are_the_answers_to_the_letter(
    name: str, tokenizer: str, request, turns: list[Turn], other: str
) -> None:
    """By tokenizers that lose nothing: what is learned, decoded, are the answers and their ends, whatever was asked."""
    loaded, template = request.getfixturevalue(tokenizer), get_template(name)
    try:
        found = encode(turns, template, loaded)
    except DataError as error:
        assert "special token" in str(error)
        return
    _sound(found, turns)
    learned = loaded.decode([label for label in found.labels if label != IGNORE_INDEX])
    close = template.close.rstrip("\n") if name == "qwen_2_5" else template.close
    answers = [turn.value for turn in turns if turn.role == "gpt"]
    assert learned == "".join(template.lead + answer + close for answer in answers)
    asked = [Turn("human", IMAGE_TOKEN * turn.value.count(IMAGE_TOKEN) + other) if turn.role == "human" else turn
             for turn in turns]  # fmt: skip
    again = encode(asked, template, loaded)
    assert [label for label in again.labels if label >= 0] == [label for label in found.labels if label >= 0]


@given(turns=talks(), name=st.sampled_from(["v1", "v0", "llava_llama_2", "mistral_instruct"]))
def test_labels_with_a_tokenizer_of_pieces(small_tokenizer, turns: list[Turn], name: str) -> None:
    """520 pieces with byte fallback, which trims white space: something is learned for each answer, ids are its own."""
    try:
        found = encode(turns, get_template(name), small_tokenizer)
    except DataError as error:
        assert "special token" in str(error)
        return
    _sound(found, turns)
    rounds = sum(turn.role == "gpt" for turn in turns)
    begins = [
        place
        for place, label in enumerate(found.labels)
        if label != IGNORE_INDEX and found.labels[place - 1] == IGNORE_INDEX
    ]
    assert len(begins) == rounds, "each answer is one stretch of labels"


def _sound(found, turns: list[Turn]) -> None:
    assert len(found.input_ids) == len(found.labels)
    assert found.input_ids.count(IMAGE_TOKEN_INDEX) == sum(turn.value.count(IMAGE_TOKEN) for turn in turns)
    for token, label in zip(found.input_ids, found.labels, strict=True):
        assert label in (IGNORE_INDEX, token) and (token != IMAGE_TOKEN_INDEX or label == IGNORE_INDEX)
