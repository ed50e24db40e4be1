"""Writes the base models' model card and figures.json, from measurements made now."""

from __future__ import annotations

import json
from pathlib import Path

from playground import probe, world
from playground.build import LLM_BATCH, LLM_STEPS

CARD = "MODEL_CARD.md"
STUDY_BAR = 0.9  # what a study of grounding or questions would want of every skill
HEAD = """\
# The playground's base models

Small stand-ins for CLIP ViT-L/14-336 and Vicuna-7B, in the same formats and architectures, for runs on a CPU.
They know the playground's world and nothing else. Apache-2.0, like the project; the handwritten digits that
they were trained on are scikit-learn's `load_digits` (Alpaydin and Kaynak, UCI, CC BY 4.0).

Built by `python -m playground.build` (seed 0, resumable, hours on two cores); this card and `figures.json` by
`python -m playground.build card`. One build was made, so these figures carry no spread over builds."""
TOWER = """\
LLaVA reads layer -2. Training (playground/tower.py): image-caption
contrast as in CLIP, patch-word contrast through the same text tower, and linear warm-up heads on the
penultimate patches (kind, colour, position, box), thrown away afterwards. So its patches were told what they
show, which the real CLIP's were not: absolute alignment figures do not carry over, comparisons between
objectives on the same tower do."""
TOWER_MEASURES = f"""\
`kind`, `colour`: linear probe per patch of the penultimate layer that an object covers by {probe.COVERAGE} or
more. `position error`: mean distance, in patches, of a linear read-out of the patch's own place. `zero shot`:
nearest word of the text tower, last layer. `crop` is stage 1's geometry, `pad` stage 2's (objects shrink)."""
TRAINED = f"""\
Trained for {LLM_STEPS:,} steps of {LLM_BATCH} rows (twice as many when they are short; 23 minutes with one thread of
a busy two-core machine) on conversations about scenes given as text (v1 template), on quizzes and drills, and on
captions (playground/language_model.py)."""
MEASURES = """\
Share of exact greedy answers, the scene given as text. `rec`: the box of a referring expression, all four
numbers; `reg`: the object of a box; `caption`: the one reference, word for word (several are right: not a
quality measure)."""
LOOK_UPS = """\
What it does is look-ups: labels, words and boxes, of which it says the next token after the one it knows. Whatever
needs an object's four numbers together is at guessing: relations, and the object of a box (`reg` is one in three).
Captions list objects from left to right and are guesses too. Counts of a colour are right 95 times in 100, of digits
or shapes about 6 in 10. A second phase (a warm restart at the full rates, with drills of places and of objects in
order) had not learned relations after 250 steps, had lost look-ups meanwhile, and was given up.

How look-ups are learned, by `python -m playground.lookup_trial` (one seed each, a hint and no more): with the shipped
pieces and start (heads that look back, `language_model.begin`), 0.98 of whole boxes are exact in steps 151 to 200. From
random weights, at Muon's rate of then, 0.02: the same pieces, none after 150 steps of words and 250 of boxes; spaced
pieces, 0.11 after 250 of words, 250 of single numbers and 500 of boxes; one-word look-ups, 99 % after 200 steps with
Muon and 33 %, guessing, with AdamW."""


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
    lines = [
        *(HEAD, ""),
        *(f"## clip: CLIPModel, {sizes['clip']:.1f} MB", ""),
        f"Vision tower: {world.SIDE} px, patch {vision['patch_size']}, width {vision['hidden_size']}, "
        f"{vision['num_hidden_layers']} layers. {TOWER}",
        *("", *head, *tower_rows, "", TOWER_MEASURES, ""),
        *(f"## llama: LlamaForCausalLM, {sizes['llama']:.1f} MB", ""),
        f"Width {configs['llama']['hidden_size']}, {configs['llama']['num_hidden_layers']} layers, "
        f"{configs['llama']['vocab_size']} sentencepiece pieces; a box is four of them.",
        *(TRAINED, "", *head, *llama_rows, "", MEASURES, "", *standing(llama), "", LOOK_UPS, ""),
    ]
    return "\n".join(lines)


def standing(llama: dict[str, float]) -> list[str]:
    """Lines that say which of the bars are met; every claim about grounding or questions rests on them."""
    barred = {name: value for name, value in sorted(llama.items()) if name in probe.BARS}
    missed = [f"`{name}` {value:.3f}" for name, value in barred.items() if value < probe.BARS[name]]
    studied = [f"`{name}` {value:.3f}" for name, value in barred.items() if value < STUDY_BAR]
    lines = [f"Bars missed: {', '.join(missed)}." if missed else "Every bar is met."]
    if missed:
        lines.append("No claim about a missed skill can rest on this model.")
    below = ", ".join(studied) if studied else "none"
    return [*lines, f"Below {STUDY_BAR}, which a study of grounding would want: {below}."]
