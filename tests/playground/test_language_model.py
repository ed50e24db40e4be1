"""Training, exact answers and export of the language model."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaForCausalLM

from playground import language_model, text
from playground.lessons import Lessons
from playground.rows import document
from playground.vocabulary import LLAMA_PIECES

FOLDER = Path(language_model.__file__).parent / "models" / "llama"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def model_that(predicts):
    """Stands in for a LlamaForCausalLM: logits from the ids that it is shown."""

    def call(input_ids):
        return SimpleNamespace(logits=F.one_hot(predicts(input_ids), LLAMA_PIECES).float())

    return call


def test_accuracy_of_a_model_that_is_always_right(tokenizer):
    always = model_that(lambda ids: ids.roll(-1, dims=1))
    found = language_model.accuracy(always, tokenizer, seed=0, scenes=20)
    assert found == dict.fromkeys(sorted([*text.QUESTION_TYPES, "rec", "reg", "caption"]), 1.0)


def test_accuracy_of_a_model_that_never_stops(tokenizer):
    """Everything right but the end: no answer is exactly right."""
    never = model_that(lambda ids: torch.where(ids == 2, 5, ids).roll(-1, dims=1))
    assert set(language_model.accuracy(never, tokenizer, seed=0, scenes=4).values()) == {0.0}


def test_accuracy_of_a_model_that_says_yes(tokenizer):
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("yes", "no"))
    found = language_model.accuracy(
        model_that(lambda ids: torch.where(ids == no, yes, ids).roll(-1, dims=1)), tokenizer, seed=0, scenes=40
    )
    assert 0.2 < found["existence"] < 0.8 and 0.2 < found["relation"] < 0.8
    assert found["kind"] == found["colour"] == found["rec"] == 1.0


def test_export_loads(tmp_path):
    torch.manual_seed(0)
    config = language_model.llama_config(40)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 1, 20, 32
    config.head_dim = 4
    model = LlamaForCausalLM(config)
    language_model.export(model, tmp_path)
    loaded, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(torch.bfloat16).float()), name
    ids = torch.arange(3, 19).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0.05, atol=0.02)


def test_training_writes_a_model_that_learned(tmp_path, tokenizer, monkeypatch):
    """A few steps of few rows: the loss of held-out rows falls, and the folder loads without the read-outs."""
    folder, work = tmp_path / "llama", tmp_path / "work"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    work.mkdir()
    monkeypatch.setattr(language_model, "accuracy", lambda *_: {"kind": 0.0})
    monkeypatch.setattr(language_model, "READ_OUT_ROWS", 8)
    language_model.train(folder, work, steps=4, batch_size=2, seed=0)
    learned = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    start = LlamaForCausalLM(language_model.llama_config(len(tokenizer)))
    language_model.begin(start, language_model.number_values(tokenizer))
    held_out = [document(0, "val", index, "conversation") for index in range(4)]
    with torch.no_grad():
        before, after = (language_model.loss_on(Lessons(model), tokenizer, held_out)[0] for model in (start, learned))
    assert after < before - 0.1, (before, after)
    saved = torch.load(work / "llm.pt", weights_only=True)
    assert saved["step"] == 4 and any(name.startswith("read.") for name in saved["model"])
