"""The command line of stage 2: LLaVA's four published lists, the defaults, what is refused before anything loads."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from llava_pat.training import consistency, finetune_arguments
from llava_pat.training.arguments import parse_pretrain
from llava_pat.training.command_line import build_parser
from llava_pat.training.finetune_arguments import FINETUNE, FinetuneArguments, parse_finetune
from llava_pat.training.flags import ConfigError
from llava_pat.training.run_config import write_config

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["--model_name_or_path", "m", "--vision_tower", "v", "--data_path", "d.json", "--image_folder", "i"]
LORA = ["--lora_enable", "True"]

# What scripts/v1_5/finetune{,_lora,_task,_task_lora}.sh of LLaVA at c121f04 share, in their order.
BEGIN = "--deepspeed ./scripts/zero3.json"
SHARED = """
--version v1 --data_path ./playground/data/llava_v1_5_mix665k.json --image_folder ./playground/data
--vision_tower openai/clip-vit-large-patch14-336
"""
REST = """
--mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False
--image_aspect_ratio pad --group_by_modality_length True --bf16 True --output_dir {out} --num_train_epochs 1
--per_device_train_batch_size 16 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1
--evaluation_strategy no --save_strategy steps --save_steps 50000 --save_total_limit 1 --learning_rate {rate}
--weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --tf32 True --model_max_length 2048
--gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True --report_to wandb
"""
ADAPTERS = "--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5"
PROJECTOR = "--pretrain_mm_mlp_adapter ./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin"


def published(task: bool, lora: bool) -> list[str]:
    """One of the four lists, word for word."""
    name = "llava-v1.5-13b" + ("-task" if task else "") + ("-lora" if lora else "")
    base = "liuhaotian/llava-v1.5-13b" if task else "lmsys/vicuna-13b-v1.5"
    adapters, projector = ADAPTERS if lora else "", "" if task else PROJECTOR
    text = f"{adapters} {BEGIN} --model_name_or_path {base} {SHARED} {projector} {REST}"
    return text.format(out=f"./checkpoints/{name}", rate="2e-4" if lora else "2e-5").split()


@pytest.fixture(autouse=True)
def cpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test sees a machine without an accelerator and no launcher, wherever it runs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(consistency, "is_torch_tf32_available", lambda: False)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "OUTPUT_DIR"):
        monkeypatch.delenv(name, raising=False)


def settings_of(arguments: FinetuneArguments) -> list[dict]:
    return [{f.name: vars(p)[f.name] for f in fields(p) if f.name != "distributed_state"} for p in arguments]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("task", [False, True], ids=["finetune", "finetune_task"])
def test_the_published_lists_are_accepted_word_for_word(task: bool, lora: bool, capsys) -> None:
    model, data, alignment, adapter, training = parse_finetune(published(task, lora))
    assert model.model_name_or_path == ("liuhaotian/llava-v1.5-13b" if task else "lmsys/vicuna-13b-v1.5")
    assert (model.pretrain_mm_mlp_adapter is None) == task
    assert (model.version, model.mm_projector_type, model.mm_vision_select_layer) == ("v1", "mlp2x_gelu", -2)
    assert model.vision_tower == "openai/clip-vit-large-patch14-336"
    assert not (model.tune_mm_mlp_adapter or model.freeze_backbone or model.freeze_mm_mlp_adapter)
    assert not model.unfreeze_mm_vision_tower
    assert (data.image_aspect_ratio, alignment.alignment) == ("pad", "none")
    assert (adapter.lora_enable, adapter.lora_r, adapter.lora_alpha) == (lora, 128, 256)
    assert (adapter.lora_dropout, adapter.lora_bias, adapter.bits) == (0.05, "none", 16)
    assert (training.learning_rate, training.mm_projector_lr) == ((2e-4, 2e-5) if lora else (2e-5, None))
    assert (training.weight_decay, training.warmup_steps, training.lr_scheduler_type.value) == (0.0, 0.03, "cosine")
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (16, 1)
    assert (training.num_train_epochs, training.save_steps, training.save_total_limit) == (1, 50000, 1)
    assert training.group_by_modality_length and training.bf16 and training.gradient_checkpointing
    assert (training.model_max_length, training.optim.value, training.max_grad_norm) == (2048, "adamw_torch", 1.0)
    assert training.eval_strategy.value == "no" and training.report_to == ["wandb"]
    assert training.get_warmup_steps(5198) == 156  # ceil(0.03 * 5198) of the published run
    assert training.output_dir.endswith("-lora") == lora
    printed = capsys.readouterr().out.splitlines()
    for flag in ("--evaluation_strategy", "--warmup_ratio", "--lazy_preprocess", "--tf32", "--deepspeed"):
        assert sum(flag in line for line in printed) == 1, flag


def test_the_recipe_is_the_default() -> None:
    without = parse_finetune(NEEDED)
    same = ["--pretrain_mm_mlp_adapter", "", "--report_to", "none", "--output_dir", without.training.output_dir]
    listed = parse_finetune([*published(False, False), *NEEDED, *same])
    differing = {
        name
        for mine, theirs in zip(settings_of(without), settings_of(listed), strict=True)
        for name in mine
        if mine[name] != theirs[name]
    }
    assert differing == set()


def test_lora_defaults_are_the_recipes() -> None:
    out = ["--output_dir", "llava-lora"]
    assert parse_finetune([*NEEDED, *LORA, *out]).adapter == parse_finetune(published(False, True)).adapter


@pytest.mark.parametrize("stage", ["deepspeed plan", "no such file"])
def test_the_plan_is_read_under_a_launcher(stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    values = {"deepspeed": str(plan), "use_cpu": True}
    monkeypatch.setenv("WORLD_SIZE", "2")
    if stage == "no such file":
        with pytest.raises(ConfigError, match="no such file"):
            consistency._resolve_device(values, "train/finetune.py", [])
        return
    plan.write_text("{}")
    consistency._resolve_device(values, "train/finetune.py", [])
    assert values["deepspeed"] == str(plan)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--tune_mm_mlp_adapter", "True"], ["--tune_mm_mlp_adapter True", "train/pretrain.py", "--freeze_backbone"]),
        (["--freeze_backbone", "True", "--freeze_mm_mlp_adapter", "True"], ["nothing is left to train"]),
        (["--mm_vision_tower_layers", "2"], ["--mm_vision_tower_layers", "--unfreeze_mm_vision_tower True"]),
        (
            ["--unfreeze_mm_vision_tower", "True", "--mm_vision_tower_layers", "0"],
            ["--mm_vision_tower_layers 0", "at least 1"],
        ),
        (["--mm_vision_tower_lr", "1e-6"], ["--mm_vision_tower_lr", "frozen"]),
        (["--mm_projector_lr", "1e-6", "--freeze_mm_mlp_adapter", "True"], ["--mm_projector_lr", "frozen"]),
        (["--mm_projector_lr", "-1"], ["--mm_projector_lr -1", ">= 0"]),
        (["--mm_projector_lr", "nan"], ["--mm_projector_lr nan"]),
        ([*LORA, "--freeze_backbone", "True"], ["--lora_enable", "--freeze_backbone", "contradict"]),
        ([*LORA, "--unfreeze_mm_vision_tower", "True"], ["--lora_enable", "--unfreeze_mm_vision_tower"]),
        ([*LORA, "--lora_r", "0"], ["--lora_r 0", "at least 1"]),
        ([*LORA, "--lora_bias", "some"], ["lora_bias", "some", "lora_only"]),
        (["--bits", "4"], ["--bits 4", "--lora_enable True"]),
        (["--bits", "8"], ["--bits 8", "--lora_enable True"]),
        ([*LORA, "--bits", "3"], ["--bits 3", "4, 8 or 16"]),
        ([*LORA, "--quant_type", "nf3"], ["quant_type", "nf3", "nf4"]),
        (["--mm_patch_merge_type", "spatial_unpad"], ["mm_patch_merge_type", "spatial_unpad"]),
        (["--image_aspect_ratio", "anyres"], ["anyres", "square", "pad"]),
        (["--mm_use_im_start_end", "True"], ["--mm_use_im_start_end", "must be False"]),
        (["--alignment", "pat"], ["pat", "--regions_path", "--alignment none"]),
        (["--lora_rank", "4"], ["lora_rank", "did you mean"]),
        (["--group_by_length", "True"], ["group_by_length", "train_sampling_strategy"]),
        (["--save_dtype", "int8"], ["save_dtype", "int8", "bfloat16"]),
        (["--resume_from_checkpoint", "x"], ["--resume_from_checkpoint", "same command"]),
    ],
)
def test_refused_with_one_clear_message(extra: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_finetune([*NEEDED, *extra])
    for word in words:
        assert word in str(caught.value)


def plan_of(arguments: FinetuneArguments, plan: dict) -> None:
    """The checks of a run under DeepSpeed, whose plan a single process on a CPU would leave out."""
    arguments.training.deepspeed = json.dumps(plan)
    consistency.check_finetune(arguments)


@pytest.mark.parametrize("bits", ["4", "8"])
def test_quantised_weights_and_zero3(bits: str) -> None:
    arguments = parse_finetune([*NEEDED, *LORA, "--bits", bits, "--output_dir", "llava-lora"])
    plan_of(arguments, {"zero_optimization": {"stage": 2}})
    with pytest.raises(ConfigError, match=f"--bits {bits} with ZeRO-3.*zero2.json"):
        plan_of(arguments, {"zero_optimization": {"stage": 3}})


def test_a_plan_with_an_optimizer_has_one_learning_rate() -> None:
    """LLaVA's own zero3_offload.json has one; ours has not."""
    plan_of(parse_finetune(NEEDED), {"optimizer": {"type": "AdamW"}})
    with pytest.raises(ConfigError, match="'optimizer' and 'scheduler' out"):
        plan_of(parse_finetune([*NEEDED, "--mm_projector_lr", "1e-5"]), {"optimizer": {"type": "AdamW"}})


