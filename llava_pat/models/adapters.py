"""LoRA on the language model, by peft, and LLaVA's LoRA folder: written and read, strictly both ways.

A LoRA folder holds (llava/train/train.py and llava/model/builder.py of haotian-liu/LLaVA at c121f04):

    config.json                 the language model's with LLaVA's mm_* keys
    adapter_config.json         the keys that every peft knows: old versions die on one they do not know
    adapter_model.safetensors   base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight ...
    non_lora_trainables.bin     base_model.model.model.mm_projector.0.weight ...
    mm_projector.bin, .safetensors, and quantization.json after a quantised run: ours, not read by LLaVA

No tokenizer: LLaVA takes the base model's.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from llava_pat.models.checkpoint import save_config, write_aside, write_projector
from llava_pat.models.json_file import read_json
from llava_pat.models.llava_layout import PROJECTOR_PREFIX, TOWER_PREFIX, tower_tensors, write_json
from llava_pat.models.quantized import (
    prepare_quantized,
    quantization,
    quantization_of,
    quantized_layers,
    write_quantization,
)
from llava_pat.models.shards import LazyTensor, is_local, read_file
from llava_pat.models.tower_names import parts_by_name
from llava_pat.models.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)

__all__ = [
    "LoraSettings",
    "add_lora",
    "linear_leaf_names",
    "load_lora",
    "lora_base",
    "lora_settings",
    "merge_lora",
    "prepare_quantized",
    "quantization",
    "save_lora",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_SAFETENSORS = "adapter_model.safetensors"
ADAPTER_BIN = "adapter_model.bin"
NON_LORA_BIN = "non_lora_trainables.bin"
BIASES = ("none", "all", "lora_only")

_PLAIN_LORA = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "target_parameters": (None, []),
    "exclude_modules": (None, []),
}
"""Keys of adapter_config.json that change the numbers, with the values under which they are plain LoRA's."""

_PREFIX = "base_model.model."
_ADAPTER = "default"  # peft's name for the only adapter; not in the files' keys


@dataclass(frozen=True)
class LoraSettings:
    """What adapter_config.json says, as far as the numbers depend on it."""

    r: int
    alpha: int
    dropout: float
    bias: str
    target_modules: tuple[str, ...]  # sorted leaf names
    base: str  # where the base model was when the run was made


def linear_leaf_names(llm: PreTrainedModel) -> list[str]:
    """Leaf names of all linear layers (also bitsandbytes') but the output embedding: LLaVA's find_all_linear_names."""
    output = llm.get_output_embeddings()
    names = {
        name.rpartition(".")[2]
        for name, module in llm.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    }
    return sorted(names)


def add_lora(
    model: VisionLanguageModel, *, r: int = 128, alpha: int = 256, dropout: float = 0.05, bias: str = "none"
) -> None:
    """Puts LoRA on every linear layer of the language model but lm_head; the rest of it is frozen. In place.

    Defaults: LLaVA's scripts/v1_5/finetune_lora.sh. bias: which biases of the language model train: "none", "all", or
    "lora_only" (of the layers with LoRA). model.llm stays the bare language model, model.adapter becomes peft's view
    of it. The new parameters are fp32 (DeepSpeed makes them its training dtype, with fp32 masters); what the
    projector and the tower train is not touched. Raises ValueError for a second call and for impossible numbers.
    """
    if model.adapter is not None:
        raise ValueError("the language model has LoRA already")
    if r < 1 or alpha <= 0 or not 0 <= dropout < 1 or bias not in BIASES:
        raise ValueError(
            f"LoRA with r {r}, alpha {alpha}, dropout {dropout}, bias {bias!r}: r must be at least 1, alpha above 0, "
            f"dropout in [0, 1), bias one of {', '.join(BIASES)}"
        )
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias=bias,
        target_modules=linear_leaf_names(model.llm),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing.*")
        model.adapter = get_peft_model(model.llm, config)
    model.train(model.training)  # LoRA's dropout follows train() although the rest of the language model is frozen
    trained = sum(parameter.numel() for parameter in model.llm.parameters() if parameter.requires_grad)
    logger.info(
        "LoRA: r %d, alpha %g, dropout %g, bias %s on %s: %d parameters train in the language model",
        r, alpha, dropout, bias, ", ".join(sorted(config.target_modules)), trained,
    )  # fmt: skip


