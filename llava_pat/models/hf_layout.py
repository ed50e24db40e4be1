"""A folder in llava-hf's layout: transformers' LlavaForConditionalGeneration with its processor and chat template.

The same files serve transformers 5 and 4.37.2: names as both write them on disk, configs in the old words.
What the original script (transformers' convert_llava_weights_to_hf.py, gone from 5.x) does is done here as well:
<image> and <pad> stand behind the vocabulary, whose rows are filled up to a multiple of 64.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import PretrainedConfig

from llava_pat.models.checkpoint import save_config
from llava_pat.models.json_file import read_json
from llava_pat.models.llava_config import in_old_words
from llava_pat.models.llava_layout import PROJECTOR_PREFIX, write_generation_config, write_json
from llava_pat.models.shards import LazyTensor, find_file
from llava_pat.models.source import HF_RECORD, Checkpoint
from llava_pat.models.tower_source import class_tokens, strategy_of
from llava_pat.types import IMAGE_TOKEN

PAD_TOKEN = "<pad>"
_MULTIPLE = 64
_NOISE = 1e-5  # of the words' covariance, as in the original script
_VISION_KEYS = ("hidden_act", "hidden_size", "image_size", "layer_norm_eps", "num_attention_heads", "num_channels",
                "num_hidden_layers", "patch_size")  # fmt: skip
_VISION_KEYS_OF = {
    "clip_vision_model": (
        "attention_dropout", "initializer_factor", "initializer_range", "intermediate_size", "projection_dim",
    ),
    "siglip_vision_model": ("attention_dropout", "intermediate_size", "vision_use_head"),
    "dinov2": (
        "attention_probs_dropout_prob", "drop_path_rate", "hidden_dropout_prob", "initializer_range",
        "layerscale_value", "mlp_ratio", "qkv_bias", "use_mask_token", "use_swiglu_ffn",
    ),
}  # fmt: skip
_PROCESSOR_KEYS = (
    "crop_size", "do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize", "image_mean",
    "image_std", "resample", "rescale_factor", "size",
)  # fmt: skip


@dataclass(frozen=True)
class ChatFormat:
    """The strings of a conversation template: `opening` QUESTION `header` `lead` ANSWER `close` `between` ..."""

    opening: str
    between: str
    header: str
    lead: str
    close: str


@dataclass(frozen=True)
class Vocabulary:
    """How llava-hf's ids and rows follow from the language model's."""

    image_id: int
    pad_id: int
    rows: int


def refuse_what_llava_hf_lacks(checkpoint: Checkpoint) -> None:
    """ValueError for a model that LlavaConfig cannot describe."""
    tower = checkpoint.vision.model_type
    if tower not in _VISION_KEYS_OF:
        raise ValueError(
            f"{checkpoint.name}: its vision tower is a {tower} model, whose registers LlavaForConditionalGeneration "
            "would take for patches, so this model has no llava-hf form. Keep LLaVA's layout"
        )
    kind = checkpoint.settings["mm_projector_type"]
    if kind != "mlp2x_gelu":
        raise ValueError(
            f"{checkpoint.name}: its projector is {kind!r}; LlavaForConditionalGeneration knows 'mlp2x_gelu' only "
            "(two linear layers), so this model has no llava-hf form. Keep LLaVA's layout"
        )


# ---- weights


def hf_names(checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, LazyTensor]:
    """All tensors under the names that 4.37.2 and 5.x both read from disk, with the vocabulary's new rows."""
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in checkpoint.language.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensor = with_rows(tensor, vocabulary.rows, seed=int(name.startswith("lm_head")))
        tensors[f"language_model.{name}"] = tensor
    for place, layer in (("0", "linear_1"), ("2", "linear_2")):
        for part in ("weight", "bias"):
            tensors[f"multi_modal_projector.{layer}.{part}"] = checkpoint.projector[f"{PROJECTOR_PREFIX}{place}.{part}"]
    tensors |= {f"vision_tower.{name}": tensor for name, tensor in checkpoint.tower.items()}
    return tensors


def with_rows(tensor: LazyTensor, rows: int, seed: int) -> LazyTensor:
    """[V, D] -> [rows, D]; new rows are the mean of the old with a little of their covariance, by a fixed seed."""
    if rows == tensor.shape[0]:
        return tensor

    def read() -> Tensor:
        old = tensor.read()
        return torch.cat((old, _new_rows(old, rows - len(old), seed).to(old.dtype)))

    return LazyTensor((rows, *tensor.shape[1:]), tensor.dtype, read, tensor.where)


