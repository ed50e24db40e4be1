"""metrics.json: counters -> one flat object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from llava_pat.annotation.report.definitions import CAPTIONS, METRICS
from llava_pat.annotation.report.faults import LINES, WITH
from llava_pat.annotation.report.measure import NO_FILE
from llava_pat.annotation.report.source import Source
from llava_pat.annotation.report.survey import Survey


def build_metrics(source: Source, survey: Survey, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every number of METRICS, then how often each fault was met ("<unit>: <reason>"), then the settings."""
    numbers = _images(source, survey) | _regions(survey) | _labels(survey) | _captions(survey) | _patches(survey)
    found = {metric.name: numbers[metric.name] for metric in METRICS}
    found |= {f"{fault.unit}: {fault.reason}": fault.count for fault in survey.faults.ranked()}
    return found | dict(settings)


def fewest_for_half(counts: Counter[str]) -> int:
    """The smallest number of keys that have at least half of the total."""
    ranked = np.sort(np.fromiter(counts.values(), np.int64, len(counts)))[::-1].cumsum()
    return int(np.searchsorted(2 * ranked, ranked[-1])) + 1 if len(ranked) else 0


def spread(counts: Counter[int]) -> np.ndarray:
    """Counter of values -> all the values, sorted."""
    values = np.array(sorted(counts), np.int64)
    return np.repeat(values, [counts[value] for value in values.tolist()])


def _images(source: Source, survey: Survey) -> dict[str, Any]:
    return {
        "finished": source.finished,
        "images_expected": source.expected,
        "images_with_regions": survey.with_regions,
        "images_without_regions": survey.without_regions,
        "images_measured": survey.measures.images,
        "images_missing": None if source.image_folder is None else survey.faults.count(WITH, NO_FILE),
        "images_unknown": survey.unknown,
        "lines_refused": survey.faults.count(LINES),
    }


def _regions(survey: Survey) -> dict[str, Any]:
    measures = survey.measures
    per_image, regions = spread(measures.regions_per_image), len(measures.areas)
    areas, scores = np.asarray(measures.areas, np.float64), np.asarray(measures.scores, np.float64)
    return {
        "regions": regions,
        "regions_per_image_mean": _mean(per_image),
        "regions_per_image_median": _percentile(per_image, 50),
        "regions_per_image_p95": _percentile(per_image, 95),
        "regions_per_image_max": int(per_image.max()) if len(per_image) else None,
        "area_median": _percentile(areas, 50),
        "area_p05": _percentile(areas, 5),
        "area_p95": _percentile(areas, 95),
        "regions_without_mask": _share(measures.without_mask, regions),
        "regions_with_score": _share(len(scores), regions),
        "score_mean": _mean(scores),
        "score_median": _percentile(scores, 50),
        "score_p05": _percentile(scores, 5),
    }


def _labels(survey: Survey) -> dict[str, Any]:
    measures = survey.measures
    return {
        "labels": len(measures.labels),
        "labels_once": sum(count == 1 for count in measures.labels.values()),
        "labels_for_half": fewest_for_half(measures.labels),
        "labels_per_image_mean": _share(measures.label_images.total(), measures.images),
    }


def _captions(survey: Survey) -> dict[str, Any]:
    own, other = survey.nouns, survey.other_nouns
    if own is None:
        return dict.fromkeys(metric.name for metric in METRICS if metric.group == CAPTIONS)
    covered = own.covered.total()
    return {
        "nouns_per_image": _share(own.total, own.images),
        "noun_coverage_with_regions": _share(covered, own.total),
        "noun_coverage": None if other is None else _share(covered, own.total + other.total),
        "noun_coverage_loose": _share(own.loosely, own.total),
        "nouns_distinct": len(own.nouns.keys() | (set() if other is None else other.nouns.keys())),
    }


def _patches(survey: Survey) -> dict[str, Any]:
    measures, without = survey.measures, survey.without_regions
    patches = measures.images * measures.patches
    labelled = _share(int(measures.labelled.sum()), patches)
    images = survey.with_regions + (without or 0)
    everywhere = None if without is None or labelled is None else labelled * survey.with_regions / images
    return {
        "patches_labelled": labelled,
        "patches_labelled_all_images": everywhere,
        "patches_touched": _share(measures.touched, patches),
        "patches_several": _share(measures.several, patches),
        "images_without_labelled_patch": measures.labelled_per_image[0],
        "regions_removed": _share(measures.removed, len(measures.areas)),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _percentile(values: np.ndarray, percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None
