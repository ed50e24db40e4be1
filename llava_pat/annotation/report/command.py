"""`python -m llava_pat.annotation.report OUT`: metrics.json, report.html, labels.csv, nouns.csv and a table.

Only what the flags need is imported at the top, so that --help is there at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava_pat.types import DataError

_DESCRIPTION = """Reports on a run of annotation, finished or not, or on any regions file: regions per image, labels,
areas, scores, which nouns of the captions have a region, which patches are labelled after stage 1's crop, what is
missing and why, and a sample of images with outlines. What each number means: docs/annotation.md, "The report"."""

ASPECTS = ("square", "pad")


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 with one line for what the user can mend."""
    options = build_parser().parse_args(argv)
    # torch and transformers take seconds to import
    from llava_pat.annotation.report.write import ReportOptions, write_report

    try:
        print(write_report(ReportOptions(**vars(options))))
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava_pat.annotation.report", description=_DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("source", type=Path, metavar="OUT", help="the folder of a run (scripts/annotate.sh), or a regions file: JSONL, "
        "Parquet, or a folder of them")  # fmt: skip
    add("--records", type=Path, metavar="FILE", help="LLaVA JSON or JSONL, for the captions and for images without "
        "regions (default: the run's; a regions file has none)")  # fmt: skip
    add("--image_folder", type=Path, metavar="FOLDER", help="what image names are relative to, for pictures and for "
        "missing files (default: the run's; a regions file has none)")  # fmt: skip
    add("--out", type=Path, metavar="FOLDER", help="where the report goes; files of an earlier one are replaced "
        "(default: OUT/report; of a regions file NAME_report beside it)")  # fmt: skip
    add("--max_images", type=_positive, metavar="N", help="a quick look: measure the first N images only")
    add("--samples", type=_count, default=12, metavar="N", help="images in the page (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="which images these are (default: %(default)s)")
    add("--image_aspect_ratio", choices=ASPECTS, default="square", help="what training does with images: square crops "
        "the middle (stage 1), pad fills up (stage 2) (default: %(default)s)")  # fmt: skip
    add("--image_size", type=_positive, default=336, metavar="PIXELS", help="side of the tower's images "
        "(default: %(default)s)")  # fmt: skip
    add("--patch_size", type=_positive, default=14, metavar="PIXELS", help="side of a patch (default: %(default)s)")
    add("--min_coverage", type=_share, default=0.25, metavar="SHARE", help="of a patch, that a region must cover to "
        "label it; the default is that of training's measures")  # fmt: skip
    add("--num_workers", type=_positive, metavar="N", help="processes (default: one a core, up to 8); the report is "
        "the same with any")  # fmt: skip
    return parser


def _positive(text: str) -> int:
    return _at_least(1, int(text))


def _count(text: str) -> int:
    return _at_least(0, int(text))


def _at_least(least: int, value: int) -> int:
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is no share, 0 to 1")
    return value
