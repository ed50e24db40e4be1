"""Tokenizers and records that the data tests share: LLaVA's own, a real 32,000-piece model, a byte-level one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llava_pat.data.tokenize import load_tokenizer

ASSETS = Path(__file__).parents[1] / "assets" / "llava_written"


@pytest.fixture(scope="session")
def assets() -> Path:
    return ASSETS


@pytest.fixture(scope="session")
def golden() -> dict:
    return json.loads((ASSETS / "golden.json").read_text())


@pytest.fixture(scope="session")
def small_tokenizer():
    """520 pieces, trims white space, byte fallback: the one that wrote golden.json."""
    return load_tokenizer(ASSETS / "llm")


def llama_folder(folder: Path, legacy: bool) -> Path:
    """A folder as Vicuna's: a tokenizer.model and a tokenizer_config.json, no tokenizer.json."""
    mistral_common = pytest.importorskip("mistral_common", reason="carries a real 32,000-piece tokenizer.model")
    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", folder / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": legacy}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("llama"), legacy=True)


@pytest.fixture(scope="session")
def large_tokenizer(large_folder):
    return load_tokenizer(large_folder)


@pytest.fixture(scope="session")
def modern_tokenizer(tmp_path_factory):
    """legacy=False: no dummy prefix behind special tokens (Vicuna-7B v1.5 is of this kind)."""
    return load_tokenizer(llama_folder(tmp_path_factory.mktemp("modern"), legacy=False))


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind, no BOS, ChatML's special tokens, as MPT, Yi and Qwen have."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["a red circle above the blue square, assistant and user"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
    )
