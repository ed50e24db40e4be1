"""Merging: the same answers before and after, on LLaVA's tiny fixtures; nothing is left when they differ"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from llava_pat.merge import main
from llava_pat.models import merge as module
from llava_pat.models.adapters import add_lora, prepare_quantized, quantization, save_lora
from llava_pat.models.from_folder import load_model
from llava_pat.models.llava_config import finetune_config
from llava_pat.models.merge import merge_folder
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX


@pytest.fixture
def run(written, tmp_path):
    """Trains a little LoRA on LLaVA's tiny fixtures -> (model, its folder)."""

    def train(bits: int = 16, dtype: torch.dtype = torch.float32, tower_layers: int = 0):
        torch.manual_seed(0)
        model = VisionLanguageModel.from_pretrained(
            str(written / "clip"),
            str(written / "llm"),
            dtype=dtype,
            whole_tower=tower_layers != 0,
            quantization_config=quantization(bits, compute_dtype=dtype),
        )
        model.set_trainable(llm=False, tower_layers=tower_layers)
        if bits < 16:
            prepare_quantized(model, gradient_checkpointing=False)
        add_lora(model, r=8, alpha=32)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        ids, pixels = batch(model)
        model.train()
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                hidden = model.forward_hidden(ids, torch.ones_like(ids), model.project(model.encode_images(pixels)))
                total, count = model.caption_loss_sum(hidden, ids.masked_fill(ids < 0, IGNORE_INDEX))
            (total / count).backward()
            optimizer.step()
        folder = tmp_path / f"llava-lora-{bits}"
        config = finetune_config(
            model.llm.config,
            vision_tower=str(written / "clip"),
            vision_width=model.vision_width,
            dtype=str(dtype).removeprefix("torch."),
            unfreeze_mm_vision_tower=tower_layers != 0,
        )
        save_lora(model, folder, config)
        return model.eval(), folder

    return train


def batch(model: VisionLanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    words = torch.randint(3, 500, (2, 8), generator=generator)
    patches = torch.full((2, model.num_patches), IMAGE_TOKEN_INDEX)
    return torch.cat((words[:, :3], patches, words[:, 3:]), 1), torch.randn(2, 3, 112, 112, generator=generator)


@torch.no_grad()
def logits(model: VisionLanguageModel) -> torch.Tensor:
    ids, pixels = batch(model)
    hidden = model.forward_hidden(ids, torch.ones_like(ids), model.project(model.encode_images(pixels)))
    return model.llm.lm_head(hidden).float()


def test_a_merged_folder_answers_as_the_run(run, tmp_path):
    model, folder = run()
    report = merge_folder(folder, None, tmp_path / "llava-merged")
    loaded = load_model(tmp_path / "llava-merged", dtype=torch.float32)
    assert loaded.kind == "llava"
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=0, atol=1e-5)
    assert report.merged.largest < 1e-5 and report.written.largest < 1e-5 and report.written.tokens == 44
    weights = load_file(tmp_path / "llava-merged" / "model.safetensors")
    assert not any("lora" in key or "base_layer" in key or "vision_tower" in key for key in weights)
    assert {"tokenizer.model", "mm_projector.bin"} <= {file.name for file in (tmp_path / "llava-merged").iterdir()}


def test_lora_by_its_folder_answers_the_same(run):
    """load_model adds unmerged adapters to the base."""
    model, folder = run()
    loaded = load_model(folder, dtype=torch.float32)
    assert loaded.kind == "lora"
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bits_merge_into_what_was_trained(run, tmp_path, dtype):
    pytest.importorskip("bitsandbytes")
    model, folder = run(4, dtype)
    report = merge_folder(folder, None, tmp_path / "llava-merged")
    assert report.quantized.bits == 4 and report.dtype == dtype and report.dequantized.largest == 0
    plain = merge_folder(folder, None, tmp_path / "llava-plain", into="plain")
    assert plain.quantized is None and plain.dequantized is None
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        trained = logits(model)
    merged = logits(load_model(tmp_path / "llava-merged", dtype=dtype).model)
    other = logits(load_model(tmp_path / "llava-plain", dtype=dtype).model)
    bound = 1e-5 if dtype == torch.float32 else 0.03
    assert (merged - trained).abs().max() < bound * trained.abs().max()
    assert (other - trained).abs().max() > 2 * (merged - trained).abs().max()  # LoRA met weights it had never seen


