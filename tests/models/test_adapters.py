"""LoRA: what it trains, its folder as LLaVA and peft read it, and strict reading"""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from llava_pat.models.adapters import add_lora, load_lora, lora_base, lora_settings, merge_lora, save_lora
from llava_pat.models.llava_layout import save_llava
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IMAGE_TOKEN_INDEX

LEAVES = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
}


@pytest.fixture
def build(tiny_vlm):
    """A model with frozen base, equal at every call; its language model of another family on demand."""

    def make(family: str = "llama", **text) -> VisionLanguageModel:
        model = tiny_vlm(**text)
        if family != "llama":
            kind, config = FAMILIES[family]
            settings = {key: model.llm.config.to_dict()[key] for key in (
                "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "vocab_size", "max_position_embeddings", "initializer_range", "bos_token_id", "eos_token_id",
            )}  # fmt: skip
            torch.manual_seed(1)
            model.llm = kind(config(**settings))
        model.llm.config.name_or_path = "somewhere/tiny"
        model.llm.name_or_path = "somewhere/tiny"
        for name, parameter in model.llm.named_parameters():  # as if trained: zeros would hide what bias does
            if name.endswith(".bias"):
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
        model.set_trainable(llm=False)
        return model

    return make


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50, (2, 10), generator=generator)
    ids[:, 2:6] = IMAGE_TOKEN_INDEX
    return ids, torch.randn(2, 3, 28, 28, generator=generator)


def loss(model: VisionLanguageModel) -> torch.Tensor:
    ids, pixels = batch()
    hidden = model.forward_hidden(ids, torch.ones_like(ids), model.project(model.encode_images(pixels)))
    total, count = model.caption_loss_sum(hidden, ids.masked_fill(ids < 0, -100))
    return total / count


@torch.no_grad()
def logits(model: VisionLanguageModel) -> torch.Tensor:
    model.eval()
    ids, pixels = batch()
    hidden = model.forward_hidden(ids, torch.ones_like(ids), model.project(model.encode_images(pixels)))
    return model.llm.lm_head(hidden)


def train(model: VisionLanguageModel, steps: int = 4) -> list[float]:
    torch.manual_seed(3)  # dropout
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_train_save_load_merge(build, tmp_path, family):
    model = build(family)
    before = logits(model)
    add_lora(model, r=4, alpha=8)
    assert torch.equal(logits(model), before)  # lora_B begins at zero
    losses = train(model)
    assert losses[-1] < 0.8 * losses[0]
    after = logits(model)
    assert (after - before).abs().max() > 0.5
    save_lora(model, tmp_path, {})

    fresh = build(family)
    torch.nn.init.zeros_(fresh.projector[0].weight)
    load_lora(fresh, tmp_path)
    assert torch.equal(logits(fresh), after)

    merge_lora(fresh)
    torch.testing.assert_close(logits(fresh), after, rtol=0, atol=1e-5 * after.abs().max().item())
    assert fresh.adapter is None
    assert not any("lora" in name or "base_layer" in name for name, _ in fresh.named_parameters())
    assert fresh.llm.state_dict().keys() == build(family).llm.state_dict().keys()


def test_what_trains(build):
    model = build()
    projector = [name for name, _ in model.projector.named_parameters()]
    add_lora(model, r=4, alpha=8)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    lora = {name for name in trains if ".lora_" in name}
    assert trains - lora == {f"projector.{name}" for name in projector}
    assert len(lora) == 2 * 7 * 2  # layers x linears x (A, B)
    assert {name.split(".")[-4] for name in lora} == set(LEAVES)
    assert all(parameter.dtype == torch.float32 for name, parameter in model.named_parameters() if name in lora)


def test_adapter_is_no_second_copy(build):
    model = build()
    llm = model.llm
    add_lora(model, r=4, alpha=8)
    assert model.llm is llm and isinstance(llm, LlamaForCausalLM)
    assert model.adapter.get_base_model() is llm
    assert not any(name.startswith("adapter") for name, _ in model.named_parameters())


def test_lora_is_fp32_on_a_bf16_base(build):
    model = build()
    model.llm.to(torch.bfloat16)
    add_lora(model, r=4, alpha=8)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


def test_dropout_follows_train(build):
    model = build()
    add_lora(model, r=4, alpha=8, dropout=0.5)
    train(model, 1)  # lora_B leaves zero, or dropout would not show
    model.train()
    assert not torch.equal(loss(model), loss(model))
    model.eval()
    assert torch.equal(loss(model), loss(model))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(build, reentrant):
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = build()
        torch.manual_seed(1)
        add_lora(model, r=4, alpha=8, dropout=0.0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
        loss(model).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}

    plain, recomputed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(recomputed[name], gradient)


