"""The stage-2 folder against the one that LLaVA's own code wrote: keys, shapes, config.json, tokenizer."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from llava_pat.models.checkpoint import load_projector
from llava_pat.models.llava_config import finetune_config
from llava_pat.models.llava_layout import save_llava
from llava_pat.models.shards import tensor_files
from llava_pat.models.vlm import VisionLanguageModel


@pytest.fixture(scope="module")
def assets(request):
    return request.path.parents[1] / "assets" / "llava_written"


@pytest.fixture(scope="module")
def llava(assets):
    """LLaVA's trained weights in our classes."""
    model = VisionLanguageModel.from_pretrained(str(assets / "clip"), str(assets / "llm"))
    stored = load_file(assets / "llava-v1.5-tiny" / "model.safetensors")
    model.llm.load_state_dict({k: v for k, v in stored.items() if "mm_" not in k and "vision_tower" not in k})
    load_projector(assets / "llava-v1.5-tiny", model.projector)
    model.llm.to(torch.bfloat16)  # as stored; LLaVA left its projector in fp32
    return model


def config_of(assets, **changes):
    settings = {"vision_tower": "../clip", "vision_width": 64, "model_name_or_path": "../llm"} | changes
    return finetune_config(AutoConfig.from_pretrained(assets / "llm"), **settings)


