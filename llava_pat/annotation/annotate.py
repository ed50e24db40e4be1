"""Annotates the images of a records file: labels and masks for stage 1, by tagger, detector and segmenter.

python -m llava_pat.annotation.annotate blip_laion_cc_sbu_558k.json images regions_558k --set device=cuda
bash scripts/annotate.sh blip_laion_cc_sbu_558k.json images regions_558k --config annotation.yaml --engine ray

Settings and their defaults: docs/annotation.md. A run that was killed goes on by the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llava_pat.annotation.config import STAGES, AnnotationConfig, parse_config, read_settings
from llava_pat.annotation.engine.ray_data import RayOptions
from llava_pat.annotation.engine.run import RunOptions, annotate
from llava_pat.annotation.engine.shards import REGIONS
from llava_pat.annotation.tally import render_tally
from llava_pat.types import DataError


def main(argv: Sequence[str] | None = None) -> int:
    """0; 2 with one line for what the user can mend; 130 when interrupted."""
    options = build_parser().parse_args(argv)
    try:
        tally = annotate(build_config(options.config, options.set), _run_options(options))
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr, flush=True)
        return 130
    print(render_tally(tally, str(options.records), options.out, options.out / REGIONS))
    return 0


def build_config(path: Path | None, overrides: Sequence[str]) -> AnnotationConfig:
    """A YAML file's settings (none: the defaults) with `stage.key=value` on top, values as YAML reads them."""
    settings = {} if path is None else read_settings(path)
    for text in overrides:
        keys, equal, value = text.partition("=")
        if not equal or not keys:
            raise DataError(f"--set {text!r}: expected key=value, such as detector.box_threshold=0.3")
        _put(settings, keys.split("."), value, text)
    return parse_config(settings)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bash scripts/annotate.sh",
        description="Annotates images with labels and masks for stage 1 (docs/annotation.md). A run that was killed "
        "goes on by the same command.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("records", type=Path, metavar="IMAGES_JSON", help="LLaVA JSON or JSONL; what it says is the images' captions")
    add("image_folder", type=Path, metavar="IMAGE_FOLDER", help="what the records' image paths are relative to")
    add("out", type=Path, metavar="OUT", help="a folder; stage 1 takes its OUT/regions as --regions_path")
    add("--config", type=Path, metavar="FILE", help="YAML: tagger, detector, segmenter, selection, labels, device ...")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings that go before the "
        "file's, such as device=cuda detector.model=IDEA-Research/grounding-dino-tiny")  # fmt: skip
    add("--engine", choices=("local", "ray"), default="local", help="local: this process; ray: actors over GPUs and "
        "nodes, by Ray Data (default: %(default)s)")  # fmt: skip
    add("--format", choices=("jsonl", "parquet"), default="jsonl", help="of the shards (default: %(default)s)")
    add("--shard_size", type=_positive, default=1000, metavar="N", help="images of a shard; a killed run loses the "
        "shards that it was at (default: %(default)s)")  # fmt: skip
    add("--threads", type=_positive, default=4, metavar="N", help="local: threads that decode images and code masks "
        "(default: %(default)s)")  # fmt: skip
    add("--workers", type=_positive, metavar="N", help="ray: actors with models (default: one a GPU)")
    add("--gpus_per_worker", type=float, default=1.0, metavar="X", help="ray: 0.5 puts two actors on a GPU "
        "(default: %(default)s)")  # fmt: skip
    add("--ray_address", metavar="ADDRESS", help="ray: a running cluster, auto or HOST:PORT, which must see the same "
        "files (default: one of this machine, for this run)")  # fmt: skip
    add("--bad_records", choices=("error", "skip"), default="error", help="a record that cannot be trained on ends the "
        "run, or is left out and counted (default: %(default)s)")  # fmt: skip
    add("--limit", type=_positive, metavar="N", help="only the first N images")
    add("--overwrite", action="store_true", help="begin anew if OUT is there")
    return parser


def _run_options(options: argparse.Namespace) -> RunOptions:
    return RunOptions(
        records=options.records,
        image_folder=options.image_folder,
        out=options.out,
        engine=options.engine,
        format=options.format,
        shard_size=options.shard_size,
        threads=options.threads,
        ray=RayOptions(options.ray_address, options.workers, options.gpus_per_worker),
        bad_records=options.bad_records,
        limit=options.limit,
        overwrite=options.overwrite,
    )


def _put(settings: dict[str, Any], keys: list[str], value: str, text: str) -> None:
    """A stage of which only the kind is said, or nothing, becomes a mapping with its kind."""
    for key in keys[:-1]:
        inner = settings.get(key)
        if inner is None:
            inner = {"kind": getattr(AnnotationConfig(), key).kind} if key in STAGES else {}
        elif isinstance(inner, str):
            inner = {"kind": inner}
        if not isinstance(inner, Mapping):
            raise DataError(f"--set {text!r}: {key} is {inner!r}, which has no {keys[-1]}")
        settings[key] = dict(inner)
        settings = settings[key]
    try:
        settings[keys[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise DataError(f"--set {text!r}: its value is no YAML: {error}") from error


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
