"""Every tower against transformers' own hidden states, and what trains of it against what a gradient reaches."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava_pat.models.loading import load_image_processor, load_vision_tower
from llava_pat.models.projectors import build_projector
from llava_pat.models.towers import VisionTower
from llava_pat.models.vlm import VisionLanguageModel

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14, "initializer_range": 0.3,
}  # fmt: skip
FAMILIES = {  # name: (model, class tokens, prefix tokens)
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, intermediate_size=32, image_size=28)), 1, 1),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, intermediate_size=32, image_size=28)), 0, 0),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2, image_size=70)), 1, 1),
    "dinov2 with registers": (
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, image_size=70, num_register_tokens=3)
        ),
        1,
        4,
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    torch.manual_seed(0)
    build, class_tokens, prefix_tokens = FAMILIES[request.param]
    return build().eval(), class_tokens, prefix_tokens


@pytest.mark.parametrize("select_layer", [-4, -2, -1, 0, 1, 3])
def test_hidden_states_are_transformers_own(family, select_layer):
    """28 pixels for all: DINOv2 interpolates its position embeddings from 70."""
    model, class_tokens, prefix_tokens = family
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True).hidden_states[select_layer]
    tower = VisionTower(model, 28)
    assert (tower.grid, tower.width, tower.num_layers, tower.prefix_tokens) == (2, 16, 3, prefix_tokens)
    patches = tower(pixels, select_layer)
    assert patches.shape == (2, tower.num_patches(), 16) == (2, 4, 16) and not patches.requires_grad
    assert torch.equal(patches, expected[:, prefix_tokens:])
    if class_tokens:
        both = tower(pixels, select_layer, "cls_patch")
        assert both.shape[1] == tower.num_patches("cls_patch") == 5
        assert torch.equal(both[:, 0], expected[:, 0]) and torch.equal(both[:, 1:], patches)
    tower.drop_layers_above(select_layer)
    assert len(tower.layers) == select_layer % 4 and tower.num_layers == 3
    assert torch.equal(tower(pixels, select_layer), patches)


def test_only_the_layers_that_are_needed_run(family):
    model, *_ = family
    tower = VisionTower(model, 28)
    calls = []
    for number, layer in enumerate(tower.layers):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    tower(torch.zeros(1, 3, 28, 28), -3)
    assert calls == [0]


def test_a_class_token_that_is_not_there():
    tower = VisionTower(FAMILIES["siglip"][0]())
    with pytest.raises(ValueError, match="'cls_patch' asks for a class token, but SiglipVisionModel has none"):
        tower(torch.zeros(1, 3, 28, 28), -2, "cls_patch")


def test_refusals():
    tower = VisionTower(FAMILIES["clip"][0]())
    with pytest.raises(ValueError, match=r"\[I, 3, 28, 28\], got \[1, 3, 42, 42\]"):
        tower(torch.zeros(1, 3, 42, 42))
    with pytest.raises(ValueError, match="4 is out of range: the vision tower has 3 layers, so -4 to 3"):
        tower.layer_index(4)
    tower.drop_layers_above(-2)
    with pytest.raises(ValueError, match="-1 needs 3 layers, but those above 2 were dropped"):
        tower(torch.zeros(1, 3, 28, 28), -1)
    with pytest.raises(ValueError, match="3 layers of the vision tower cannot train: select_layer -2 uses 2"):
        tower.train_layers(3, -2)
    with pytest.raises(ValueError, match="'llama' model is no vision tower"):
        VisionTower(LlamaForCausalLM(LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)))


def test_a_rest_that_is_no_patch_is_not_seen():
    """SigLIP so400m: 384 pixels in patches of 14 are 27 x 27, and 6 pixels are left over."""
    tower = VisionTower(SiglipVisionModel(SiglipVisionConfig(**SIZES, intermediate_size=32, image_size=34)))
    pixels = torch.randn(1, 3, 34, 34)
    cut = pixels.clone()
    cut[:, :, 28:], cut[:, :, :, 28:] = 9.0, 9.0
    assert tower.num_patches() == 4 and torch.equal(tower(pixels), tower(cut))


@pytest.mark.parametrize("count", [0, 1, 2, -1])
def test_what_trains_is_what_the_gradient_reaches(family, count):
    """A trainable weight without a gradient would hang DDP; layer 3 and the final norm are there and unused."""
    tower = VisionTower(family[0], 28)
    assert not tower.is_trained
    tower.train_layers(count, -2)
    names = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert tower.is_trained == (count != 0)
    if count == 0:
        assert not names
        return
    tower(torch.randn(1, 3, 28, 28)).sum().backward()
    reached = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    assert names == reached
    assert len({name.split(".")[3] for name in names if ".encoder." in name}) == (2 if count == -1 else count)
    assert any("embeddings" in name for name in names) == (count == -1)


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_tower_that_trains_in_the_model(family, images, checkpointing):
    """encode_images carries its gradient; without an image the gradient is there and zero."""
    torch.manual_seed(1)
    llm = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
            initializer_range=0.4,
        )
    )  # fmt: skip
    model = VisionLanguageModel(VisionTower(family[0], 28), build_projector("mlp2x_gelu", 16, 24), llm)
    model.set_trainable(llm=False, tower_layers=-1)
    model.train()
    assert model.tower.training and model.projector.training and not model.llm.training
    calls = []
    norm = next(module for module in model.tower.layers[0].modules() if isinstance(module, torch.nn.LayerNorm))
    norm.register_forward_hook(lambda *_: calls.append(1))
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.tensor([[1, *[-200] * 4 * images, 5, 6]])
    patches = model.project(model.encode_images(torch.randn(images, 3, 28, 28)))
    total, _ = model.caption_loss_sum(model.forward_hidden(ids, torch.ones_like(ids), patches), ids.clamp(min=-100))
    total.backward()
    trained = [p for part in (model.tower, model.projector) for p in part.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    assert {bool(p.grad.any()) for p in trained if p.dim() > 1} == {images > 0}  # (a key's bias never has a gradient)
    assert len(calls) == (2 if checkpointing else 1)
    assert all(p.grad is None for p in model.llm.parameters())


def siglip_folder(folder):
    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = {**SIZES, "intermediate_size": 32, "image_size": 28}
    del vision["initializer_range"]
    model = SiglipModel(SiglipConfig(text_config=text | {"vocab_size": 9}, vision_config=vision))
    model.save_pretrained(folder)
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model.vision_model


def dinov2_folder(folder):
    torch.manual_seed(0)
    model = FAMILIES["dinov2"][0]()
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@pytest.mark.parametrize("build", [siglip_folder, dinov2_folder])
def test_loading(tmp_path, build, capfd):
    """SigLIP from a whole model, whose text half is no news; DINOv2's image size is its processor's."""
    expected = build(tmp_path)
    tower = load_vision_tower(str(tmp_path), torch.float32, "sdpa")
    assert "UNEXPECTED" not in "".join(capfd.readouterr())
    assert tower.image_size == 28 and tower.num_patches() == 4 and not tower.training
    state = expected.state_dict()
    assert tower.model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in tower.model.state_dict().items())
    assert load_image_processor(str(tmp_path), 28).do_resize
    with pytest.raises(ValueError, match="makes 28 x 28, but .* takes 42 x 42"):
        load_image_processor(str(tmp_path), 42)


def test_naflex_has_no_grid(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(ValueError, match="NaFlex SigLIP2 has no fixed grid"):
        load_vision_tower(str(tmp_path), torch.float32, "sdpa")
