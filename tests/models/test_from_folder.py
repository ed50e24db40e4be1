"""`load_model` on every layout: LLaVA's own numbers from what LLaVA wrote, and clear errors."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llava_pat.models.adapters import add_lora, save_lora
from llava_pat.models.from_folder import load_model
from llava_pat.models.generate import generate
from llava_pat.models.llava_config import finetune_config
from llava_pat.models.llava_layout import save_llava
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IMAGE_TOKEN_INDEX


@pytest.fixture
def world(written, tmp_path):
    """LLaVA's folders as they name each other (mm_vision_tower "../clip"), to be changed."""
    for name in ("clip", "llm", "llava-v1.5-tiny", "out-llava-pt"):
        shutil.copytree(written / name, tmp_path / name)
    return tmp_path


def load(folder, **keywords):
    return load_model(folder, dtype=torch.float32, **keywords)


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v != "gone"}))


def test_llavas_checkpoint_gives_llavas_logits_and_answers(written):
    loaded = load(written / "llava-v1.5-tiny")
    assert (loaded.kind, loaded.image_aspect_ratio) == ("llava", "pad")
    assert loaded.tokenizer_source == str(written / "llava-v1.5-tiny")
    model = loaded.model
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    processor = loaded.image_processor
    golden = json.loads((written / "golden.json").read_text(encoding="utf-8"))["generation"]
    for sample in golden:
        image = Image.open(written / "images" / sample["image"]).convert("RGB")
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in processor.image_mean))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        pixels = torch.from_numpy(processor(square)["pixel_values"][0])[None]
        ids = [
            i for one in sample["input_ids"] for i in ([one] if one != IMAGE_TOKEN_INDEX else [one] * model.num_patches)
        ]
        ids = torch.tensor([ids])
        with torch.no_grad():
            hidden = model.forward_hidden(ids, torch.ones_like(ids), model.project(model.encode_images(pixels)))
            logits = model.llm.get_output_embeddings()(hidden[0, -1])
        # fp32 on both sides; two versions of torch and transformers order their sums differently
        torch.testing.assert_close(logits, torch.tensor(sample["last_logits"]), rtol=0, atol=1e-5)
        expected = sample["greedy_ids"][1:]  # [0] is the BOS that transformers 4.37 put in front
        patches = model.project(model.encode_images(pixels))
        (new,) = generate(model, ids.tolist(), [[0]], patches, max_new_tokens=len(expected), end_ids=[2])
        assert new == [token for token in expected if token != 2]


