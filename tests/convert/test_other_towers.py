"""SigLIP and DINOv2 towers through llava-hf and back, with a Llama and with a Qwen2."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

from llava_pat.convert.checks import CONVERSATIONS, made_up_image
from llava_pat.convert.command import main
from llava_pat.data.geometry import geometry_for
from llava_pat.data.templates import get_template
from llava_pat.data.tokenize import encode, load_tokenizer
from llava_pat.models.from_folder import load_model
from llava_pat.models.llava_config import finetune_config
from llava_pat.models.llava_layout import save_llava
from llava_pat.models.shards import tensor_files
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IMAGE_TOKEN, IMAGE_TOKEN_INDEX, Turn
from tests.convert.test_other_families import qwen
from tests.models.tower_folders import write_tower


def llava_folder(root, kind, llm, *, aspect="pad", trained=False, layer=-2, feature="patch"):
    tower = root / "tower"
    if not tower.is_dir():
        write_tower(kind, tower)
    torch.manual_seed(1)
    model = VisionLanguageModel.from_pretrained(
        str(tower), str(llm), select_layer=layer, select_feature=feature, whole_tower=True
    )
    if trained:
        with torch.no_grad():
            for parameter in model.tower.parameters():
                parameter.mul_(1.1)
    config = finetune_config(
        model.llm.config, vision_tower=str(tower), vision_width=16, select_layer=layer, select_feature=feature,
        image_aspect_ratio=aspect, model_name_or_path=str(llm),
    )  # fmt: skip
    folder = root / "llava-v1.5-source"
    save_llava(model, folder, config, tokenizer_source=llm, with_tower=trained)
    return folder


def config(folder):
    return json.loads((folder / "config.json").read_text())


def equal(first, second):
    first, second = tensor_files(first), tensor_files(second)
    assert sorted(first) == sorted(second)
    assert all(torch.equal(first[name].read(), second[name].read()) for name in first)


@torch.no_grad()
def same_answers(source, hf, template):
    """From an image and a question to logits: our folder by our code, theirs by transformers' alone."""
    image, question = made_up_image(), CONVERSATIONS[0][0]
    ours = load_model(source, dtype=torch.float32)
    pixels = geometry_for(ours.image_aspect_ratio, ours.image_processor).pixels(image)
    tokenizer = load_tokenizer(ours.tokenizer_source)
    ids = encode([Turn("human", f"{IMAGE_TOKEN}\n{question}")], get_template(template), tokenizer).input_ids
    patches = ours.model.num_patches
    ids = torch.tensor([[i for one in ids for i in ([one] * (patches if one == IMAGE_TOKEN_INDEX else 1))]])
    features = ours.model.project(ours.model.encode_images(pixels[None]))
    hidden = ours.model.forward_hidden(ids, torch.ones_like(ids), features)
    expected = ours.model.llm.get_output_embeddings()(hidden)

    processor = AutoProcessor.from_pretrained(hf, backend="pil")
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    theirs = LlavaForConditionalGeneration.from_pretrained(hf).eval()
    assert inputs["input_ids"].shape == ids.shape
    assert processor._get_num_multimodal_tokens([(image.height, image.width)]).num_image_tokens == [patches]  # vLLM
    torch.testing.assert_close(inputs["pixel_values"][0], pixels, atol=1e-6, rtol=0)
    found = theirs(**inputs).logits[..., : expected.shape[-1]]
    assert expected.abs().max() > 0.1
    # fp32 on both sides: pixels differ by 5e-7, sums are ordered otherwise
    torch.testing.assert_close(found, expected[..., : found.shape[-1]], atol=1e-4, rtol=1e-4)
    again = load_model(hf, dtype=torch.float32)
    assert geometry_for(again.image_aspect_ratio, again.image_processor).pixels(image).equal(pixels)
    assert again.model.num_patches == patches
    torch.testing.assert_close(again.model.project(again.model.encode_images(pixels[None])), features)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("aspect", ["pad", "square"])
