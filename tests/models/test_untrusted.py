"""Model folders of somebody else: nothing in them runs, no header is believed, and what is wrong has a name."""

from __future__ import annotations

import ast
import json
import os
import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from llava_pat.data.tokenize import load_tokenizer
from llava_pat.models.checkpoint import load_projector, save_projector
from llava_pat.models.json_file import read_json
from llava_pat.models.llava_config import language_config
from llava_pat.models.loading import load_language_model, load_vision_tower
from llava_pat.models.projectors import build_projector
from llava_pat.models.shards import tensor_files
from llava_pat.types import DataError
from tests.faults.harmful import FORMS, LYING_HEADERS, WEIGHT, Changeable, Harmful, own_code

ROOT = Path(__file__).resolve().parents[2]
LLM = ROOT / "tests/assets/llava_written/llm"


@pytest.mark.parametrize("model_type", ["own", "llama"])
def test_code_in_a_model_folder_never_runs(tmp_path, monkeypatch, model_type):
    """Without trust_remote_code=False transformers asks on the terminal, and `yes | bash scripts/...` would answer."""
    mark = own_code(tmp_path, model_type)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises((DataError, ValueError)) as caught:
        load_tokenizer(tmp_path)
    if model_type == "llama":
        assert "brings code of its own (auto_map), which is never run here" in str(caught.value)
        assert type(language_config(tmp_path)) is LlamaConfig
    else:
        for load in (language_config, lambda path: load_language_model(path, torch.float32, "sdpa")):
            with pytest.raises(ValueError, match="model_type 'own'.* code of its own .* never run here"):
                load(tmp_path)
    with pytest.raises(ValueError, match="model_type"):
        load_vision_tower(tmp_path, torch.float32, "sdpa")
    assert not mark.exists()


def test_every_auto_class_is_told_not_to_run_code():
    """`trust_remote_code` has no default that says no: without it transformers asks."""
    asked = 0
    for folder in ("llava_pat", "playground", "train", "eval"):
        for source in sorted((ROOT / folder).rglob("*.py")):
            text = source.read_text()
            calls = ast.walk(ast.parse(text)) if "from_pretrained" in text or "from_config" in text else ()
            for node in calls:
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                any_class = owner == "kind" and source.name == "pretrained.py"  # annotation/: Auto classes, too
                if node.func.attr in ("from_pretrained", "from_config") and (owner.startswith("Auto") or any_class):
                    told = {word.arg: word.value for word in node.keywords}.get("trust_remote_code")
                    assert isinstance(told, ast.Constant) and told.value is False, f"{source}:{node.lineno}"
                    asked += 1
    assert asked >= 12


@pytest.mark.parametrize("case", LYING_HEADERS)
def test_a_safetensors_header_that_lies(tmp_path, case):
    file = tmp_path / "mm_projector.safetensors"
    file.write_bytes(LYING_HEADERS[case])
    with pytest.raises(ValueError, match="mm_projector.safetensors"):
        load_projector(file, build_projector("mlp2x_gelu", 4, 6))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: torch.zeros(6, 4).to_sparse(), "no plain tensor .torch.sparse_coo"),
        (lambda: torch.zeros(6, 4, device="meta"), "on meta"),
        (lambda: torch.quantize_per_tensor(torch.zeros(6, 4), 0.1, 0, torch.qint8), "qint8"),
        (lambda: torch.zeros(1).expand(10**12), r"is \[1000000000000\] in the file"),
        (lambda: torch.zeros(6, 4, dtype=torch.complex64), "complex64"),
        (lambda: torch.zeros(6, 4, dtype=torch.int64), "int64"),
        (lambda: torch.full((6, 4), float("nan")), "holds NaN"),
        (lambda: torch.full((6, 4), float("inf"), dtype=torch.float16), "holds NaN, infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_projector_that_is_no_numbers(tmp_path, value, message):
    projector = build_projector("mlp2x_gelu", 4, 6)
    before = {name: tensor.clone() for name, tensor in projector.state_dict().items()}
    save_projector(projector, tmp_path)
    file = tmp_path / "mm_projector.bin"
    torch.save(torch.load(file) | {WEIGHT: value()}, file)
    with pytest.raises(ValueError, match=f"mm_projector.bin.*{message}"):
        load_projector(file, projector)
    assert all(torch.equal(before[name], tensor) for name, tensor in projector.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_bytes_changed_at_random_are_refused_or_tensors(tmp_path, form):
    """torch.load stumbles over them in many ways; here there is one."""
    projector, rng = build_projector("mlp2x_gelu", 4, 6), random.Random(0)
    save_projector(projector, tmp_path)
    file = tmp_path / "mm_projector.bin"
    content, refused = Changeable(torch.load(file), form), 0
    for _ in range(150):
        file.write_bytes(content.changed(rng))
        try:
            load_projector(file, projector)
        except ValueError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 50


def test_a_pickle_that_names_what_it_would_run(tmp_path):
    torch.save({WEIGHT: Harmful(tmp_path / "executed")}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="nothing else is unpickled since that can run code .it asks for posix.mkdir"):
        load_projector(tmp_path, build_projector("linear", 4, 6))
    assert not (tmp_path / "executed").exists()


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    """The shard that was read last is kept open; it must not be taken for another one of its name."""
    for value in (1.0, 2.0):
        torch.save({"a": torch.full((3,), value)}, tmp_path / "aside.bin")
        os.replace(tmp_path / "aside.bin", tmp_path / "pytorch_model.bin")
        assert tensor_files(tmp_path)["a"].read().tolist() == [value] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "nested too deeply"), ('{"a": ' + "9" * 5000 + "}", "not JSON"), ("[]", "holds a list"),
     ("{", "not JSON")],
)  # fmt: skip
def test_json_of_a_model_folder(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    for read in (lambda: read_json(tmp_path / "config.json"), lambda: language_config(tmp_path)):
        with pytest.raises(ValueError, match=f"config.json.*{message}"):
            read()


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": {"a": 1}},
        {"model_type": None},
        {"auto_map": 3},
        {"rope_parameters": "x"},
        {"id2label": "x"},
        {"dtype": "../../etc/passwd"},
        {"vocab_size": float("nan")},
        {"hidden_size": -24},
        {"num_attention_heads": 0},
        {"hidden_size": 48},
    ],
)
def test_settings_of_a_wrong_kind_name_the_folder(tmp_path, tiny_vlm, changes):
    folder = tmp_path / "llm"
    tiny_vlm().llm.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=str(folder)):
        load_language_model(folder, torch.float32, "sdpa")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"added_tokens_decoder": 3}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"a": '),
        ("tokenizer_config.json", '{"a": ' + "9" * 5000 + "}"),
        ("tokenizer_config.json", '{"a": "\udcff"}'),
        ("tokenizer.model", "no sentencepiece"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "none"}}'),
        ("tokenizer.json", "[" * 100_000),
    ],
)
def test_a_tokenizer_that_is_none(tmp_path, name, content):
    for file in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((LLM / file).read_bytes())
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises((DataError, ValueError, OSError), match=str(tmp_path)):
        load_tokenizer(tmp_path)