def test_eight_bits_merge(run, tmp_path):
    pytest.importorskip("bitsandbytes")
    _, folder = run(8)
    report = merge_folder(folder, None, tmp_path / "llava-merged")
    assert 0 < report.dequantized.largest < 0.03 * report.dequantized.scale  # activations lose their int8 rounding
    assert report.written.largest < 1e-5


def test_a_trained_tower_is_in_the_merged_folder(run, tmp_path):
    model, folder = run(tower_layers=-1)
    merge_folder(folder, None, tmp_path / "llava-merged")
    config = json.loads((tmp_path / "llava-merged" / "config.json").read_text())
    assert config["unfreeze_mm_vision_tower"] is True
    loaded = load_model(tmp_path / "llava-merged", dtype=torch.float32)
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=0, atol=1e-5)


def left_over(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "lora" not in path.name)


def test_nothing_is_left_when_the_merge_is_wrong(run, tmp_path, monkeypatch):
    _, folder = run()
    real = module.merge_lora

    def wrong(model: VisionLanguageModel) -> None:
        real(model)
        model.llm.model.layers[0].mlp.up_proj.weight.data *= 1.05

    monkeypatch.setattr(module, "merge_lora", wrong)
    with pytest.raises(ValueError, match="the merged model does not answer as the unmerged one"):
        merge_folder(folder, None, tmp_path / "llava-merged")
    assert left_over(tmp_path) == []


def test_nothing_is_left_when_the_files_are_wrong(run, tmp_path, monkeypatch):
    _, folder = run()
    real = module.save_llava

    def wrong(model: VisionLanguageModel, *arguments, **keywords) -> None:
        real(model, *arguments, **keywords)
        file = arguments[0] / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_theta": 500.0}))

    monkeypatch.setattr(module, "save_llava", wrong)
    with pytest.raises(ValueError, match="what was written.*does not answer"):
        merge_folder(folder, None, tmp_path / "llava-merged")
    assert left_over(tmp_path) == []


def test_not_a_number_is_no_agreement(run, tmp_path):
    _, folder = run()
    file = folder / "mm_projector.bin"
    tensors = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    tensors["base_model.model.model.mm_projector.0.bias"][0] = float("nan")
    torch.save(tensors, folder / "non_lora_trainables.bin")
    assert file.exists()  # the copy for people is not what is read
    with pytest.raises(ValueError, match="does not answer"):
        merge_folder(folder, None, tmp_path / "llava-merged")
    assert left_over(tmp_path) == []


def test_out_is_not_overwritten(run, tmp_path):
    _, folder = run()
    (tmp_path / "llava-merged").mkdir()
    (tmp_path / "llava-merged" / "config.json").write_text("another run's")
    with pytest.raises(FileExistsError, match="not empty"):
        merge_folder(folder, None, tmp_path / "llava-merged")
    assert (tmp_path / "llava-merged" / "config.json").read_text() == "another run's"


# ---- the command


def test_command(run, written, tmp_path, capsys):
    _, folder = run()
    out = tmp_path / "llava-v1.5-tiny"
    base = str(written / "llm")
    assert main([str(folder), str(out), "--base", base, "--dtype", "bfloat16", "--max_shard_size", "300KB"]) == 0
    said = capsys.readouterr().out
    assert "0 of 44 greedy tokens differ" in said and f"--model-path {out}" in said and "vicuna_v1" in said
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shard = load_file(out / index["weight_map"]["model.norm.weight"])
    assert shard["model.norm.weight"].dtype == torch.bfloat16
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_command_says_what_is_wrong(run, written, tmp_path, capsys):
    _, folder = run()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/vicuna"}))
    assert main([str(folder), str(tmp_path / "llava-merged")]) == 2
    assert "trained on '/gone/vicuna', which is no folder here: name it by --base" in capsys.readouterr().err
    assert main([str(folder), str(tmp_path / "llava-lora-merged"), "--base", str(written / "llm")]) == 2
    assert "holds 'lora'" in capsys.readouterr().err
    assert main([str(folder), str(tmp_path / "llava-m"), "--base", str(written / "llm"), "--template", "v9"]) == 2
    assert "no conversation 'v9'" in capsys.readouterr().err
    assert main([str(written / "out-llava-pt"), str(tmp_path / "llava-m"), "--base", str(written / "llm")]) == 2
    assert "is not a LoRA folder" in capsys.readouterr().err
    assert left_over(tmp_path) == []
