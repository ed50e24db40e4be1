"""Tokenizers and records that the data tests share: LLaVA's own, a real 32,000-piece model, a byte-level one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
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
def phi_3_llama_tokenizer(tmp_path_factory):
    """As Phi-3 ships it: a Llama tokenizer whose added tokens take the white space behind them along."""
    folder = llama_folder(tmp_path_factory.mktemp("phi_3"), legacy=False)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    names = {"32000": "<|endoftext|>", "32001": "<|assistant|>", "32007": "<|end|>", "32010": "<|user|>"}
    settings["added_tokens_decoder"] = {
        number: {
            "content": name, "lstrip": False, "normalized": False, "rstrip": name != "<|endoftext|>",
            "single_word": False, "special": True,
        }
        for number, name in names.items()
    }  # fmt: skip
    settings |= {"add_bos_token": False, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


def byte_level_backend(specials: list[str | AddedToken]) -> Tokenizer:
    """GPT-2's kind, 400 tokens, `specials` first."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["a red circle above the blue square, assistant and user"] * 4, trainer)
    return backend


def with_bos(backend: Tokenizer, bos: str) -> Tokenizer:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return backend


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """No BOS, ChatML's special tokens, as MPT, Yi and Qwen have."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_backend(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
    )


@pytest.fixture(scope="session")
def llama_3_tokenizer() -> PreTrainedTokenizerFast:
    """A BOS by its post-processor, and an eos that is the end of a turn."""
    turn = ["<|start_header_id|>", "<|end_header_id|>"]
    backend = byte_level_backend(["<|begin_of_text|>", "<|end_of_text|>", *turn, "<|eot_id|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=with_bos(backend, "<|begin_of_text|>"), bos_token="<|begin_of_text|>", eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>", extra_special_tokens=turn,
    )  # fmt: skip


@pytest.fixture(scope="session")
def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """A BOS, and an eos that ends texts, not turns."""
    turn = ["<start_of_turn>", "<end_of_turn>"]
    backend = byte_level_backend(["<pad>", "<eos>", "<bos>", *turn])
    return PreTrainedTokenizerFast(
        tokenizer_object=with_bos(backend, "<bos>"), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        extra_special_tokens=turn,
    )  # fmt: skip


@pytest.fixture(scope="session")
def phi_3_tokenizer() -> PreTrainedTokenizerFast:
    """No BOS; its special tokens take the white space behind them along, the template's newlines too."""
    turn = [AddedToken(name, rstrip=True, special=True) for name in ("<|user|>", "<|assistant|>", "<|end|>")]
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_backend(["<|endoftext|>", *turn]),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=turn,
    )
