"""Going on from checkpoints: LLaVA's own (tests/assets/llava_written) and ours, as finetune_task.sh does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_pat.models.from_folder import load_model
from llava_pat.training.stages import finetune

ASSETS = Path(__file__).parents[1] / "assets" / "llava_written"
CHECKPOINT = ASSETS / "llava-v1.5-tiny"
SHORT = {"max_steps": 2, "save_strategy": "no", "warmup_steps": 0, "gradient_accumulation_steps": 4}
PROJECTOR = "model.mm_projector."


def written(**more: object) -> dict:
    """Flags for a run on LLaVA's files: its tower is 112 pixels of 14, its language model 128 wide."""
    return {"vision_tower": ASSETS / "clip", "vocabulary_path": None, "eval_regions_path": None} | more


def parts_of(stored: dict[str, torch.Tensor], projector: bool) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in stored.items() if name.startswith(PROJECTOR) == projector}


def assert_starts_as(made, stored: dict[str, torch.Tensor]) -> None:
    """Projector and language model are the checkpoint's bf16 weights, in fp32."""
    ours = {PROJECTOR + name: tensor for name, tensor in made.task.model.projector.state_dict().items()}
    ours |= made.task.model.llm.state_dict()
    assert ours.keys() == stored.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, stored[name].float()), name


def test_a_checkpoint_that_llava_wrote(make_finetuner) -> None:
    """No --pretrain_mm_mlp_adapter, as in the published finetune_task.sh."""
    made = make_finetuner(**written(model_name_or_path=CHECKPOINT, pretrain_mm_mlp_adapter=None, **SHORT))
    # LLaVA writes the frozen tower too, and reads it from its own folder all the same
    stored = {name: t for name, t in load_file(CHECKPOINT / "model.safetensors").items() if "vision_tower" not in name}
    assert_starts_as(made, stored)
    made.trainer.train()
    made.trainer.save_model()
    again = load_file(made.out / "model.safetensors")
    assert again.keys() == stored.keys()
    moved = [name for name in stored if not torch.equal(again[name], stored[name].float())]
    assert set(parts_of(stored, True)) <= set(moved) and "lm_head.weight" in moved
    config, theirs = (json.loads((folder / "config.json").read_text()) for folder in (made.out, CHECKPOINT))
    assert config["model_type"] == theirs["model_type"] == "llava_llama"
    assert config["architectures"] == theirs["architectures"] and theirs.keys() - config.keys() == set()
    assert (made.out / "tokenizer.model").read_bytes() == (CHECKPOINT / "tokenizer.model").read_bytes()
    loaded = load_model(made.out, dtype=torch.float32)
    for name, tensor in loaded.model.llm.state_dict().items():
        assert torch.equal(tensor, again[name]), name


def test_its_tower_is_found_where_its_config_says(make_finetuner) -> None:
    """`../clip`, relative to the checkpoint."""
    flags = {"model_name_or_path": CHECKPOINT, "pretrain_mm_mlp_adapter": None, "vision_tower": None}
    made = make_finetuner(**written(**flags, **SHORT))
    stored = load_file(ASSETS / "clip" / "model.safetensors")
    weight = made.task.model.tower.model.state_dict()
    name = next(name for name in weight if name.endswith("patch_embedding.weight"))
    (theirs,) = (tensor for key, tensor in stored.items() if key.endswith("patch_embedding.weight"))
    assert torch.equal(weight[name], theirs.float())


def test_another_projector_for_a_checkpoint(make_finetuner) -> None:
    """Asked for, it wins over the checkpoint's own."""
    file = ASSETS / "out-llava-pt" / "mm_projector.bin"
    made = make_finetuner(**written(model_name_or_path=CHECKPOINT, pretrain_mm_mlp_adapter=file, **SHORT))
    theirs = torch.load(file, weights_only=True)
    for name, tensor in made.task.model.projector.state_dict().items():
        assert torch.equal(tensor, theirs[PROJECTOR + name].float()), name


