"""Stage 2 in one process: what trains, by how much, with which gradient; and what a finished folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    TrainerCallback,
)

from llava_pat.models.from_folder import load_model
from llava_pat.training.stages import finetune
from llava_pat.types import IMAGE_TOKEN_INDEX

TOWER_KEYS = "model.vision_tower.vision_tower.vision_model."
UNUSED_ID = 519  # of the 520 pieces; in no text here (asserted), so that it may stand for the image


def snapshot(task: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in task.named_parameters()}


def moved(made: SimpleNamespace) -> tuple[set[str], set[str]]:
    """Names of the parameters that two steps of training moved, and of those that stayed to the bit."""
    before = snapshot(made.task)
    made.trainer.train()
    after = snapshot(made.task)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    return changed, before.keys() - changed


def short(**more: object) -> dict:
    return {"max_steps": 2, "save_strategy": "no", "warmup_steps": 0, "gradient_accumulation_steps": 4} | more


def named(names: set[str], part: str) -> set[str]:
    return {name for name in names if name.startswith(f"model.{part}.")}


# ---- what trains


def test_all_of_language_model_and_projector_and_nothing_of_the_tower(make_finetuner) -> None:
    changed, kept = moved(make_finetuner(**short()))
    assert named(changed, "llm") and not named(kept, "llm")
    assert len(named(changed, "projector")) == 4 and not named(kept, "projector")
    assert named(kept, "tower") and not named(changed, "tower")


def test_the_projector_comes_from_its_file(make_finetuner, world) -> None:
    stored = load_file(world.folder / "projector" / "mm_projector.safetensors")
    for source in (None, world.folder / "projector"):
        flags = {} if source is None else {"pretrain_mm_mlp_adapter": source}
        model = make_finetuner(**flags).task.model
        for name, tensor in model.projector.state_dict().items():
            assert torch.equal(tensor, stored[f"model.mm_projector.{name}"]), name
    random = make_finetuner(pretrain_mm_mlp_adapter="none").task.model
    assert not torch.equal(random.projector[0].weight, stored["model.mm_projector.0.weight"])


def test_frozen_backbone(make_finetuner) -> None:
    changed, _ = moved(make_finetuner(**short(freeze_backbone=True)))
    assert changed == {f"model.projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}


def test_frozen_projector(make_finetuner) -> None:
    changed, kept = moved(make_finetuner(**short(freeze_mm_mlp_adapter=True)))
    assert not named(kept, "llm") and changed == named(changed, "llm")


def test_an_unfrozen_tower(make_finetuner) -> None:
    """The layers that are used (-2 of two: the first), the embeddings; not what comes behind them."""
    made = make_finetuner(**short(unfreeze_mm_vision_tower=True))
    changed, kept = moved(made)
    assert not named(kept, "llm") and not named(kept, "projector")
    tower = {name for name in named(changed, "tower")}
    assert any(".layers.0." in name for name in tower) and any("patch_embedding" in name for name in tower)
    # a key's bias moves every score of a softmax alike: its gradient is rounding
    stayed = {name for name in named(kept, "tower") if not name.endswith("k_proj.bias")}
    assert stayed and all(".layers.1." in name or "post_layernorm" in name for name in stayed), stayed
    made.trainer.save_model()
    stored = load_file(made.out / "model.safetensors")
    written = {name.removeprefix(TOWER_KEYS) for name in stored if name.startswith(TOWER_KEYS)}
    assert written == {f"{name}" for name in _clip_names(made)}
    assert json.loads((made.out / "config.json").read_text())["unfreeze_mm_vision_tower"] is True
    again = load_model(made.out, dtype=torch.float32).model
    for name, tensor in made.task.model.tower.model.state_dict().items():
        assert torch.equal(tensor, again.tower.model.state_dict()[name]), name


def _clip_names(made: SimpleNamespace) -> set[str]:
    return {name.removeprefix("vision_model.") for name in made.task.model.tower.model.state_dict()}


def test_the_last_layers_of_the_tower(make_finetuner) -> None:
    flags = {"unfreeze_mm_vision_tower": True, "mm_vision_tower_layers": 1, "mm_vision_select_layer": -1}
    changed, _ = moved(make_finetuner(**short(**flags)))
    tower = named(changed, "tower")
    assert tower and all(".layers.1." in name for name in tower)


@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_lora(make_finetuner, bias: str) -> None:
    made = make_finetuner(**short(lora_enable=True, lora_r=4, lora_alpha=8, lora_bias=bias))
    changed, kept = moved(made)
    assert all(".lora_" in name for name in named(changed, "llm"))
    adapters = {name for name in made.task.state_dict() if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 7 and adapters <= changed  # 2 layers x 7 linear layers x (A, B)
    assert len(named(changed, "projector")) == 4
    assert not [name for name in made.task.state_dict() if "lm_head" in name and ".lora_" in name]
    assert named(kept, "tower") and not named(changed, "tower")


def test_without_a_trained_tower_it_is_not_in_the_folder(make_finetuner) -> None:
    made = make_finetuner(**short())
    made.trainer.save_model()
    assert not [name for name in load_file(made.out / "model.safetensors") if "vision_tower" in name]
    assert json.loads((made.out / "config.json").read_text())["unfreeze_mm_vision_tower"] is False


# ---- learning rates


def test_projector_and_tower_have_learning_rates_of_their_own(make_finetuner) -> None:
    """Plain SGD: a movement is proportional to its rate."""
    flags = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0, "learning_rate": 10, "max_steps": 1}
    flags |= {"unfreeze_mm_vision_tower": True}

    def movements(**rates: float) -> dict[str, torch.Tensor]:
        made = make_finetuner(**short(**flags, **rates))
        before = snapshot(made.task)
        made.trainer.train()
        groups = made.trainer.optimizer.param_groups
        count = sum(len(group["params"]) for group in groups)
        unique = {id(parameter) for group in groups for parameter in group["params"]}
        assert count == len(unique) == sum(p.requires_grad for p in made.task.parameters())
        assert {group["lr"] for group in groups} == {10, *rates.values()}
        return {name: parameter - before[name] for name, parameter in snapshot(made.task).items()}

    same = movements()
    other = movements(mm_projector_lr=20, mm_vision_tower_lr=5)
    factor = {"projector": 2.0, "tower": 0.5, "llm": 1.0}
    for name, step in same.items():
        expected = step * factor[name.split(".")[1]]
        torch.testing.assert_close(other[name], expected, rtol=1e-3, atol=1e-6, msg=name)  # of weights around 1
    for part in factor:
        assert max(step.abs().max() for name, step in same.items() if f"model.{part}." in name) > 1e-3


def test_groups_keep_their_weight_decay(make_finetuner) -> None:
    made = make_finetuner(**short(weight_decay=0.1, mm_projector_lr=1e-5, learning_rate=1e-3))
    made.trainer.create_optimizer()
    groups = made.trainer.optimizer.param_groups
    found = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    assert found.keys() == {(1e-3, 0.1), (1e-3, 0.0), (1e-5, 0.1), (1e-5, 0.0)}
    assert found[1e-5, 0.1] == 2 and found[1e-5, 0.0] == 2  # the projector's weights and biases
    norms = sum("norm" in name for name, _ in made.task.model.llm.named_parameters())
    assert found[1e-3, 0.0] == norms


# ---- the gradient


class Gradients(TrainerCallback):
    """Copies the gradients as the optimizer is about to see them."""

    def __init__(self, task: torch.nn.Module) -> None:
        self.task, self.steps = task, []

    def on_pre_optimizer_step(self, args, state, control, **keywords) -> None:
        self.steps.append({n: p.grad.clone() for n, p in self.task.named_parameters() if p.requires_grad})


def gradients(made: SimpleNamespace) -> list[dict[str, torch.Tensor]]:
    spy = Gradients(made.task)
    made.trainer.add_callback(spy)
    made.trainer.train()
    return spy.steps


def cut(batch: int, accumulation: int, **more: object) -> dict:
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    return {"max_grad_norm": 0, "save_strategy": "no", "logging_steps": 1} | sizes | more


def transformers_llava(world) -> LlavaForConditionalGeneration:
    """transformers' own class, filled from the same three files."""
    tower = CLIPVisionModel.from_pretrained(world.folder / "clip")
    llm = LlamaForCausalLM.from_pretrained(world.folder / "llm")
    config = LlavaConfig(
        vision_config=tower.config, text_config=llm.config, image_token_id=UNUSED_ID, image_token_index=UNUSED_ID,
        vision_feature_layer=-2, vision_feature_select_strategy="default", projector_hidden_act="gelu",
    )  # fmt: skip
    theirs = LlavaForConditionalGeneration(config)
    theirs.model.vision_tower.load_state_dict(tower.state_dict())
    theirs.model.language_model.load_state_dict(llm.model.state_dict())
    theirs.lm_head.load_state_dict(llm.lm_head.state_dict())
    stored = load_file(world.folder / "projector" / "mm_projector.safetensors")
    for ours, linear in (("0", "linear_1"), ("2", "linear_2")):
        layer = theirs.model.multi_modal_projector.get_submodule(linear)
        layer.load_state_dict({kind: stored[f"model.mm_projector.{ours}.{kind}"] for kind in ("weight", "bias")})
    return theirs.eval()