def save_lora(
    model: VisionLanguageModel,
    folder: str | Path,
    config: Mapping,
    dtype: torch.dtype | None = None,
    write: bool = True,
) -> None:
    """Writes LLaVA's LoRA folder (see the top of this file).

    config: for config.json; its `quantization_config` is left out, since readers would quantise whatever they load.
    dtype: of the stored tensors; None keeps each as it is, so that `load_lora` gives equal bits back.
    Under ZeRO-3 every rank calls it, and only those with `write` write: the parameters are gathered one at a time.
    Raises ValueError without LoRA.
    """
    if model.adapter is None:
        raise ValueError("the language model has no LoRA to save: call add_lora first")
    lora = _copies(_adapter_parameters(model.llm), dtype)
    projector = _copies(_projector_parameters(model), dtype)
    tower = _copies(_tower_parameters(model), dtype) if model.tower_is_trained else {}
    if not write:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_CONFIG).unlink(missing_ok=True)  # without it this is no LoRA folder, until it is whole again
    _write_safetensors(folder / ADAPTER_SAFETENSORS, {_file_name(model, name): lora[name] for name in lora})
    _write_bin(folder / NON_LORA_BIN, {_PREFIX + name: tensor for name, tensor in (projector | tower).items()})
    write_projector(projector, folder)
    write_quantization(quantization_of(model.llm), folder)
    save_config({key: value for key, value in config.items() if key != "quantization_config"}, folder)
    write_json(folder / ADAPTER_CONFIG, _adapter_config(_own_settings(model)))


def load_lora(model: VisionLanguageModel, folder: str | Path) -> None:
    """Loads a LoRA folder that we or LLaVA wrote into `model`, whose language model is the run's base. In place.

    Adds the LoRA if there is none yet; one that is there must have the folder's r, alpha, bias and layers. Values are
    cast to the parameters' dtypes. Raises FileNotFoundError for a missing file; ValueError for other settings and for
    missing, surplus or misshapen tensors, before anything is changed but the adding of LoRA.
    """
    folder = Path(folder)
    settings = lora_settings(folder)
    stored = _read(folder)
    if model.adapter is None:
        _check_layers(folder, settings, linear_leaf_names(model.llm))
        add_lora(model, r=settings.r, alpha=settings.alpha, dropout=settings.dropout, bias=settings.bias)
    own = _own_settings(model)
    _check_layers(folder, settings, own.target_modules)
    if (own.r, own.alpha, own.bias) != (settings.r, settings.alpha, settings.bias):
        raise ValueError(
            f"{folder / ADAPTER_CONFIG}: r {settings.r}, alpha {settings.alpha}, bias {settings.bias!r}, but the "
            f"model's LoRA has r {own.r}, alpha {own.alpha}, bias {own.bias!r}: give the run's numbers"
        )
    wanted = _adapter_parameters(model.llm) | _projector_parameters(model)
    if model.tower_is_trained or any(name.startswith(TOWER_PREFIX) for name in stored):
        wanted |= _tower_parameters(model)
    _check_tensors(folder, wanted, stored, settings)
    for name, parameter in wanted.items():
        with _gathered(parameter, changes=True):
            parameter.data.copy_(stored[name].read())
    logger.info("LoRA from %s: %d tensors (trained on %s)", folder, len(wanted), settings.base)


