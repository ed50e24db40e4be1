"""QLoRA on a CPU, whole runs: adapters learn after an evaluation, nothing quantised is written, runs go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from llava_pat.merge import merge_folder
from llava_pat.models.checkpoint import save_projector
from llava_pat.models.projectors import build_projector
from llava_pat.training.stages import finetune

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def wide(world, tmp_path_factory) -> dict[str, Path]:
    """A language model of 64, since bitsandbytes quantises in blocks of 64 weights, and a projector for it."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=520, max_position_embeddings=256, initializer_range=0.1, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "llm")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(world.folder / "llm" / name, folder / "llm" / name)
    save_projector(build_projector("mlp2x_gelu", 16, 64), folder / "projector")
    return {"model_name_or_path": folder / "llm", "pretrain_mm_mlp_adapter": folder / "projector"}


def flags(wide: dict[str, Path], bits: int, **more: object) -> dict:
    """Six steps, a checkpoint and an evaluation after three."""
    return wide | {
        "bits": bits, "lora_enable": True, "lora_r": 4, "lora_alpha": 8, "eval_strategy": "steps", "eval_steps": 3,
        "save_steps": 3, "logging_steps": 1, "lora_dropout": 0.1,
    } | more  # fmt: skip


@pytest.mark.parametrize(("bits", "bf16"), [(4, False), (4, True), (8, True)])
def test_a_run_with_an_evaluation_in_it(world, wide, tmp_path: Path, bits: int, bf16: bool) -> None:
    out = tmp_path / "llava-lora"
    command = flags(wide, bits, bf16=bf16, activation_checkpointing=bf16)
    metrics = finetune(world.finetune_argv(out, **command))
    assert metrics["steps"] == 6 and metrics["caption_loss_final"] < metrics["caption_loss_init"]
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history if "eval_caption_loss" in line] == [3, 6]
    assert all(line["grad_norm"] > 0 for line in history if "grad_norm" in line)
    middle = load_file(out / "checkpoint-3" / "adapter_model.safetensors")
    end = load_file(out / "checkpoint-6" / "adapter_model.safetensors")
    assert len(end) == 2 * 2 * 7 and all(".lora_" in name for name in end)
    # bitsandbytes on some CPUs packs weights in an evaluation, and no gradient reaches an adapter from then on
    assert [name for name in end if torch.equal(end[name], middle[name])] == []

    base = sum(file.stat().st_size for file in wide["model_name_or_path"].glob("*.safetensors"))
    for folder in (out, out / "checkpoint-3"):
        assert not (folder / "model.safetensors").exists()
        files = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")]
        assert {file.name for file in files} == {
            "adapter_model.safetensors", "non_lora_trainables.bin", "mm_projector.bin", "mm_projector.safetensors",
        }  # fmt: skip
        assert sum(file.stat().st_size for file in files) < base / 2
        assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert_goes_on(world, out, tmp_path, command, "adapter_model.safetensors", "mm_projector.safetensors")


@pytest.mark.parametrize("bits", [4, 8])
def test_without_padding(world, wide, tmp_path: Path, bits: int) -> None:
    """8 bits: a row's outliers say which columns of the others are rounded, so another layout is another rounding."""
    lines = []
    for free in (False, True):
        out = tmp_path / f"llava-lora-{free}"
        batches = {"per_device_train_batch_size": 3, "padding_free": free, "max_steps": 3, "lora_dropout": 0.0}
        finetune(world.finetune_argv(out, **flags(wide, bits, **batches)))
        history = json.loads((out / "trainer_state.json").read_text())["log_history"]
        lines.append([line["caption_loss"] for line in history if "caption_loss" in line])
    assert len(lines[0]) == 3 and lines[1] == pytest.approx(lines[0], rel=1e-5 if bits == 4 else 1e-3)


def assert_goes_on(world, whole: Path, tmp_path: Path, command: dict, *files: str) -> None:
    """A run that starts from the other's checkpoint-3 ends with the same bits."""
    again = tmp_path / "again" / whole.name
    again.mkdir(parents=True)
    for name in ("config.yaml", "metrics_init.json"):
        shutil.copy(whole / name, again / name)
    shutil.copytree(whole / "checkpoint-3", again / "checkpoint-3")
    assert finetune(world.finetune_argv(again, **command))["resumed_from_step"] == 3
    for name in files:
        one, other = load_file(again / name), load_file(whole / name)
        assert one.keys() == other.keys() and all(torch.equal(t, other[key]) for key, t in one.items()), name


def test_adam_in_8_bits(world, tmp_path: Path) -> None:
    """bitsandbytes' optimizer, with the projector's own rate; it goes on from its checkpoint."""
    out = tmp_path / "llava-run"
    command = {"optim": "adamw_bnb_8bit", "mm_projector_lr": 5e-3, "save_steps": 3}
    metrics = finetune(world.finetune_argv(out, **command))
    assert metrics["caption_loss_final"] < 0.9 * metrics["caption_loss_init"]
    stored = torch.load(out / "checkpoint-3" / "optimizer.pt", weights_only=True)
    assert len(stored["param_groups"]) >= 2
    # bitsandbytes wraps what it quantised; small tensors keep their moments in 32 bits
    wrapped = [state.get("__bnb_optimizer_quant_state__", {}) for state in stored["state"].values()]
    assert any(state["state1"].dtype == torch.uint8 for state in wrapped if state), "no moment is in 8 bits"
    assert_goes_on(world, out, tmp_path, command, "model.safetensors", "mm_projector.safetensors")


def test_merging_what_the_run_left(world, wide, tmp_path: Path) -> None:
    """Into the quantised base's own numbers; the merging compares answers before it says done."""
    out = tmp_path / "llava-qlora"
    finetune(world.finetune_argv(out, **flags(wide, 4, max_steps=2, save_strategy="no", eval_strategy="no")))
    report = merge_folder(out, None, tmp_path / "llava-merged")
    assert report.quantized is not None and report.quantized.bits == 4 and report.written.fits
    assert (tmp_path / "llava-merged" / "model.safetensors").is_file()
