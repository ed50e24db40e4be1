"""Stage 2 on two processes is stage 2 on one: DDP, ZeRO-2, ZeRO-3, offload; and what goes on from a checkpoint.

The data hold steps in which one rank has text alone and the other an image: a run that hangs on them fails by its time
limit.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_pat.training.stages import finetune

LIMIT = 900  # seconds; the first run of all compiles DeepSpeed's operators for CPUs
STEPS = 4  # two epochs of two
RESUMED_AT = 3  # inside the second epoch

# Sums over ranks in another order; Adam's first steps magnify rounding where a gradient is small. Measured, of entries
# around 0.3 that moved by 1e-2: below 2e-6.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

FULL = {"group_by_modality_length": False, "mm_projector_lr": 2e-3}
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}

BF16 = {"bf16": True, "activation_checkpointing": True}


def plan(name: str) -> dict[str, str]:
    return {"deepspeed": f"scripts/{name}.json"}


PUBLISHED = LORA | {"lora_dropout": 0.05, "deepspeed": "scripts/zero3.json"} | BF16


def flags(world, accumulation: int, **more: object) -> dict:
    """Windows of six sequences. Nothing clips, on either side: it would hide a wrong scale of the gradient."""
    return {
        "data_path": world.folder / "mixed.json", "eval_data_path": world.folder / "mixed_val.json", "alignment": "pat",
        "alignment_schedule": "constant", "gradient_accumulation_steps": accumulation, "num_train_epochs": 2,
        "max_grad_norm": 0, "save_steps": RESUMED_AT, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2,
    } | more  # fmt: skip


def two_processes(world, out: Path, **more: object) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    command = world.finetune_argv(out, **flags(world, 3, **more))
    done = world.start(*launcher, "train/finetune.py", *command, timeout=LIMIT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def on_two(world, tmp_path_factory, name: str, **more: object) -> Path:
    out = tmp_path_factory.mktemp("two") / name
    two_processes(world, out, **more)
    return out


def on_one(world, tmp_path_factory, name: str, **more: object) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("one") / name
    finetune(world.finetune_argv(out, **flags(world, 6, **more)))
    return out


def resumed(world, whole: Path, out: Path, **more: object) -> Path:
    """A run that starts with what `whole` had left when it was killed after its checkpoint."""
    out.mkdir()
    for name in ("config.yaml", "metrics_init.json"):
        shutil.copy(whole / name, out / name)
    checkpoint = f"checkpoint-{RESUMED_AT}"
    shutil.copytree(whole / checkpoint, out / checkpoint)
    two_processes(world, out, **more)
    assert json.loads((out / "metrics.json").read_text())["resumed_from_step"] == RESUMED_AT
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    lora = folder / "adapter_model.safetensors"
    stored = load_file(lora if lora.is_file() else folder / "model.safetensors")
    return stored | load_file(folder / "mm_projector.safetensors")


def losses(folder: Path) -> list[list[float]]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    names = ("caption_loss", "alignment_loss", "alignment_items", "alignment_weight", "learning_rate", "grad_norm")
    lines = [line for line in history if "caption_loss" in line]
    assert len(lines) == STEPS
    return [[line[name] for name in names] for line in lines]


def measures(folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {k: v for k, v in metrics.items() if k.endswith(("_init", "_final"))}


def assert_same_run(ours: Path, theirs: Path) -> None:
    for one, other in zip(losses(ours), losses(theirs), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert measures(ours) == pytest.approx(measures(theirs), rel=1e-4, abs=1e-5)
    one, other = weights(ours), weights(theirs)
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], **TOLERANCE, msg=lambda text, key=key: f"{key}: {text}")


def assert_equal_run(ours: Path, theirs: Path) -> None:
    assert losses(ours) == losses(theirs) and measures(ours) == measures(theirs)
    one, other = weights(ours), weights(theirs)
    assert one.keys() == other.keys() and one
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


@pytest.fixture(scope="module")
def single(world, tmp_path_factory) -> Path:
    return on_one(world, tmp_path_factory, "llava-run", **FULL)


@pytest.fixture(scope="module")
def single_lora(world, tmp_path_factory) -> Path:
    return on_one(world, tmp_path_factory, "llava-lora", **LORA)


@pytest.fixture(scope="module")
def zero2_lora(world, tmp_path_factory) -> Path:
    return on_two(world, tmp_path_factory, "llava-lora", **LORA, **plan("zero2"))


@pytest.fixture(scope="module")
def zero3(world, tmp_path_factory) -> Path:
    return on_two(world, tmp_path_factory, "llava-run", **FULL, **plan("zero3"))


@pytest.fixture(scope="module")
def published(world, tmp_path_factory) -> Path:
    """The published LoRA recipe's way: ZeRO-3, bf16, recomputed activations, dropout."""
    return on_two(world, tmp_path_factory, "llava-lora", **PUBLISHED)


