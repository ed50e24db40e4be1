"""--padding_free True is the same training, in both stages: gradients, log lines, held-out measures, weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Lfm2Config, Lfm2ForCausalLM

from llava_pat.training.flags import ConfigError
from llava_pat.training.stages import finetune, pretrain
from tests.training.test_invariance import SEA, flags, run

# Adam's first steps magnify rounding where a gradient is small; as in test_stage2_distributed.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
BOTH = {"alignment": "pat+sea", "alignment_args": json.dumps({"sea": SEA | {"weight": 1.0}})}


def assert_same_log(ours: list[dict], theirs: list[dict]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"samples_per_second"}:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


def assert_same_gradients(ours: list[dict], theirs: list[dict]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        largest = max(gradient.abs().max() for gradient in other.values())
        assert largest > 0
        for name, gradient in other.items():  # adapters' first ones are zero, key biases' are rounding alone
            assert (one[name] - gradient).abs().max() <= 1e-5 * largest, name


def test_stage_1(make_trainer, world) -> None:
    """Micro-batches with text alone, without a region; two objectives, accumulation."""
    chosen = flags(3, 2, **BOTH, data_path=world.folder / "mixed.json", version="v1")
    padded, padded_log = run(make_trainer(**chosen), 2)
    made = make_trainer(**chosen, padding_free=True)
    assert made.task.model.padding_free
    ours, log = run(made, 2)
    assert_same_gradients(ours, padded)
    assert_same_log(log, padded_log)


@pytest.mark.parametrize(
    "chosen",
    [
        {"activation_checkpointing": True},
        {"mm_projector_lr": 1e-3, "unfreeze_mm_vision_tower": True},
        {"lora_enable": True, "lora_r": 4, "lora_dropout": 0.0, "activation_checkpointing": True},
        {"attn_implementation": "eager", "alignment": "pat"},
    ],
    ids=["full", "tower", "lora", "eager"],
)
def test_stage_2(make_finetuner, chosen: dict) -> None:
    """Several turns, several images in a record, text alone; grouped by length."""
    padded, padded_log = run(make_finetuner(**flags(3, 2, **chosen)), 2)
    made = make_finetuner(**flags(3, 2, padding_free=True, **chosen))
    rows = []
    made.task.model.llm.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    ours, log = run(made, 2)
    assert rows and set(rows) == {1}, "the language model sees one row"
    assert_same_gradients(ours, padded)
    assert_same_log(log, padded_log)


def assert_same_weights(ours: Path, theirs: Path, name: str) -> None:
    one, other = load_file(ours / name), load_file(theirs / name)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], **TOLERANCE)


def without_speed(metrics: dict) -> dict:
    measured = {"seconds", "samples_per_second", "peak_memory_bytes"}
    return {name: value for name, value in metrics.items() if name not in measured}


def test_whole_runs_end_the_same(world, tmp_path: Path) -> None:
    """By the commands: losses in between, held-out measures before and after, weights, and config.json."""
    command = {"per_device_train_batch_size": 3, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    for stage, argv, file in (
        (pretrain, world.argv, "mm_projector.safetensors"),
        (finetune, world.finetune_argv, "model.safetensors"),
    ):
        outs = [tmp_path / f"llava-{stage.__name__}-{kind}" for kind in ("padded", "free")]
        metrics = [stage(argv(out, padding_free=out.name.endswith("free"), **command)) for out in outs]
        measured = [without_speed(one) for one in metrics]
        assert measured[0].keys() == measured[1].keys() and "caption_loss_final" in measured[0]
        for name, value in measured[0].items():
            if isinstance(value, float):
                assert measured[1][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
            else:
                assert measured[1][name] == value, name
        assert_same_weights(*outs, file)
        histories = [json.loads((out / "trainer_state.json").read_text())["log_history"] for out in outs]
        lines = [[line["caption_loss"] for line in history if "caption_loss" in line] for history in histories]
        assert len(lines[0]) == metrics[0]["steps"] and lines[1] == pytest.approx(lines[0], rel=1e-4)
        held_out = [[line["eval_caption_loss"] for line in h if "eval_caption_loss" in line] for h in histories]
        assert len(held_out[0]) == len(lines[0]) and held_out[1] == pytest.approx(held_out[0], rel=1e-4)
        assert (outs[0] / "config.json").read_text() == (outs[1] / "config.json").read_text()


def test_bf16_stays_close(make_trainer) -> None:
    """Autocast on a CPU; the boundaries are checked under it."""
    chosen = {"bf16": True, "alignment": "pat"}
    _, padded = run(make_trainer(**flags(4, 1, **chosen)), 3)
    _, ours = run(make_trainer(**flags(4, 1, padding_free=True, **chosen)), 3)
    for one, other in zip(ours, padded, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-2)


def test_a_language_model_with_convolutions_is_refused_before_the_data_are_read(
    world, refused_finetune, tmp_path
) -> None:
    config = Lfm2Config(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=520, full_attn_idxs=[1],
    )  # fmt: skip
    Lfm2ForCausalLM(config).save_pretrained(tmp_path / "lfm2")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(world.folder / "llm" / name, tmp_path / "lfm2" / name)
    message = refused_finetune(model_name_or_path=tmp_path / "lfm2", padding_free=True)
    assert "lfm2 has layers of the kind conv" in message and "--padding_free False" in message


def test_a_leak_is_refused_before_the_first_step(make_trainer) -> None:
    made = make_trainer(**flags(4, 1, padding_free=True))
    made.task.model.llm.set_attn_implementation("sdpa")
    made.task.model.llm.model.layers[1].self_attn.register_forward_pre_hook(
        lambda _, args, keywords: (args, keywords | {"attention_mask": None}), with_kwargs=True
    )
    with pytest.raises(ValueError, match="a sequence depends on the one before it"):
        made.trainer.train()
    assert made.trainer.state.global_step == 0


def test_trls_packing_is_not_this(world, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--packing True is not for stage 1: --padding_free True"):
        pretrain([*world.argv(tmp_path / "llava-x"), "--packing", "True"])