@pytest.mark.parametrize("source", ["mm_projector.bin", "."])
def test_a_stage_1_that_llava_wrote(world, tmp_path: Path, source: str) -> None:
    """Its projector and its language model: stage 2 runs to the end, from where stage 1 ended."""
    out = tmp_path / "llava-run"
    flags = {"model_name_or_path": ASSETS / "llm", "pretrain_mm_mlp_adapter": ASSETS / "out-llava-pt" / source}
    finetune(world.finetune_argv(out, **written(**flags, **SHORT, learning_rate=0)))
    theirs = torch.load(ASSETS / "out-llava-pt" / "mm_projector.bin", weights_only=True)
    ours = torch.load(out / "mm_projector.bin", weights_only=True)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name].float()) for name in theirs)
    base = load_file(ASSETS / "llm" / "model.safetensors")
    assert all(torch.equal(t, base[n]) for n, t in parts_of(load_file(out / "model.safetensors"), False).items())


def test_on_from_our_own_folder_without_its_base(make_finetuner, world, tmp_path: Path) -> None:
    """The base models' folder may be gone; the tower's may not."""
    base = Path(shutil.copytree(world.folder / "llm", tmp_path / "base"))
    first = tmp_path / "llava-first"
    finetune(world.finetune_argv(first, model_name_or_path=base, max_steps=2, save_strategy="no", warmup_steps=0))
    shutil.rmtree(base)
    flags = {"model_name_or_path": first, "pretrain_mm_mlp_adapter": None, "vision_tower": None}
    made = make_finetuner(**flags, **SHORT)
    assert_starts_as(made, load_file(first / "model.safetensors"))
    made.trainer.train()
    made.trainer.save_model()
    assert load_model(made.out, dtype=torch.float32).kind == "llava"


def test_adapters_on_a_checkpoint(world, tmp_path: Path) -> None:
    """finetune_task_lora.sh: the folder names the checkpoint as its base, and loads over it."""
    out = tmp_path / "llava-lora"
    flags = {"model_name_or_path": CHECKPOINT, "pretrain_mm_mlp_adapter": None, "lora_enable": True, "lora_r": 4}
    finetune(world.finetune_argv(out, **written(**flags, **SHORT)))
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(CHECKPOINT)
    model = load_model(out, dtype=torch.float32).model
    projector = torch.load(out / "mm_projector.bin", weights_only=True)
    for name, tensor in model.projector.state_dict().items():
        assert torch.equal(tensor, projector[PROJECTOR + name]), name


def test_a_trained_tower_stays_the_folders(make_finetuner, world, tmp_path: Path) -> None:
    """The first run trained the tower; the second keeps it frozen: it is read from there, and written again."""
    first = tmp_path / "llava-first"
    finetune(world.finetune_argv(first, unfreeze_mm_vision_tower=True, max_steps=2, save_strategy="no", warmup_steps=0))
    stored = {name: t for name, t in load_file(first / "model.safetensors").items() if "vision_tower" in name}
    original = load_file(world.folder / "clip" / "model.safetensors")
    key = next(name for name in original if name.endswith("layers.0.mlp.fc1.weight"))
    (trained,) = (t for name, t in stored.items() if name.endswith("layers.0.mlp.fc1.weight"))
    assert not torch.equal(trained, original[key])
    made = make_finetuner(model_name_or_path=first, pretrain_mm_mlp_adapter=None, **SHORT)
    assert not made.task.model.tower_is_trained
    made.trainer.train()
    made.trainer.save_model()
    again = {name: t for name, t in load_file(made.out / "model.safetensors").items() if "vision_tower" in name}
    assert again.keys() == stored.keys() and all(torch.equal(t, stored[name]) for name, t in again.items())
    assert json.loads((made.out / "config.json").read_text())["unfreeze_mm_vision_tower"] is True
