"""Every template against the strings that LLaVA's conversations give (two rounds, the second one open)."""

from __future__ import annotations

import pytest

from llava_pat.data.templates import TEMPLATES, get_template, place_images, render_prompt
from llava_pat.types import DataError, Turn

TURNS = [Turn("human", "<image>\nQ1"), Turn("gpt", "A1"), Turn("human", "Q2")]
VICUNA = (
    "A chat between a curious {0} and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the {0}'s questions."
)
V1 = " USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"
CHATML = (
    "<|im_start|>system\n{}<|im_end|><|im_start|>user\n<image>\nQ1<|im_end|><|im_start|>assistant\nA1<|im_end|>"
    "<|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n"
)
LLAMA_2 = (
    "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language.\n"
    "<</SYS>>\n\n<image>\nQ1 "
    "[/INST] A1 </s><s>[INST] Q2 [/INST]"
)
MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
QWEN = (
    "<|im_start|>user\n<image>\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
)
LLAMA_3 = (
    "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are able to "
    "understand the visual content that the user provides, and assist the user with a variety of tasks using natural "
    "language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nQ1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "Q2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
EXPECTED = {
    "qwen_1_5": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + QWEN,
    "qwen_2_5": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n" + QWEN
    ),
    "qwen_3": QWEN,
    "llava_llama_3": LLAMA_3,
    "gemma_instruct": (
        "<start_of_turn>user\n<image>\nQ1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
        "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n"
    ),
    "phi_3": "<|user|>\n<image>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n<|user|>\nQ2<|end|>\n<|assistant|>\n",
    "v0": VICUNA.format("human") + "###Human: <image>\nQ1###Assistant: A1###Human: Q2###Assistant:",
    "v1": VICUNA.format("user") + V1,
    "llava_v1": VICUNA.format("human") + V1,
    "llava_llama_2": LLAMA_2,
    "mistral_instruct": "[INST] <image>\nQ1 [/INST] A1 </s>[INST] Q2 [/INST]",
    "chatml_direct": CHATML.format("Answer the questions."),
    "mpt": CHATML.format(MPT),
}
ALIASES = {"vicuna_v1": "v1", "llama_2": "llava_llama_2", "mistral_direct": "chatml_direct", "llava_v0": "v0"}
ALIASES |= {"qwen_2": "qwen_1_5", "llama_3": "llava_llama_3"}


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"plain"}))
def test_text_to_the_character(name):
    spans = get_template(name).render(TURNS)
    assert "".join(span.text for span in spans) == EXPECTED[ALIASES.get(name, name)]


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"plain"}))
def test_only_the_answer_and_its_end_are_supervised(name):
    learned = "".join(span.text for span in get_template(name).render(TURNS) if span.supervised)
    ends = {"v0": " A1###", "v1": " A1</s>", "llava_v1": " A1</s>"}
    ends |= dict.fromkeys(("chatml_direct", "mpt", "qwen_1_5", "qwen_2_5", "qwen_3"), "A1<|im_end|>")
    ends |= {"llava_llama_3": "A1<|eot_id|>", "gemma_instruct": "A1<end_of_turn>", "phi_3": "A1<|end|>"}
    assert learned == ends.get(ALIASES.get(name, name), " A1 </s>")


def test_plain_drops_the_question_and_has_no_end():
    turns = place_images([Turn("human", "Describe it.\n<image>"), Turn("gpt", "a red circle")])
    spans = get_template("plain").render(turns)
    assert "".join(span.text for span in spans) == "<image>a red circle\n"
    assert "".join(span.text for span in spans if span.supervised) == "a red circle\n"
    assert not any(span.control for span in spans)


def test_plain_holds_one_round_with_an_image():
    with pytest.raises(DataError, match="3 messages"):
        get_template("plain").render(TURNS)
    with pytest.raises(DataError, match="0 <image>"):
        get_template("plain").render([Turn("human", "Q"), Turn("gpt", "A")])


def test_controls_are_the_templates_own():
    turns = [Turn("human", "Q </s>"), Turn("gpt", "A </s>")]
    assert [span.text for span in get_template("v1").render(turns) if span.control] == ["</s>"]
    assert [span.text for span in get_template("llava_llama_2").render(turns * 2) if span.control] == [
        "</s>",
        "<s>",
        "</s>",
    ]


@pytest.mark.parametrize(
    ("value", "placed"),
    [
        ("Q\n<image>", "<image>\nQ"),
        ("<image>\nQ", "<image>\nQ"),
        ("Describe. <image> red", "<image>\nDescribe.  red"),
        ("<image>", "<image>"),
        ("  <image> Q \n", "<image>\nQ"),
    ],
)
def test_one_image_goes_to_the_front(value, placed):
    turns = [Turn("human", value), Turn("gpt", " A "), Turn("human", " Q2 ")]
    assert place_images(turns) == [Turn("human", placed), *turns[1:]]


def test_several_images_stay_where_they_are():
    turns = [Turn("human", "Is <image> left of <image>?"), Turn("gpt", "yes")]
    assert place_images(turns) == turns


def test_prompt_for_generation():
    assert render_prompt(get_template("v1"), "Q1\n<image>") == VICUNA.format("user") + " USER: <image>\nQ1 ASSISTANT:"
    assert render_prompt(get_template("plain"), "Q1\n<image>") == "<image>"


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="unknown conversation template 'v2'; there are: .*llava_v1.*plain"):
        get_template("v2")
