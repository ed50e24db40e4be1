"""The command that checks data before training: training's flags, defaults and checks, all that is wrong at once."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from llava_pat.data.check import CheckReport
from llava_pat.data.check.findings import Finding
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.geometry import ASPECTS, CenterCrop, Geometry, Pad, geometry_for
from llava_pat.data.records import Skipped, load_records
from llava_pat.data.regions import Broken, load_regions
from llava_pat.data.templates import get_template
from llava_pat.data.tokenize import load_tokenizer
from llava_pat.models.loading import load_image_processor, tower_config, tower_image_size
from llava_pat.training.arguments import PRETRAIN
from llava_pat.training.check_report import found_in_files, render_table, write_report
from llava_pat.training.data_check import over_caps
from llava_pat.training.finetune_arguments import FINETUNE
from llava_pat.training.flags import ConfigError, read_yaml
from llava_pat.training.parts import blamed_on, refuse_missing_folder
from llava_pat.types import DataError

_DESCRIPTION = """Checks records, regions and images before training, and says of everything that is wrong where it
stands. The flags are training's, and so is what becomes of bad records and missing images: status 0 if training with
them would start, 1 if not, 2 if the check itself cannot be done."""
_CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
_EVERY_IMAGE = sys.maxsize


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return check(read_arguments(sys.argv[1:] if argv is None else list(argv)))
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def check(options: argparse.Namespace) -> int:
    """Look at everything, print a table, write the report. Returns the exit status."""
    started = time.perf_counter()
    broken: list[Skipped] = []
    broken_lines: Broken = []
    geometry, patch_size = _grid(options)
    tokenizer = None
    if options.model_name_or_path is not None:
        refuse_missing_folder("model_name_or_path", options.model_name_or_path)
        with blamed_on("model_name_or_path"):
            tokenizer = load_tokenizer(options.model_name_or_path, options.model_max_length)
    with blamed_on("version"):
        template = get_template(options.version)
    dataset = LlavaDataset(
        load_records(options.data_path, "skip", broken),
        options.image_folder,
        template,
        tokenizer,
        geometry,
        patch_size,
        load_regions(options.regions_path, broken_lines) if options.regions_path is not None else None,
        options.model_max_length,
    )
    findings = found_in_files(options, dataset, broken, broken_lines)
    report = None
    if len(dataset):
        report = dataset.check(
            (geometry.size // patch_size) ** 2,
            max_region_images=_EVERY_IMAGE,
            progress=sys.stderr.isatty(),
            on_bad=options.bad_records,
            missing=options.missing,
            depth="header" if options.quick else "decode",
            hash_images=options.hash_images,
            processes=options.num_workers,
            findings=findings,
        )
    problems = _problems(options, dataset, report, findings)
    seconds = time.perf_counter() - started
    if options.report is not None:
        write_report(Path(options.report), options, dataset, report, findings, problems)
    print(render_table(options, findings))
    if report is not None:
        print(report)
        count, unit = (report.named_images, "images") if report.named_images else (len(dataset), "records")
        print(f"{count} {unit} in {seconds:.1f} s, {count / seconds:.0f} {unit}/s")
    if tokenizer is None:
        print("not checked: token lengths and the tokens of labels; give --model_name_or_path")
    for problem in problems:
        print(f"training would stop: {problem}")
    return 1 if problems else 0


def _problems(
    options: argparse.Namespace, dataset: LlavaDataset, report: CheckReport | None, findings: Sequence[Finding]
) -> list[str]:
    """Why training with the same flags would not start; empty if it would."""
    stopping = [entry for entry in findings if entry.stops(options.bad_records, options.missing)]
    problems = [f"{len(stopping)} findings, the first: {stopping[0].message}"] if stopping else []
    if report is None:
        problems.append(f"{options.data_path} holds no usable record")
    elif report.records == 0 and not stopping:
        problems.append(f"none of {len(dataset)} records can be used")
    elif not stopping:
        problems += over_caps(options.data_path, report, options)
    return problems


def _grid(options: argparse.Namespace) -> tuple[Geometry, int]:
    """How images are placed, and the side of a patch."""
    if options.vision_tower is None:  # LLaVA-1.5's tower; its colours do not matter to a check
        kind = Pad if options.image_aspect_ratio == "pad" else CenterCrop
        return kind(options.image_size, **_CLIP), options.patch_size
    refuse_missing_folder("vision_tower", options.vision_tower)
    with blamed_on("vision_tower"):
        config = tower_config(options.vision_tower)
        side = tower_image_size(options.vision_tower, config)
        processor = load_image_processor(options.vision_tower, side)
        return geometry_for(options.image_aspect_ratio, processor), config.patch_size


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError(f"{message}; --help has all flags")


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Flags over the YAML's lines over the stage's defaults. ConfigError for what is wrong or missing."""
    parser = build_parser()
    first, _ = parser.parse_known_args(argv)
    parser.set_defaults(**_defaults(first.stage))
    if first.config is not None:
        known = {action.dest for action in parser._actions} - {"config", "stage", "help"}
        lines = [f"--{entry.name}={entry.values[0]}" for entry in read_yaml(Path(first.config)) if entry.name in known]
        argv = lines + argv
    options = parser.parse_args(argv)
    missing = [f"--{name}" for name in ("data_path", "image_folder") if vars(options)[name] is None]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}: give them as flags, or a training YAML as --config")
    if not Path(options.image_folder).is_dir():
        raise ConfigError(f"--image_folder {options.image_folder}: no such folder (from {Path.cwd()})")
    if not 0 <= options.max_bad_records <= 1:
        raise ConfigError(f"--max_bad_records {options.max_bad_records}: expected a share, 0 to 1")
    if not 0 <= options.max_missing < float("inf"):
        raise ConfigError(f"--max_missing {options.max_missing}: expected a share below 1, or a number of images")
    for name in ("model_max_length", "image_size", "patch_size", "num_workers"):
        if vars(options)[name] is not None and vars(options)[name] < 1:
            raise ConfigError(f"--{name} {vars(options)[name]}: expected at least 1")
    return options