def test_bad_numbers(build):
    for bad in ({"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"bias": "some"}):
        with pytest.raises(ValueError, match="LoRA with r"):
            add_lora(build(), **({"r": 4, "alpha": 8} | bad))
    model = build()
    add_lora(model, r=4, alpha=8)
    with pytest.raises(ValueError, match="has LoRA already"):
        add_lora(model, r=4, alpha=8)


# ---- the folder


def saved(build, folder, **keywords) -> VisionLanguageModel:
    model = build(keywords.pop("family", "llama"))
    add_lora(model, **({"r": 4, "alpha": 8} | keywords))
    train(model, 2)
    save_lora(model, folder, {"model_type": "llava_llama", "quantization_config": {"load_in_4bit": True}})
    return model


def test_the_folder_is_llavas(build, tmp_path):
    model = saved(build, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "config.json", "mm_projector.bin",
        "mm_projector.safetensors", "non_lora_trainables.bin",
    }  # fmt: skip
    # peft 0.4's own keys: versions up to 0.13 fail on one that they do not know (0.4.0 to 0.13.2 were tried)
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "base_model_name_or_path": "somewhere/tiny", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "lora_alpha": 8, "lora_dropout": 0.05, "modules_to_save": None, "peft_type": "LORA", "r": 4,
        "target_modules": LEAVES, "task_type": "CAUSAL_LM",
    }  # fmt: skip
    # a reader that finds quantization_config quantises whatever it loads by this config
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "llava_llama"}
    lora = load_file(tmp_path / "adapter_model.safetensors")
    mlp = ("gate_proj", "up_proj", "down_proj")
    assert lora.keys() == {
        f"base_model.model.model.layers.{layer}.{'mlp' if leaf in mlp else 'self_attn'}.{leaf}.lora_{part}.weight"
        for layer in (0, 1)
        for leaf in LEAVES
        for part in "AB"
    }
    other = torch.load(tmp_path / "non_lora_trainables.bin", weights_only=True)
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    assert other.keys() == {f"base_model.model.model.mm_projector.{name}" for name in names}
    assert torch.equal(other["base_model.model.model.mm_projector.2.bias"], model.projector[2].bias)


def test_llavas_loader_finds_the_projector(build, tmp_path):
    """llava/model/builder.py cuts 11 and then 6 characters off, and loads with strict=False: a wrong name is silent."""
    saved(build, tmp_path)
    stored = torch.load(tmp_path / "non_lora_trainables.bin", weights_only=True)
    stored = {(k[11:] if k.startswith("base_model.") else k): v for k, v in stored.items()}
    if any(k.startswith("model.model.") for k in stored):
        stored = {(k[6:] if k.startswith("model.") else k): v for k, v in stored.items()}
    assert stored.keys() == {f"model.mm_projector.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")}


def test_peft_reads_the_adapters(build, tmp_path):
    from peft import PeftModel

    model = saved(build, tmp_path)
    after = logits(model)
    fresh = build()
    fresh.projector.load_state_dict(model.projector.state_dict())
    theirs = PeftModel.from_pretrained(fresh.llm, tmp_path)
    assert torch.equal(logits(fresh), after)
    assert theirs.merge_and_unload() is fresh.llm


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_train_and_come_back(build, tmp_path, bias):
    model = saved(build, tmp_path, family="qwen2", bias=bias)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias" in stored
    before = build("qwen2").llm.get_parameter("model.layers.1.self_attn.v_proj.bias")
    assert not torch.equal(model.llm.get_parameter("model.layers.1.self_attn.v_proj.base_layer.bias"), before)
    fresh = build("qwen2")
    load_lora(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(model))
    merge_lora(fresh)
    torch.testing.assert_close(logits(fresh), logits(model), rtol=0, atol=2e-5)


def test_reads_what_llava_writes(build, tmp_path):
    """peft's own adapter_config, adapter_model.bin, the names that old peft gives biases, and these in both files."""
    model = build("qwen2")
    theirs = get_peft_model(
        model.llm, LoraConfig(r=4, lora_alpha=8, bias="all", target_modules=LEAVES, task_type="CAUSAL_LM")
    )
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    after = logits(model)
    theirs.save_pretrained(tmp_path, safe_serialization=False, state_dict=theirs.state_dict())
    adapters = torch.load(tmp_path / "adapter_model.bin", weights_only=True)
    adapters = {key.replace(".base_layer", ""): tensor for key, tensor in adapters.items()}
    torch.save(adapters, tmp_path / "adapter_model.bin")
    other = {f"base_model.model.model.mm_projector.{k}": v for k, v in model.projector.state_dict().items()}
    other |= {key: tensor for key, tensor in adapters.items() if key.endswith(".bias")}
    torch.save(other, tmp_path / "non_lora_trainables.bin")
    fresh = build("qwen2")
    load_lora(fresh, tmp_path)
    assert torch.equal(logits(fresh), after)


