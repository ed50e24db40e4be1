"""An objective's share of a stage-1 step at 7B width, where 7B do not fit: one layer is run, and counted 32 times.

    OMP_NUM_THREADS=2 python tests/bench/bench_objective.py --alignments none pat sea pat+sea

The tower, the projector, the head and the objective are whole and see what they see in a run (576 patches of 4,096
numbers, 8 regions an image, 10 words a patch); seconds of the language model's layer, both ways, are taken times its
number of layers. An objective passes over memory more than it multiplies, and a GPU gains more in products than in
passes: its share there is another. `python -m llava_pat.profile --shape llava-v1.5-7b --alignment pat` measures it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import transformers  # noqa: E402

from llava_pat.alignment import plan_objectives  # noqa: E402
from llava_pat.performance import phases  # noqa: E402
from llava_pat.performance.profiling import Load, profile_step  # noqa: E402
from llava_pat.performance.shapes import SHAPES, Recipe, Shape  # noqa: E402

LAYERS = (phases.LLM, phases.LLM_BACKWARD)
OBJECTIVE = (phases.OBJECTIVE, phases.OBJECTIVE_BACKWARD)


def one_layer(shape: Shape) -> Shape:
    llm = copy.deepcopy(shape.llm)
    llm.num_hidden_layers = 1
    return dataclasses.replace(shape, llm=llm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--alignments", nargs="+", default=["none", "pat", "sea", "pat+sea"])
    add("--shape", choices=list(SHAPES), default="llava-v1.5-7b")
    add("--sequences", type=int, default=4)
    add("--steps", type=int, default=3)
    add("--device", default="cpu")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    shape = SHAPES[options.shape]
    layers = shape.llm.num_hidden_layers
    print(f"{shape.name}, {options.sequences} sequences, seconds of a step of {layers} layers, one of them run\n")
    print(f"{'':10}{'objective':>11}{'step':>10}{'share':>9}")
    for name in options.alignments:
        recipe = Recipe("projector", shape.dtype, objectives=plan_objectives(name, {}, 5.0, None))
        load = Load(options.sequences, shape.text_tokens)
        found = profile_step(one_layer(shape), recipe, load, options.device, options.steps).measured.seconds
        objective = sum(found[phase] for phase in OBJECTIVE)
        step = sum(seconds * (layers if phase in LAYERS else 1) for phase, seconds in found.items())
        print(f"{name:10}{objective:11.4f}{step:10.2f}{objective / step:9.3%}")


if __name__ == "__main__":
    main()
