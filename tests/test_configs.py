"""Every YAML, the published script and the DeepSpeed plan: parsed, and held against the published recipe."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from llava_pat.training import consistency
from llava_pat.training.arguments import PretrainArguments, parse_pretrain

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / "scripts" / "configs").glob("*.yaml") if "_finetune" not in path.stem)

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


@pytest.fixture(autouse=True)
def repository_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(consistency, "is_torch_tf32_available", lambda: False)
    for name in ("WORLD_SIZE", "RANK", "OUTPUT_DIR"):
        monkeypatch.delenv(name, raising=False)


def flat(arguments: PretrainArguments) -> dict[str, object]:
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


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_real_recipe(size: str) -> None:
    path = ROOT / "scripts" / "configs" / f"llava-v1.5-{size}.yaml"
    found = flat(parse_pretrain(["--config", str(path)]))
    assert {name: found[name] for name in RECIPE} == RECIPE
    assert found["model_name_or_path"] == f"lmsys/vicuna-{size}-v1.5"
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == 256  # one process here
    written = yaml.safe_load(path.read_text())
    assert (ROOT / written["deepspeed"]).is_file() and written["tf32"] is True


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


def test_zero2_is_llavas() -> None:
    plan = json.loads((ROOT / "scripts" / "zero2.json").read_text())
    assert plan["zero_optimization"] == {
        "stage": 2,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
    }
    assert plan["bf16"] == {"enabled": "auto"} and plan["fp16"]["enabled"] == "auto"
    assert "gradient_clipping" not in plan and "optimizer" not in plan