def test_a_trained_tower_goes_along(build, tmp_path):
    model = build()
    model.set_trainable(llm=False, tower_layers=-1)
    add_lora(model, r=4, alpha=8)
    train(model, 2)
    save_lora(model, tmp_path, {})
    stored = torch.load(tmp_path / "non_lora_trainables.bin", weights_only=True)
    prefix = "base_model.model.model.vision_tower.vision_tower.vision_model."
    assert f"{prefix}encoder.layers.0.self_attn.q_proj.weight" in stored
    fresh = build()
    assert not torch.equal(logits(fresh), logits(model))
    load_lora(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(model))


def test_dtype_of_the_files(build, tmp_path):
    model = saved(build, tmp_path)
    save_lora(model, tmp_path, {}, dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.bfloat16}
    assert {t.dtype for t in load_file(tmp_path / "mm_projector.safetensors").values()} == {torch.bfloat16}
    fresh = build()
    load_lora(fresh, tmp_path)
    assert {p.dtype for p in fresh.parameters()} == {torch.float32}


def test_write_false_writes_nothing(build, tmp_path):
    model = build()
    add_lora(model, r=4, alpha=8)
    save_lora(model, tmp_path / "out", {}, write=False)
    assert not (tmp_path / "out").exists()


def test_needs_lora(build, tmp_path):
    with pytest.raises(ValueError, match="add_lora first"):
        save_lora(build(), tmp_path, {})
    with pytest.raises(ValueError, match="no LoRA to merge"):
        merge_lora(build())


def test_unmerged_is_not_saved_whole(build, tmp_path):
    model = build()
    add_lora(model, r=4, alpha=8)
    with pytest.raises(ValueError, match="merge"):
        save_llava(model, tmp_path, {"tokenizer_model_max_length": 64}, tokenizer_source=tmp_path)


# ---- strict reading


def edit(file, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


KEY = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), r"1 tensors missing \['model.layers.1.mlp.up_proj.lora_A.weight'\], 0 too many"),
        (lambda t: t.update({KEY.replace("layers.1", "layers.7"): t[KEY].clone()}), r"0 tensors missing.*1 too many"),
        (lambda t: t.update({KEY: t[KEY][:, :-1].contiguous()}), r"is \[4, 23\] in the file and \[4, 24\]"),
        (lambda t: t.update({"up_proj.lora_A": t.pop(KEY)}), "does not begin with 'base_model.model.'"),
    ],
)
def test_tensors_must_fit(build, tmp_path, change, message):
    saved(build, tmp_path)
    edit(tmp_path / "adapter_model.safetensors", change)
    fresh = build()
    untouched = {name: parameter.clone() for name, parameter in fresh.projector.named_parameters()}
    with pytest.raises(ValueError, match=message):
        load_lora(fresh, tmp_path)
    assert all(torch.equal(parameter, untouched[name]) for name, parameter in fresh.projector.named_parameters())


def test_another_base(build, tmp_path):
    saved(build, tmp_path)
    with pytest.raises(ValueError, match=r"does not fit.*It was trained on somewhere/tiny: is this that base"):
        load_lora(build(num_hidden_layers=3), tmp_path)
    with pytest.raises(ValueError, match=r"is \[32, 4\] in the file and \[40, 4\] in the model"):
        load_lora(build(intermediate_size=40), tmp_path)


@pytest.mark.parametrize(
    ("numbers", "message"), [({"r": 8}, "r 4, alpha 8.*has r 8"), ({"alpha": 16}, "alpha 8.*has r 4, alpha 16")]
)
def test_another_rank_or_scale(build, tmp_path, numbers, message):
    saved(build, tmp_path)
    model = build()
    add_lora(model, **({"r": 4, "alpha": 8} | numbers))
    with pytest.raises(ValueError, match=message):
        load_lora(model, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora is True; only plain LoRA"),
        ({"target_modules": ["q_proj"]}, "LoRA on q_proj, but here it goes on down_proj"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ],
)
def test_settings_must_fit(build, tmp_path, change, message):
    saved(build, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_lora(build(), tmp_path)


def test_missing_files(build, tmp_path):
    saved(build, tmp_path)
    (tmp_path / "non_lora_trainables.bin").unlink()
    with pytest.raises(FileNotFoundError, match="the projector that was trained with the LoRA"):
        load_lora(build(), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neither adapter_model.safetensors nor adapter_model.bin"):
        load_lora(build(), tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="is not a LoRA folder"):
        load_lora(build(), tmp_path)


def test_without_its_base(build, tmp_path):
    model = build()
    model.llm.name_or_path = str(tmp_path / "gone")
    add_lora(model, r=4, alpha=8)
    save_lora(model, tmp_path / "lora", {})
    with pytest.raises(ValueError, match=r"without their base model.*trained on '.*gone'.*--base"):
        lora_base(tmp_path / "lora", None)
    assert lora_base(tmp_path / "lora", "here") == "here"
    (tmp_path / "gone").mkdir()
    assert lora_base(tmp_path / "lora", None) == str(tmp_path / "gone") == lora_settings(tmp_path / "lora").base
