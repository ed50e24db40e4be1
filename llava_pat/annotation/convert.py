"""Converts a data set that has regions into stage 1's regions file.

python -m llava_pat.annotation.convert coco_instances --annotations annotations/instances_train2017.json \\
    --image_folder data --records llava_v1_5_mix665k.json --out regions_coco.jsonl
python -m llava_pat.annotation.convert --help          # the data sets;  NAME --help: the flags of one
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from llava_pat.annotation.conversion import Conversion
from llava_pat.annotation.converters import CONVERTERS
from llava_pat.annotation.converters.base import Converter
from llava_pat.annotation.regions_file import RegionsWriter
from llava_pat.annotation.tally import Tally, render_tally
from llava_pat.data.records import load_records
from llava_pat.types import DataError

_COMMON = (
    "command", "annotations", "image_folder", "out", "records", "prefix", "min_area", "max_regions", "shard_size",
    "overwrite",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 with one line for what the user can mend."""
    options = build_parser().parse_args(argv)
    own = {name: value for name, value in vars(options).items() if name not in _COMMON}
    try:
        tally = convert(
            options.command, options.annotations, options.out, own, options.image_folder, options.records,
            options.prefix, options.min_area, options.max_regions, options.shard_size, options.overwrite,
        )  # fmt: skip
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    print(render_tally(tally, options.command, options.out, options.out))
    return 0


def convert(
    name: str,
    annotations: Path,
    out: Path,
    own: dict[str, object] | None = None,
    image_folder: Path | None = None,
    records: Path | None = None,
    prefix: str | None = None,
    min_area: int = 1,
    max_regions: int | None = None,
    shard_size: int = 10_000,
    overwrite: bool = False,
) -> Tally:
    """Writes `out` and returns what became of the data set. own: the data set's own options.

    Raises DataError, and writes nothing, if a file is not what it should be or nothing could be converted.
    """
    kind = CONVERTERS[name]
    if image_folder is not None and not image_folder.is_dir():
        raise DataError(f"{image_folder}: no such folder; give that which the records' image paths are relative to")
    writer = RegionsWriter(out, overwrite, shard_size)
    names = None if records is None else _image_names(records)
    print(f"reading {annotations}", file=sys.stderr, flush=True)
    source = kind(annotations, **(own or {}))
    conversion = Conversion(
        source, kind.prefix if prefix is None else prefix, image_folder, names, min_area, max_regions
    )
    with writer:
        for line in tqdm(conversion.lines(), total=len(source), desc=kind.title, unit="image", disable=None):
            if line is not None:
                writer.write(line)
        if not conversion.tally.images:
            raise DataError(_nothing(conversion.tally, annotations, records, names))
    return conversion.tally


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava_pat.annotation.convert",
        description="Converts a data set that has regions into stage 1's regions file (docs/annotation.md).",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="NAME")
    for kind in CONVERTERS.values():
        about = f"{kind.title}. {kind.about}"
        _add_flags(commands.add_parser(kind.name, help=kind.title, description=about, allow_abbrev=False), kind)
    return parser


def _add_flags(parser: argparse.ArgumentParser, kind: type[Converter]) -> None:
    add = parser.add_argument
    add("--annotations", type=Path, required=True, metavar="PATH", help=kind.annotations_help)
    add(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="FILE.jsonl, FILE.parquet, or a folder for Parquet shards",
    )
    add("--image_folder", type=Path, metavar="FOLDER", help="what the records' image paths are relative to. Images "
        "that are not there or of another size than annotated are left out; without it none is opened")  # fmt: skip
    add("--records", type=Path, metavar="FILE", help="LLaVA JSON or JSONL: only its images")
    add("--prefix", metavar="PATH", help="in front of the data set's own image names, to spell them as the records do "
        f"(default: {kind.prefix!r})")  # fmt: skip
    add(
        "--min_area",
        type=_positive,
        default=1,
        metavar="PIXELS",
        help="leave out smaller regions (default: %(default)s)",
    )
    add("--max_regions", type=_positive, metavar="N", help="keep the N largest of an image (default: all)")
    add("--shard_size", type=_positive, default=10_000, metavar="N", help="images per shard, if --out is a folder "
        "(default: %(default)s)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace --out if it is there")
    kind.add_options(parser.add_argument_group(f"of {kind.title}"))


def _image_names(records: Path) -> set[str]:
    names = {name for record in load_records(records, on_bad="skip") for name in record.images}
    if not names:
        raise DataError(f"{records}: none of its records has an image")
    return names


def _nothing(tally: Tally, annotations: Path, records: Path | None, names: set[str] | None) -> str:
    text = f"{annotations}: nothing could be converted, so nothing was written"
    for (unit, reason), count in tally.left_out.most_common(3):
        text += f"; {count:,} {unit}: {reason} ({tally.first[unit, reason]})"
    if names is not None and ("images", "not in the records") in tally.left_out:
        text += f"; {records} has names such as {min(names)!r}: give a --prefix that makes them alike"
    return text


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
