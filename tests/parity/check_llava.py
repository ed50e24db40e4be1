"""LLaVA's own code on a checkpoint: last-position logits and greedy answers (formats: tests/parity/README.md).

Runs in an environment with LLaVA's pins, not in ours. LLaVA's source is named, not installed, and not changed. Ours was
made by `pip install torch==2.1.2 torchvision==0.16.2 transformers==4.37.2 tokenizers==0.15.1 sentencepiece==0.1.99
accelerate==0.21.0 peft==0.7.1 einops==0.6.1 timm==0.6.13 'numpy<2' 'protobuf<5' 'huggingface_hub<0.30' requests
shortuuid safetensors pillow` in a venv of Python 3.11, and haotian-liu/LLaVA at c121f04 in a folder beside it:

    /tmp/llava_env/bin/python tests/parity/check_llava.py --llava_src /tmp/llava_src CHECKPOINT [--model_base BASE] \
        --cases /tmp/cases.json --out /tmp/llava.json [--run_in FOLDER]

The folder's name decides how LLaVA loads it, as in its evaluation. --run_in: where to stand when config.json's
mm_vision_tower is a relative path. LLaVA casts to fp16 while it loads; here its float16 is float32, so that figures can
be compared to fp32 rounding. Nothing else of its code changes. On the checkpoint that LLaVA wrote
(tests/assets/llava_written) it gives golden.json's logits to the last bit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file


class TorchWithoutHalf:
    """The torch module with float32 in the place of float16: what `llava.model.builder` sees as torch."""

    float16 = torch.float32

    def __getattr__(self, name):
        return getattr(torch, name)


def load(llava_src: Path, checkpoint: Path, model_base: str | None):
    """LLaVA's load_pretrained_model on the CPU in fp32 -> tokenizer, model, image processor."""
    sys.path.insert(0, str(llava_src))
    from llava.mm_utils import get_model_name_from_path
    from llava.model import builder

    builder.torch = TorchWithoutHalf()
    name = get_model_name_from_path(str(checkpoint))
    tokenizer, model, image_processor, _ = builder.load_pretrained_model(
        str(checkpoint), model_base, name, device="cpu", device_map="cpu"
    )
    floats = {key: value.dtype for key, value in model.state_dict().items() if value.is_floating_point()}
    half = [key for key, dtype in floats.items() if dtype != torch.float32]
    if half:
        raise SystemExit(f"{len(half)} tensors are not fp32, such as {half[0]}")
    print(f"{name}: {type(model).__name__}, image_aspect_ratio {getattr(model.config, 'image_aspect_ratio', None)}")
    return tokenizer, model.eval(), image_processor


@torch.inference_mode()
def answer(case: dict, cases: dict, folder: Path, tokenizer, model, image_processor) -> tuple[dict, torch.Tensor]:
    """One entry of "answers" and the logits [V], by the calls that llava/eval/model_vqa.py makes."""
    from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import process_images, tokenizer_image_token

    question, images = case["question"], None
    if case["image"] is not None:
        question = DEFAULT_IMAGE_TOKEN + "\n" + question
        image = Image.open(folder / case["image"]).convert("RGB")
        images = process_images([image], image_processor, model.config)
    conversation = conv_templates[cases["template"]].copy()
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)
    prompt = conversation.get_prompt()
    ids = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0)
    logits = model(input_ids=ids, images=images, use_cache=False).logits[0, -1]
    new = model.generate(
        ids, images=images, do_sample=False, num_beams=1, max_new_tokens=cases["max_new_tokens"], use_cache=True
    )
    # transformers 4.37 starts what it generates from embeddings with a BOS of its own
    new = new[0, 1:] if new[0, 0] == tokenizer.bos_token_id else new[0]
    text = tokenizer.decode(new, skip_special_tokens=True).strip()
    entry = {"id": case["id"], "prompt": prompt, "prompt_ids": ids[0].tolist()}
    return entry | {"answer_ids": new.tolist(), "answer": text}, logits.float().contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--llava_src", type=Path, required=True)
    parser.add_argument("--model_base")
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run_in", type=Path, default=Path.cwd())
    arguments = parser.parse_args()
    checkpoint, out, folder = (path.resolve() for path in (arguments.checkpoint, arguments.out, arguments.cases.parent))
    cases = json.loads(arguments.cases.read_text(encoding="utf-8"))
    base = arguments.model_base
    base = str(Path(base).resolve()) if base and Path(base).is_dir() else base
    torch.set_num_threads(1)
    llava_src = arguments.llava_src.resolve()
    os.chdir(arguments.run_in)
    parts = load(llava_src, checkpoint, base)
    transformers.logging.set_verbosity_error()  # one warning a call about a pad token that one prompt does not need
    answers, logits = [], {}
    for case in cases["cases"]:
        entry, logits[case["id"]] = answer(case, cases, folder, *parts)
        answers.append(entry)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    written = {"by": {"what": "LLaVA"} | versions, "answers": answers}
    out.write_text(json.dumps(written, indent=1, ensure_ascii=False), encoding="utf-8")
    save_file(logits, str(out.with_suffix(".safetensors")))
    print(f"{len(answers)} answers written to {out}")


if __name__ == "__main__":
    main()