@pytest.mark.parametrize("extra", [["--bits", "4"], ["--optim", "adamw_bnb_8bit"], ["--optim", "paged_adamw_32bit"]])
def test_without_bitsandbytes(extra: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(ConfigError, match="pip install"):
        parse_finetune([*NEEDED, *LORA, "--output_dir", "llava-lora", *extra])


def test_the_written_config_reproduces_the_run(tmp_path: Path) -> None:
    flags = [*LORA, "--bits", "8", "--lora_r", "4", "--mm_projector_lr", "1e-6", "--output_dir", "out/llava-lora"]
    flags += ["--save_dtype", "float16", "--group_by_modality_length", "False", "--freeze_mm_mlp_adapter", "False"]
    flags += ["--alignment", "pat", "--regions_path", "r", "--alignment_args", '{"unit": "patch"}']
    first = parse_finetune([*NEEDED, *flags])
    write_config(first, tmp_path / "config.yaml")
    assert settings_of(parse_finetune(["--config", str(tmp_path / "config.yaml")])) == settings_of(first)


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_finetune(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for action in build_parser(FINETUNE)._actions:
        assert action.help, f"{action.option_strings} has no help"
    for kind in FINETUNE.kinds:
        for option in vars(kind).get("__annotations__", {}):
            assert option.startswith("_") or f"--{option}" in text, option


def test_stage_1_still_refuses_what_is_stage_2s() -> None:
    for name in ("lora_enable", "freeze_mm_mlp_adapter", "group_by_modality_length", "unfreeze_mm_vision_tower"):
        with pytest.raises(ConfigError, match=name):
            parse_pretrain([*NEEDED, f"--{name}", "True"])
    assert finetune_arguments.FINETUNE.refused.keys() == {"mm_patch_merge_type"}
