"""Plans: states by hand, memory that grows evenly, configs as training reads them, the command."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path

import pytest
import torch

from llava_pat import plan as command
from llava_pat.performance import gpus
from llava_pat.performance.gpus import GIB, Gpu, parse_gpus
from llava_pat.performance.planned_run import read_run
from llava_pat.performance.planning import Memory, Planner, RunConfig
from llava_pat.performance.shapes import SHAPES, Recipe, Shape, build_task
from llava_pat.performance.states import Sharing, States, states_of
from llava_pat.training.flags import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [file for file in sorted((ROOT / "scripts" / "configs").glob("*.yaml")) if "annotate" not in file.stem]
LARGE = Gpu("large", 1000 * GIB, 1e15)
PROJECTOR = 1024 * 4096 + 4096 + 4096**2 + 4096
LLM = 6_738_415_616


def sharing(name: str | None, ranks: int) -> Sharing:
    return Sharing.of(None if name is None else json.loads((ROOT / "scripts" / name).read_text()), ranks)


def run_of(shape: Shape, recipe: Recipe, share: Sharing, micro_batch: int = 1, global_batch: int = 8) -> RunConfig:
    return RunConfig("run", recipe.stage, shape, recipe, share, micro_batch, global_batch, 20, 10, patches=4)


def test_gpus_by_name() -> None:
    assert parse_gpus("8xA100-80G") == (8, gpus.GPUS["A100-80G"])
    assert parse_gpus("4090-24g") == (1, gpus.GPUS["4090-24G"])
    for wrong in ("8xV100", "0xL4-24G", "x", "A100-80G x 8"):
        with pytest.raises(ValueError, match="expected COUNTxNAME"):
            parse_gpus(wrong)


def test_deepspeeds_plans() -> None:
    assert sharing(None, 4) == Sharing(4)
    assert sharing("zero2.json", 8) == Sharing(8, 2, live_weights=10**9, group=10**9)
    assert sharing("zero3.json", 8) == Sharing(8, 3, live_weights=10**9, group=10**9)
    assert sharing("zero3_offload.json", 8) == Sharing(8, 3, True, True, 10**9, 10**9)
    assert Sharing.of({"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}}, 8).bucket == 1000
    assert [sharing(name, 8).gradient_share for name in (None, "zero2.json", "zero3_offload.json")] == [1.0, 0.125, 0.0]


def test_states_of_7b_by_hand() -> None:
    shape, recipe = SHAPES["llava-v1.5-7b"], Recipe("projector", torch.bfloat16, masters=False)
    task = build_task(shape, recipe, "meta")
    buffers = sum(b.numel() * b.element_size() for b in task.buffers())
    tower = sum(p.numel() for p in task.model.tower.parameters())
    zero2 = states_of(task, recipe, sharing("zero2.json", 8))
    assert zero2.weights == 2 * (LLM + PROJECTOR + tower) + buffers
    assert zero2.optimizer == 12 * PROJECTOR / 8
    assert zero2.buckets == 2 * 2 * 4096**2
    assert zero2.update == 8 * PROJECTOR / 8
    assert zero2.gathered == 0


def test_states_of_7b_under_zero3_by_hand() -> None:
    """All of the language model: 13.5 GB of weights and as many of gradients, 81 GB of optimizer states, on 8 GPUs."""
    shape, whole = SHAPES["llava-v1.5-7b"], Recipe("all", torch.bfloat16, masters=False)
    task = build_task(shape, whole, "meta")
    tower = sum(p.numel() for p in task.model.tower.parameters())
    buffers = sum(b.numel() * b.element_size() for b in task.buffers())
    zero3 = states_of(task, whole, sharing("zero3.json", 8))
    assert zero3.weights == (2 * (LLM + PROJECTOR + tower) + buffers) / 8
    assert zero3.optimizer == 12 * (LLM + PROJECTOR) / 8
    assert zero3.gathered == 2e9
    assert zero3.update == 8 * (LLM + PROJECTOR) / 8
    assert states_of(task, whole, sharing("zero3.json", 2)).update == 8 * 1e9  # 1e9 of 3.4e9 at a time
    assert zero3.weights + zero3.optimizer == pytest.approx(1.78e9 + 10.14e9, rel=0.01)
    offloaded = states_of(task, whole, sharing("zero3_offload.json", 8))
    assert (offloaded.weights, offloaded.optimizer, offloaded.update) == (0, 0, 0)
    assert offloaded.host == pytest.approx(((LLM + PROJECTOR) * 20 + 2 * tower) / 8, rel=1e-4)


def test_states_without_deepspeed_by_hand() -> None:
    recipe = Recipe("all", torch.bfloat16)
    task = build_task(SHAPES["llava-v1.5-7b"], recipe, "meta")
    tower = sum(p.numel() for p in task.model.tower.parameters())
    buffers = sum(b.numel() * b.element_size() for b in task.buffers())
    alone, two = (states_of(task, recipe, Sharing(ranks)) for ranks in (1, 2))
    assert alone.weights == two.weights == 4 * (LLM + PROJECTOR) + 2 * tower + buffers
    assert alone.optimizer == two.optimizer == 8 * (LLM + PROJECTOR)
    assert (alone.buckets, two.buckets) == (0, 4 * (LLM + PROJECTOR))
    assert alone.update == 4 * (LLM + PROJECTOR)


def test_published_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA's README at c121f04, 8 x A100; two utilisations were fitted to these four."""
    monkeypatch.chdir(ROOT)
    published = {
        "llava-v1.5-7b": 3.5,
        "llava-v1.5-13b": 5.5,
        "llava-v1.5-7b_finetune": 10,
        "llava-v1.5-13b_finetune": 20,
    }
    for name, hours in published.items():
        run = read_run(ROOT / "scripts" / "configs" / f"{name}.yaml", (), 8, None)
        steps = math.ceil(run.samples / run.global_batch)
        step = Planner(gpus.GPUS["A100-80G"]).step_seconds(run)
        assert steps * step / 3600 == pytest.approx(hours, rel=0.12), name


