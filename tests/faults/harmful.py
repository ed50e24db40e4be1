"""Files that would run code, headers that lie, and bytes that changed on the way."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from pathlib import Path

import torch
from transformers import LlamaConfig

WEIGHT = "model.mm_projector.0.weight"

_OWN_CODE = """
import os
os.mkdir({mark!r})
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class OwnConfig(PretrainedConfig):
    model_type = "own"
class OwnModel(PreTrainedModel):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


class Harmful:
    """Unpickling it makes a folder, by os.mkdir, os.system or exec."""

    def __init__(self, mark: Path, by: str = "mkdir") -> None:
        self.mark, self.by = str(mark), by

    def __reduce__(self):
        if self.by == "system":
            return os.system, (f"mkdir {self.mark}",)
        return (exec, (f"import os; os.mkdir({self.mark!r})",)) if self.by == "exec" else (os.mkdir, (self.mark,))


def own_code(folder: Path, model_type: str) -> Path:
    """Makes `folder` a model's whose code leaves a folder behind when it is imported. Returns that."""
    mark = folder / "executed"
    classes = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel", "AutoModelForCausalLM": "own.OwnModel"}
    tokenizer = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
    config = LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=10)
    settings = config.to_dict() | {"model_type": model_type, "auto_map": classes | tokenizer}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": tokenizer, "tokenizer_class": "OwnTokenizer"})
    )
    (folder / "own.py").write_text(_OWN_CODE.format(mark=str(mark)))
    return mark


def _header(content: object, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def _one(dtype: str = "F32", shape: tuple[int, ...] = (6, 4), offsets: tuple[int, int] = (0, 96)) -> dict:
    return {WEIGHT: {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


LYING_HEADERS = {
    "nothing": b"",
    "a length without end": b"\xff" * 8 + b"{}",
    "a length of a terabyte": struct.pack("<Q", 1 << 40) + b"{}",
    "nested lists": _header(b"[" * 100_000),
    "no text": _header(b"\xff{}"),
    "less data than told": _header(_one(), b"\0" * 95),
    "offsets behind the end": _header(_one(offsets=(0, 10**12)), b"\0" * 96),
    "a larger shape": _header(_one(shape=(6, 400)), b"\0" * 96),
    "a shape without end": _header(_one(shape=(2**40, 2**40)), b"\0" * 96),
    "a negative shape": _header(_one(shape=(-6, 4)), b"\0" * 96),
    "the same bytes twice": _header(_one() | {"other": _one()[WEIGHT]}, b"\0" * 96),
    "another dtype": _header(_one(dtype="F8_E4M3", offsets=(0, 24)), b"\0" * 24),
    "an unknown dtype": _header(_one(dtype="nothing"), b"\0" * 96),
}


def changed_bytes(rng: random.Random, content: bytes) -> bytes:
    """One to four bytes changed, and sometimes the end cut off."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.15 else changed)


FORMS = ("zip", "legacy", "pickle inside the zip")


class Changeable:
    """A dict of tensors as torch.save writes it, in one of FORMS."""

    def __init__(self, tensors: dict[str, torch.Tensor], form: str) -> None:
        file = io.BytesIO()
        torch.save(tensors, file, _use_new_zipfile_serialization=form != "legacy")
        self.whole = file.getvalue()
        self.parts: dict[str, bytes] = {}
        if form == "pickle inside the zip":
            with zipfile.ZipFile(file) as archive:
                self.parts = {name: archive.read(name) for name in archive.namelist()}

    def changed(self, rng: random.Random) -> bytes:
        """The file with some bytes changed; of a pickle inside a zip only its, with a sound zip around it."""
        if not self.parts:
            return changed_bytes(rng, self.whole)
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, content in self.parts.items():
                archive.writestr(name, changed_bytes(rng, content) if name.endswith("data.pkl") else content)
        return file.getvalue()
