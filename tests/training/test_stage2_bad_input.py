"""What a user can get wrong in stage 2 ends the command with status 2, before the first step, and names the way out."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_pat.training.stages import finetune, pretrain

ASSETS = Path(__file__).parents[1] / "assets" / "llava_written"


def assert_names(message: str, *parts: object) -> None:
    for part in parts:
        assert str(part) in message, f"{str(part)!r} is not in: {message}"


def copied(world, tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(world.folder / name, tmp_path / name))


# ---- the projector of stage 1


def test_without_a_projector(refused_finetune) -> None:
    message = refused_finetune(pretrain_mm_mlp_adapter=None)
    assert_names(message, "--pretrain_mm_mlp_adapter", "scripts/pretrain_pat.sh", "--pretrain_mm_mlp_adapter none")


def test_a_stage_1_folder_that_is_not_there(refused_finetune, tmp_path: Path) -> None:
    for absent in (tmp_path / "absent" / "mm_projector.bin", tmp_path / "absent"):
        assert_names(refused_finetune(pretrain_mm_mlp_adapter=absent), "--pretrain_mm_mlp_adapter", absent)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_names(
        refused_finetune(pretrain_mm_mlp_adapter=empty), "--pretrain_mm_mlp_adapter", empty, "mm_projector.bin"
    )


def test_a_projector_of_another_width(refused_finetune) -> None:
    file = ASSETS / "out-llava-pt" / "mm_projector.bin"  # of LLaVA's own hand, 64 -> 128
    assert_names(refused_finetune(pretrain_mm_mlp_adapter=file), file, "[128, 64]", "[24, 16]", "base models")


def test_a_projector_of_another_type(refused_finetune, world) -> None:
    file = world.folder / "projector" / "mm_projector.bin"
    assert_names(refused_finetune(mm_projector_type="linear"), file, "missing", "too many")
    assert_names(refused_finetune(mm_projector_type="mlp3x_gelu"), file, "missing", "4.weight")


class Payload:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_pickle_is_refused_and_nothing_in_it_runs(refused_finetune, tmp_path: Path, kind: str) -> None:
    file, mark = tmp_path / "mm_projector.bin", tmp_path / "executed"
    content = {"model.mm_projector.0.weight": Payload(mark)}
    if kind == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    assert_names(refused_finetune(pretrain_mm_mlp_adapter=file), file)
    assert not mark.exists()
    torch.save({"model.mm_projector.0.weight": [1, 2]}, file)
    assert_names(refused_finetune(pretrain_mm_mlp_adapter=file), file)


def test_a_truncated_projector(refused_finetune, world, tmp_path: Path) -> None:
    for name in ("mm_projector.bin", "mm_projector.safetensors"):
        whole = (world.folder / "projector" / name).read_bytes()
        file = tmp_path / name
        file.write_bytes(whole[: len(whole) // 2])
        assert_names(refused_finetune(pretrain_mm_mlp_adapter=file), file)


# ---- the language model


def test_no_such_base(refused_finetune, tmp_path: Path) -> None:
    for flag in ("vision_tower", "model_name_or_path"):
        assert_names(refused_finetune(**{flag: tmp_path / "absent"}), f"--{flag}", tmp_path / "absent")


@pytest.mark.parametrize(("flag", "name"), [("model_name_or_path", "llm"), ("vision_tower", "clip")])
def test_a_truncated_base(refused_finetune, world, tmp_path: Path, flag: str, name: str) -> None:
    folder = copied(world, tmp_path, name)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert_names(refused_finetune(**{flag: folder}), f"--{flag}", file, "Truncated?")


def test_a_base_that_is_a_pickle_with_more_than_tensors(refused_finetune, world, tmp_path: Path) -> None:
    llm, mark = copied(world, tmp_path, "llm"), tmp_path / "executed"
    tensors = load_file(llm / "model.safetensors")
    (llm / "model.safetensors").unlink()
    torch.save(tensors | {"model.more.weight": Payload(mark)}, llm / "pytorch_model.bin")
    assert_names(refused_finetune(model_name_or_path=llm), llm / "pytorch_model.bin", "plain tensors")
    assert not mark.exists()


def test_a_missing_shard(refused_finetune, world, tmp_path: Path) -> None:
    llm = copied(world, tmp_path, "llm")
    tensors = load_file(llm / "model.safetensors")
    (llm / "model.safetensors").unlink()
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    keys = sorted(tensors)
    parts = (keys[::2], keys[1::2])
    index = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    size = sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (llm / "model.safetensors.index.json").write_text(json.dumps(content))
    save_file({key: tensors[key] for key in parts[0]}, llm / names[0], metadata={"format": "pt"})
    assert_names(refused_finetune(model_name_or_path=llm), "--model_name_or_path", names[1])


def test_a_base_without_a_tensor(refused_finetune, world, tmp_path: Path) -> None:
    llm = copied(world, tmp_path, "llm")
    tensors = load_file(llm / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, llm / "model.safetensors", metadata={"format": "pt"})
    assert_names(refused_finetune(model_name_or_path=llm), llm, "1 missing", "model.norm.weight")


def test_a_base_without_a_tokenizer(refused_finetune, world, tmp_path: Path) -> None:
    llm = copied(world, tmp_path, "llm")
    (llm / "tokenizer.model").unlink()
    assert_names(refused_finetune(model_name_or_path=llm), llm, "tokenizer.model")


# ---- a LLaVA checkpoint as the base


def from_checkpoint(**more: object) -> dict:
    tiny = {"model_name_or_path": ASSETS / "llava-v1.5-tiny", "vision_tower": ASSETS / "clip"}
    return tiny | {"pretrain_mm_mlp_adapter": None} | more


def test_flags_that_contradict_a_checkpoint(refused_finetune) -> None:
    folder = ASSETS / "llava-v1.5-tiny"
    message = refused_finetune(**from_checkpoint(mm_projector_type="linear"))
    assert_names(message, "--mm_projector_type linear", folder, "mlp2x_gelu")
    message = refused_finetune(**from_checkpoint(mm_vision_select_layer=-1))
    assert_names(message, "--mm_vision_select_layer -1", folder, "-2")


def test_a_checkpoint_whose_tower_is_elsewhere(refused_finetune, world, tmp_path: Path) -> None:
    """Its config.json names the tower by the path that it had where LLaVA ran."""
    moved = Path(shutil.copytree(ASSETS / "llava-v1.5-tiny", tmp_path / "moved" / "llava-v1.5-tiny"))
    flags = from_checkpoint(model_name_or_path=moved, vision_tower=None)
    assert_names(refused_finetune(**flags), "vision_tower", "../clip", moved)
    message = refused_finetune(**from_checkpoint(vision_tower=world.folder / "clip"))
    assert_names(message, ASSETS / "llava-v1.5-tiny", "[128, 64]", "[128, 16]")


def test_a_checkpoint_of_another_design(refused_finetune, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ASSETS / "llava-v1.5-tiny", tmp_path / "llava-v1.6"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_patch_merge_type": "spatial_unpad"}))
    assert_names(refused_finetune(**from_checkpoint(model_name_or_path=folder)), folder, "spatial_unpad")


def test_an_adapter_folder_as_the_base(refused_finetune, world, tmp_path: Path) -> None:
    """It holds no language model; merging makes one."""
    lora = tmp_path / "llava-lora"
    finetune(world.finetune_argv(lora, lora_enable=True, lora_r=2, max_steps=1, save_strategy="no"))
    message = refused_finetune(model_name_or_path=lora, pretrain_mm_mlp_adapter=None)
    assert_names(message, "--model_name_or_path", lora, "adapters", "scripts/convert.sh merge")


def test_a_stage_1_folder_as_the_base(refused_finetune, world, tmp_path: Path) -> None:
    stage1 = tmp_path / "llava-stage1"
    pretrain(world.argv(stage1, max_steps=1, save_strategy="no"))
    message = refused_finetune(model_name_or_path=stage1, pretrain_mm_mlp_adapter=None)
    assert_names(message, f"--model_name_or_path {stage1}", f"--pretrain_mm_mlp_adapter {stage1}")


# ---- the output folder


def test_a_name_that_llava_would_misread(refused_finetune, tmp_path: Path) -> None:
    lora = {"lora_enable": True, "lora_r": 2}
    assert_names(refused_finetune(out=tmp_path / "run"), "--output_dir", "'run'", "'llava'")
    assert_names(refused_finetune(out=tmp_path / "llava-run", **lora), "'llava-run'", "'lora'")
    assert_names(refused_finetune(out=tmp_path / "llava-lora"), "'llava-lora'", "'lora'", "take it out")
    assert_names(refused_finetune(out=tmp_path / "llava-mistral"), "'llava-mistral'", "'mistral'", "llama")
    assert_names(refused_finetune(out=tmp_path / "llava-plain"), "'llava-plain'", "'plain'")
    assert_names(refused_finetune(out=tmp_path / "llava" / "checkpoint-7"), "'checkpoint-7'", "choose another name")


def test_another_runs_folder(refused_finetune, world, tmp_path: Path) -> None:
    out = tmp_path / "llava-run"
    finetune(world.finetune_argv(out, max_steps=1, save_strategy="no"))
    written = (out / "model.safetensors").read_bytes()
    flags = {"out": out, "max_steps": 1, "save_strategy": "no"}
    assert_names(
        refused_finetune(**flags, mm_projector_lr=1e-4), "another run", "mm_projector_lr: None there, 0.0001 now"
    )
    assert_names(
        refused_finetune(**flags, freeze_backbone=True), "freeze_backbone: False there, True now", "--output_dir"
    )
    assert (out / "model.safetensors").read_bytes() == written


def test_a_stage_1_run_in_the_folder(refused_finetune, world, tmp_path: Path) -> None:
    out = tmp_path / "llava-run"
    pretrain(world.argv(out, max_steps=1, save_strategy="no"))
    written = (out / "mm_projector.bin").read_bytes()
    assert_names(refused_finetune(out=out, max_steps=1, save_strategy="no"), "another run", out, "--output_dir")
    assert (out / "mm_projector.bin").read_bytes() == written


def test_a_folder_that_llava_wrote(refused_finetune, tmp_path: Path) -> None:
    """No config.yaml of ours in it: it must not be written over."""
    out = Path(shutil.copytree(ASSETS / "llava-v1.5-tiny", tmp_path / "llava-v1.5-tiny"))
    assert_names(refused_finetune(out=out), out, "not one of our runs", "--output_dir")


# ---- adapters


def test_bits_without_adapters(refused_finetune) -> None:
    assert_names(refused_finetune(bits=4), "--bits 4", "--lora_enable True")


def test_stage_1s_flag(refused_finetune) -> None:
    assert_names(refused_finetune(tune_mm_mlp_adapter=True), "--tune_mm_mlp_adapter True", "train/pretrain.py")


# ---- templates


def test_a_template_that_the_tokenizer_does_not_have(refused_finetune) -> None:
    assert_names(refused_finetune(version="mpt"), "mpt", "<|im_start|>")
    assert_names(refused_finetune(version="v2"), "v2", "plain")
