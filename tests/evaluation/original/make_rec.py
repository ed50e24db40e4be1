"""Made-up answers to "where is it?", and what the original code says of them.

    python tests/evaluation/original/make_rec.py --lmms_eval FOLDER --shikra FOLDER

writes tests/evaluation/expected/rec.json. lmms-eval (EvolvingLMMs-Lab/lmms-eval, needs `datasets`) reads the boxes and
computes IoU and accuracies; Shikra (shikras/shikra) moves the true boxes to the padded square. Neither is in this
project: clone both, at the commits that the expected file names.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

SEED = 20251121
COUNT = 2400
VERSION = 1
EXPECTED = Path(__file__).parents[1] / "expected" / "rec.json"


@dataclass(frozen=True)
class Case:
    """An image's size, a true box in pixels, an answer."""

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    answer: str


def cases(seed: int = SEED, count: int = COUNT) -> list[Case]:
    """Every style of answer in turn, about images of all shapes."""
    rng = random.Random(seed)
    styles = (_plain,) * 6 + (_several, _around, _swapped, _outside, _percent, _pixels, _broken, _spaced, _none)
    return [_case(rng, styles[index % len(styles)]) for index in range(count)]


def _case(rng: random.Random, style) -> Case:
    width, height = rng.randint(40, 1600), rng.randint(40, 1600)
    if rng.random() < 0.1:
        height = width
    x0, y0 = rng.uniform(0, width * 0.8), rng.uniform(0, height * 0.8)
    x1, y1 = rng.uniform(x0 + 2, width), rng.uniform(y0 + 2, height)
    box = tuple(round(value, 2) for value in (x0, y0, max(x1, x0 + 2), max(y1, y0 + 2)))
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    true = [(box[0] + left) / side, (box[1] + top) / side, (box[2] + left) / side, (box[3] + top) / side]
    spread = rng.choice((0.0, 0.02, 0.1, 0.25))
    near = [
        value + rng.uniform(-1, 1) * spread * (true[2] - true[0] if axis % 2 == 0 else true[3] - true[1])
        for axis, value in enumerate(true)
    ]
    return Case((width, height), box, style(rng, near, side))


def _write(rng: random.Random, box: list[float], low: float = 0.0, high: float = 1.0) -> str:
    digits = rng.choice((2, 2, 2, 3, 6))
    clipped = [min(max(value, low), high) for value in box]
    return f"[{', '.join(f'{value:.{digits}f}' for value in clipped)}]"


def _plain(rng, box, side) -> str:
    return _write(rng, box)


def _several(rng, box, side) -> str:
    others = [_write(rng, [rng.random() for _ in range(4)]) for _ in range(rng.randint(1, 3))]
    boxes = [_write(rng, box), *others]
    if rng.random() < 0.5:
        rng.shuffle(boxes)
    return rng.choice((" ", ", ", ";", " and ", "\n")).join(boxes)


def _around(rng, box, side) -> str:
    frame = rng.choice(
        ("The box is {}.", "<b>{}</b>", "[{}]", "It's at {} (roughly)", "答案：{}。", "[1] {}", "😀{}", "{}]]")
    )
    return frame.format(_write(rng, box))


def _swapped(rng, box, side) -> str:
    x0, y0, x1, y1 = box
    return _write(rng, rng.choice(([x1, y1, x0, y0], [x1, y0, x0, y1], [x0, y1, x1, y0], [y0, x0, y1, x1])))


def _outside(rng, box, side) -> str:
    return _write(rng, [value + rng.uniform(-0.4, 0.4) for value in box], -9.0, 9.0)


def _percent(rng, box, side) -> str:
    return _write(rng, [100 * value for value in box], 0.0, 100.0)


def _pixels(rng, box, side) -> str:
    return str([round(value * side) for value in box])


