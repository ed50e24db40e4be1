"""Every YAML, the published script and the DeepSpeed plans: parsed, and held against the published recipe."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from llava_pat.alignment import requirements
from llava_pat.annotation.config import dump_config, load_config
from llava_pat.models.llava_names import check_output_name
from llava_pat.training import consistency
from llava_pat.training.arguments import PretrainArguments, parse_pretrain
from llava_pat.training.finetune_arguments import FinetuneArguments, parse_finetune

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "scripts" / "configs"
FINETUNE_CONFIGS = sorted(FOLDER.glob("*_finetune*.yaml"))
ANNOTATION_CONFIGS = sorted(FOLDER.glob("*_annotate.yaml"))
CONFIGS = sorted({*FOLDER.glob("*.yaml")} - {*FINETUNE_CONFIGS, *ANNOTATION_CONFIGS})

# LLaVA-1.5's stage 1: scripts/v1_5/pretrain.sh and the paper's table of hyperparameters (arXiv 2310.03744).
RECIPE = {
    "version": "plain",
    "vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "image_aspect_ratio": "square",
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "warmup_steps": 0.03,
    "lr_scheduler_type": "cosine",
    "optim": "adamw_torch",
    "bf16": True,
    "gradient_checkpointing": True,
    "model_max_length": 2048,
    "dataloader_num_workers": 4,
    "logging_steps": 1,
    "save_total_limit": 1,
    "report_to": ["wandb"],
}

# Stage 2: scripts/v1_5/finetune.sh; finetune_lora.sh adds and changes what is in LORA_RECIPE.
FINETUNE_RECIPE = {
    **{name: RECIPE[name] for name in RECIPE if name not in ("per_device_train_batch_size", "learning_rate")},
    "version": "v1",
    "image_aspect_ratio": "pad",
    "group_by_modality_length": True,
    "per_device_train_batch_size": 16,
    "learning_rate": 2e-5,
    "mm_projector_lr": None,
    "lora_enable": False,
    "bits": 16,
    "freeze_backbone": False,
    "freeze_mm_mlp_adapter": False,
    "unfreeze_mm_vision_tower": False,
    "max_grad_norm": 1.0,
    "alignment": "none",
}
LORA_RECIPE = {
    "lora_enable": True,
    "lora_r": 128,
    "lora_alpha": 256,
    "lora_dropout": 0.05,
    "lora_bias": "none",
    "mm_projector_lr": 2e-5,
    "learning_rate": 2e-4,
}
QLORA_RECIPE = {"bits": 4, "quant_type": "nf4", "double_quant": True, "per_device_train_batch_size": 4}
KINDS = {
    "finetune": FINETUNE_RECIPE,
    "finetune_lora": FINETUNE_RECIPE | LORA_RECIPE,
    "finetune_qlora": FINETUNE_RECIPE | LORA_RECIPE | QLORA_RECIPE,
}


@pytest.fixture(autouse=True)
def repository_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(consistency, "is_torch_tf32_available", lambda: False)
    for name in ("WORLD_SIZE", "RANK", "OUTPUT_DIR"):
        monkeypatch.delenv(name, raising=False)


def flat(arguments: PretrainArguments | FinetuneArguments) -> dict[str, object]:
    return {name: value for part in arguments for name, value in vars(part).items()}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_parsed(config: Path) -> None:
    arguments = parse_pretrain(["--config", str(config)])
    assert "{" not in arguments.training.output_dir and "plain" not in arguments.training.output_dir
    keys = re.findall(r"^(\w+):", config.read_text(), re.MULTILINE)
    assert len(keys) == len(set(keys)), "a key twice: YAML would silently take the last"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_as_its_own_baseline(config: Path) -> None:
    arguments = parse_pretrain(["--config", str(config), "--alignment", "none"])
    assert arguments.alignment.alignment == "none"
    assert arguments.training.output_dir.endswith("-none")


@pytest.mark.parametrize("name", ["7b", "13b", "7b_sea"])
def test_the_real_recipe(name: str) -> None:
    path = ROOT / "scripts" / "configs" / f"llava-v1.5-{name}.yaml"
    found = flat(parse_pretrain(["--config", str(path)]))
    assert {name: found[name] for name in RECIPE} == RECIPE
    assert found["model_name_or_path"] == f"lmsys/vicuna-{name.partition('_')[0]}-v1.5"
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == 256  # one process here
    written = yaml.safe_load(path.read_text())
    assert (ROOT / written["deepspeed"]).is_file() and written["tf32"] is True


def test_the_playgrounds_objectives_differ_in_the_alignment_alone() -> None:
    names = ("pat", "sea", "pat_sea", "sea_regions", "pat_clip")
    read = {name: parse_pretrain(["--config", str(ROOT / f"scripts/configs/playground_{name}.yaml")]) for name in names}
    plans = {name: arguments.alignment.plan() for name, arguments in read.items()}
    assert plans["pat_sea"] == {"pat": plans["pat"][""], "sea": plans["sea"][""]}
    assert plans["sea_regions"][""].weight == plans["sea"][""].weight
    assert requirements(plans["sea_regions"]) == {"regions"} and requirements(plans["pat_clip"]) == {"patch_words"}
    files = {name: yaml.safe_load((ROOT / f"scripts/configs/playground_{name}.yaml").read_text()) for name in names}
    for settings in files.values():
        for key in [key for key in settings if key.startswith(("alignment", "patch_words"))]:
            del settings[key]
        assert settings == files["pat"]


def test_pat_on_predicted_regions_differs_in_the_regions_alone() -> None:
    exact, predicted = (
        yaml.safe_load((FOLDER / f"playground_{name}.yaml").read_text()) for name in ("pat", "pat_predicted")
    )
    assert predicted.pop("regions_path") == "playground/data/predicted/regions" != exact.pop("regions_path")
    assert predicted.pop("output_dir") != exact.pop("output_dir"), "the one must not go on with the other's run"
    assert predicted == exact, "the held-out regions too are the exact ones"


def test_the_published_script_has_the_published_arguments() -> None:
    text = (ROOT / "scripts" / "pretrain.sh").read_text()
    command = text[text.index("launch train/pretrain.py") :].replace("\\\n", " ")
    words = shlex.split(command)
    assert words[:2] == ["launch", "train/pretrain.py"] and words[-1] == "$@"
    arguments = words[2:-1]
    found = flat(parse_pretrain(arguments))
    assert {name: found[name] for name in RECIPE} == RECIPE
    assert found["alignment"] == "none" and found["save_steps"] == 24000
    old_names = {"--evaluation_strategy", "--warmup_ratio", "--gradient_checkpointing", "--lazy_preprocess"}
    assert old_names <= set(arguments), "word for word means the names of then"
    pat = ["--alignment", "pat", "--alignment_weight", "5", "--regions_path", "FILE"]
    assert parse_pretrain([*arguments, *pat]).alignment.alignment_weight == 5


# ---- stage 2


def test_every_kind_of_stage_2_has_its_configs() -> None:
    names = {f"{name}_{kind}" for name in ("playground", "llava-v1.5-7b", "llava-v1.5-13b") for kind in KINDS}
    assert {path.stem for path in FINETUNE_CONFIGS} == names


@pytest.mark.parametrize("config", FINETUNE_CONFIGS, ids=lambda path: path.stem)
def test_every_stage_2_config_is_parsed(config: Path) -> None:
    arguments = parse_finetune(["--config", str(config)])
    lora = "lora" in config.stem
    assert arguments.adapter.lora_enable == lora
    assert arguments.adapter.bits == (4 if "qlora" in config.stem else 16)
    assert check_output_name(arguments.training.output_dir, lora=lora, template="v1") == []
    keys = re.findall(r"^(\w+):", config.read_text(), re.MULTILINE)
    assert len(keys) == len(set(keys)), "a key twice: YAML would silently take the last"


@pytest.mark.parametrize("config", FINETUNE_CONFIGS, ids=lambda path: path.stem)
def test_a_stage_2_config_takes_the_projector_that_stage_1_leaves(config: Path) -> None:
    first = parse_pretrain(["--config", str(_stage_1_of(config)), "--alignment", "pat", "--regions_path", "r"])
    second = parse_finetune(["--config", str(config)])
    assert second.model.pretrain_mm_mlp_adapter == f"{first.training.output_dir}/mm_projector.bin"
    for name in ("model_name_or_path", "vision_tower", "mm_projector_type", "mm_vision_select_layer"):
        assert vars(second.model)[name] == vars(first.model)[name], name


def _stage_1_of(config: Path) -> Path:
    name = config.stem.partition("_finetune")[0]
    return config.with_name("playground_pat.yaml" if name == "playground" else f"{name}.yaml")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_real_recipe_of_stage_2(size: str, kind: str) -> None:
    path = ROOT / "scripts" / "configs" / f"llava-v1.5-{size}_{kind}.yaml"
    found = flat(parse_finetune(["--config", str(path)]))
    assert {name: found[name] for name in KINDS[kind]} == KINDS[kind]
    assert found["model_name_or_path"] == f"lmsys/vicuna-{size}-v1.5"
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == 128  # one process here
    written = yaml.safe_load(path.read_text())
    assert written["tf32"] is True
    plan = written.get("deepspeed")
    assert plan == (None if kind == "finetune_qlora" else "scripts/zero3.json")  # one GPU shares with nobody
    assert plan is None or (ROOT / plan).is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_the_scripts_of_stage_2_run_their_configs(kind: str) -> None:
    text = (ROOT / "scripts" / f"{kind}.sh").read_text()
    command = text.splitlines()[-1]
    assert command == f'launch_config train/finetune.py playground _{kind} "$@"'
    named = re.findall(r"bash scripts/\S+ (llava-v1\.5-\w+)", text)
    assert named
    for name in named:
        assert (ROOT / "scripts" / "configs" / f"{name}_{kind}.yaml").is_file()


# ---- annotation


@pytest.mark.parametrize("config", ANNOTATION_CONFIGS, ids=lambda path: path.stem)
def test_every_annotation_config_is_parsed(config: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    written = dump_config(load_config(config))
    for name, chosen in settings.items():
        assert written[name] == chosen if not isinstance(chosen, dict) else written[name].items() >= chosen.items()
    for stage in ("detector", "segmenter"):
        assert written[stage]["model"] == "playground/data/annotator", "one network for both"


# ---- DeepSpeed's plans


def plan(name: str) -> dict:
    return json.loads((ROOT / "scripts" / name).read_text())


def test_zero2_is_llavas() -> None:
    zero2 = plan("zero2.json")
    assert zero2["zero_optimization"] == {
        "stage": 2,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
    }


def test_zero3_is_llavas() -> None:
    assert plan("zero3.json")["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    }


def test_offload_is_zero3_with_weights_and_optimizer_on_the_cpu() -> None:
    """LLaVA's has an optimizer and a scheduler of its own, which put the recipe's cosine aside."""
    offload, zero3 = plan("zero3_offload.json"), plan("zero3.json")
    for name in ("offload_optimizer", "offload_param"):
        assert offload["zero_optimization"].pop(name) == {"device": "cpu", "pin_memory": True}
    assert offload == zero3


@pytest.mark.parametrize("name", ["zero2.json", "zero3.json", "zero3_offload.json"])
def test_a_plan_leaves_the_recipe_to_the_flags(name: str) -> None:
    found = plan(name)
    assert found["bf16"] == {"enabled": "auto"} and found["fp16"]["enabled"] == "auto"
    for key in ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps"):
        assert found[key] == "auto"
    assert not {"optimizer", "scheduler", "gradient_clipping"} & found.keys()
