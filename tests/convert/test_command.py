"""`python -m llava_pat.convert` on what LLaVA wrote: there and back to the bit, the same model, clear errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_pat.convert.command import main, parser
from llava_pat.data.geometry import geometry_for
from llava_pat.data.tokenize import load_tokenizer
from llava_pat.models.from_folder import load_model
from llava_pat.models.generate import generate
from llava_pat.models.shards import tensor_files


def equal(first, second):
    first, second = tensor_files(first), tensor_files(second)
    assert sorted(first) == sorted(second)
    for name in first:
        a, b = first[name].read(), second[name].read()
        assert a.dtype == b.dtype and torch.equal(a, b), name


def config(folder):
    return json.loads((folder / "config.json").read_text())


def test_there_and_back_is_the_same_to_the_bit(world, tmp_path, capsys):
    for name in ("clip", "llm"):
        (tmp_path / name).symlink_to(world / name)
    back = tmp_path / "llava-v1.5-back"
    assert main([str(world / "hf"), str(back), "--vision_tower", "../clip"]) == 2  # the way from here, not from OUT
    assert "../clip" in capsys.readouterr().err and not back.exists()
    assert main([str(world / "hf"), str(back)]) == 0
    out = capsys.readouterr().out
    assert "equals ../clip, so it is left out" in out and "25 tensors, bit by bit; logits" in out and "done:" in out
    assert "python -m llava.eval.model_vqa_loader" in out and "warning" not in out
    theirs = {k: v for k, v in load_file(world / "llava-v1.5-tiny" / "model.safetensors").items() if "tower" not in k}
    ours = load_file(back / "model.safetensors")
    assert sorted(ours) == sorted(theirs)
    assert all(ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k]) for k in theirs)
    first, second = config(world / "llava-v1.5-tiny"), config(back)
    assert first.pop("transformers_version") and second.pop("transformers_version")
    assert second.pop("unfreeze_mm_vision_tower") is False and first == second
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (back / name).read_bytes() == (world / "llava-v1.5-tiny" / name).read_bytes()
    again = tmp_path / "again"
    assert main([str(back), str(again), "--no-verify"]) == 0
    equal(world / "hf", again)
    assert {f: (again / f).read_text() for f in os.listdir(again) if f.endswith(".json") and f != "config.json"} == {
        f: (world / "hf" / f).read_text()
        for f in os.listdir(world / "hf")
        if f.endswith(".json") and f != "config.json"
    }


def test_golden_logits_and_answers_by_transformers(world, assets):
    """LLaVA's own numbers by transformers' own class and processor, from the converted folder."""
    from PIL import Image

    golden = json.loads((assets / "golden.json").read_text(encoding="utf-8"))["generation"]
    model = LlavaForConditionalGeneration.from_pretrained(world / "hf", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(world / "hf", backend="pil")
    assert processor.image_processor.do_pad
    for sample in golden:
        content = [{"type": "image"}, {"type": "text", "text": sample["question"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        assert prompt == sample["prompt"]
        image = Image.open(assets / "images" / sample["image"])
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        ids = [i for one in sample["input_ids"] for i in ([one] if one >= 0 else [520] * 64)]
        assert inputs["input_ids"][0].tolist() == ids
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1, :520]
            new = model.generate(**inputs, do_sample=False, max_new_tokens=len(sample["greedy_ids"]) - 1)
        # fp32 on both sides; two versions of torch and transformers order their sums differently
        torch.testing.assert_close(logits, torch.tensor(sample["last_logits"]), rtol=0, atol=1e-5)
        assert new[0, len(ids) :].tolist() == sample["greedy_ids"][1:]


def test_load_model_takes_llava_hf_too(world, assets):
    golden = json.loads((assets / "golden.json").read_text(encoding="utf-8"))["generation"]
    ours, theirs = (load_model(world / name, dtype=torch.float32) for name in ("llava-v1.5-tiny", "hf"))
    assert (theirs.kind, theirs.image_aspect_ratio) == ("hf", "pad")
    first, second = (geometry_for(loaded.image_aspect_ratio, loaded.image_processor) for loaded in (ours, theirs))
    assert first == second
    assert not any(parameter.requires_grad for parameter in theirs.model.parameters())
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 112, 112)
    for sample in golden[:4]:
        ids = [[i for one in sample["input_ids"] for i in ([one] if one >= 0 else [one] * 64)]]
        patches = [loaded.model.project(loaded.model.encode_images(pixels)) for loaded in (ours, theirs)]
        assert torch.equal(*patches)
        answers = [
            generate(loaded.model, ids, [[0]], patches[0], max_new_tokens=8, end_ids=[2]) for loaded in (ours, theirs)
        ]
        assert answers[0] == answers[1]
    assert len(load_tokenizer(theirs.tokenizer_source)) <= theirs.model.vocab_size


def test_names_and_configs_for_both_versions(world):
    keys = set(load_file(world / "hf" / "model.safetensors"))
    assert {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"} <= keys
    assert {f"multi_modal_projector.linear_{i}.{p}" for i in (1, 2) for p in ("weight", "bias")} <= keys
    tower = {key for key in keys if key.startswith("vision_tower.")}
    assert len(tower) == 55 and all(key.startswith("vision_tower.vision_model.") for key in tower)
    made = config(world / "hf")
    assert (made["model_type"], made["image_token_index"], made["pad_token_id"]) == ("llava", 520, 521)
    assert (made["image_seq_length"], made["vision_feature_layer"], made["vision_feature_select_strategy"]) == (
        64,
        -2,
        "default",
    )
    text = made["text_config"]
    assert (text["rope_theta"], text["torch_dtype"], text["vocab_size"], text["model_type"]) == (
        1e4,
        "bfloat16",
        576,
        "llama",
    )
    assert "rope_parameters" not in text and "dtype" not in text
    vision = made["vision_config"]
    assert (vision["hidden_size"], vision["image_size"], vision["patch_size"]) == (64, 112, 14)
    processor = json.loads((world / "hf" / "processor_config.json").read_text())
    assert processor["num_additional_image_tokens"] == 1 and processor["patch_size"] == 14
    tokenizer = json.loads((world / "hf" / "tokenizer.json").read_text())
    assert all(isinstance(merge, str) for merge in tokenizer["model"]["merges"])  # tokenizers 0.15


def test_stage1_both_ways(world, tmp_path, capsys):
    whole = tmp_path / "llava-v1.5-stage1"
    assert main([str(world / "out-llava-pt"), str(whole), "--to", "llava"]) == 0
    weights = load_file(whole / "model.safetensors")
    stored = torch.load(world / "out-llava-pt" / "mm_projector.bin", weights_only=True)
    base = load_file(world / "llm" / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in (stored | base).items())
    assert len(weights) == len(stored) + len(base) and config(whole)["tune_mm_mlp_adapter"] is False
    for source, kind in ((whole, "whole"), (world / "hf", "hf")):
        out = tmp_path / f"projector-{kind}"
        assert main([str(source), str(out), "--to", "stage1"]) == 0
        assert sorted(os.listdir(out)) == ["config.json", "mm_projector.bin", "mm_projector.safetensors"]
        found = torch.load(out / "mm_projector.bin", weights_only=True)
        expected = {k: v for k, v in tensor_files(source if kind == "whole" else world / "llava-v1.5-tiny").items()}
        assert sorted(found) == sorted(stored)
        assert all(torch.equal(tensor, expected[name].read()) for name, tensor in found.items())
    assert config(tmp_path / "projector-whole")["tune_mm_mlp_adapter"] is True
    assert main([str(world / "out-llava-pt"), str(tmp_path / "hf")]) == 0  # with the base that config.json names
    assert "logits" in capsys.readouterr().out


def test_sharded_there_and_back(world, tmp_path):
    many = tmp_path / "hf"
    assert main([str(world / "llava-v1.5-tiny"), str(many), "--max_shard_size", "300KB", "--no-verify"]) == 0
    assert len(list(many.glob("model-*.safetensors"))) > 3
    equal(many, world / "hf")
    LlavaForConditionalGeneration.from_pretrained(many)
    assert (
        main([str(many), str(tmp_path / "llava-b"), "--tower", "drop", "--max_shard_size", "200KB", "--no-verify"]) == 0
    )
    assert len(tensor_files(tmp_path / "llava-b")) == 25


def test_cast(world, tmp_path, capsys):
    assert main([str(world / "llava-v1.5-tiny"), str(tmp_path / "hf"), "--dtype", "float16"]) == 0
    assert {t.dtype for t in load_file(tmp_path / "hf" / "model.safetensors").values()} == {torch.float16}
    assert config(tmp_path / "hf")["torch_dtype"] == "float16" and "logits" in capsys.readouterr().out


def test_a_trained_tower_survives(world, tmp_path, capsys):
    source = tmp_path / "llava-v1.5-tower"
    shutil.copytree(world / "llava-v1.5-tiny", source)
    weights = {k: v for k, v in load_file(source / "model.safetensors").items() if "vision_tower" not in k}
    tower = {
        f"model.vision_tower.vision_tower.{k}": v + 0.01
        for k, v in load_file(world / "clip" / "model.safetensors").items()
    }
    save_file(weights | tower, source / "model.safetensors", metadata={"format": "pt"})
    settings = config(source) | {"unfreeze_mm_vision_tower": True, "mm_vision_tower": str(world / "clip")}
    (source / "config.json").write_text(json.dumps(settings))
    assert main([str(source), str(tmp_path / "hf")]) == 0
    hf = load_file(tmp_path / "hf" / "model.safetensors")
    key = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(hf[f"vision_tower.{key}"], tower[f"model.vision_tower.vision_tower.{key}"])
    assert main([str(tmp_path / "hf"), str(tmp_path / "llava-v1.5-back")]) == 0
    assert "differs from" in capsys.readouterr().out
    equal(source, tmp_path / "llava-v1.5-back")
    assert config(tmp_path / "llava-v1.5-back")["unfreeze_mm_vision_tower"] is True


def test_llava_hf_by_transformers_itself(world, tmp_path, capsys):
    """A folder that transformers 5 saved has other names (a flat tower) and no record of ours."""
    theirs = tmp_path / "saved"
    LlavaForConditionalGeneration.from_pretrained(world / "hf").save_pretrained(theirs)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(world / "hf" / name, theirs / name)
    stripped = config(theirs)
    del stripped["llava_pat"]
    (theirs / "config.json").write_text(json.dumps(stripped))
    assert main([str(theirs), str(tmp_path / "llava-x")]) == 2
    assert "say --vision_tower" in capsys.readouterr().err
    assert main([str(theirs), str(tmp_path / "llava-x"), "--vision_tower", str(world / "clip")]) == 0
    made = config(tmp_path / "llava-x")
    assert (made["mm_vision_tower"], made["vocab_size"], made["image_aspect_ratio"]) == (
        str(world / "clip"),
        520,
        "pad",
    )
    bf16 = {k: t.read() for k, t in tensor_files(tmp_path / "llava-x").items()}
    expected = tensor_files(world / "llava-v1.5-tiny")
    assert all(torch.equal(t, expected[k].read().to(torch.bfloat16)) for k, t in bf16.items() if "tower" not in k)


# ---- errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "in no layout that is known here"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-5]),
            "model.safetensors: not a whole safetensors file",
        ),
        (lambda f: edit(f, mm_hidden_size=32, mm_projector_type="linear"), "the projector (linear) does not fit"),
        (lambda f: edit(f, hidden_size=64), "the language model does not fit"),
        (lambda f: edit(f, num_hidden_layers=3), "9 missing"),
        (lambda f: edit(f, num_hidden_layers=1), "9 unexpected"),
        (lambda f: edit(f, mm_vision_tower="/gone/clip"), "say --vision_tower"),
        (lambda f: edit(f, unfreeze_mm_vision_tower=True), "its own vision tower"),
        (lambda f: edit(f, mm_use_im_start_end=True), "mm_use_im_start_end = True"),
        (lambda f: edit(f, image_aspect_ratio="anyres"), "image_aspect_ratio = 'anyres'"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "merge them first"),
    ],
)
def test_bad_sources(world, tmp_path, capsys, change, words):
    (tmp_path / "clip").symlink_to(world / "clip")
    source = tmp_path / "llava-v1.5-tiny"
    shutil.copytree(world / "llava-v1.5-tiny", source)
    change(source)
    assert main([str(source), str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["clip", "llava-v1.5-tiny"]


def edit(folder, **changes):
    settings = config(folder)
    if "unfreeze_mm_vision_tower" in changes:  # without the weights that it promises
        weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if "tower" not in k}
        save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings | changes))


def test_a_projector_without_llava_hf_form_is_refused(world, tmp_path, capsys):
    (tmp_path / "clip").symlink_to(world / "clip")
    (tmp_path / "llm").symlink_to(world / "llm")
    source = tmp_path / "stage1"
    shutil.copytree(world / "out-llava-pt", source)
    tensors = {"model.mm_projector.weight": torch.zeros(128, 64), "model.mm_projector.bias": torch.zeros(128)}
    torch.save(tensors, source / "mm_projector.bin")
    edit(source, mm_projector_type="linear")
    assert main([str(source), str(tmp_path / "hf")]) == 2
    assert "its projector is 'linear'; LlavaForConditionalGeneration knows 'mlp2x_gelu' only" in capsys.readouterr().err
    assert main([str(source), str(tmp_path / "llava-x"), "--to", "llava"]) == 0


def test_a_full_output_folder_is_refused(world, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main([str(world / "llava-v1.5-tiny"), str(tmp_path)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err and os.listdir(tmp_path) == ["notes.txt"]
    assert main([str(world / "hf"), str(tmp_path / "x"), "--to", "hf"]) == 2
    assert "in the layout 'hf' already" in capsys.readouterr().err


def test_the_base_must_be_there(world, tmp_path, capsys):
    source = tmp_path / "stage1"
    shutil.copytree(world / "out-llava-pt", source)
    assert main([str(source), str(tmp_path / "x"), "--to", "llava"]) == 2
    assert "holds no language model" in capsys.readouterr().err
    assert main([str(source), str(tmp_path / "x"), "--to", "llava", "--base", str(world / "llm")]) == 0


def test_help_is_complete_and_quick():
    text = parser().format_help()
    for action in parser()._actions:
        assert action.help, action.dest
    assert "examples:" in text and "--vision_tower" in text
    done = subprocess.run([sys.executable, "-m", "llava_pat.convert", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "llava-hf" in done.stdout
