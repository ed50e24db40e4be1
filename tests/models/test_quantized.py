"""4-bit and 8-bit bases on a CPU: gradients survive an evaluation, nothing quantised is written, floats come back"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_pat.models import quantized as module
from llava_pat.models.adapters import add_lora, load_lora, merge_lora, save_lora
from llava_pat.models.llava_config import finetune_config
from llava_pat.models.loading import load_language_model
from llava_pat.models.quantized import (
    Quantization,
    dequantize,
    keep_unpacked,
    prepare_quantized,
    quantization,
    quantization_of,
    read_quantization,
    write_quantization,
)
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IMAGE_TOKEN_INDEX

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.fixture
def build(tiny_vlm, tmp_path):
    """A tiny model whose language model is quantised; equal at every call."""

    def make(
        bits: int, compute: torch.dtype = torch.float32, prepare: bool = True, width: int = 64, **keywords
    ) -> VisionLanguageModel:
        model = tiny_vlm(hidden_size=width, intermediate_size=2 * width, initializer_range=0.1)
        folder = tmp_path / f"llm-{width}"
        if not folder.exists():
            model.llm.save_pretrained(folder)
        model.llm = load_language_model(
            str(folder), compute, "sdpa", quantization(bits, compute_dtype=compute, **keywords)
        )
        model.set_trainable(llm=False)
        if prepare and bits < 16:
            prepare_quantized(model, gradient_checkpointing=False)
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


def evaluate_and_generate(model: VisionLanguageModel) -> None:
    logits(model)
    with torch.no_grad():
        model.llm.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=3, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_lora_gradients_after_an_evaluation(build, bits, compute):
    """bitsandbytes repacks 4-bit weights in an eval forward on some CPUs, and no gradient passes them from then on."""
    model = build(bits, compute)
    add_lora(model, r=4, alpha=8, dropout=0.0)

    def gradients() -> dict[str, torch.Tensor | None]:
        model.zero_grad()
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=compute == torch.bfloat16):
            loss(model).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if "lora_B" in name}

    before = gradients()
    with torch.autocast("cpu", torch.bfloat16, enabled=compute == torch.bfloat16):
        evaluate_and_generate(model)
    after = gradients()
    assert len(after) == 14
    assert [name for name, gradient in after.items() if gradient is None or not gradient.any()] == []
    assert all(torch.equal(gradient, before[name]) for name, gradient in after.items())


@pytest.mark.skipif(not bitsandbytes.functional.has_avx512bf16(), reason="only such a CPU repacks")
def test_without_the_switch_gradients_are_silently_wrong(build):
    """The trap itself, so that it is noticed when bitsandbytes closes it."""

    def gradients(prepare: bool) -> tuple[dict[str, torch.Tensor | None], VisionLanguageModel]:
        torch.manual_seed(0)
        model = build(4, prepare=prepare)
        add_lora(model, r=4, alpha=8, dropout=0.0)
        evaluate_and_generate(model)
        model.train()
        loss(model).backward()
        return {name: p.grad for name, p in model.llm.named_parameters() if "lora_B" in name}, model

    right, _ = gradients(True)
    wrong, model = gradients(False)
    lost = [name for name in right if wrong[name] is None or not wrong[name].any()]
    assert {name.split(".")[-4] for name in lost} == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    with pytest.raises(ValueError, match="repacked the 4-bit weights"):
        keep_unpacked(model.llm)


@pytest.mark.parametrize("bits", [4, 8])
def test_train_save_load(build, tmp_path, bits):
    model = build(bits)
    frozen = {name: p.clone() for name, p in model.llm.named_parameters()}
    add_lora(model, r=4, alpha=8)
    losses = train(model)
    assert losses[-1] < 0.9 * losses[0]
    after = logits(model)
    save_lora(model, tmp_path / "lora", finetune_config(model.llm.config, vision_tower="clip", vision_width=16))
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert all(".lora_" in key and tensor.dtype == torch.float32 for key, tensor in stored.items())  # no base
    assert "quantization_config" not in (tmp_path / "lora" / "config.json").read_text()
    assert read_quantization(tmp_path / "lora") == quantization_of(model.llm)
    fresh = build(bits)
    load_lora(fresh, tmp_path / "lora")
    assert torch.equal(logits(fresh), after)
    base = {name.replace(".base_layer", ""): p for name, p in model.llm.named_parameters() if ".lora_" not in name}
    assert all(torch.equal(base[name], weight) for name, weight in frozen.items())


@pytest.mark.parametrize("keywords", [{}, {"quant_type": "fp4", "double_quant": False}])
def test_four_bits_come_back_exactly(build, keywords):
    model = build(4, **keywords)
    add_lora(model, r=4, alpha=8)
    train(model)
    quantised = logits(model)
    with pytest.raises(ValueError, match="dequantize it before merging"):
        merge_lora(model)
    dequantize(model, torch.float32)
    assert torch.equal(logits(model), quantised)
    assert quantization_of(model.llm) is None and not hasattr(model.llm.config, "quantization_config")
    merge_lora(model)
    torch.testing.assert_close(logits(model), quantised, rtol=0, atol=2e-5)
    assert {type(layer) for layer in model.llm.modules() if isinstance(layer, torch.nn.Linear)} == {torch.nn.Linear}


def test_eight_bits_come_back_but_for_their_activations(build):
    """LLM.int8 rounds activations too, so the floats answer a little differently; the weights are the same."""
    model = build(8)
    quantised = logits(model)
    plain = logits(build(16))
    dequantize(model, torch.float32)
    floats = logits(model)
    assert 0 < (floats - quantised).abs().max() < 0.05 * quantised.abs().max()
    assert 0 < (floats - plain).abs().max() < 0.05 * quantised.abs().max()


@pytest.mark.parametrize(("bits", "share"), [(4, 0.5), (8, 0.05)])
def test_how_far_quantised_logits_are(build, bits, share):
    """.39 and .03 of the largest logit on these random weights. The playground's trained Llama goes from 3.552 nats to
    3.598 in 4 bits and 3.550 in 8."""
    plain, quantised = logits(build(16)), logits(build(bits))
    difference = (plain - quantised).abs().max() / plain.abs().max()
    assert 0 < difference < share


def test_widths_that_are_no_multiple_of_the_block(build):
    """24 x 24 = 9 blocks of 64, and rows share a block: the numbers are still those of the floats that come back."""
    model = build(4, width=24)
    quantised = logits(model)
    dequantize(model, torch.float32)
    assert torch.equal(logits(model), quantised)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_prepared_as_llava_prepares(build, compute):
    model = build(4, compute)
    llm = model.llm
    assert not any(parameter.requires_grad for parameter in llm.parameters())
    assert llm.model.norm.weight.dtype == llm.model.layers[0].input_layernorm.weight.dtype == torch.float32
    assert llm.lm_head.weight.dtype == llm.model.embed_tokens.weight.dtype == compute
    assert type(llm.lm_head) is torch.nn.Linear  # not quantised
    assert isinstance(llm.model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear4bit)
    assert {p.dtype for p in model.projector.parameters()} == {torch.float32}


def test_input_gradients_with_checkpointing(build):
    """Reentrant checkpointing with a frozen projector: without them no LoRA would get a gradient."""
    model = build(4, prepare=False)
    prepare_quantized(model, gradient_checkpointing=True)
    model.projector.requires_grad_(False)
    add_lora(model, r=4, alpha=8)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    loss(model).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)


def test_not_quantised(build):
    with pytest.raises(ValueError, match="is not quantised"):
        prepare_quantized(build(16), False)


def test_what_is_asked_for():
    config = quantization(4, "fp4", False, torch.bfloat16)
    assert config.load_in_4bit and not config.load_in_8bit
    assert config.bnb_4bit_quant_type == "fp4" and not config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    eight = quantization(8)
    assert eight.load_in_8bit and eight.llm_int8_threshold == 6.0 and not eight.llm_int8_has_fp16_weight
    assert eight.llm_int8_skip_modules == ["mm_projector", "lm_head"]
    assert quantization(16) is None
    for bad, message in (((3,), "bits 3"), ((4, "int4"), "'int4' is unknown")):
        with pytest.raises(ValueError, match=message):
            quantization(*bad)


def test_without_bitsandbytes(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name)
    )
    with pytest.raises(ImportError, match=r"bits 4 needs bitsandbytes.*pip install 'bitsandbytes>=0.50'$"):
        quantization(4)
    assert quantization(16) is None


def test_quantization_json(tmp_path: Path):
    quantized = Quantization(4, "nf4", True, "bfloat16", "bfloat16")
    write_quantization(quantized, tmp_path)
    assert read_quantization(tmp_path) == quantized and quantized.load_dtype == torch.bfloat16
    assert quantized.config().to_dict() == quantization(4, "nf4", True, torch.bfloat16).to_dict()
    (tmp_path / "quantization.json").write_text('{"bits": 4}')
    with pytest.raises(ValueError, match="expected the keys"):
        read_quantization(tmp_path)
    write_quantization(None, tmp_path)  # a later run in the same folder that is not quantised
    assert read_quantization(tmp_path) is None


def test_eight_bit_adam_learns_and_resumes(build, tmp_path):
    model = build(4)
    add_lora(model, r=64, alpha=64)  # bitsandbytes keeps states below 4096 numbers in fp32
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=1e-2)
    model.eval()  # no dropout: the two continuations are to be equal
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]
    assert torch.uint8 in {t.dtype for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)}
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.step()
    after = [parameter.detach().clone() for parameter in parameters]
    for parameter, value in zip(parameters, before, strict=True):
        parameter.data.copy_(value)
    resumed = bitsandbytes.optim.AdamW8bit(parameters, lr=1e-2)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    resumed.step()
    assert all(torch.equal(parameter, value) for parameter, value in zip(parameters, after, strict=True))