@pytest.mark.parametrize("kind", ["siglip", "whole siglip", "dinov2"])
def test_there_and_back(assets, tmp_path, capsys, kind, aspect, trained):
    source = llava_folder(tmp_path, kind, assets / "llm", aspect=aspect, trained=trained)
    hf, back = tmp_path / "hf", tmp_path / "llava-v1.5-back"
    assert main([str(source), str(hf)]) == 0
    assert "ids of 4 prompts; pixels of an image; logits" in capsys.readouterr().out
    same_answers(source, hf, "v1")

    made, processor = config(hf), json.loads((hf / "processor_config.json").read_text())
    siglip = "siglip" in kind
    assert made["vision_config"]["model_type"] == ("siglip_vision_model" if siglip else "dinov2")
    assert made["vision_feature_select_strategy"] == ("full" if siglip else "default")
    assert made["image_seq_length"] == 4 and processor["num_additional_image_tokens"] == (0 if siglip else 1)
    written = AutoConfig.from_pretrained(tmp_path / "tower")
    written = (written.vision_config if kind == "whole siglip" else written).to_dict()
    found = AutoConfig.from_pretrained(hf).vision_config.to_dict()
    apart = {"architectures", "dtype", "transformers_version", "_name_or_path"}
    assert {k: v for k, v in found.items() if k not in apart} == {k: v for k, v in written.items() if k not in apart}
    pixels = json.loads((hf / "preprocessor_config.json").read_text())
    own = "SiglipImageProcessor" if siglip else "BitImageProcessor"
    assert pixels["image_processor_type"] == ("LlavaImageProcessor" if aspect == "pad" else own)

    assert main([str(hf), str(back)]) == 0
    out = capsys.readouterr().out
    assert f"{'differs from' if trained else 'equals'} {tmp_path / 'tower'}" in out and "logits" in out
    equal(source, back)
    assert config(back) == config(source)


@pytest.mark.parametrize(("kind", "layer", "feature"), [("siglip", -1, "patch"), ("dinov2", -1, "cls_patch"),
                                                       ("dinov2 with swiglu", 2, "patch")])  # fmt: skip
def test_layers_and_features(assets, tmp_path, kind, layer, feature):
    source = llava_folder(tmp_path, kind, assets / "llm", layer=layer, feature=feature, trained=True)
    assert main([str(source), str(tmp_path / "hf")]) == 0
    same_answers(source, tmp_path / "hf", "v1")
    assert config(tmp_path / "hf")["image_seq_length"] == (5 if feature == "cls_patch" else 4)
    assert main([str(tmp_path / "hf"), str(tmp_path / "back"), "--no-verify"]) == 0
    equal(source, tmp_path / "back")


def test_siglip_and_qwen2(tmp_path):
    qwen(tmp_path / "qwen")
    source = llava_folder(tmp_path, "siglip", tmp_path / "qwen", trained=True)
    assert main([str(source), str(tmp_path / "hf"), "--template", "chatml_direct"]) == 0
    same_answers(source, tmp_path / "hf", "chatml_direct")
    assert main([str(tmp_path / "hf"), str(tmp_path / "back"), "--template", "chatml_direct"]) == 0
    equal(source, tmp_path / "back")
    assert config(tmp_path / "back") == config(source)


def test_a_folder_that_transformers_saved(assets, tmp_path, capsys):
    """Without our record, under 5.x's flat names; its images were not padded, since its processor does not pad."""
    source = llava_folder(tmp_path, "siglip", assets / "llm", aspect="square")
    assert main([str(source), str(tmp_path / "hf"), "--no-verify"]) == 0
    theirs = tmp_path / "theirs"
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf").save_pretrained(theirs)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json"):
        (theirs / name).write_bytes((tmp_path / "hf" / name).read_bytes())
    stripped = {key: value for key, value in config(theirs).items() if key != "llava_pat"}
    (theirs / "config.json").write_text(json.dumps(stripped))
    tower = str(tmp_path / "tower")
    assert main([str(theirs), str(tmp_path / "back"), "--vision_tower", tower]) == 0
    made = config(tmp_path / "back")
    assert (made["image_aspect_ratio"], made["mm_vision_select_feature"]) == ("square", "patch")
    equal(source, tmp_path / "back")
    loaded = load_model(theirs, dtype=torch.float32)
    assert (loaded.image_aspect_ratio, loaded.model.num_patches) == ("square", 4)
    (theirs / "config.json").write_text(json.dumps(stripped | {"vision_feature_select_strategy": "default"}))
    assert main([str(theirs), str(tmp_path / "x"), "--vision_tower", tower]) == 2
    assert "'default' drops the first position, which is a patch" in capsys.readouterr().err


def test_registers_have_no_llava_hf_form(assets, tmp_path, capsys):
    source = llava_folder(tmp_path, "dinov2 with registers", assets / "llm")
    assert main([str(source), str(tmp_path / "hf")]) == 2
    assert "registers LlavaForConditionalGeneration would take for patches" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()
    assert main([str(source), str(tmp_path / "projector"), "--to", "stage1"]) == 0
