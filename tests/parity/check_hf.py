"""transformers' LlavaForConditionalGeneration on a llava-hf folder: last logits and greedy answers (README.md).

Runs with transformers 5 (our environment) and with 4.37.2 (check_llava.py says how that environment is made):

    python -m llava_pat.convert CHECKPOINT /tmp/hf
    python tests/parity/check_hf.py /tmp/hf --cases /tmp/cases.json --out /tmp/hf5.json
    LLAVA_ENV/bin/python tests/parity/check_hf.py /tmp/hf --cases /tmp/cases.json --out /tmp/hf437.json
    python tests/parity/compare.py ...

Prompts come from the folder's own chat template, ids from its tokenizer, pixels from its image processor. 4.37.2 has no
image processor that pads: there the image is padded here first, where preprocessor_config.json says do_pad.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

OLD = transformers.__version__.startswith("4.")


def load(folder: Path):
    """Processor, model in fp32, and a function image -> image for what the processor cannot do."""
    if OLD:  # its AutoProcessor stumbles over processor_config.json, which newer versions need
        image_processor = CLIPImageProcessor.from_pretrained(folder)
        processor = LlavaProcessor(image_processor, AutoTokenizer.from_pretrained(folder))
    else:
        processor = AutoProcessor.from_pretrained(folder, backend="pil")  # torchvision's resizing rounds differently
    model, info = LlavaForConditionalGeneration.from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True
    )
    wrong = {name: keys for name, keys in info.items() if keys}
    if wrong:
        raise SystemExit(f"weights do not fit: {wrong}")
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    pads = OLD and settings.get("do_pad", False)
    fill = tuple(int(value * 255) for value in settings["image_mean"])
    return processor, model.eval(), (lambda image: padded(image, fill)) if pads else (lambda image: image)


def padded(image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """On a square of the longer side."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), fill)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@torch.inference_mode()
def answer(case: dict, longest: int, folder: Path, words: int, processor, model, prepare) -> tuple[dict, torch.Tensor]:
    """One entry of "answers" and the logits [words]."""
    image = None if case["image"] is None else prepare(Image.open(folder / case["image"]).convert("RGB"))
    parts = ([] if image is None else [{"type": "image"}]) + [{"type": "text", "text": case["question"]}]
    messages = [{"role": "user", "content": parts}]
    # 4.37's processors have no such method; the template is in the tokenizer's files as well
    templated = processor.tokenizer if OLD else processor
    prompt = templated.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=prompt, images=image, return_tensors="pt")
    inputs = {key: value for key, value in inputs.items() if value is not None}
    logits = model(**inputs).logits[0, -1, :words]
    new = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=longest)[
        0, inputs["input_ids"].shape[1] :
    ]
    text = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    entry = {"id": case["id"], "prompt": prompt, "prompt_ids": None}
    return entry | {"answer_ids": new.tolist(), "answer": text}, logits.float().contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = json.loads(arguments.cases.read_text(encoding="utf-8"))
    config = json.loads((arguments.folder / "config.json").read_text(encoding="utf-8"))
    words = config["llava_pat"]["vocab_size"]  # behind them: <image>, <pad> and filling
    parts = load(arguments.folder)
    transformers.logging.set_verbosity_error()
    answers, logits = [], {}
    for case in cases["cases"]:
        entry, logits[case["id"]] = answer(case, cases["max_new_tokens"], arguments.cases.parent, words, *parts)
        answers.append(entry)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    written = {"by": {"what": "LlavaForConditionalGeneration"} | versions, "answers": answers}
    arguments.out.write_text(json.dumps(written, indent=1, ensure_ascii=False), encoding="utf-8")
    save_file(logits, str(arguments.out.with_suffix(".safetensors")))
    print(f"{len(answers)} answers written to {arguments.out}")


if __name__ == "__main__":
    main()