@pytest.fixture(scope="module")
def saved(llava, assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "llava-v1.5-ours"
    config = config_of(assets)
    save_llava(llava, folder, config, tokenizer_source=assets / "llm", with_tower=False)
    return folder


def test_tensors_are_llavas_name_by_name(saved, assets):
    theirs = load_file(assets / "llava-v1.5-tiny" / "model.safetensors")
    theirs = {k: v for k, v in theirs.items() if "vision_tower" not in k}
    ours = load_file(saved / "model.safetensors")
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_config_is_llavas_key_by_key(saved, assets):
    theirs = json.loads((assets / "llava-v1.5-tiny" / "config.json").read_text())
    ours = json.loads((saved / "config.json").read_text())
    assert ours.pop("transformers_version") and theirs.pop("transformers_version")
    assert ours.pop("unfreeze_mm_vision_tower") is False  # as the released 1.5 says; LLaVA reads its absence so
    assert ours == theirs


def test_the_files_beside(saved, assets):
    assert sorted(os.listdir(saved)) == [
        "config.json",
        "generation_config.json",
        "mm_projector.bin",
        "mm_projector.safetensors",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    theirs = assets / "llava-v1.5-tiny"
    assert (saved / "tokenizer.model").read_bytes() == (theirs / "tokenizer.model").read_bytes()
    ours, expected = (json.loads((f / "tokenizer_config.json").read_text()) for f in (saved, theirs))
    assert {key: expected[key] for key in ours} == ours
    assert (ours["pad_token"], ours["padding_side"], ours["legacy"]) == ("<unk>", "right", True)
    ours, expected = (json.loads((f / "special_tokens_map.json").read_text()) for f in (saved, theirs))
    assert ours == {role: t if isinstance(t, str) else t["content"] for role, t in expected.items()}
    ours, expected = (json.loads((f / "generation_config.json").read_text()) for f in (saved, theirs))
    assert all(ours[key] == expected[key] for key in ("bos_token_id", "eos_token_id"))
    stored = torch.load(saved / "mm_projector.bin", weights_only=True)
    weights = load_file(saved / "model.safetensors")
    assert len(stored) == 4 and all(torch.equal(tensor, weights[name]) for name, tensor in stored.items())


def test_a_trained_tower_is_written_with_its_flag(assets, tmp_path):
    model = VisionLanguageModel.from_pretrained(str(assets / "clip"), str(assets / "llm"), select_layer=-1)
    save_llava(model, tmp_path, config_of(assets), tokenizer_source=assets / "llm", with_tower=True)
    theirs = {
        f"model.vision_tower.vision_tower.{k}": v for k, v in load_file(assets / "clip" / "model.safetensors").items()
    }
    ours = {k: t.read() for k, t in tensor_files(tmp_path).items() if "vision_tower" in k}
    theirs = {k: v for k, v in theirs.items() if not k.endswith("position_ids")}
    assert sorted(ours) == sorted(theirs) and all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert all("vision_tower.vision_tower.vision_model." in key for key in ours)
    assert json.loads((tmp_path / "config.json").read_text())["unfreeze_mm_vision_tower"] is True


def test_shards_are_the_same_model(llava, saved, assets, tmp_path):
    save_llava(
        llava, tmp_path, config_of(assets), tokenizer_source=assets / "llm", with_tower=False, max_shard_size="200KB"
    )
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    one, many = tensor_files(saved), tensor_files(tmp_path)
    assert sorted(one) == sorted(many) and all(torch.equal(one[key].read(), many[key].read()) for key in one)


def test_another_rank_reads_and_writes_nothing(llava, assets, tmp_path):
    folder = tmp_path / "out"
    save_llava(llava, folder, config_of(assets), tokenizer_source=assets / "llm", with_tower=False, write=False)
    assert not folder.exists()


def test_shards_of_zero3_are_gathered_one_by_one(tiny_vlm, assets, tmp_path, monkeypatch):
    """DeepSpeed leaves empty parameters with ds_id and ds_shape; each is whole inside its gather context only."""
    model, open_now, most = tiny_vlm(), [], []
    expected = {name: tensor.clone() for name, tensor in model.llm.state_dict().items()}
    whole = {}
    for parameter in model.parameters():
        whole[id(parameter)] = parameter.data
        parameter.ds_id, parameter.ds_shape, parameter.data = 0, parameter.shape, torch.empty(0)

    @contextlib.contextmanager
    def gathered(parameters):
        (parameter,) = parameters
        open_now.append(parameter)
        most.append(len(open_now))
        parameter.data = whole[id(parameter)]
        yield
        parameter.data = torch.empty(0)
        open_now.pop()

    deepspeed = types.ModuleType("deepspeed")
    deepspeed.zero = types.SimpleNamespace(GatheredParameters=gathered)
    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed)
    config = finetune_config(model.llm.config, vision_tower="t", vision_width=16)
    folder = tmp_path / "llava"
    save_llava(model, folder, config, tokenizer_source=assets / "llm", with_tower=True)
    written, gathers = tensor_files(folder), len(most)
    assert all(torch.equal(written[name].read(), tensor) for name, tensor in expected.items())
    assert max(most) == 1 and len(written) == len(list(model.parameters()))
    save_llava(model, tmp_path / "other", config, tokenizer_source=assets / "llm", with_tower=True, write=False)
    assert len(most) == 2 * gathers and not (tmp_path / "other").exists()  # or the ranks would wait for each other


def test_tied_embeddings_are_written_once(tiny_vlm, assets, tmp_path):
    model = tiny_vlm(tie_word_embeddings=True)
    config = finetune_config(model.llm.config, vision_tower="t", vision_width=16)
    save_llava(model, tmp_path, config, tokenizer_source=assets / "llm", with_tower=False)
    assert "lm_head.weight" not in tensor_files(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True


def test_refusals(tiny_vlm, assets, tmp_path):
    model = tiny_vlm()
    config = finetune_config(model.llm.config, vision_tower="t", vision_width=16)
    keywords = {"tokenizer_source": assets / "llm", "with_tower": False}
    layer = model.llm.model.layers[0].mlp
    layer.up_proj.lora_A = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="holds adapters.*merge"):
        save_llava(model, tmp_path / "a", config, **keywords)
    del layer.up_proj.lora_A
    layer.up_proj.weight = torch.nn.Parameter(torch.zeros(4, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="no floats.*uint8"):
        save_llava(model, tmp_path / "b", config, **keywords)
    model = tiny_vlm()
    model.tower.drop_layers_above(-2)
    with pytest.raises(ValueError, match="keeps 2 of its 3 layers.*whole_tower"):
        save_llava(model, tmp_path / "c", config, tokenizer_source=assets / "llm", with_tower=True)
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        save_llava(tiny_vlm(), tmp_path / "d", config, tokenizer_source=assets / "clip", with_tower=False)
    assert not any((tmp_path / name / "config.json").exists() for name in "abcd")