def lora_settings(folder: str | Path) -> LoraSettings:
    """What the folder's adapter_config.json says. Raises FileNotFoundError, or ValueError when it is not plain LoRA."""
    file = Path(folder) / ADAPTER_CONFIG
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: {folder} is not a LoRA folder")
    stored = read_json(file)
    for key, plain in _PLAIN_LORA.items():
        if key in stored and stored[key] not in plain:
            raise ValueError(f"{file}: {key} is {stored[key]!r}; only plain LoRA is read, with {plain[0]!r}")
    needed = {"r", "lora_alpha", "lora_dropout", "bias", "target_modules", "base_model_name_or_path"}
    if not needed <= stored.keys():
        raise ValueError(f"{file}: without {sorted(needed - stored.keys())}")
    if not isinstance(stored["target_modules"], list):
        raise ValueError(f"{file}: target_modules is {stored['target_modules']!r}, expected a list of names")
    return LoraSettings(
        stored["r"],
        stored["lora_alpha"],
        stored["lora_dropout"],
        stored["bias"],
        tuple(sorted(stored["target_modules"])),
        str(stored["base_model_name_or_path"]),
    )


def lora_base(folder: str | Path, base: str | None) -> str:
    """The base to load: `base`, or the folder or hub id that the run recorded. Else ValueError says what to give."""
    if base is not None:
        return base
    recorded = lora_settings(folder).base
    if Path(recorded).is_dir() or (recorded and not is_local(recorded)):
        return recorded
    raise ValueError(
        f"{folder} holds LoRA weights without their base model. They were trained on {recorded!r}, which is no folder "
        "here: name it by --base (--model-base in LLaVA's own programs)"
    )


def merge_lora(model: VisionLanguageModel) -> None:
    """Adds LoRA's products to the weights below them and removes the LoRA. In place; the language model is frozen then.

    Weights keep their dtype: sums are made in fp32 and rounded once. Raises ValueError without LoRA, and for a
    quantised base: `dequantize` it first (rounding the sums to its few values would undo what was learned).
    """
    if model.adapter is None:
        raise ValueError("the language model has no LoRA to merge")
    if quantized_layers(model.llm):
        raise ValueError("the language model is quantised: dequantize it before merging LoRA into it")
    for module in model.llm.modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            down, up = module.lora_A[_ADAPTER].weight, module.lora_B[_ADAPTER].weight
            weight.data = (weight.float() + up.float() @ down.float() * module.scaling[_ADAPTER]).to(weight.dtype)
    unloaded = model.adapter.unload()
    assert unloaded is model.llm  # peft takes its layers out in place
    model.adapter = None
    model.llm.requires_grad_(False)
    model.train(model.training)


# ---- parameters, by the names that they have in LLaVA's model (no "base_model.model.", none of peft's additions)


def _adapter_parameters(llm: PreTrainedModel) -> dict[str, nn.Parameter]:
    """LoRA's, and the biases that train with it."""
    inside = {
        f"{layer}.{name}"
        for layer, module in llm.named_modules()
        if isinstance(module, LoraLayer)
        for name, _ in module.named_parameters()
        if name.startswith("lora_")
    }
    return {
        _plain(name): parameter
        for name, parameter in llm.named_parameters()
        if name in inside or (parameter.requires_grad and name.endswith(".bias"))
    }


def _projector_parameters(model: VisionLanguageModel) -> dict[str, Tensor]:
    return {PROJECTOR_PREFIX + name: tensor for name, tensor in model.projector.state_dict(keep_vars=True).items()}


def _tower_parameters(model: VisionLanguageModel) -> dict[str, Tensor]:
    """All of the tower's, also what stayed frozen. ValueError for a tower that was cut, and for DINOv2's giant."""
    tower_tensors(model.tower)  # for its checks
    found = parts_by_name(model.tower.model)
    if any(len(parts) > 1 for parts in found.values()):
        raise ValueError("a vision tower with SwiGLU (DINOv2's giant) that trains has no place beside adapters")
    return {TOWER_PREFIX + name: tensor for name, (tensor,) in found.items()}


def _plain(name: str) -> str:
    return name.removeprefix(_PREFIX).replace(f".{_ADAPTER}.", ".").replace(".base_layer.", ".")


