"""bitsandbytes' 4-bit and 8-bit language models: asked for, made ready for LoRA, turned back into floats.

Source: llava/train/train.py of haotian-liu/LLaVA at c121f04, peft's `prepare_model_for_kbit_training`, and bitsandbytes
0.50.2 as installed. The projector and the tower are never quantised: they are no part of the language model here.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from llava_pat.models.json_file import read_json
from llava_pat.models.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)

BITS = (4, 8, 16)
QUANT_TYPES = ("nf4", "fp4")
BLOCK = 64
"""Weights that share one scale in 4 bits; bitsandbytes counts them through the flattened matrix."""

QUANTIZATION_JSON = "quantization.json"
_SKIPPED = ["mm_projector", "lm_head"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Quantization:
    """How the base of a LoRA run was quantised; enough to make the same numbers again.

    compute_dtype: of the matrix products. weight_dtype: that the weights had when they were quantised, and that
    dequantising gives back ("bfloat16").
    """

    bits: int
    quant_type: str
    double_quant: bool
    compute_dtype: str
    weight_dtype: str

    def config(self) -> BitsAndBytesConfig:
        """What loading takes, as `quantization`."""
        config = quantization(self.bits, self.quant_type, self.double_quant, _DTYPES[self.compute_dtype])
        assert config is not None  # bits is 4 or 8 by `read_quantization`
        return config

    @property
    def load_dtype(self) -> torch.dtype:
        """weight_dtype, for load_language_model's `dtype`."""
        return _DTYPES[self.weight_dtype]


def quantization(
    bits: int, quant_type: str = "nf4", double_quant: bool = True, compute_dtype: torch.dtype = torch.bfloat16
) -> BitsAndBytesConfig | None:
    """LLaVA's --bits, --quant_type and --double_quant as transformers takes them; None for 16 (nothing quantised).

    compute_dtype: of the matrix products with 4-bit weights; LLaVA takes the training's. One departure from LLaVA:
    lm_head stays as it is. LLaVA names mm_projector alone, and transformers 4.37 then quantises lm_head as well, by
    accident: naming any module there replaces the default list, which is lm_head.
    Raises ValueError for unknown values, ImportError when bitsandbytes is missing.
    """
    if bits not in BITS:
        raise ValueError(f"bits {bits} is unknown: 4, 8, or 16 for a base that is not quantised")
    if quant_type not in QUANT_TYPES:
        raise ValueError(f"quant_type {quant_type!r} is unknown. Known: {', '.join(QUANT_TYPES)}")
    if bits == 16:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(f"bits {bits} needs bitsandbytes, which is not installed: pip install 'bitsandbytes>=0.50'")
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        llm_int8_skip_modules=list(_SKIPPED),
        llm_int8_threshold=6.0,
        llm_int8_has_fp16_weight=False,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_quant_type=quant_type,
    )


def quantization_of(llm: PreTrainedModel) -> Quantization | None:
    """How `llm` was quantised when it was loaded; None when it was not."""
    layers = quantized_layers(llm)
    if not layers:
        return None
    config = llm.config.quantization_config
    return Quantization(
        bits=4 if config.load_in_4bit else 8,
        quant_type=config.bnb_4bit_quant_type,
        double_quant=config.bnb_4bit_use_double_quant,
        compute_dtype=_name(config.bnb_4bit_compute_dtype),
        weight_dtype=_name(layers[0][1].weight.quant_state.dtype if config.load_in_4bit else llm.config.dtype),
    )