def test_the_fullest_moment() -> None:
    states = States(weights=10, optimizer=20, buckets=3, gathered=4, update=50)
    assert Memory(states, gradients=5, activations=40).in_use == 10 + 20 + 3 + 5 + 50
    assert Memory(states, gradients=5, activations=60).in_use == 10 + 20 + 3 + 5 + 4 + 60
    replaces = dataclasses.replace(states, update_replaces_gradients=True)
    assert Memory(replaces, gradients=5, activations=40).in_use == 10 + 20 + 3 + 50
    assert Memory(replaces, gradients=5, activations=47).in_use == 10 + 20 + 3 + 5 + 4 + 47
    assert Memory(replaces, gradients=5, activations=40).between_steps == 30
    roomy = dataclasses.replace(states, room_for_gradients=True)
    assert Memory(roomy, gradients=5, activations=40).between_steps == 35


def test_four_bits_by_hand() -> None:
    recipe = Recipe("lora", torch.bfloat16, bits=4)
    task = build_task(SHAPES["llava-v1.5-7b"], recipe, "meta")
    quantised = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    words, norms = 2 * 32000 * 4096, LLM - quantised - 2 * 32000 * 4096
    lora = 128 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    rest = sum(
        p.numel() * p.element_size() for p in (*task.model.tower.parameters(), *task.model.projector.parameters())
    )
    rest += sum(b.numel() * b.element_size() for b in task.buffers())
    for double_quant, constants in ((True, 1 / 64 + 4 / (64 * 256)), (False, 4 / 64)):
        states = states_of(task, dataclasses.replace(recipe, double_quant=double_quant), Sharing(1))
        expected = quantised * (0.5 + constants) + 2 * words + 4 * norms + 4 * lora + rest
        assert states.weights == pytest.approx(expected, rel=1e-9)
    assert {p.dtype for n, p in task.model.llm.named_parameters() if "norm" in n} == {torch.float32}


def test_the_largest_micro_batch(tiny: Shape) -> None:
    run = run_of(tiny, Recipe("projector", torch.bfloat16), Sharing(2), global_batch=48)
    total = {size: Planner(LARGE).memory(dataclasses.replace(run, micro_batch=size)).total for size in (1, 2, 4, 8)}

    def largest(memory: float) -> int:
        return Planner(Gpu("g", memory, 1e15)).largest_micro_batch(run)

    assert largest(1000 * GIB) == 8  # 16 does not divide the 24 sequences of a GPU
    assert largest(total[8]) == 8
    assert largest(total[8] - 1) == 4
    assert largest(total[2] - 1) == 1
    assert largest(total[1] - 1) == 0