def _file_name(model: VisionLanguageModel, name: str) -> str:
    """As today's peft writes it: a bias belongs to the layer below LoRA."""
    layer, _, last = name.rpartition(".")
    if last == "bias" and isinstance(model.llm.get_submodule(layer), LoraLayer):
        name = f"{layer}.base_layer.bias"
    return _PREFIX + name


@contextmanager
def _gathered(tensor: Tensor, changes: bool = False) -> Iterator[None]:
    """A parameter that ZeRO-3 shards is whole inside; changes: what is written into it stays."""
    if not hasattr(tensor, "ds_id"):
        yield
        return
    import deepspeed  # there, since a parameter is its

    with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0 if changes else None):
        yield


def _copies(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """On the CPU, gathered one after the other."""
    copies = {}
    for name, tensor in tensors.items():
        with _gathered(tensor):
            copies[name] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    return copies


# ---- files


def _adapter_config(settings: LoraSettings) -> dict:
    """Keys that peft 0.4 knows already: later ones make it, or those between, fail or complain."""
    return {
        "base_model_name_or_path": settings.base,
        "bias": settings.bias,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": settings.r,
        "target_modules": list(settings.target_modules),
        "task_type": "CAUSAL_LM",
    }


def _own_settings(model: VisionLanguageModel) -> LoraSettings:
    config = model.adapter.peft_config[_ADAPTER]
    return LoraSettings(
        config.r,
        config.lora_alpha,
        config.lora_dropout,
        config.bias,
        tuple(sorted(config.target_modules)),
        model.llm.name_or_path,
    )


def _read(folder: Path) -> dict[str, LazyTensor]:
    """All tensors of a LoRA folder by LLaVA's names. LLaVA writes trained biases into both files, equal."""
    adapter = next((folder / name for name in (ADAPTER_SAFETENSORS, ADAPTER_BIN) if (folder / name).exists()), None)
    if adapter is None:
        raise FileNotFoundError(f"{folder} holds neither {ADAPTER_SAFETENSORS} nor {ADAPTER_BIN}")
    if not (folder / NON_LORA_BIN).exists():
        raise FileNotFoundError(f"{folder / NON_LORA_BIN} is missing: the projector that was trained with the LoRA")
    stored = {}
    for file in (adapter, folder / NON_LORA_BIN):
        for key, tensor in read_file(file).items():
            if not key.startswith(_PREFIX):
                raise ValueError(f"{file}: {key!r} does not begin with {_PREFIX!r}, as all names of a LoRA folder do")
            stored[_plain(key)] = tensor
    return stored


def _check_layers(folder: Path, settings: LoraSettings, leaves: Sequence[str]) -> None:
    if list(settings.target_modules) != list(leaves):
        raise ValueError(
            f"{folder / ADAPTER_CONFIG}: LoRA on {', '.join(settings.target_modules)}, but here it goes on "
            f"{', '.join(leaves)}: is this the base that was trained on, {settings.base}?"
        )


def _check_tensors(
    folder: Path, wanted: Mapping[str, Tensor], stored: Mapping[str, LazyTensor], settings: LoraSettings
) -> None:
    way_out = f"It was trained on {settings.base}: is this that base, with the same projector type?"
    missing, surplus = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if missing or surplus:
        raise ValueError(
            f"{folder}: the LoRA does not fit the model: {len(missing)} tensors missing {missing[:3]}, {len(surplus)} "
            f"too many {surplus[:3]}. {way_out}"
        )
    for name, tensor in wanted.items():
        shape = tuple(tensor.ds_shape) if hasattr(tensor, "ds_shape") else tuple(tensor.shape)
        if stored[name].shape != shape:
            raise ValueError(
                f"{folder}: the LoRA does not fit the model: {name} is {list(stored[name].shape)} in the file and "
                f"{list(shape)} in the model. {way_out}"
            )


def _write_safetensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    write_aside(file, lambda aside: save_file(dict(tensors), aside, metadata={"format": "pt"}))


def _write_bin(file: Path, tensors: Mapping[str, Tensor]) -> None:
    write_aside(file, lambda aside: torch.save(dict(tensors), aside))
