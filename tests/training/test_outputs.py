"""What a run changes and what it leaves behind."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llava_pat.training.arguments import parse_pretrain
from llava_pat.training.stages import pretrain

ROOT = Path(__file__).resolve().parents[2]
KEYS = {f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
MEASURES = ("caption_loss", "patch_cosine", "hit_at_1", "hit_at_5", "entropy_features", "entropy_patches")


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("outputs") / "llava-run"
    capture = pytest.MonkeyPatch()
    said: list[str] = []
    capture.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
    metrics = pretrain(world.argv(out, num_train_epochs=2, logging_steps=1))
    capture.undo()
    return out, metrics, "\n".join(said)


def test_files(finished) -> None:
    out, _, _ = finished
    names = {path.name for path in out.iterdir()}
    assert names >= {"mm_projector.bin", "mm_projector.safetensors", "config.json", "config.yaml", "trainer_state.json",
                     "metrics.json", "checkpoint-12"}  # fmt: skip
    # what LLaVA takes for another kind of checkpoint must not lie here
    assert not names & {"model.safetensors", "pytorch_model.bin", "adapter_model.safetensors"}
    stored = torch.load(out / "mm_projector.bin", weights_only=True)
    assert set(stored) == KEYS and {tensor.dtype for tensor in stored.values()} == {torch.float32}
    twin = load_file(out / "mm_projector.safetensors")
    assert all(torch.equal(tensor, twin[key]) for key, tensor in stored.items())
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 12
    config = json.loads((out / "config.json").read_text())
    assert (config["mm_projector_type"], config["mm_vision_select_layer"]) == ("mlp2x_gelu", -2)
    assert (config["mm_hidden_size"], config["hidden_size"]) == (16, 24)


def test_config_yaml_is_the_run(world, finished) -> None:
    out, _, _ = finished
    resolved = yaml.safe_load((out / "config.yaml").read_text())
    assert (resolved["alignment"], resolved["alignment_weight"], resolved["seed"]) == ("pat", 2.0, 1)
    again = parse_pretrain(["--config", str(out / "config.yaml")])
    assert (again.training.learning_rate, again.training.num_train_epochs) == (1e-2, 2)


def test_metrics_and_table_hold_the_same_numbers(finished) -> None:
    out, returned, said = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == returned
    assert (metrics["objective"], metrics["seed"], metrics["steps"]) == ("pat", 1, 12)
    assert metrics["seconds"] > 0 and metrics["peak_memory_bytes"] > 1e6
    assert metrics["samples_per_second"] == pytest.approx(24 / metrics["seconds"])
    assert all(not isinstance(value, (dict, list)) for value in metrics.values())
    assert len(metrics["data_manifest"]) == 64 and f"manifest {metrics['data_manifest'][:16]}" in said
    table = {line[:42].strip(): line[42:].split() for line in said.splitlines()}
    rows = {
        "caption loss, held out (nats per token)": "caption_loss", "patch cosine with its label's words":
        "patch_cosine", "hit@1, right word among the vocabulary": "hit_at_1", "hit@5": "hit_at_5",
        "entropy before the projector (nats)": "entropy_features", "entropy after the projector (nats)":
        "entropy_patches", "nearest colour right": "hit_colour", "nearest kind right": "hit_kind",
    }  # fmt: skip
    assert set(MEASURES) <= set(rows.values())
    for words, name in rows.items():
        assert table[words] == [f"{metrics[f'{name}_init']:.4f}", f"{metrics[f'{name}_final']:.4f}"], words
    # it learned: held-out patches moved to their words, and the tower was not touched
    assert metrics["patch_cosine_final"] > metrics["patch_cosine_init"] + 0.02
    assert metrics["entropy_features_final"] == metrics["entropy_features_init"]


def test_log_lines(finished) -> None:
    out, _, said = finished
    lines = [x for x in json.loads((out / "trainer_state.json").read_text())["log_history"] if "caption_loss" in x]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["alignment_weight"] for line in lines] == pytest.approx([2 * step / 12 for step in range(12)])
    needed = ("alignment_loss", "alignment/patch_cosine", "learning_rate", "grad_norm", "samples_per_second", "epoch")
    assert all(name in line for line in lines for name in needed)
    assert any(line.startswith("step 12/12 | caption ") and "ETA 0:00" in line for line in said.splitlines())
    assert "12 records" in said and "14 regions" in said


@pytest.mark.parametrize("objective", ["pat", "my_package.my_module"])
def test_only_the_projector_and_the_objective_change(make_trainer, objective: str) -> None:
    made = make_trainer(alignment=objective, max_steps=3, save_strategy="no", alignment_schedule="constant")
    before = {name: tensor.clone() for name, tensor in made.task.state_dict().items()}
    made.trainer.train()
    changed = {name for name, tensor in made.task.state_dict().items() if not torch.equal(tensor, before[name])}
    expected = {f"model.projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    if objective != "pat":
        expected |= {"objective.head.weight", "objective.head.bias"}
    assert changed == expected
    in_optimizer = {id(p) for group in made.trainer.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for name, p in made.task.named_parameters() if name in expected}


def test_a_text_only_and_unmeasured_run(world, tmp_path: Path) -> None:
    """`none` needs neither regions nor held-out data; conversations with and without images in one micro-batch."""
    out = tmp_path / "llava-run"
    absent = dict.fromkeys(("regions_path", "eval_data_path", "eval_regions_path", "vocabulary_path"))
    mixed = {"data_path": world.folder / "mixed.json", "version": "v1", "per_device_train_batch_size": 3}
    metrics = pretrain(world.argv(out, alignment="none", alignment_args=None, **absent, **mixed))
    assert metrics["steps"] == 2 and metrics["objective"] == "none"
    assert not [name for name in metrics if name.endswith(("_init", "_final"))]
    assert set(torch.load(out / "mm_projector.bin", weights_only=True)) == KEYS


def test_starting_from_a_projector(world, finished, tmp_path: Path) -> None:
    out, metrics, _ = finished
    more = pretrain(world.argv(tmp_path / "llava-run", pretrain_mm_mlp_adapter=out / "mm_projector.bin", max_steps=1))
    assert more["caption_loss_init"] == pytest.approx(metrics["caption_loss_final"], abs=1e-6)


def published() -> list[str]:
    """The arguments of scripts/pretrain.sh: LLaVA's own list."""
    _, _, command = (ROOT / "scripts" / "pretrain.sh").read_text().partition("launch train/pretrain.py")
    return [word for word in shlex.split(command) if word.strip() not in ("", "$@")]


