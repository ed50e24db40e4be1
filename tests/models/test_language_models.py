"""Families of language models: one image in the text, against the family's own forward with `inputs_embeds`."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from llava_pat.models.loading import load_language_model
from llava_pat.models.logits import LogitTransform
from tests.models.families import FAMILIES, model_of

TRANSFORMED = {"gemma2": {"cap": 3.0}, "cohere": {"factor": 0.25}, "cohere2": {"factor": 0.25}}
TRANSFORMED["granite"] = {"divisor": 8.0}

IDS = torch.tensor([[1, *[-200] * 4, 5, 6, 7, 8], [1, 9, 10, 11, 12, 0, 0, 0, 0]])
LABELS = torch.tensor([[-100] * 6 + [6, 7, 8], [-100, -100, 10, 11, 12] + [-100] * 4])
MASK = IDS != 0


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_is_the_familys_own(name):
    model = model_of(FAMILIES[name])
    patches = model.project(model.encode_images(torch.randn(1, 3, 28, 28)))
    embeds = model.embed_sequence(IDS, patches)
    with torch.no_grad():
        theirs = model.llm(inputs_embeds=embeds, attention_mask=MASK.long(), labels=LABELS)
    total, count = model.caption_loss_sum(model.forward_hidden(IDS, MASK, patches), LABELS)
    # fp32; lm_head sees another batch of rows: a few units in the last place
    torch.testing.assert_close(total / count, theirs.loss, rtol=1e-5, atol=1e-5)
    logits, _ = model.supervised_logits(model.forward_hidden(IDS, MASK, patches), LABELS)
    torch.testing.assert_close(logits, theirs.logits[:, :-1][LABELS[:, 1:] != -100], rtol=1e-4, atol=1e-4)
    assert model._logit_transform == LogitTransform(**TRANSFORMED.get(name, {}))
    if name in TRANSFORMED:  # and it is not by luck: the head alone says something else
        bare = model.llm.get_output_embeddings()(model.forward_hidden(IDS, MASK, patches)[0, 5])
        assert (bare - theirs.logits[0, 5]).abs().max() > 0.1


@pytest.mark.parametrize("name", FAMILIES)
def test_loading(name, tmp_path, caplog):
    """By its folder, with the default attention; sdpa would leave out Gemma 2's cap on scores, which is said once."""
    torch.manual_seed(0)
    saved = AutoModelForCausalLM.from_config(FAMILIES[name])
    saved.save_pretrained(tmp_path)
    llm = load_language_model(tmp_path, torch.float32, "sdpa")
    assert type(llm) is type(saved)
    assert all(torch.equal(llm.get_parameter(n), p) for n, p in saved.named_parameters())
    wanted = "eager" if name == "gemma2" else "sdpa"
    assert llm.config._attn_implementation == wanted
    assert caplog.text.count("sdpa cannot cap scores as gemma2 models do; taking eager") == (name == "gemma2")


@pytest.mark.parametrize("name", FAMILIES)
def test_words_enter_the_model_as_embed_words_gives_them(name):
    """Patches take the place of words, so they must be what the model takes words for (Gemma scales its embeddings)."""
    model = model_of(FAMILIES[name])
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        by_ids = model.llm(input_ids=ids).logits
        by_embeds = model.llm(inputs_embeds=model.embed_words(ids)).logits
    torch.testing.assert_close(by_embeds, by_ids, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3"])
def test_gradient_checkpointing_of_a_language_model_that_trains(name):
    """Same gradients, in every weight; a text-only batch too."""
    model = model_of(FAMILIES[name])
    model.set_trainable(llm=True)
    model.train()
    for images in (1, 0):
        ids = IDS[:1] if images else IDS[1:]
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
            model.zero_grad()
            torch.manual_seed(1)
            patches = model.project(model.encode_images(torch.randn(images, 3, 28, 28)))
            hidden = model.forward_hidden(ids, ids != 0, patches)
            model.caption_loss_sum(hidden, ids.masked_fill(ids <= 0, -100))[0].backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == {n for n, p in model.named_parameters() if p.requires_grad}
        assert gradients[1].keys() == gradients[0].keys()
        assert all(torch.equal(gradients[1][n], gradients[0][n]) for n in gradients[0])
        model.gradient_checkpointing_disable()


@pytest.mark.parametrize("projector", [True, False])
def test_lora_trains_on_text_alone_under_gradient_checkpointing(projector):
    """Frozen embeddings: nothing that enters the first layer needs a gradient once the projector is frozen too."""
    peft = pytest.importorskip("peft")
    model = model_of(FAMILIES["llama"])
    model.set_trainable(llm=False, projector=projector)
    targets = ["q_proj", "down_proj"]
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model.adapter = peft.get_peft_model(model.llm, config)
    assert not any(name.startswith("adapter") for name in model.state_dict())
    model.train()
    assert model.llm.training and model.projector.training == projector and not model.tower.training
    model.gradient_checkpointing_enable()
    patches = model.project(model.encode_images(torch.zeros(0, 3, 28, 28)))
    model.caption_loss_sum(model.forward_hidden(IDS[1:], MASK[1:], patches), LABELS[1:])[0].backward()
    lora = {n: p for n, p in model.llm.named_parameters() if p.requires_grad}
    assert len(lora) == 2 * 2 * 2 and all("lora_" in name for name in lora)
    assert all(p.grad is not None and p.grad.any() for p in lora.values())
    with pytest.raises(ValueError, match="LoRA was added already"):
        model.set_trainable(llm=True)