def write_quantization(quantized: Quantization | None, folder: str | Path) -> None:
    """Writes quantization.json, or removes that of an earlier run when nothing was quantised.

    Not a key of config.json: transformers would quantise whatever is loaded by a config with `quantization_config`.
    """
    file = Path(folder) / QUANTIZATION_JSON
    if quantized is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(json.dumps(asdict(quantized), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_quantization(folder: str | Path) -> Quantization | None:
    """What `write_quantization` left; None for a run whose base was not quantised, and for LLaVA's folders.

    Raises ValueError for a file that is not its.
    """
    file = Path(folder) / QUANTIZATION_JSON
    if not file.exists():
        return None
    stored = read_json(file)
    known = set(Quantization.__dataclass_fields__)
    if set(stored) != known:
        raise ValueError(f"{file}: expected the keys {sorted(known)}, got {sorted(stored)}")
    quantized = Quantization(**stored)
    if quantized.bits not in (4, 8):
        raise ValueError(f"{file}: bits {quantized.bits}, expected 4 or 8")
    return quantized


def quantized_layers(llm: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, layer) of every Linear4bit and Linear8bitLt; empty without bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return []
    import bitsandbytes as bnb  # here, not above: it is an extra, and its import takes seconds

    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return [(name, module) for name, module in llm.named_modules() if isinstance(module, kinds)]


def prepare_quantized(model: VisionLanguageModel, gradient_checkpointing: bool) -> None:
    """Makes a quantised language model ready for `add_lora`, as LLaVA does. Call it after loading, before `add_lora`.

    Base frozen; norms (and biases) fp32; embeddings and lm_head in the compute dtype; with gradient_checkpointing the
    embeddings' output asks for gradients, so that reentrant checkpointing works as well. Evaluations may come between
    training steps: see `keep_unpacked`.
    Raises ValueError when the language model is not quantised, or when ZeRO-3 has sharded it.
    """
    llm = model.llm
    quantized = quantization_of(llm)
    if quantized is None:
        raise ValueError("the language model is not quantised: load it with quantization_config=quantization(4 or 8)")
    if any(hasattr(parameter, "ds_id") for parameter in llm.parameters()):
        raise ValueError(f"a {quantized.bits}-bit base cannot be sharded by ZeRO-3: use ZeRO-2, or bits 16")
    llm.requires_grad_(False)
    keep_unpacked(llm)
    _quiet_casts()
    words = {id(module) for module in (llm.get_input_embeddings(), llm.get_output_embeddings())}
    layers = {id(layer) for _, layer in quantized_layers(llm)}
    for module in llm.modules():
        dtype = _DTYPES[quantized.compute_dtype] if id(module) in words else torch.float32
        for name, parameter in module.named_parameters(recurse=False):
            if id(module) in layers and name == "weight":
                continue
            parameter.data = parameter.data.to(dtype)
    if gradient_checkpointing:
        llm.enable_input_require_grads()
    logger.info("%d linear layers in %d bits (%s)", len(layers), quantized.bits, quantized)


def keep_unpacked(llm: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in an eval-mode forward on a CPU with avx512_bf16.

    A repacked weight passes no gradient: after one evaluation every LoRA gradient would be None, without an error. It
    also no longer dequantises to the same numbers.
    """
    for _, layer in quantized_layers(llm):
        if layer.weight.dtype == torch.uint8:
            if "packing_format_for_cpu" in vars(layer.weight.quant_state):
                raise ValueError(
                    "a forward in eval mode has repacked the 4-bit weights for this CPU: call prepare_quantized right "
                    "after loading"
                )
            layer.support_avx512bf16_for_cpu = False


def dequantize(model: VisionLanguageModel, dtype: torch.dtype) -> None:
    """Replaces every quantised layer, also under LoRA, by an nn.Linear with the same numbers. In place.

    dtype: of the new weights. The numbers are those that the matrix products took; LoRA trained beside them.
    """
    llm = model.llm
    for name, layer in quantized_layers(llm):
        weight = _float_weight(layer)
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=layer.bias.requires_grad)
        llm.set_submodule(name, linear.train(layer.training))
    llm.hf_quantizer.remove_quantization_config(llm)


def _quiet_casts() -> None:
    """bitsandbytes warns in every forward of every 8-bit layer that it computes in fp16, whatever the input's dtype."""
    chatty = logging.getLogger("bitsandbytes.autograd._functions")
    if not chatty.filters:
        chatty.addFilter(lambda record: "inputs will be cast from" not in record.getMessage())


def _float_weight(layer: nn.Module) -> Tensor:
    """[out, in] in the dtype that the weight had before quantisation (4 bits) or fp32 (8 bits)."""
    import bitsandbytes.functional as bnb

    weight = layer.weight
    if weight.dtype == torch.int8:
        scales = weight.SCB if layer.state.SCB is None else layer.state.SCB  # moves there in the first forward
        return bnb.int8_vectorwise_dequant(weight.data, scales)
    return bnb.dequantize_4bit(weight.data, weight.quant_state)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