def test_the_data_have_steps_of_text_beside_an_image(make_finetuner, world) -> None:
    made = make_finetuner(**flags(world, 6, **FULL))
    order = [batch for batch in made.trainer.get_train_dataloader()]
    images = [len(batch["pixel_values"]) for batch in order]
    pairs = list(zip(images[::2], images[1::2], strict=True))  # what the two ranks have at a time
    assert {0, 1} in [set(pair) for pair in pairs]
    assert 0 in [len(batch["region_image"]) for batch, count in zip(order, images, strict=True) if count]


def test_zero3_is_one_process(single: Path, zero3: Path) -> None:
    assert_same_run(zero3, single)


def test_zero3_without_padding_is_one_process(world, single: Path, tmp_path: Path) -> None:
    """Three sequences a micro-batch, end to end, against one at a time."""
    out = tmp_path / "llava-run"
    batches = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "padding_free": True}
    two_processes(world, out, **FULL, **plan("zero3"), **batches)
    assert_same_run(out, single)


def test_offload_is_one_process(world, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava-run"
    two_processes(world, out, **FULL, **plan("zero3_offload"))
    assert_same_run(out, single)


def test_ddp_is_one_process(world, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava-run"
    two_processes(world, out, **FULL)
    assert_same_run(out, single)


def test_lora_under_zero2_is_one_process(single_lora: Path, zero2_lora: Path) -> None:
    assert_same_run(zero2_lora, single_lora)


def test_lora_under_zero3_is_one_process(world, single_lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava-lora"
    two_processes(world, out, **LORA, **plan("zero3"))
    assert_same_run(out, single_lora)


def test_zero3_fills_and_reads_a_feature_cache(world, single_lora: Path, tmp_path: Path) -> None:
    """The tower's shards are gathered for it; in training its weights are not asked for."""
    out = tmp_path / "llava-lora"
    cache = {"feature_cache": tmp_path / "cache", "feature_cache_dtype": "float32"}
    two_processes(world, out, **LORA, **plan("zero3"), **cache)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    assert_same_run(out, single_lora)


def test_lora_under_zero2_goes_on_to_the_bit(world, zero2_lora: Path, tmp_path: Path) -> None:
    assert_equal_run(resumed(world, zero2_lora, tmp_path / "llava-lora", **LORA, **plan("zero2")), zero2_lora)


def test_zero3_goes_on_to_the_bit(world, zero3: Path, tmp_path: Path) -> None:
    assert_equal_run(resumed(world, zero3, tmp_path / "llava-run", **FULL, **plan("zero3")), zero3)


def test_lora_under_zero3_in_bf16_goes_on_to_the_bit(world, published: Path, tmp_path: Path) -> None:
    assert_equal_run(resumed(world, published, tmp_path / "llava-lora", **PUBLISHED), published)


def test_checkpoints_hold_what_trains(zero3: Path, zero2_lora: Path) -> None:
    """Whole weights in every checkpoint, gathered; beside adapters nothing of the frozen base."""
    whole = load_file(zero3 / "checkpoint-3" / "model.safetensors")
    assert whole.keys() == load_file(zero3 / "model.safetensors").keys()
    assert all(tensor.numel() for tensor in whole.values())
    states = list((zero2_lora / "checkpoint-3").glob("global_step*/*model_states.pt"))
    assert states
    for file in states:
        names = torch.load(file, map_location="cpu", weights_only=False)["module"].keys()
        assert names and all(".lora_" in name or ".projector." in name for name in names)


def assert_near(ours: Path, theirs: Path) -> None:
    """bf16 against fp32: finite everywhere, and the same course."""
    assert all(math.isfinite(number) for line in losses(ours) for number in line)
    for one, other in zip(losses(ours), losses(theirs), strict=True):
        assert one[0] == pytest.approx(other[0], rel=0.1)
    written = weights(ours)
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert all(torch.isfinite(tensor).all() for tensor in written.values())


def test_zero3_in_bf16_with_recomputed_activations(world, single: Path, tmp_path: Path) -> None:
    """Every trained part in one dtype: with a projector in fp32, ZeRO-3 does not even start."""
    out = tmp_path / "llava-run"
    two_processes(world, out, **FULL, **plan("zero3"), **BF16)
    assert_near(out, single)


def test_lora_under_zero3_in_bf16(published: Path, single_lora: Path) -> None:
    assert_near(published, single_lora)
