"""A Qwen2 language model with tied embeddings, a byte-level tokenizer and ChatML: there and back through llava-hf."""

from __future__ import annotations

import json

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llava_pat.convert.command import main
from llava_pat.models.from_folder import load_model
from llava_pat.models.llava_config import finetune_config
from llava_pat.models.llava_layout import save_llava
from llava_pat.models.shards import tensor_files
from llava_pat.models.vlm import VisionLanguageModel


def qwen(folder):
    """Some 290 words and three special tokens; 320 rows, as Qwen's embeddings are larger than its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a red circle above the blue square", "what is shown here"] * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    end = tokenizer.token_to_id("<|im_end|>")
    config = Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=320, tie_word_embeddings=True, initializer_range=0.3, max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, bos_token_id=None, eos_token_id=end,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)


def test_there_and_back(assets, tmp_path, capsys):
    qwen(tmp_path / "qwen")
    model = VisionLanguageModel.from_pretrained(str(assets / "clip"), str(tmp_path / "qwen"))
    config = finetune_config(model.llm.config, vision_tower=str(assets / "clip"), vision_width=64)
    source = tmp_path / "llava-v1.5-qwen"
    save_llava(model, source, config, tokenizer_source=tmp_path / "qwen", with_tower=False)
    written = json.loads((source / "config.json").read_text())
    assert (written["model_type"], written["rope_theta"], written["tie_word_embeddings"]) == ("llava_qwen2", 1e6, True)
    loaded = load_model(source, dtype=torch.float32).model
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())

    assert main([str(source), str(tmp_path / "hf"), "--template", "chatml_direct"]) == 0
    assert "ids of 4 prompts; pixels of an image; logits" in capsys.readouterr().out
    made = json.loads((tmp_path / "hf" / "config.json").read_text())
    words = tensor_files(source)["model.embed_tokens.weight"].shape[0]
    assert made["image_token_index"] < words == 320 and made["text_config"]["vocab_size"] == 320  # there was room
    assert "language_model.lm_head.weight" not in tensor_files(tmp_path / "hf")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert theirs.lm_head.weight is theirs.model.language_model.embed_tokens.weight
    assert theirs.config.text_config.rope_parameters["rope_theta"] == 1e6
    processor = AutoProcessor.from_pretrained(tmp_path / "hf", backend="pil")
    prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "a"}]}])
    assert prompt == "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\na"

    assert main([str(tmp_path / "hf"), str(tmp_path / "llava-v1.5-back"), "--template", "chatml_direct"]) == 0
    assert "no class for a qwen2 model" in capsys.readouterr().out
    first, second = tensor_files(source), tensor_files(tmp_path / "llava-v1.5-back")
    assert sorted(first) == sorted(second)
    assert all(torch.equal(first[name].read(), second[name].read()) for name in first)
    tokenizer = json.loads((tmp_path / "llava-v1.5-back" / "tokenizer.json").read_text())
    assert "<image>" not in {token["content"] for token in tokenizer["added_tokens"]}
    assert json.loads((tmp_path / "llava-v1.5-back" / "config.json").read_text()) == written