def _broken(rng, box, side) -> str:
    three, five = _write(rng, box[:3]), _write(rng, [*box, 0.5])
    numbers = [f"{value:.2f}" for value in box]
    return rng.choice(
        (
            three,
            five,
            f"{three} {_write(rng, box)}",
            f"{five} {_write(rng, box)}",
            "[" + " ".join(numbers) + "]",
            "(" + ", ".join(numbers) + ")",
            "[" + ", ".join(numbers),
            ", ".join(numbers),
            "[" + ", ".join(number.lstrip("0") for number in numbers) + "]",
            "[" + ", ".join(f"{value:.1e}" for value in box) + "]",
            "[" + " , ".join(numbers) + "]",
            "[" + ", ".join(f"+{number}" for number in numbers) + "]",
            "[" + ", ".join(number + "." for number in numbers) + "]",
            "[x0=" + ", ".join(numbers) + "]",
            "[" + "，".join(numbers) + "]",
        )
    )


def _spaced(rng, box, side) -> str:
    numbers = [f"{min(max(value, 0), 1):.3f}" for value in box]
    gap = rng.choice((",", ",  ", ",\n", ",\t", ",\u00a0"))
    return f"[{rng.choice(('', ' ', chr(10)))}{gap.join(numbers)}{rng.choice(('', ' ', '  '))}]"


def _none(rng, box, side) -> str:
    words = (
        "",
        " ",
        "no",
        "I cannot see it.",
        "[]",
        "[,,,]",
        "the left one",
        "[a, b, c, d]",
        "0.5",
        "[0.1, 0.2",
        "١٢٣",
    )
    return rng.choice((*words, "[٠.١, ٠.١, ٠.٩, ٠.٩]", "[-0, 0, 1, 1]", "[0, 0, 0, 0]", "[1, 1, 1, 1]", "[0, 0, 1, 1]"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lmms_eval", type=Path, required=True, help="clone of EvolvingLMMs-Lab/lmms-eval")
    parser.add_argument("--shikra", type=Path, required=True, help="clone of shikras/shikra")
    arguments = parser.parse_args()
    rec = _load(arguments.lmms_eval / "lmms_eval/tasks/refcoco/utils_rec.py", "utils_rec")
    root = types.ModuleType("mllm.dataset.root")  # Shikra's registries: nothing that a box passes through
    root.TRANSFORMS = types.SimpleNamespace(register_module=lambda: lambda cls: cls)
    sys.modules |= {name: types.ModuleType(name) for name in ("mllm", "mllm.dataset", "mllm.dataset.utils")}
    sys.modules["mllm.dataset.root"] = root
    square = _load(arguments.shikra / "mllm/dataset/utils/transform.py", "mllm.dataset.utils.transform")
    results, unparsable = [], 0
    for case in cases():
        width, height = case.size
        side = max(width, height)
        true = [value / side for value in square.box_xyxy_expand2square(case.box, w=width, h=height)]
        pred = rec.parse_float_sequence_within(case.answer)
        unparsable += pred == [0, 0, 0, 0] and "[0, 0, 0, 0]" not in case.answer
        results.append({"bbox": true, "pred": pred})
    names = {"mean_iou": "IoU", "0.3": "ACC@0.3", "0.5": "ACC@0.5", "0.7": "ACC@0.7"}
    figures = {ours: rec.refcoco_bbox_rec_aggregation_result(results, theirs) for ours, theirs in names.items()}
    expected = {
        "made_by": "tests/evaluation/original/make_rec.py",
        "generator": {"version": VERSION, "seed": SEED, "count": COUNT},
        "original": {
            f"EvolvingLMMs-Lab/lmms-eval@{_commit(arguments.lmms_eval)}": "lmms_eval/tasks/refcoco/utils_rec.py",
            f"shikras/shikra@{_commit(arguments.shikra)}": "mllm/dataset/utils/transform.py",
        },
        "figures": figures | {"unparsable": unparsable},
        "iou": [round(rec.compute_iou(result["bbox"], result["pred"]), 9) for result in results],
    }
    EXPECTED.write_text(json.dumps(expected, indent=1).replace(",\n  ", ", ") + "\n")
    print(f"{EXPECTED}: {expected['figures']}")


def _load(file: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _commit(folder: Path) -> str:
    return subprocess.check_output(["git", "-C", folder, "rev-parse", "HEAD"], text=True).strip()


if __name__ == "__main__":
    main()
