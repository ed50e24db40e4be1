"""What would fail when a checkpoint is written, after a day of training, fails before the first step."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from llava_pat.training import rehearsal
from llava_pat.training.flags import ConfigError
from llava_pat.training.rehearsal import rehearse
from llava_pat.training.stages import finetune

Usage = namedtuple("Usage", "total used free")


def assert_names(message: str, *parts: object) -> None:
    for part in parts:
        assert str(part) in message, f"{str(part)!r} is not in: {message}"


def test_too_little_disk(refused_finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "llava-run"
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 10_000))
    assert_names(refused_finetune(out=out), out, "0.0 GB free", "--output_dir")
    assert not list(out.iterdir()), "a refused run must not own the folder: the next one has other flags"


def test_the_bytes_that_are_asked_for_are_those_that_are_written(make_finetuner, monkeypatch) -> None:
    for flags in (
        {},
        {"save_dtype": "bfloat16"},
        {"unfreeze_mm_vision_tower": True},
        {"lora_enable": True, "lora_r": 4},
    ):
        made = make_finetuner(**flags)
        made.trainer.save_model()
        weights = ("model.safetensors", "adapter_model.safetensors", "mm_projector.safetensors")
        written = sum(file.stat().st_size for name in weights if (file := made.out / name).is_file())
        expected = made.weights.bytes_on_disk()
        assert 0.7 * written < expected < 1.05 * written, flags  # headers, and the projector's second copy
        for free, refused in ((expected - 1, True), (expected, False)):
            monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda folder, free=free: Usage(free, 0, free))
            if refused:
                with pytest.raises(ConfigError, match="GB free"):
                    rehearse(made.weights, made.parts.tokenizer, made.out)
            else:
                rehearse(made.weights, made.parts.tokenizer, made.out)


def test_an_output_folder_that_cannot_be_made(refused_finetune, tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.write_text("not a folder")
    assert_names(refused_finetune(out=file / "llava-run"), "--output_dir", file)


def test_no_trace_is_left(make_finetuner) -> None:
    made = make_finetuner()
    rehearse(made.weights, made.parts.tokenizer, made.out)
    assert list(made.out.iterdir()) == []


def test_vicunas_generation_config_trains_and_saves(world, tmp_path: Path) -> None:
    """temperature 0.9 and top_p 0.6 without do_sample: versions of transformers load that and refuse to save it."""
    llm = Path(shutil.copytree(world.folder / "llm", tmp_path / "vicuna"))
    settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "do_sample": False}
    file = llm / "generation_config.json"
    file.write_text(json.dumps(settings | {"temperature": 0.9, "top_p": 0.6, "max_length": 4096}))
    out = tmp_path / "llava-run"
    finetune(world.finetune_argv(out, model_name_or_path=llm, max_steps=2, save_steps=1))
    for folder in (out, out / "checkpoint-1"):
        written = json.loads((folder / "generation_config.json").read_text())
        assert not {"temperature", "top_p"} & written.keys() and written["eos_token_id"] == 2
        GenerationConfig.from_pretrained(folder).validate(strict=True)


def test_a_tokenizer_that_does_not_come_back(make_finetuner, world, tmp_path: Path) -> None:
    """The files that are copied are not those that the run tokenises with."""
    made = make_finetuner()
    made.weights.tokenizer_source = str(tmp_path / "none")
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        rehearse(made.weights, made.parts.tokenizer, made.out)

    class Other:
        model_max_length = made.parts.tokenizer.model_max_length

        def encode(self, text: str) -> list[int]:
            return [*made.parts.tokenizer.encode(text), 7]

    made.weights.tokenizer_source = str(world.folder / "llm")
    with pytest.raises(ConfigError, match="the tokenizer does not come back"):
        rehearse(made.weights, Other(), made.out)


@pytest.mark.parametrize("key", ["hidden_size", "rope_theta", "vocab_size", "tie_word_embeddings"])
def test_a_config_that_does_not_come_back(make_finetuner, key: str) -> None:
    made = make_finetuner()
    made.weights.config[key] = {"tie_word_embeddings": True}.get(key, 640)
    name = {"rope_theta": "rope_parameters"}.get(key, key)
    with pytest.raises(ConfigError, match=f"config.json does not come back: {name} is .* here and .* there"):
        rehearse(made.weights, made.parts.tokenizer, made.out)


def test_a_language_model_that_the_layout_has_no_names_for(refused_finetune, world, tmp_path: Path) -> None:
    torch.manual_seed(0)
    llm = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=520, n_embd=24, n_layer=1, n_head=2, n_positions=256)).save_pretrained(llm)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(world.folder / "llm" / name, llm / name)
    assert_names(refused_finetune(model_name_or_path=llm), "GPT2LMHeadModel", "model.embed_tokens.weight")