def test_the_released_config(world):
    """Model type "llava", fewer keys: no rope_theta, no mm_patch_merge_type."""
    expected = load(world / "llava-v1.5-tiny").model.state_dict()
    edit(
        world / "llava-v1.5-tiny", model_type="llava", mm_patch_merge_type="gone", mm_projector_lr="gone",
        mm_use_im_patch_token="gone", rope_theta="gone", attention_bias="gone", attention_dropout="gone",
        mm_resampler_type=None, max_length=4096, unfreeze_mm_vision_tower=False, mm_vision_select_feature="gone",
    )  # fmt: skip
    loaded = load(world / "llava-v1.5-tiny")
    assert loaded.config["mm_use_im_patch_token"] is False and loaded.model.select_feature == "patch"
    found = loaded.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_sharded_pickles(world):
    """As LLaVA's earlier versions left them."""
    folder = world / "llava-v1.5-tiny"
    expected = load(folder).model.state_dict()
    tensors = list(load_file(folder / "model.safetensors").items())
    places = {}
    for number, part in enumerate((tensors[::2], tensors[1::2]), 1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save(dict(part), folder / name)
        places |= {key: name for key, _ in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    found = load(folder).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_stage1_on_its_base(world):
    loaded = load(world / "out-llava-pt")
    assert (loaded.kind, loaded.image_aspect_ratio) == ("stage1", "square")
    assert loaded.tokenizer_source == str(world / "out-llava-pt" / ".." / "llm")
    stored = torch.load(world / "out-llava-pt" / "mm_projector.bin", weights_only=True)
    assert torch.equal(loaded.model.projector[0].weight, stored["model.mm_projector.0.weight"])
    base = load_file(world / "llm" / "model.safetensors")
    assert all(torch.equal(loaded.model.llm.state_dict()[name], tensor) for name, tensor in base.items())
    edit(world / "out-llava-pt", _name_or_path="/another/machine/llm")
    with pytest.raises(FileNotFoundError, match="names '/another/machine/llm', which is not here; say --base"):
        load(world / "out-llava-pt")
    assert load(world / "out-llava-pt", base=str(world / "llm")).kind == "stage1"


def test_a_trained_tower_comes_from_the_folder(written, world):
    model = load(world / "llava-v1.5-tiny").model
    whole = load_model(world / "out-llava-pt", dtype=torch.float32).model  # for its sizes only
    config = finetune_config(model.llm.config, vision_tower=str(world / "clip"), vision_width=whole.vision_width)
    edit(world / "llava-v1.5-tiny", unfreeze_mm_vision_tower=True, mm_vision_tower=str(world / "clip"))
    weights = {k: v for k, v in load_file(world / "llava-v1.5-tiny" / "model.safetensors").items() if "tower" not in k}
    tower = load_file(world / "clip" / "model.safetensors")
    own = {f"model.vision_tower.vision_tower.{k}": v * 2 for k, v in tower.items()}
    save_file(weights | own, world / "llava-v1.5-tiny" / "model.safetensors", metadata={"format": "pt"})
    loaded = load(world / "llava-v1.5-tiny")
    first = loaded.model.tower.model.state_dict()["post_layernorm.weight"]
    assert torch.equal(first, tower["vision_model.post_layernorm.weight"] * 2)
    out = world / "llava-again"
    save_llava(loaded.model, out, config, tokenizer_source=written / "llm", with_tower=True)
    again = load(out).model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in loaded.model.state_dict().items())
    save_file(weights, world / "llava-v1.5-tiny" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match="unfreeze_mm_vision_tower true, but the weights of the tower do not fit: 55 missing"
    ):
        load(world / "llava-v1.5-tiny")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "in no layout that is known here"),
        (lambda f: edit(f, mm_vision_tower="/gone/clip"), "names the vision tower '/gone/clip'.*say --vision_tower"),
        (lambda f: edit(f, mm_projector_type="linear"), "the projector does not fit: missing"),
        (lambda f: edit(f, num_hidden_layers=3), "9 missing"),
        (lambda f: edit(f, mm_patch_merge_type="spatial_unpad"), "LLaVA-1.6's tiles"),
        (lambda f: edit(f, model_type="llava_nonsense"), "transformers has no 'nonsense'"),
    ],
)
def test_errors(world, change, words):
    change(world / "llava-v1.5-tiny")
    with pytest.raises((ValueError, OSError), match=words):
        load(world / "llava-v1.5-tiny")


def test_a_projector_of_another_width(world):
    tensors = load_file(world / "llava-v1.5-tiny" / "model.safetensors")
    tensors["model.mm_projector.0.weight"] = torch.zeros(128, 32)
    save_file(tensors, world / "llava-v1.5-tiny" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"0.weight is \[128, 32\] in the file and \[128, 64\] in the model"):
        load(world / "llava-v1.5-tiny")


def test_a_plain_language_model_is_no_checkpoint(world):
    with pytest.raises(ValueError, match="in no layout that is known here .model_type 'llama', weights, no mm_. keys"):
        load(world / "llm")


def test_adapters_on_their_base(world, written):
    """What save_lora left, with the base given or found, answers as the model did that was saved."""
    model = VisionLanguageModel.from_pretrained(str(world / "clip"), str(world / "llm"))
    add_lora(model, r=4, alpha=8, dropout=0.0, bias="none")
    torch.manual_seed(0)
    for name, parameter in model.llm.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    config = finetune_config(
        model.llm.config, vision_tower="../clip", vision_width=64, model_name_or_path=str(world / "llm")
    )
    save_lora(model, world / "llava-v1.5-lora", config)
    ids = torch.tensor([[1, 5, *[IMAGE_TOKEN_INDEX] * model.num_patches, 9, 11]])
    pixels = torch.randn(1, 3, 112, 112)

    def logits(model):
        with torch.no_grad():
            patches = model.project(model.encode_images(pixels))
            return model.llm.get_output_embeddings()(model.forward_hidden(ids, torch.ones_like(ids), patches))

    expected = logits(model.eval())
    loaded = load(world / "llava-v1.5-lora", base=str(world / "llm"))
    assert (loaded.kind, loaded.tokenizer_source) == ("lora", str(world / "llm"))
    assert torch.equal(logits(loaded.model), expected)
    assert torch.equal(logits(load(world / "llava-v1.5-lora").model), expected)
    plain = load_model(world / "out-llava-pt", dtype=torch.float32).model
    assert (logits(plain) - expected).abs().max() > 0.01  # the adapters do something
