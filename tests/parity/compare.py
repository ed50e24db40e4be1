"""Our answers against `out.json` of somebody else's code on the same checkpoint (formats: tests/parity/README.md).

    python tests/parity/compare.py CHECKPOINT [--model_base BASE] --cases /tmp/cases.json --theirs /tmp/llava.json \
        [--tolerance 1e-4]

fp32 on the CPU. Ends with status 1 unless on every case the prompt ids are equal (where theirs has ids), the answers
are the same strings, and the last-position logits differ by at most --tolerance times the largest logit (times 1 if
that is more). A question that spells a special token ("</s>") gives other ids by design: here text stays text.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from llava_pat.data.collate import expand_images
from llava_pat.data.geometry import geometry_for
from llava_pat.data.templates import get_template, place_images
from llava_pat.data.tokenize import encode, load_tokenizer
from llava_pat.models.from_folder import load_model
from llava_pat.models.generate import generate
from llava_pat.models.loading import load_image_processor
from llava_pat.types import IMAGE_TOKEN, Turn


class OurModel:
    """A checkpoint, with what turns a case into its inputs."""

    def __init__(self, checkpoint: str, model_base: str | None, vision_tower: str | None, template: str) -> None:
        loaded = load_model(checkpoint, base=model_base, vision_tower=vision_tower, dtype=torch.float32)
        self.model = loaded.model
        self.tokenizer = load_tokenizer(loaded.tokenizer_source)
        self.template = get_template(template)
        processor = load_image_processor(loaded.vision_tower, self.model.image_size)
        self.geometry = geometry_for(loaded.image_aspect_ratio, processor)
        print(f"{checkpoint}: {loaded.kind}, images {loaded.image_aspect_ratio}, tower from {loaded.vision_tower}")

    @torch.inference_mode()
    def answer(self, case: dict, folder: Path, max_new_tokens: int) -> tuple[list[int], torch.Tensor, str]:
        """(prompt ids with one -200 per image, logits of the last position [V], greedy answer)."""
        prompt, pixels = self._inputs(case, folder)
        ids = self._expand(prompt)
        patches = self.model.project(self.model.encode_images(pixels))
        ends, shown = [self.tokenizer.eos_token_id], list(range(len(pixels)))
        new = generate(
            self.model, ids.tolist(), [shown], patches, max_new_tokens=max_new_tokens, end_ids=ends
        )[0]  # fmt: skip
        return prompt, self._logits(ids, pixels)[-1], self.tokenizer.decode(new, skip_special_tokens=True).strip()

    @torch.inference_mode()
    def preference(self, case: dict, folder: Path, theirs: list[int]) -> str:
        """Where we leave their answer, and by how much: a gap of the size of the rounding is a tie."""
        prompt, pixels = self._inputs(case, folder)
        ids = self._expand([*prompt, *theirs])
        logits = self._logits(ids, pixels)[-len(theirs) - 1 : -1]
        for place, (row, token) in enumerate(zip(logits, theirs, strict=True)):
            gap = (row.max() - row[token]).item()
            if gap > 0:
                return f"at its token {place} our best logit is {gap:.1e} above theirs"
        return "ours goes on where theirs ended"

    def _inputs(self, case: dict, folder: Path) -> tuple[list[int], torch.Tensor]:
        question, pixels = case["question"], torch.zeros(0, 3, self.model.image_size, self.model.image_size)
        if case["image"] is not None:
            question = f"{IMAGE_TOKEN}\n{question}"
            pixels = self.geometry.pixels(Image.open(folder / case["image"]))[None]
        return encode(place_images([Turn("human", question)]), self.template, self.tokenizer).input_ids, pixels

    def _expand(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([expand_images(ids, ids, self.model.num_patches, sys.maxsize, "a case")[0]])

    def _logits(self, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """[T, V]"""
        patches = self.model.project(self.model.encode_images(pixels))
        hidden = self.model.forward_hidden(ids, torch.ones_like(ids, dtype=torch.bool), patches)
        return self.model.llm.get_output_embeddings()(hidden[0])


def compare(ours: OurModel, cases: dict, theirs: dict, logits: dict, folder: Path, tolerance: float) -> bool:
    """Prints a line per case and a summary; True when all is equal."""
    answers = {entry["id"]: entry for entry in theirs["answers"]}
    if set(answers) != {case["id"] for case in cases["cases"]} or set(logits) != set(answers):
        raise SystemExit("the cases, the answers and the logits are not of the same ids")
    worst, same_ids, same_answers, close = 0.0, 0, 0, 0
    for case in cases["cases"]:
        entry, expected = answers[case["id"]], logits[case["id"]]
        prompt, found, answer = ours.answer(case, folder, cases["max_new_tokens"])
        if found.shape != expected.shape:
            raise SystemExit(f"{case['id']}: we have {len(found)} logits, they {len(expected)}")
        difference = (found - expected).abs().max().item()
        ids_equal = entry["prompt_ids"] is None or prompt == entry["prompt_ids"]
        worst = max(worst, difference)
        same_ids += ids_equal
        same_answers += answer == entry["answer"]
        close += difference <= tolerance * max(1.0, expected.abs().max().item())  # not for nan
        note = ""
        if answer != entry["answer"]:
            why = ours.preference(case, folder, entry["answer_ids"])
            note = f" BUT THEIRS {entry['answer']!r}: {why}"
        ids = "equal" if ids_equal else "DIFFER"
        print(f"{case['id']}: ids {ids}, logits within {difference:.1e}, {answer!r}{note}")
    count, kinds = len(answers), len({entry["answer"] for entry in answers.values()})
    print(
        f"{count} cases, {kinds} different answers, against {theirs['by']}: prompt ids equal in {same_ids}, answers in "
        f"{same_answers}, logits within the tolerance in {close} (largest difference {worst:.1e})"
    )
    return same_ids == same_answers == close == count > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--model_base")
    parser.add_argument("--vision_tower")
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--theirs", type=Path, required=True)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = json.loads(arguments.cases.read_text(encoding="utf-8"))
    theirs = json.loads(arguments.theirs.read_text(encoding="utf-8"))
    logits = load_file(arguments.theirs.with_suffix(".safetensors"))
    ours = OurModel(arguments.checkpoint, arguments.model_base, arguments.vision_tower, cases["template"])
    equal = compare(ours, cases, theirs, logits, arguments.cases.parent, arguments.tolerance)
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
