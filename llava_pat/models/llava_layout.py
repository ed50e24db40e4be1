"""A stage-2 folder in LLaVA's layout: what LLaVA's own evaluation loads in place of a LLaVA-1.5 checkpoint.

Key names, files and settings: llava/train/train.py, llava/model/llava_arch.py and llava/model/builder.py
(haotian-liu/LLaVA at c121f04), and what that code wrote (tests/assets/llava_written/llava-v1.5-tiny).

    model.embed_tokens.weight, model.layers.N.*, model.norm.weight, lm_head.weight      the language model
    model.mm_projector.{0,2}.{weight,bias}                                              the projector
    model.vision_tower.vision_tower.*                                                   the tower, if it was trained
                                                                                        (names: tower_names.py)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llava_pat.models.checkpoint import save_config, write_projector
from llava_pat.models.json_file import read_json
from llava_pat.models.shards import LazyTensor, find_file, write_shards
from llava_pat.models.tower_names import joined_shape, parts_by_name

if TYPE_CHECKING:
    from llava_pat.models.towers import VisionTower
    from llava_pat.models.vlm import VisionLanguageModel

PROJECTOR_PREFIX = "model.mm_projector."
TOWER_PREFIX = "model.vision_tower.vision_tower."
GENERATION_CONFIG = "generation_config.json"

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def save_llava(
    model: VisionLanguageModel,
    folder: str | Path,
    config: Mapping,
    *,
    tokenizer_source: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    with_tower: bool | None = None,
    write: bool = True,
) -> None:
    """Writes the model as LLaVA would, one tensor at a time.

    config: what `finetune_config` made; torch_dtype and unfreeze_mm_vision_tower follow from what is written.
    tokenizer_source: the folder or hub id of the base model, whose tokenizer files are copied.
    dtype: of all floating-point weights; None keeps each one's. with_tower: by default whether the tower trains.
    write: False on every rank but one. All ranks call this together: under ZeRO-3 it gathers each parameter in turn.
    Raises ValueError for a model with adapters or quantised weights in it, and for a tower that is to be written but
    was cut above the layer it is read at.
    """
    folder = Path(folder)
    if with_tower is None:
        with_tower = model.tower_is_trained
    projector = {PROJECTOR_PREFIX + name: tensor for name, tensor in module_tensors(model.projector).items()}
    tensors = language_tensors(model.llm) | projector
    if with_tower:
        tensors |= {TOWER_PREFIX + name: tensor for name, tensor in tower_tensors(model.tower).items()}
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    config = dict(config) | {"unfreeze_mm_vision_tower": with_tower, "vocab_size": model.vocab_size}
    config["torch_dtype"] = str(tensors["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    projector = {name: tensors[name].read() for name in projector}  # gathered once for two places
    tensors |= {name: _held(tensor) for name, tensor in projector.items()}
    write_shards(folder, tensors, max_shard_size, write=write)
    if not write:
        return
    write_projector(projector, folder)
    copy_tokenizer(tokenizer_source, folder, int(config["tokenizer_model_max_length"]))
    write_generation_config(model.llm.generation_config.to_diff_dict(), folder)
    save_config(config, folder)


def _held(tensor: Tensor) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


# ---- a model's tensors


def language_tensors(llm: PreTrainedModel) -> dict[str, LazyTensor]:
    """A language model's weights under their own names, `lm_head.weight` only where it is not the embedding itself.

    Raises ValueError for adapters, for quantised weights, and for names that are no Llama's (LLaVA's keys assume them).
    """
    tensors = module_tensors(llm)
    adapters = sorted(name for name in tensors if ".lora_" in name or ".base_layer." in name)
    if adapters:
        raise ValueError(f"the language model holds adapters ({adapters[0]} ...); merge them before saving it whole")
    packed = sorted(name for name, tensor in tensors.items() if not tensor.dtype.is_floating_point)
    if packed:
        raise ValueError(
            f"the language model holds weights that are no floats ({packed[0]}: {tensors[packed[0]].dtype}), as a "
            "quantised one does; LLaVA's layout has no place for them. Save the adapters and merge them into the base"
        )
    if "model.embed_tokens.weight" not in tensors:
        raise ValueError(
            f"{type(llm).__name__} has no weight 'model.embed_tokens.weight' (it has {sorted(tensors)[:3]}); LLaVA's "
            "layout is for language models with Llama's names"
        )
    return tensors


def tower_tensors(tower: VisionTower) -> dict[str, LazyTensor]:
    """A vision tower's weights under the names that they have in files (tower_names.py).

    Raises ValueError for a tower whose upper layers were dropped.
    """
    if len(tower.layers) != tower.num_layers:
        raise ValueError(
            f"the vision tower keeps {len(tower.layers)} of its {tower.num_layers} layers, so it cannot be saved; load "
            "the model with whole_tower=True"
        )
    return {name: _joined([_lazy(part) for part in parts]) for name, parts in parts_by_name(tower.model).items()}


def _joined(parts: list[LazyTensor]) -> LazyTensor:
    if len(parts) == 1:
        return parts[0]
    shape = joined_shape([part.shape for part in parts])
    return LazyTensor(shape, parts[0].dtype, lambda: torch.cat([part.read() for part in parts]))


def module_tensors(module: nn.Module) -> dict[str, LazyTensor]:
    """state_dict as lazy tensors, each gathered when it is read if ZeRO-3 shards it; a tied weight comes once."""
    found: dict[str, LazyTensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        found[name] = _lazy(tensor)
    return found


def _lazy(tensor: Tensor) -> LazyTensor:
    sharded = hasattr(tensor, "ds_id")  # DeepSpeed puts it on the parameters it shards

    def read() -> Tensor:
        with _gathered(tensor, sharded):
            return tensor.detach().to("cpu", copy=True).contiguous()

    return LazyTensor(tuple(tensor.ds_shape) if sharded else tuple(tensor.shape), tensor.dtype, read)


@contextlib.contextmanager
def _gathered(tensor: Tensor, sharded: bool) -> Iterator[None]:
    if not sharded:
        yield
        return
    import deepspeed  # only there when a parameter is its

    with deepspeed.zero.GatheredParameters([tensor]):
        yield


# ---- the files beside the weights


def write_generation_config(generation: Mapping, folder: Path) -> None:
    """generation_config.json without sampling parameters that do_sample does not back: saving them is an error."""
    kept = {key: value for key, value in generation.items() if generation.get("do_sample") or key not in _SAMPLING}
    write_json(folder / GENERATION_CONFIG, kept)


def copy_tokenizer(source: str | Path, folder: Path, model_max_length: int) -> list[str]:
    """Copies the base model's tokenizer files, with LLaVA's settings: pad = unk where there is none, padding right.

    Copied, since save_pretrained of transformers 5 leaves tokenizer.model out, and LLaVA's slow tokenizer needs it.
    Returns the names. Raises FileNotFoundError when the source has no tokenizer.
    """
    copied = []
    for name in TOKENIZER_FILES:
        file = find_file(source, name)
        if file is not None:
            if file.resolve() != (folder / name).resolve():
                shutil.copyfile(file, folder / name)
            copied.append(name)
    if not {"tokenizer.model", "tokenizer.json", "vocab.json"} & set(copied):
        raise FileNotFoundError(f"{source} holds no tokenizer (tokenizer.model, tokenizer.json or vocab.json)")
    config = _read_if_there(folder / "tokenizer_config.json")
    special = _read_if_there(folder / "special_tokens_map.json")
    for role in ("bos_token", "eos_token", "unk_token"):
        if role not in special and config.get(role) is not None:
            special[role] = _content(config[role])
    if special.get("pad_token") is None:
        pad = config.get("pad_token") or special.get("unk_token") or special.get("eos_token")
        special["pad_token"] = _content(pad) if pad is not None else None
    if special["pad_token"] is None:
        raise ValueError(f"{source}: the tokenizer names neither pad, unk nor eos token; LLaVA needs one to pad with")
    if "tokenizer.model" in copied:
        config.setdefault("tokenizer_class", "LlamaTokenizer")  # LLaVA's model_type tells transformers nothing
    config |= {
        "model_max_length": model_max_length,
        "pad_token": _content(special["pad_token"]),
        "padding_side": "right",
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)
    return copied


def _content(token: str | Mapping) -> str:
    return token if isinstance(token, str) else token["content"]


def _read_if_there(file: Path) -> dict:
    return read_json(file) if file.is_file() else {}


def write_json(file: Path, content: Mapping) -> None:
    """Two spaces, sorted keys, a final newline, as transformers writes; written aside and renamed."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, file)