def test_accumulation_holds_gradients_beside_activations(tiny: Shape) -> None:
    run = run_of(tiny, Recipe("all", torch.float32), Sharing(1), micro_batch=2, global_batch=2)
    once, often = (Planner(LARGE).memory(dataclasses.replace(run, global_batch=size)) for size in (2, 8))
    assert often.gradients == once.gradients
    assert often.activations > once.activations


def test_time_is_work_over_rate(tiny: Shape) -> None:
    run = run_of(tiny, Recipe("projector", torch.float32), Sharing(2), micro_batch=2, global_batch=8)
    plan, half = Planner(LARGE, 0.5).plan(run), Planner(LARGE, 0.25).plan(run)
    assert run.accumulation == 2 and half.step_seconds == pytest.approx(2 * plan.step_seconds)
    recomputing = Planner(LARGE, 0.5).plan(
        dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, checkpointing=True))
    )
    assert 1.3 < recomputing.step_seconds / plan.step_seconds < 1.5
    assert plan.run_seconds is None
    assert Planner(LARGE).plan(run).utilisation == 0.5
    assert Planner(LARGE, 0.5).plan(dataclasses.replace(run, samples=17)).run_seconds == 3 * plan.step_seconds


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_preset_is_read(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run = read_run(config, (), 4, None)
    assert run.stage == (2 if "_finetune" in config.stem else 1)
    assert run.recipe.bits == (4 if "qlora" in config.stem else 16)
    assert (run.recipe.trains == "lora") == ("lora" in config.stem)
    real = config.stem.startswith("llava")
    assert run.sharing.stage == ((0 if "qlora" in config.stem else 3 if run.stage == 2 else 2) if real else 0)
    assert run.recipe.masters == (run.sharing.stage == 0)
    assert run.patches == (576 if real else 100)
    assert run.most_text_tokens == (2048 - 1 - run.patches if run.stage == 2 else 128)
    assert run.global_batch == ({1: 256, 2: 128}[run.stage] if real else run.global_batch)
    assert run.samples == ({1: 558_128, 2: 665_298}[run.stage] if real else run.samples)


def test_flags_override_the_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = ROOT / "scripts" / "configs" / "llava-v1.5-7b.yaml"
    flags = ("--per_device_train_batch_size", "4", "--activation_checkpointing", "False", "--deepspeed",
             "scripts/zero3.json", "--max_steps", "10")  # fmt: skip
    run = read_run(config, flags, 8, None)
    assert (run.micro_batch, run.global_batch, run.sharing.stage, run.recipe.checkpointing) == (4, 256, 3, False)
    assert run.samples == 2560
    short = read_run(config, ("--model_max_length", "600"), 8, None)
    assert (short.usual_text_tokens, short.most_text_tokens) == (23, 23)
    with pytest.raises(ConfigError, match="at least 578"):
        read_run(config, ("--model_max_length", "576"), 8, None)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    config = ["--config", "scripts/configs/playground_pat.yaml"]
    assert command.main([*config, "--gpus", "A10-24G"]) == 0
    text = capsys.readouterr().out
    assert "playground_finetune_qlora" in text and "without gradient checkpointing" in text and "fits" in text
    monkeypatch.setitem(gpus.GPUS, "small-2G", Gpu("small-2G", 1.6 * GIB, 1e12))
    assert command.main([*config, "--gpus", "small-2G", "--no-presets", "--per_device_train_batch_size", "32"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert command.main([*config, "--gpus", "small-2G", "--per_device_train_batch_size", "32"]) == 1
    assert "it does with --per_device_train_batch_size" in capsys.readouterr().out
    assert not logging.root.manager.disable  # of the process: others go on to warn
    assert command.main([*config, "--gpus", "toaster"]) == 2
    assert "A100-80G" in capsys.readouterr().err
    assert command.main([*config, "--gpus", "L4-24G", "--nonsense", "1"]) == 2
    assert "nonsense" in capsys.readouterr().err