def _defaults(stage: int) -> dict[str, Any]:
    """What a training of this stage would do by itself."""
    names = ("version", "image_aspect_ratio", "model_max_length", "bad_records", "max_bad_records", "missing",
             "max_missing")  # fmt: skip
    kinds = (PRETRAIN if stage == 1 else FINETUNE).kinds
    return {item.name: item.default for kind in kinds for item in fields(kind) if item.name in names}


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m llava_pat.data.check", description=_DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--config", metavar="FILE", help="a training YAML: the flags below that it has are taken from it")
    add("--stage", type=int, choices=(1, 2), default=1, help="whose defaults hold (default: %(default)s)")
    add("--data_path", metavar="FILE", help="LLaVA JSON or JSONL")
    add("--image_folder", metavar="FOLDER", help="what image names are relative to")
    add("--regions_path", metavar="FILE", help="regions of these images: JSONL, Parquet, or a folder of them")
    add("--model_name_or_path", help="language model: its tokenizer measures lengths and labels")
    add("--vision_tower", help="vision tower, for the grid of patches; without: --image_size and --patch_size")
    add("--image_size", type=int, default=336, help="side of the tower's images, in pixels (default: %(default)s)")
    add("--patch_size", type=int, default=14, help="side of a patch, in pixels (default: %(default)s)")
    add("--version", help="conversation template (stage 1: plain, stage 2: v1)")
    add("--image_aspect_ratio", choices=ASPECTS, help="stage 1: square, stage 2: pad")
    add("--model_max_length", type=int, help="positions of a sequence (2048)")
    add("--bad_records", choices=("error", "skip"), help="as in training (stage 1: error, stage 2: skip)")
    add("--max_bad_records", type=float, metavar="SHARE", help="as in training (0.01)")
    add("--missing", choices=("error", "skip", "blank"), help="as in training (error)")
    add("--max_missing", type=float, metavar="N", help="as in training: below 1 a share, from 1 on a number (0.01)")
    add("--quick", action="store_true", help="read headers alone: finds what is missing, not what is cut off")
    add("--hash_images", action="store_true", help="manifest over the images' bytes, not over the files' sizes alone")
    add("--num_workers", type=int, help="processes (default: one a core, up to 8); the report is the same with any")
    add("--report", metavar="FILE", help="everything that was found, as JSON")
    return parser
