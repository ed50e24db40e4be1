"""Two processes are one: ZeRO-2 and DDP against a single process, and a ZeRO-2 run that goes on from its checkpoint.

The data hold text-only micro-batches and ranks without a region: a run that hangs on them fails by its time limit.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from llava_pat.training.stages import pretrain

ZERO2 = {"deepspeed": "scripts/zero2.json"}
LIMIT = 900  # seconds; the first run of all compiles DeepSpeed's communication for CPUs

# Sums over ranks in another order; Adam's first steps magnify rounding where a gradient is small. Measured, of entries
# around 0.2 that moved by 1e-2: below 2e-6.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def flags(world, accumulation: int, **more: object) -> dict:
    """Windows of six sequences, two epochs of two steps.

    Nothing clips, on either side: DeepSpeed's own default, a norm of 1, would show (the gradients' are 2 to 3).
    """
    return {
        "version": "v1", "data_path": world.folder / "mixed.json", "eval_data_path": world.folder / "mixed_val.json",
        "gradient_accumulation_steps": accumulation, "num_train_epochs": 2, "max_grad_norm": 0, "logging_steps": 1,
        "alignment_schedule": "constant", "eval_strategy": "steps", "eval_steps": 2,
    } | more  # fmt: skip


def two_processes(world, out: Path, **more: object) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    command = world.argv(out, **flags(world, 3, **more))
    done = world.start(*launcher, "train/pretrain.py", *command, timeout=LIMIT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def projector(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "mm_projector.bin", weights_only=True)


def losses(folder: Path) -> list[list[float]]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    names = ("caption_loss", "alignment_loss", "alignment_items", "alignment_weight", "learning_rate", "grad_norm")
    lines = [line for line in history if "caption_loss" in line]
    assert len(lines) == 4
    return [[line[name] for name in names] for line in lines]


def measures(folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {k: v for k, v in metrics.items() if k.endswith(("_init", "_final"))}


def assert_same_run(ours: Path, theirs: Path) -> None:
    for one, other in zip(losses(ours), losses(theirs), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert measures(ours) == pytest.approx(measures(theirs), rel=1e-4, abs=1e-5)
    one, other = projector(ours), projector(theirs)
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], **TOLERANCE)


@pytest.fixture(scope="module")
def single(world, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("one") / "llava-run"
    pretrain(world.argv(out, **flags(world, 6)))
    return out


@pytest.fixture(scope="module")
def zero2(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("two") / "llava-run"
    two_processes(world, out, **ZERO2)
    return out


def test_zero2_is_one_process(single: Path, zero2: Path) -> None:
    assert_same_run(zero2, single)


def test_zero2_checkpoint_holds_nothing_frozen(world, zero2: Path) -> None:
    checkpoint = zero2 / "checkpoint-2"
    states = list(checkpoint.glob("global_step*/*model_states.pt"))
    assert states
    for file in states:
        names = torch.load(file, map_location="cpu", weights_only=False)["module"].keys()
        assert set(names) == {f"model.projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    frozen = (world.folder / "llm" / "model.safetensors").stat().st_size
    assert sum(p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()) < frozen


def test_ranks_draw_for_themselves(zero2: Path) -> None:
    with safe_globals():
        states = [torch.load(zero2 / "checkpoint-2" / f"rng_state_{rank}.pth", weights_only=True) for rank in (0, 1)]
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])


def test_zero2_goes_on_to_the_bit(world, zero2: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava-run"
    out.mkdir()
    for name in ("config.yaml", "metrics_init.json"):
        shutil.copy(zero2 / name, out / name)
    shutil.copytree(zero2 / "checkpoint-2", out / "checkpoint-2")
    two_processes(world, out, **ZERO2)
    assert json.loads((out / "metrics.json").read_text())["resumed_from_step"] == 2
    assert losses(out) == losses(zero2)
    for key, tensor in projector(out).items():
        assert torch.equal(tensor, projector(zero2)[key]), key
    assert measures(out) == measures(zero2)


def test_zero2_in_bf16_with_a_foreign_objective(world, single: Path, tmp_path: Path) -> None:
    """Finite, near the fp32 run, trains the objective's parameters; it refuses coverage in anything but fp32 itself."""
    out = tmp_path / "llava-run"
    two_processes(world, out, **ZERO2, bf16=True, alignment="my_package.my_module", activation_checkpointing=True)
    assert all(math.isfinite(number) for line in losses(out) for number in line)
    for one, other in zip(losses(out), losses(single), strict=True):
        assert one[0] == pytest.approx(other[0], rel=0.2)
    assert all(torch.isfinite(tensor).all() for tensor in projector(out).values())
    trained = load_file(out / "alignment_objective.safetensors")
    begun = load_file(out / "checkpoint-2" / "alignment_objective.safetensors")
    assert set(trained) == {"head.weight", "head.bias"}
    assert not torch.equal(trained["head.weight"], begun["head.weight"])


@pytest.mark.parametrize("plan", [{}, ZERO2], ids=["ddp", "zero2"])
def test_contrasting_over_two_ranks_is_one_process(world, tmp_path: Path, plan: dict) -> None:
    """pat+sea: SEA's negatives come from both ranks, some of which have no label at all.

    A micro-batch of one process is as large as those of both ranks. No random choice.
    """
    sea = {"labels": "regions", "window": 0, "sampling": "best", "dedup": "mask", "min_coverage": 0.0}
    chosen = {"alignment": "pat+sea", "alignment_args": json.dumps({"sea": sea | {"weight": 1.0}})}
    one, two = tmp_path / "llava-one", tmp_path / "llava-two"
    pretrain(world.argv(one, **flags(world, 3, **chosen, per_device_train_batch_size=2)))
    two_processes(world, two, **chosen, **plan)
    assert_same_run(two, one)
    trained, expected = (load_file(folder / "alignment_objective.safetensors") for folder in (two, one))
    assert set(trained) == {"parts.sea.log_scale"} and trained["parts.sea.log_scale"].abs() > 1e-3
    torch.testing.assert_close(trained["parts.sea.log_scale"], expected["parts.sea.log_scale"], **TOLERANCE)
    lines = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (two, one)]
    for ours, theirs in zip(*([line for line in log if "caption_loss" in line] for log in lines), strict=True):
        names = [name for name in ours if name.startswith("alignment/")]
        assert {"alignment/sea_accuracy", "alignment/sea_skipped", "alignment/pat_loss"} <= set(names)
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name


def test_ddp_is_one_process(world, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava-run"
    two_processes(world, out)
    assert_same_run(out, single)
