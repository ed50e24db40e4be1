"""Writes the base models' model card and figures.json, from measurements made now."""

from __future__ import annotations

import json
from pathlib import Path

from playground import probe, world

CARD = "MODEL_CARD.md"


def write(models: Path, seed: int) -> None:
    figures = {"clip": probe.probe_tower(models / "clip", seed), "llama": probe.probe_llm(models / "llama", seed)}
    (models / "figures.json").write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
    (models / CARD).write_text(render(models, figures))
    print((models / CARD).read_text())


def render(models: Path, figures: dict[str, dict[str, float]]) -> str:
    clip, llama = figures["clip"], figures["llama"]
    sizes = {name: (models / name / "model.safetensors").stat().st_size / 1e6 for name in ("clip", "llama")}
    configs = {name: json.loads((models / name / "config.json").read_text()) for name in ("clip", "llama")}
    vision = configs["clip"]["vision_config"]

    def row(name: str, value: float, bar: str = "", met: bool | None = None) -> str:
        return f"| {name} | {value:.3f} | {bar} | {'' if met is None else 'yes' if met else '**no**'} |"

    def bar(name: str, key: str, value: float) -> str:
        if key in probe.BARS:
            return row(name, value, f">= {probe.BARS[key]}", value >= probe.BARS[key])
        if key in probe.AT_MOST:
            return row(name, value, f"<= {probe.AT_MOST[key]}", value <= probe.AT_MOST[key])
        return row(name, value)

    head = ["| measure (held-out scenes and glyphs) | value | bar | met |", "|---|---|---|---|"]
    tower_rows = [bar(name.replace("_", " "), name, value) for name, value in sorted(clip.items())]
    llama_rows = [bar(name, name, value) for name, value in sorted(llama.items())]
    return "\n".join(
        [
            "# The playground's base models",
            "",
            "Small stand-ins for CLIP ViT-L/14-336 and Vicuna-7B, in the same formats and architectures, for runs on a CPU.",
            "They know the playground's world and nothing else. Apache-2.0, like the project; the handwritten digits that",
            "they were trained on are scikit-learn's `load_digits` (Alpaydin and Kaynak, UCI, CC BY 4.0).",
            "",
            "Built by `python -m playground.build` (seed 0, resumable, hours on two cores); this card and `figures.json` by",
            "`python -m playground.build card`. One build was made, so these figures carry no spread over builds.",
            "",
            f"## clip: CLIPModel, {sizes['clip']:.1f} MB",
            "",
            f"Vision tower: {world.SIDE} px, patch {vision['patch_size']}, width {vision['hidden_size']}, "
            f"{vision['num_hidden_layers']} layers. LLaVA reads layer -2. Training (playground/tower.py): image-caption",
            "contrast as in CLIP, patch-word contrast through the same text tower, and linear warm-up heads on the",
            "penultimate patches (kind, colour, position, box), thrown away afterwards. So its patches were told what they",
            "show, which the real CLIP's were not: absolute alignment figures do not carry over, comparisons between",
            "objectives on the same tower do.",
            "",
            *head,
            *tower_rows,
            "",
            f"`kind`, `colour`: linear probe per patch of the penultimate layer that an object covers by {probe.COVERAGE} or",
            "more. `position error`: mean distance, in patches, of a linear read-out of the patch's own place. `zero shot`:",
            "nearest word of the text tower, last layer. `crop` is stage 1's geometry, `pad` stage 2's (objects shrink).",
            "",
            f"## llama: LlamaForCausalLM, {sizes['llama']:.1f} MB",
            "",
            f"Width {configs['llama']['hidden_size']}, {configs['llama']['num_hidden_layers']} layers, "
            f"{configs['llama']['vocab_size']} sentencepiece pieces; a two-decimal number is two of them. Trained on",
            "conversations about scenes given as text (v1 template) and on captions (playground/language_model.py).",
            "",
            *head,
            *llama_rows,
            "",
            "Share of exact greedy answers, the scene given as text. `rec`: the box of a referring expression, all four",
            "numbers; `reg`: the object of a box; `caption`: the one reference, word for word (several are right: not a",
            "quality measure).",
            "",
            "Where it stands: looking up one word by another is learned (`kind`), looking up a box by a label is not, and",
            "what needs boxes or several facts at once (`relation`, `count`, `existence`) is near guessing. It is enough for",
            "stage 1, which needs captions and word embeddings; no claim about grounding or questions can rest on it yet.",
            "What is known of the way on, by `python -m playground.lookup_trial` (one seed each, so a hint and no more):",
            "one-word look-ups are 99 % right after 200 steps with Muon and 33 %, guessing, with AdamW. After 250 such steps, in",
            "a stage of single numbers behind a label (half of its answers are words), 0.87 of the answers are right after 250",
            "more steps when a number's first piece carries its space (`--numbers spaced`), 0.66 with the shipped pieces; whole",
            "boxes after that: 0.06 exact and 0.81 of their pieces right after 300 steps, still rising. This build went from",
            "words to whole boxes at once; the next one should put single numbers in between, and take the spaced pieces.",
            "",
        ]
    )
