"""Weights and model folders of somebody else."""

from __future__ import annotations

import builtins
import io
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from llava_pat.data.refer_files import read_refs
from llava_pat.data.tokenize import load_tokenizer
from llava_pat.models.checkpoint import load_objective, load_projector, save_projector
from llava_pat.models.llava_config import language_config
from llava_pat.models.loading import load_language_model, load_vision_tower
from llava_pat.models.projectors import build_projector
from llava_pat.models.shards import tensor_files
from llava_pat.types import DataError
from tests.faults.examples import generated
from tests.faults.harmful import FORMS, LYING_HEADERS, WEIGHT, Changeable, Harmful, changed_bytes, own_code
from tests.faults.refusal import refused
from tests.faults.registry import Outcome, Run, fault_kind

_TINY = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 10,
}  # fmt: skip
_WAYS = ("mkdir", "system", "exec")


def _projector() -> torch.nn.Module:
    return build_projector("mlp2x_gelu", 4, 6)


def _language_model(folder: Path) -> Path:
    LlamaForCausalLM(LlamaConfig(**_TINY)).save_pretrained(folder)
    return folder


@fault_kind("pickles that run code", "refused by file; nothing runs")
def pickles(run: Run) -> Iterator[Outcome]:
    mark = run.folder / "executed"
    llm, projector = _language_model(run.folder / "llm"), run.folder / "mm_projector.bin"
    (llm / "model.safetensors").unlink()
    places: list[tuple[str, Path, Callable[[], object]]] = [
        ("projector", projector, lambda: load_projector(projector, _projector())),
        ("projector, by its folder", projector, lambda: load_projector(run.folder, _projector())),
        ("language model", llm / "pytorch_model.bin", lambda: load_language_model(llm, torch.float32, "sdpa")),
        ("shard", llm / "pytorch_model.bin", lambda: [tensor.read() for tensor in tensor_files(llm).values()]),
        ("RefCOCO's list", run.folder / "refs(unc).p", lambda: read_refs(run.folder / "refs(unc).p")),
    ]
    for way in run.some(_WAYS):
        for place, file, load in places:
            for form, content in _dressed(Harmful(mark, way)):
                file.write_bytes(content)
                yield refused(f"{place}: {form}, by {way}", load, file.name, mark.exists)
                file.unlink()


def _dressed(harm: Harmful) -> Iterator[tuple[str, bytes]]:
    """The ways in which such a file is written."""
    for form, value in (("among tensors", {WEIGHT: torch.zeros(6, 4), "x": harm}), ("instead of a tensor",
                        {WEIGHT: harm}), ("as a key", {harm: torch.zeros(1)}), ("alone", harm)):  # fmt: skip
        for legacy in (False, True):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
            yield f"{form}, {'legacy' if legacy else 'zip'}", buffer.getvalue()
    yield "a plain pickle", pickle.dumps([{"sentences": harm}])
    yield "a pickle of protocol 0", pickle.dumps({WEIGHT: harm}, protocol=0)
    buffer = io.BytesIO()
    np.save(buffer, np.array([harm], dtype=object), allow_pickle=True)
    yield "a numpy file", buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({WEIGHT: harm}, protocol=2))
        archive.writestr("archive/version", "3\n")
    yield "a zip with a pickle alone", buffer.getvalue()


@fault_kind("safetensors headers that lie", "refused by file")
def headers(run: Run) -> Iterator[Outcome]:
    file, llm = run.folder / "mm_projector.safetensors", _language_model(run.folder / "llm")
    for case, content in LYING_HEADERS.items():
        for name, there, load in (
            ("projector", file, lambda: load_projector(file, _projector())),
            ("objective", run.folder / "alignment_objective.safetensors",
             lambda: load_objective(run.folder, torch.nn.Linear(4, 6))),
            ("language model", llm / "model.safetensors", lambda: load_language_model(llm, torch.float32, "sdpa")),
            ("shard", llm / "model.safetensors", lambda: [one.read() for one in tensor_files(llm).values()]),
        ):  # fmt: skip
            there.write_bytes(content)
            folder_or_file = run.folder.name if name == "objective" else there.parent.name
            yield refused(f"{case} ({name})", load, folder_or_file)


@fault_kind("weights with bytes changed or cut off", "refused by file, or finite tensors of the right shapes")
def changed(run: Run) -> Iterator[Outcome]:
    projector = _projector()
    save_projector(projector, run.folder)
    binary, safe = run.folder / "mm_projector.bin", run.folder / "mm_projector.safetensors"
    tensors = torch.load(binary, weights_only=True)
    forms = {form: Changeable(tensors, form) for form in FORMS}
    save_file(tensors, safe)
    whole = safe.read_bytes()

    def one(rng: random.Random) -> Iterator[Outcome]:
        form = rng.choice([*FORMS, "safetensors", "safetensors header"])
        file = safe if form.startswith("safe") else binary
        if file is binary:
            content = forms[form].changed(rng)
        elif form == "safetensors":
            content = changed_bytes(rng, whole)
        else:
            content = changed_bytes(rng, whole[:300]) + whole[300:]
        file.write_bytes(content)
        try:
            load_projector(file, projector)
        except ValueError as error:
            yield Outcome(str(file) in str(error), form, str(error)[:300])
        else:
            yield Outcome(all(bool(p.isfinite().all()) for p in projector.parameters()), form, "no finite weights")

    yield from generated(run, 3000, one)


@fault_kind("model folders with code of their own", "refused by folder without asking; nothing is imported")
def code(run: Run) -> Iterator[Outcome]:
    builtins.input = lambda *_: "y"  # `yes | bash scripts/...`
    for model_type in ("own", "llama", "clip_vision_model", "siglip_vision_model", "mistral", "llava", "qwen2"):
        folder = run.folder / model_type
        folder.mkdir()
        mark = own_code(folder, model_type)
        loads = {
            "tokenizer": lambda folder=folder: load_tokenizer(folder),
            "tower": lambda folder=folder: load_vision_tower(folder, torch.float32, "sdpa"),
            "language model": lambda folder=folder: load_language_model(folder, torch.float32, "sdpa"),
            "settings": lambda folder=folder: language_config(folder),
        }
        for name, load in loads.items():
            yield _not_imported(f"{name} of type {model_type}", load, folder, mark)
        shutil.rmtree(folder)


def _not_imported(fault: str, load: Callable[[], object], folder: Path, mark: Path) -> Outcome:
    """What is known by its type may load, with the code of transformers; anything else is refused."""
    try:
        load()
    except (ValueError, DataError, OSError) as error:
        return Outcome(str(folder) in str(error) and not mark.exists(), fault, str(error)[:300])
    except Exception as error:
        return Outcome(False, fault, f"{type(error).__name__}: {error}"[:300])
    return Outcome(not mark.exists(), fault, "it was executed")
