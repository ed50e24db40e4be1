"""LLaVA's name rules (llava/model/builder.py, llava/mm_utils.py): each one refused, the good names not."""

from __future__ import annotations

import shlex

import pytest

from llava_pat.models.llava_names import check_output_name, evaluation_command, model_name, named_conversation


@pytest.mark.parametrize(
    ("name", "lora", "family"),
    [
        ("checkpoints/llava-v1.5-7b-pat", False, "llama"),
        ("/data/LLaVA-v1.5-13b-merged/", False, "llama"),
        ("llava-v1.5-7b-pat-lora", True, "llama"),
        ("llava-v1.6-mistral-7b", False, "mistral"),
    ],
)
def test_good_names(name, lora, family):
    assert check_output_name(name, lora=lora, family=family, template="v1" if family == "llama" else None) == []


@pytest.mark.parametrize(
    ("name", "lora", "family", "words"),
    [
        ("vicuna-7b-pat", False, "llama", "does not hold 'llava'"),
        ("llava-v1.5-7b-lora", False, "llama", "expect adapters"),
        ("llava-v1.5-7b", True, "llama", "does not hold 'lora'"),
        ("llava-v1.5-plain", False, "llama", "'plain'"),
        ("llava-v1.5-attempt2", False, "llama", "MPT class"),  # "attempt" holds it
        ("llava-v1.5-mistral", False, "llama", "Mistral class"),
        ("llava-v1.5-7b", False, "mistral", "does not hold 'mistral'"),
        ("llava-mistral-lora", True, "mistral", "Llama class whatever the base"),
        ("runs/llava-v1.5/checkpoint-100", False, "llama", "checkpoint-"),
    ],
)
def test_bad_names(name, lora, family, words):
    problems = check_output_name(name, lora=lora, family=family)
    assert len(problems) == 1 and words in problems[0]


def test_the_parent_counts_for_intermediate_folders_and_never_else():
    assert model_name("runs/llava-v1.5/checkpoint-100/") == "llava-v1.5_checkpoint-100"
    assert model_name("llava-v1.5/plain-vicuna") == "plain-vicuna"
    assert check_output_name("llava-v1.5/final", lora=False)[0].startswith("'final'")


def test_conversations_by_name():
    names = {"llava-llama-2-13b": "llava_llama_2", "llava-v1.5-7b": "llava_v1", "llava-7b": "llava_v0"}
    names |= {"llava-v1.6-mistral-7b": "mistral_instruct", "llava-v1.6-34b": "chatml_direct"}
    assert {name: named_conversation(name) for name in names} == names
    assert "llava_v0" in check_output_name("llava-7b", lora=False, template="v1")[0]


def test_the_command():
    command = evaluation_command("/runs/llava-v1.5 7b", base=None, template="v1")
    loader, lmms = command.split("\n\n")
    words = shlex.split(loader)
    assert words[:3] == ["python", "-m", "llava.eval.model_vqa_loader"] and "--model-base" not in words
    assert words[words.index("--model-path") + 1] == "/runs/llava-v1.5 7b"
    assert words[words.index("--conv-mode") + 1] == "vicuna_v1"
    assert "pretrained=/runs/llava-v1.5 7b,model_name=llava-v1.5 7b,conv_template=vicuna_v1" in " ".join(
        shlex.split(lmms)
    )
    adapters = evaluation_command("out-lora", base="lmsys/vicuna-7b-v1.5", template="v1")
    assert "--model-base lmsys/vicuna-7b-v1.5" in adapters and "lmms_eval" not in adapters  # it knows no base
    with pytest.raises(ValueError, match="LLaVA has no conversation 'nonsense'"):
        evaluation_command("x", base=None, template="nonsense")