def test_the_published_command_runs(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16, gradient checkpointing, 4 workers, DeepSpeed's plan, as published; paths are overridden."""
    monkeypatch.chdir(ROOT)
    words = published()
    assert words[:2] == ["--deepspeed", "./scripts/zero2.json"] and "--gradient_checkpointing" in words
    out = tmp_path / "llava-run"
    here = {
        "model_name_or_path": world.folder / "llm", "vision_tower": world.folder / "clip", "report_to": "none",
        "data_path": world.folder / "train.json", "image_folder": world.folder / "images", "output_dir": out,
        "per_device_train_batch_size": 4,
    }  # fmt: skip
    metrics = pretrain([*words, *(f"--{name}={value}" for name, value in here.items())])
    assert (metrics["objective"], metrics["steps"]) == ("none", 3)
    stored = torch.load(out / "mm_projector.bin", weights_only=True)
    assert set(stored) == KEYS and all(torch.isfinite(tensor).all() for tensor in stored.values())
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert all(math.isfinite(line["loss"]) for line in history if "loss" in line)


def test_none_is_the_run_without_regions(world, tmp_path: Path) -> None:
    """Regions and their weight change nothing for `none`: to the bit the caption loss alone."""
    absent = {"regions_path": None}
    for name, more in (("with", {}), ("without", absent)):
        pretrain(world.argv(tmp_path / f"llava-{name}", alignment="none", logging_steps=1, **more))
    one, other = ((tmp_path / f"llava-{name}" / "mm_projector.bin").read_bytes() for name in ("with", "without"))
    assert one == other
