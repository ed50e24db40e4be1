"""Tiny models of every stage, random weights, saved as folders that from_pretrained takes like a user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    PreTrainedTokenizerFast,
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
)

WORDS = ("red", "blue", "green", "circle", "square", "triangle", "fire", "hyd", "##rant", "st", "bernard", "car", "狗")


def bert_tokenizer() -> BertTokenizer:
    """BERT's own ids for [CLS] 101, [SEP] 102, "." 1012 and "?" 1029: Grounding DINO knows them by number."""
    vocab = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    vocab |= {word: 2000 + place for place, word in enumerate(WORDS)}
    taken = set(vocab.values())
    vocab |= {f"[unused{i}]": i for i in range(2100) if i not in taken}
    return BertTokenizer(vocab=dict(sorted(vocab.items(), key=lambda item: item[1])))


def clip_tokenizer(length: int) -> CLIPTokenizer:
    """Letters; the end of text has the highest id, where CLIP's text tower looks for it."""
    letters = [chr(code) for code in range(97, 123)] + list(".,-")
    pieces = ["!", *letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: place for place, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def save_grounding_dino(folder: Path, mm: bool = False) -> Path:
    backbone = {
        "model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4,
        "image_size": 64, "out_indices": [2, 3, 4],
    }  # fmt: skip
    text = {
        "model_type": "bert", "vocab_size": 2100, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 64,
    }  # fmt: skip
    config = (MMGroundingDinoConfig if mm else GroundingDinoConfig)(
        backbone_config=backbone, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2, num_queries=10,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_n_points=2, decoder_n_points=2, max_text_len=24,
    )  # fmt: skip
    size = {"shortest_edge": 64, "longest_edge": 96}
    kind = MMGroundingDinoForObjectDetection if mm else GroundingDinoForObjectDetection
    return _save(folder, kind, config, GroundingDinoImageProcessorPil(size=size), bert_tokenizer())


def save_owlv2(folder: Path) -> Path:
    tokenizer = clip_tokenizer(16)
    config = Owlv2Config(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16,
        },
        projection_dim=16,
    )  # fmt: skip
    processor = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    return _save(folder, Owlv2ForObjectDetection, config, processor, tokenizer)


def save_clip(folder: Path) -> Path:
    tokenizer = clip_tokenizer(32)
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 32, "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        projection_dim=8,
    )  # fmt: skip
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _save(folder, CLIPModel, config, processor, tokenizer)


def save_sam(folder: Path) -> Path:
    config = SamConfig(
        vision_config={
            "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8, "mlp_dim": 16, "window_size": 4, "global_attn_indexes": [0],
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    processor = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    return _save(folder, SamModel, config, processor)


def save_sam2(folder: Path, video: bool = False) -> Path:
    config = (Sam2VideoConfig if video else Sam2Config)(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64],
                "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 4, 4, 2],
                "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
            },
            "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    _save(folder, Sam2VideoModel if video else Sam2Model, config)
    # as the hub's folders have it; transformers' own class needs torchvision
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "Sam2ImageProcessor", "size": {"height": 64, "width": 64}, "resample": 2, '
        '"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_resize": true, '
        '"do_rescale": true, "do_normalize": true, "do_convert_rgb": true, "rescale_factor": 0.00392156862745098}'
    )
    return folder


def save_sam3(folder: Path) -> Path:
    """Needs torchvision."""
    from transformers import Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor

    tokenizer = clip_tokenizer(32)
    small = {"hidden_size": 16, "num_attention_heads": 2}
    config = Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 112, "patch_size": 14, "window_size": 4,
                "global_attn_indexes": [1], "pretrain_image_size": 112,
            },
            "fpn_hidden_size": 16, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config={
            "model_type": "clip_text_model", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32, "projection_dim": 8,
            "eos_token_id": tokenizer.eos_token_id,
        },
        geometry_encoder_config=small | {"num_layers": 1, "intermediate_size": 16},
        detr_encoder_config=small | {"num_layers": 1, "intermediate_size": 16},
        detr_decoder_config=small | {"num_layers": 1, "intermediate_size": 16, "num_queries": 5},
        mask_decoder_config=small,
    )  # fmt: skip
    images = Sam3ImageProcessor(size={"height": 112, "width": 112}, mask_size={"height": 32, "width": 32})
    return _save(folder, Sam3Model, config, Sam3Processor(images, tokenizer))


def save_florence2(folder: Path) -> Path:
    """Its answers are noise: a test puts words in its mouth."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*marks, *letters])}, [], unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    tokenizer.add_tokens([f"<loc_{i}>" for i in range(1000)] + ["<poly>", "</poly>", "<sep>"])
    text = {
        "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "max_position_embeddings": 256, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }  # fmt: skip
    vision = {
        "depths": [1], "patch_size": [7], "patch_stride": [4], "patch_padding": [3], "patch_prenorm": [False],
        "embed_dim": [16], "num_heads": [2], "num_groups": [2], "window_size": 4, "projection_dim": 16,
    }  # fmt: skip
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id)
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    images.image_seq_length = 65  # 8 x 8 patches and their mean
    tasks = ("pure_text", "description_with_bboxes", "description_with_bboxes_or_polygons", "phrase_grounding")
    processor = Florence2Processor(images, tokenizer, post_processor_config={task: {} for task in tasks})
    return _save(folder, Florence2ForConditionalGeneration, config, processor)


def _save(folder: Path, kind: Callable, config, *parts) -> Path:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return folder