@pytest.fixture
def four_kinds(world, tmp_path: Path) -> Path:
    """Several turns, an image at the end, text only, two images: one record of each."""
    file = tmp_path / "four.json"
    file.write_text(json.dumps(json.loads((world.folder / "instruct.json").read_text())[:4]))
    return file


def test_the_gradient_is_that_of_transformers_llava(make_finetuner, world, four_kinds: Path) -> None:
    """One step over all four records in one batch, and in four micro-batches, against one cross entropy by torch."""
    theirs = transformers_llava(world)
    made = make_finetuner(**cut(4, 1, data_path=four_kinds))
    (batch,) = made.trainer.get_train_dataloader()
    ids, labels = batch["input_ids"], batch["labels"]
    assert not (ids == UNUSED_ID).any() and batch["pixel_values"].shape[0] == 4 and len(ids) == 4
    logits = theirs(
        input_ids=ids.masked_fill(ids == IMAGE_TOKEN_INDEX, UNUSED_ID),
        attention_mask=batch["attention_mask"],
        pixel_values=batch["pixel_values"],
    ).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    names = {"llm.lm_head.": "lm_head.", "llm.model.": "model.language_model."}
    names |= {f"projector.{n}.": f"model.multi_modal_projector.linear_{k}." for n, k in ((0, 1), (2, 2))}
    expected = dict(theirs.named_parameters())

    def of(name: str) -> torch.Tensor:
        name = name.removeprefix("model.")
        (start,) = (start for start in names if name.startswith(start))
        return expected[names[start] + name.removeprefix(start)].grad

    for sizes in ((4, 1), (1, 4)):
        made = make_finetuner(**cut(*sizes, data_path=four_kinds))
        (found,) = gradients(made)
        assert len(found) == len([p for n, p in expected.items() if "vision_tower" not in n])
        for name, gradient in found.items():
            scale = of(name).abs().max()
            assert scale > 0 and (gradient - of(name)).abs().max() <= 2e-5 * scale, (sizes, name)
        (line,) = [line for line in made.trainer.state.log_history if "caption_loss" in line]
        assert line["caption_loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("flags", [{}, {"lora_enable": True, "lora_r": 4, "lora_dropout": 0.0}], ids=["full", "lora"])
def test_4x1_is_1x4(make_finetuner, flags: dict) -> None:
    """With PAT on, in the order of modalities and lengths: the same samples make the same steps."""
    flags = flags | {"alignment": "pat", "alignment_schedule": "constant"}
    whole = gradients(make_finetuner(**cut(4, 1, **flags)))
    split = gradients(make_finetuner(**cut(1, 4, **flags)))
    assert len(whole) == len(split) == 3
    for one, other in zip(split, whole, strict=True):
        for name, gradient in one.items():
            scale = other[name].abs().max()
            # in a step without an image the projector's gradient is 0, as is lora_A's in the first
            assert (gradient - other[name]).abs().max() <= max(1e-5 * scale, 1e-12), name


def test_bf16_is_for_training_and_measuring_alike(make_finetuner) -> None:
    """Weights in fp32, products in bf16."""
    made = make_finetuner(**short(bf16=True))
    seen: list[tuple[bool, torch.dtype]] = []
    head = made.task.model.llm.lm_head
    head.register_forward_hook(lambda module, inputs, output: seen.append((module.training, output.dtype)))
    made.trainer.measure()
    made.trainer.train()
    assert set(seen) == {(False, torch.bfloat16), (True, torch.bfloat16)}
    assert {parameter.dtype for parameter in made.task.model.llm.parameters()} == {torch.float32}


# ---- the alignment objective in stage 2


def test_pat_adds_its_loss(make_finetuner) -> None:
    made = make_finetuner(**cut(2, 2, alignment="pat", alignment_schedule="constant"))
    made.trainer.train()
    lines = [line for line in made.trainer.state.log_history if "caption_loss" in line]
    assert len(lines) == 3 and any(line["alignment_items"] > 0 for line in lines)
    for line in lines:
        assert line["loss"] == pytest.approx(line["caption_loss"] + 2 * line["alignment_loss"], abs=2e-4)
    plain = make_finetuner(**cut(2, 2, max_steps=1))
    plain.trainer.train()
    (first,) = [line for line in plain.trainer.state.log_history if "caption_loss" in line]
    assert first["caption_loss"] == lines[0]["caption_loss"] == pytest.approx(first["loss"], rel=1e-6)


# ---- the finished folder


def ask(model, parts) -> torch.Tensor:
    """Logits of the held-out records, one after the other."""
    model.eval()
    found = []
    with torch.no_grad():
        for index in range(len(parts.held_out)):
            batch = parts.collator([parts.held_out[index]])
            patches = model.project(model.encode_images(batch["pixel_values"].to(model.tower.dtype)))
            hidden = model.forward_hidden(batch["input_ids"], batch["attention_mask"], patches)
            found.append(model.llm.lm_head(hidden).float().flatten(0, 1))
    return torch.cat(found)


def test_the_folder_loads_with_the_trained_models_logits(make_finetuner) -> None:
    made = make_finetuner(**short())
    made.trainer.train()
    made.trainer.save_model()
    loaded = load_model(made.out, dtype=torch.float32)
    assert (loaded.kind, loaded.image_aspect_ratio) == ("llava", "pad")
    assert torch.equal(ask(loaded.model, made.parts), ask(made.task.model, made.parts))


def test_a_folder_in_bfloat16_differs_by_rounding_alone(make_finetuner) -> None:
    made = make_finetuner(**short(save_dtype="bfloat16"))
    made.trainer.train()
    made.trainer.save_model()
    stored = load_file(made.out / "model.safetensors")
    trained = made.task.model.llm.state_dict() | {
        f"model.mm_projector.{name}": tensor for name, tensor in made.task.model.projector.state_dict().items()
    }
    assert stored.keys() == trained.keys()
    for name, tensor in trained.items():
        assert stored[name].dtype == torch.bfloat16 and torch.equal(stored[name], tensor.bfloat16()), name
    assert json.loads((made.out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    expected, loaded = ask(made.task.model, made.parts), load_model(made.out, dtype=torch.float32)
    difference = (ask(loaded.model, made.parts) - expected).norm() / expected.norm()
    assert 0 < difference < 0.02


def test_a_whole_run(world, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "llava-run"
    command = world.finetune_argv(out, num_train_epochs=3, gradient_accumulation_steps=3, save_steps=100)
    metrics = finetune(command)
    printed = capsys.readouterr().out
    assert (metrics["objective"], metrics["steps"], metrics["resumed_from_step"]) == ("none", 12, 0)
    assert metrics["caption_loss_final"] < 0.7 * metrics["caption_loss_init"]
    assert json.loads((out / "metrics.json").read_text()) == metrics
    names = {"stage", "objective", "seed", "steps", "seconds", "samples_per_second", "peak_memory_bytes"}
    both = {"caption_loss", "patch_cosine", "hit_at_1", "hit_at_5", "entropy_features", "entropy_patches"}
    assert names | {f"{name}_{when}" for name in both for when in ("init", "final")} <= metrics.keys()
    assert f"--model-path {out}" in printed and "--conv-mode vicuna_v1" in printed and "--model-base" not in printed
    files = {path.name for path in out.iterdir()}
    assert files >= {"config.json", "model.safetensors", "mm_projector.bin", "generation_config.json", "config.yaml"}
    assert files >= {"tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "trainer_state.json"}
    assert not [name for name in files if name.startswith(".")]
    projector = torch.load(out / "mm_projector.bin", weights_only=True)
    whole = load_file(out / "model.safetensors")
    assert projector and all(torch.equal(tensor, whole[name]) for name, tensor in projector.items())

    written = (out / "model.safetensors").stat().st_mtime_ns
    assert finetune(command) == metrics
    again = capsys.readouterr().out
    assert "finished" in again and "objective: none" in again and "step 1/" not in again
    assert (out / "model.safetensors").stat().st_mtime_ns == written


def test_a_lora_run_names_its_base(world, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "llava-lora"
    finetune(world.finetune_argv(out, lora_enable=True, lora_r=4, max_steps=2, save_strategy="no"))
    printed = capsys.readouterr().out
    assert f"--model-path {out}" in printed and f"--model-base {world.folder / 'llm'}" in printed
    files = {path.name for path in out.iterdir()}
    assert files >= {"config.json", "adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"}
    assert "mm_projector.bin" in files and "model.safetensors" not in files
    assert load_model(out, dtype=torch.float32).kind == "lora"
