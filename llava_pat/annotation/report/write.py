"""All of the report: reads, measures, writes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_pat import __version__
from llava_pat.annotation.engine.claim import REPORT
from llava_pat.annotation.report.captions import NounFinder
from llava_pat.annotation.report.measure import Grid
from llava_pat.annotation.report.metrics import build_metrics
from llava_pat.annotation.report.source import Source, open_source
from llava_pat.annotation.report.survey import Captions, Survey, SurveyOptions, survey_source
from llava_pat.annotation.report.table import render_table
from llava_pat.data.geometry import CenterCrop, Pad
from llava_pat.pages import require_matplotlib
from llava_pat.types import DataError

METRICS, PAGE, LABELS, NOUNS = "metrics.json", "report.html", "labels.csv", "nouns.csv"
_CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


@dataclass(frozen=True)
class ReportOptions:
    """The flags of the command, which says what each is."""

    source: Path
    records: Path | None = None
    image_folder: Path | None = None
    out: Path | None = None
    max_images: int | None = None
    samples: int = 12
    seed: int = 0
    image_aspect_ratio: Literal["square", "pad"] = "square"
    image_size: int = 336
    patch_size: int = 14
    min_coverage: float = 0.25
    num_workers: int | None = None


def write_report(options: ReportOptions) -> str:
    """Writes the files; returns the table. DataError for what the user can mend."""
    require_matplotlib()
    from llava_pat.annotation.report.page import Report, warnings, write_page

    if options.patch_size > options.image_size:
        raise DataError(f"--patch_size {options.patch_size} is more than --image_size {options.image_size}")
    source = open_source(options.source, options.records, options.image_folder)
    out = _folder(options, source)
    captions = None if source.records is None else Captions(source.captions(), NounFinder(source.settings))
    kind = Pad if options.image_aspect_ratio == "pad" else CenterCrop
    grid = Grid(kind(options.image_size, **_CLIP), options.patch_size, options.min_coverage)  # colours do not matter
    looked = SurveyOptions(grid, options.samples, options.seed, options.max_images, options.num_workers)
    survey = survey_source(source, captions, looked)
    settings = _settings(options, source, captions)
    metrics = build_metrics(source, survey, settings)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / METRICS, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    _write_words(out, survey)
    page = write_page(out / PAGE, Report(source, survey, metrics, settings, grid, captions))
    notes = [f"note: {note}" for note in warnings(source, survey, metrics)]
    return "\n".join([str(source.path), *notes, render_table(metrics, survey), f"page: {page}"])


def _folder(options: ReportOptions, source: Source) -> Path:
    """Where the report goes."""
    if options.out is not None:
        if options.out.exists() and not options.out.is_dir():
            raise DataError(f"{options.out} is a file; --out is a folder")
        return options.out
    if source.run is not None:
        return source.path / REPORT
    path = source.path.resolve()
    return path.with_name(f"{path.stem if path.is_file() else path.name}_report")


def _settings(options: ReportOptions, source: Source, captions: Captions | None) -> dict[str, Any]:
    return {
        "source": str(source.path),
        "records": None if source.records is None else str(source.records),
        "image_folder": None if source.image_folder is None else str(source.image_folder),
        "nouns_by": None if captions is None else captions.finder.version,
        "max_images": options.max_images,
        "samples": options.samples,
        "seed": options.seed,
        "image_aspect_ratio": options.image_aspect_ratio,
        "image_size": options.image_size,
        "patch_size": options.patch_size,
        "min_coverage": options.min_coverage,
        "llava_pat": __version__,
    }


def _write_words(out: Path, survey: Survey) -> None:
    """All labels and all nouns, most frequent first."""
    images = survey.measures.label_images
    labels = ((label, count, images[label]) for label, count in survey.measures.labels.most_common())
    _write_csv(out / LABELS, ("label", "regions", "images"), labels)
    counts = survey.all_nouns
    if counts is None:
        (out / NOUNS).unlink(missing_ok=True)  # of an earlier report, which had records
        return
    nouns = ((noun, count, counts.covered[noun]) for noun, count in counts.nouns.most_common())
    _write_csv(out / NOUNS, ("noun", "images", "images_with_region"), nouns)


def _write_csv(path: Path, head: tuple[str, ...], rows: Iterable[tuple]) -> None:
    beside = path.with_name(f"{path.name}.partial")
    with beside.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
    os.replace(beside, path)


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
