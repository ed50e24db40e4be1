"""How good predicted regions are: `python -m playground.annotator.evaluate PREDICTED EXACT`.

    python -m playground.annotator.evaluate playground/data/predicted_val/regions playground/data/regions_val.jsonl

PREDICTED and EXACT are regions files (JSONL, Parquet, or a folder of them). Printed, and with --json written: recall
and precision of regions at --iou, the mean IoU of those that match, of all and by kind and colour; images without any
prediction; and of the patches that stage 1 sees (its crop), how many have the right label. Labels must be the same
words.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_pat.data.geometry import CenterCrop
from llava_pat.data.regions import load_regions
from llava_pat.types import DataError, ImageRegions
from playground import tower, world
from playground.annotator.scheme import LABELS
from playground.annotator.scoring import Score, Tally, score_image, score_patches

STAGE_1 = CenterCrop(world.SIDE, tower.MEAN, tower.STD)


def evaluate(
    predicted: Mapping[str, ImageRegions], exact: Mapping[str, ImageRegions], threshold: float
) -> dict[str, Any]:
    """Figures by name, shares from 0 to 1. DataError for a predicted image that is not in `exact`, or of other size."""
    score = Score()
    unknown = sorted(predicted.keys() - exact.keys())
    if unknown:
        raise DataError(f"{predicted[unknown[0]].where}: the exact ones lack this image ({len(unknown)} such)")
    for name, truth in exact.items():
        found = predicted.get(name)
        if found is not None and (found.width, found.height) != (truth.width, truth.height):
            raise DataError(f"{found.where}: {found.width} x {found.height}, exact {truth.width} x {truth.height}")
        score_image(truth, found, threshold, score)
        score_patches(truth, found, STAGE_1, tower.PATCH, score)
    return {
        "images": len(exact),
        "without_prediction": len(exact.keys() - predicted.keys()),
        "regions": _figures(score.over(list(score.regions))),
        "patches": _figures(score.patches, of_regions=False),
        "digits": _figures(score.over(_labels_with(world.DIGITS))),
        "shapes": _figures(score.over(_labels_with(world.SHAPES))),
        "kinds": {kind: _figures(score.over(_labels_with([kind]))) for kind in world.KINDS},
        "colours": {colour: _figures(score.over(_labels_with([colour]))) for colour in world.COLOURS},
    }


def _labels_with(words: Sequence[str]) -> list[str]:
    return [label for label in LABELS if set(label.split()) & set(words)]


def _figures(tally: Tally, of_regions: bool = True) -> dict[str, float]:
    """nan, of nothing, is left out: JSON has none."""
    shares = {"recall": tally.recall, "precision": tally.precision}
    if of_regions:
        shares["mean_iou"] = tally.mean_overlap
    counts = {"exact": tally.exact, "predicted": tally.predicted}
    return counts | {name: round(value, 4) for name, value in shares.items() if value == value}


def table(figures: Mapping[str, Any]) -> str:
    """The figures in lines."""
    rows = [(name, figures[name]) for name in ("regions", "patches", "digits", "shapes")]
    rows += [(name, row) for group in ("kinds", "colours") for name, row in figures[group].items()]
    lines = [f"{figures['images']} images, {figures['without_prediction']} of them without a prediction"]
    lines.append(f"{'':12}{'exact':>8}{'predicted':>11}{'recall':>8}{'precision':>11}{'mean IoU':>10}")
    for name, row in rows:
        shares = "".join(
            f"{row[key]:>{width}.3f}" if key in row else " " * width
            for key, width in (("recall", 8), ("precision", 11), ("mean_iou", 10))
        )
        lines.append(f"{name:12}{row['exact']:>8}{row['predicted']:>11}{shares}".rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predicted", metavar="PREDICTED")
    parser.add_argument("exact", metavar="EXACT")
    parser.add_argument("--iou", type=float, default=0.5, help="at which a region counts as found (default: 0.5)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args(argv)
    try:
        found = evaluate(load_regions(arguments.predicted), load_regions(arguments.exact), arguments.iou)
    except DataError as error:
        parser.exit(2, f"error: {error}\n")
    print(table(found))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