def _new_rows(old: Tensor, count: int, seed: int) -> Tensor:
    """count samples of N(mean, 1e-5 * covariance) of old [V, D], as fp32 [count, D].

    mean + sqrt(1e-5 / V) * z @ (old - mean) with z ~ N(0, 1) [count, V] has exactly that covariance; block by block,
    so that no D x D matrix and no fp32 copy of the embedding is made.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = old.split(4096)
    mean = sum(block.float().sum(0) for block in blocks) / len(old)
    noise = torch.zeros(count, old.shape[1])
    for block in blocks:
        noise += torch.randn(count, len(block), generator=generator) @ (block.float() - mean)
    return mean + noise * (_NOISE / len(old)) ** 0.5


# ---- tokenizer


def with_image_token(tokenizer: Tokenizer, rows: int) -> tuple[Tokenizer, Vocabulary]:
    """A copy of a fast tokenizer that has <image> and <pad>, and the ids; `rows` is the embedding's number of rows."""
    copied = Tokenizer.from_str(tokenizer.to_str())
    copied.no_padding()
    copied.no_truncation()
    for token in (IMAGE_TOKEN, PAD_TOKEN):
        copied.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    image_id, pad_id = copied.token_to_id(IMAGE_TOKEN), copied.token_to_id(PAD_TOKEN)
    needed = max(image_id, pad_id) + 1
    if needed > rows:
        rows = -(-needed // _MULTIPLE) * _MULTIPLE
    return copied, Vocabulary(image_id, pad_id, rows)


def write_tokenizer(tokenizer: Tokenizer, source: str, chat_template: str, max_length: int, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json for both versions of transformers.

    tokenizer: with <image> and <pad>, giving the training's ids. source: the base's folder or hub id, for its settings.
    """
    content = json.loads(tokenizer.to_str())
    merges = content["model"].get("merges", [])
    if merges and all(not isinstance(merge, str) and not any(" " in part for part in merge) for merge in merges):
        content["model"]["merges"] = [" ".join(merge) for merge in merges]  # tokenizers 0.15 knows no pairs
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    model_file = find_file(source, "tokenizer.model")
    if model_file is not None:
        (folder / "tokenizer.model").write_bytes(model_file.read_bytes())
    config_file = find_file(source, "tokenizer_config.json")
    config = {} if config_file is None else read_json(config_file)
    special = {role: _content(config[role]) for role in ("bos_token", "eos_token", "unk_token") if config.get(role)}
    special["pad_token"] = PAD_TOKEN
    for name in ("auto_map", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
        config.pop(name, None)
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config |= special | {
        "added_tokens_decoder": {str(i): {key: token.__getstate__()[key] for key in keys} for i, token in added},
        "chat_template": chat_template,
        "model_max_length": max_length,
        "padding_side": "left",  # for batched generation; training pads on the right
        "processor_class": "LlavaProcessor",
    }
    if model_file is not None:
        config["tokenizer_class"] = "LlamaTokenizer"
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)


def _content(token: str | Mapping) -> str:
    return token if isinstance(token, str) else token["content"]


def chat_template(chat: ChatFormat) -> str:
    """Jinja that renders messages exactly as the conversation template did in training, system sentence included.

    A single image stands in front of its message on a line of its own (as training places it); several stay in place.
    Text is not trimmed (LLaVA's evaluation does not trim either).
    Content may be a string, or a list of {"type": "text" | "image"} parts.
    """
    text = {name: json.dumps(value) for name, value in vars(chat).items()}
    return (
        "{%- set ns = namespace(images=0, body='', here=0) -%}"
        "{%- for message in messages -%}{%- if message['content'] is not string -%}"
        "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}"
        "{%- set ns.images = ns.images + 1 -%}{%- endif -%}{%- endfor -%}"
        "{%- endif -%}{%- endfor -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] != ['user', 'assistant'][loop.index0 % 2] -%}"
        "{{- raise_exception('roles must alternate user, assistant; the system sentence is in the template') -}}"
        "{%- endif -%}"
        "{%- set ns.body = '' -%}{%- set ns.here = 0 -%}"
        "{%- if message['content'] is string -%}{%- set ns.body = message['content'] -%}{%- else -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{%- set ns.here = ns.here + 1 -%}"
        "{%- if ns.images > 1 -%}{%- set ns.body = ns.body ~ '<image>' -%}{%- endif -%}"
        "{%- else -%}{%- set ns.body = ns.body ~ part['text'] -%}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if ns.images == 1 and ns.here == 1 -%}"
        "{%- set ns.body = '<image>\\n' ~ ns.body -%}{%- endif -%}"
        "{%- endif -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{{{- {text['opening']} if loop.first else {text['between']} -}}}}"
        "{{- ns.body -}}"
        "{%- else -%}"
        f"{{{{- {text['header']} ~ {text['lead']} ~ ns.body ~ {text['close']} -}}}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {text['header']} -}}}}{{%- endif -%}}"
    )


# ---- configs


def hf_config(checkpoint: Checkpoint, vocabulary: Vocabulary, dtype: torch.dtype, image_size: int) -> dict:
    """config.json of LlavaForConditionalGeneration, for 4.37.2 and 5.x. image_size: of what the tower is given."""
    name = str(dtype).removeprefix("torch.")
    text: PretrainedConfig = copy.deepcopy(checkpoint.text)
    text_part = in_old_words(text, name) | {"model_type": text.model_type, "vocab_size": vocabulary.rows}
    text_part.pop("_name_or_path", None)
    if text_part.get("rope_scaling") is None:
        text_part.pop("rope_scaling", None)  # 5.x warns of the old word even where it says nothing
    vision = checkpoint.vision.to_dict()
    kind = checkpoint.vision.model_type
    keys = (*_VISION_KEYS, *_VISION_KEYS_OF[kind])
    vision_part = {key: vision[key] for key in keys if key in vision} | {"model_type": kind, "torch_dtype": name}
    feature = checkpoint.settings["mm_vision_select_feature"]
    side = image_size // vision["patch_size"]
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": side**2 + (feature == "cls_patch"),
        "image_token_index": vocabulary.image_id,
        "model_type": "llava",
        "multimodal_projector_bias": True,
        "pad_token_id": vocabulary.pad_id,
        "projector_hidden_act": "gelu",
        "text_config": text_part,
        "tie_word_embeddings": bool(text.tie_word_embeddings),
        "torch_dtype": name,
        "transformers_version": transformers.__version__,
        "vision_config": vision_part,
        "vision_feature_layer": checkpoint.settings["mm_vision_select_layer"],
        "vision_feature_select_strategy": strategy_of(checkpoint.vision, feature),
        HF_RECORD: {
            "base": checkpoint.base,
            "settings": dict(checkpoint.settings),
            "vocab_size": checkpoint.text.vocab_size,
        },
    }


def image_processor_config(processor: Mapping, image_aspect_ratio: str) -> dict:
    """preprocessor_config.json whose pixels are the training's.

    "pad" needs LlavaImageProcessor (transformers >= 4.49); the towers' own, all that 4.37.2 has, cannot pad: give them
    images that are square already. processor: the tower's, as a dict.
    """
    config = {key: processor[key] for key in _PROCESSOR_KEYS if key in processor}
    config["processor_class"] = "LlavaProcessor"
    if image_aspect_ratio != "pad":
        if "crop_size" not in config and "size" in config:  # SigLIP: LlavaProcessor reads the side of its images there
            config |= {"crop_size": config["size"], "do_center_crop": False}
        return config | {"image_processor_type": processor.get("image_processor_type", "CLIPImageProcessor")}
    crop, shortest = config.get("crop_size"), config.get("size", {}).get("shortest_edge")
    if config.get("do_center_crop", True) and crop is not None and shortest in (None, crop["height"]):
        return config | {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    # A padded square is resized once, to what the tower takes (DINOv2's crop would cut its rim off).
    side = crop if config.get("do_center_crop") else config["size"]
    square = {"height": side["height"], "width": side["width"]}
    steps = {"crop_size": square, "do_center_crop": False, "do_pad": True, "size": square}
    return config | steps | {"image_processor_type": "LlavaImageProcessor"}


def write_configs(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    dtype: torch.dtype,
    processor: Mapping,
    image_size: int,
    template: str,
    folder: Path,
) -> None:
    """All JSON files but the tokenizer's; config.json last."""
    aspect = checkpoint.settings.get("image_aspect_ratio", "square")
    write_json(folder / "preprocessor_config.json", image_processor_config(processor, aspect))
    write_json(
        folder / "processor_config.json",
        {
            "image_token": IMAGE_TOKEN,
            "num_additional_image_tokens": class_tokens(checkpoint.vision),  # "default" takes one off again
            "patch_size": checkpoint.vision.patch_size,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": strategy_of(
                checkpoint.vision, checkpoint.settings["mm_vision_select_feature"]
            ),
        },
    )
    write_json(folder / "chat_template.json", {"chat_template": template})
    generation = dict(checkpoint.generation) | {"pad_token_id": vocabulary.pad_id}
    for role in ("bos_token_id", "eos_token_id"):
        value: int | Sequence[int] | None = vars(checkpoint.text).get(role)
        if value is not None:
            generation.setdefault(role, value)
    write_generation_config(generation, folder)
    save_config(hf_config(checkpoint, vocabulary, dtype, image_size), folder)
