"""Writes the base models' model card and figures.json, from measurements made now."""

from __future__ import annotations

import json
from pathlib import Path

from playground import probe, world
from playground.build import LLM_BATCH, LLM_STEPS

CARD = "MODEL_CARD.md"
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
Trained for {LLM_STEPS:,} steps, and {LLM_STEPS // 5} more at 0.4 of the rates, of {LLM_BATCH} rows (twice as many when
they are short; half an hour with one thread of a busy two-core machine) on conversations about scenes given as text
(v1 template), on quizzes and drills, and on captions (playground/rows.py). It begins with a few heads that are
written by hand (playground/start.py), and linear read-outs ask its hidden states for what a token ought to know while
it learns, thrown away afterwards (playground/lessons.py). So it was told how to read a scene, which Vicuna was not."""
MEASURES = """\
Share of exact greedy answers, the scene given as text. `rec`: the box of a referring expression, all four
numbers; `reg`: the object of a box; `caption`: the one reference, word for word (several are right: not a
quality measure)."""
LOOK_UPS = """\
Boxes are written in twentieths; there are pieces for every hundredth, but it has never seen the others. Captions list
the objects from left to right; now and then one comes twice or in the wrong place.

What made the difference, by trials on the way to this recipe (one each, a hint and no more): before any training the
written heads copy nine in ten of a box's numbers. With heads that only look back, as in the build before this one,
questions that compare two objects were guessed after 1,400 steps. With the written heads of the first three layers
they were still guessed after 425, although a read-out found the distance between the two objects to 0.03. With a
read-out of the answer at the question's last word, and a last-layer head that fetches it, nine in ten were right
after 300."""


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
    missed = [f"`{name}` {llama[name]:.3f}" for name in sorted(llama) if llama[name] < probe.BARS.get(name, 0)]
    if not missed:
        return ["Every bar is met."]
    return [f"Bars missed: {', '.join(missed)}.", "No claim about a missed skill can rest on this model."]
