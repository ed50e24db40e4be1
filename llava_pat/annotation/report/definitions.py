"""What each number of metrics.json means. None where it cannot be known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["count", "share", "number", "flag"]


@dataclass(frozen=True)
class Metric:
    """One number."""

    name: str
    title: str
    group: str
    text: str
    unit: Unit = "count"


IMAGES, REGIONS, LABELS, CAPTIONS, PATCHES = "Images", "Regions", "Labels", "Captions", "Patches"

METRICS = (
    Metric("finished", "run finished", IMAGES, "Whether all shards of the run are there; of its shards that are, the "
           "other numbers. Only of a run's folder.", "flag"),
    Metric("images_expected", "images to annotate", IMAGES, "Images of the run. Only of a run's folder."),
    Metric("images_with_regions", "images with regions", IMAGES, "Images with at least one region. With --max_images, "
           "lines that were not read are taken to be such images."),
    Metric("images_without_regions", "images without regions", IMAGES, "Images that the run left out, or that the "
           "records have and the regions file has not. The reasons are below."),
    Metric("images_measured", "images measured", IMAGES, "Images with regions on which all other numbers rest: all, or "
           "the first --max_images."),
    Metric("images_missing", "image file missing", IMAGES, "Measured images of which --image_folder has no file."),
    Metric("images_unknown", "in no record", IMAGES, "Measured images that no record has; stage 1 ignores them."),
    Metric("lines_refused", "lines refused", IMAGES, "Lines that stop training: no JSON, masks that cannot be read, an "
           "image on two lines, and the like. They are in no other number."),
    Metric("regions", "regions", REGIONS, "Regions of the measured images."),
    Metric("regions_per_image_mean", "regions an image, mean", REGIONS, "Over measured images.", "number"),
    Metric("regions_per_image_median", "regions an image, median", REGIONS, "Over measured images.", "number"),
    Metric("regions_per_image_p95", "regions an image, 95th percentile", REGIONS, "Over measured images.", "number"),
    Metric("regions_per_image_max", "regions an image, most", REGIONS, "Over measured images."),
    Metric("area_median", "area, median", REGIONS, "Pixels of a region, of its image's pixels.", "share"),
    Metric("area_p05", "area, 5th percentile", REGIONS, "As above.", "share"),
    Metric("area_p95", "area, 95th percentile", REGIONS, "As above.", "share"),
    Metric("regions_without_mask", "boxes without a mask", REGIONS, "Share of the regions that are a box alone.",
           "share"),
    Metric("regions_with_score", "regions with a score", REGIONS, "Share of the regions.", "share"),
    Metric("score_mean", "score, mean", REGIONS, "Of the regions that have one.", "number"),
    Metric("score_median", "score, median", REGIONS, "Of the regions that have one.", "number"),
    Metric("score_p05", "score, 5th percentile", REGIONS, "Of the regions that have one.", "number"),
    Metric("labels", "different labels", LABELS, "As the file spells them. labels.csv has them all."),
    Metric("labels_once", "labels of one region only", LABELS, "Labels that only one region has."),
    Metric("labels_for_half", "labels of half the regions", LABELS, "The fewest labels that half of all regions have: "
           "the smaller, the more a few labels dominate."),
    Metric("labels_per_image_mean", "different labels an image, mean", LABELS, "Over measured images.", "number"),
    Metric("nouns_per_image", "nouns an image", CAPTIONS, "Different noun phrases of an image's captions, cleaned by "
           "the label rules; mean over measured images.", "number"),
    Metric("noun_coverage_with_regions", "nouns with a region, annotated images", CAPTIONS, "Share of the nouns of "
           "images with regions that are the label of a region of their image.", "share"),
    Metric("noun_coverage_loose", "the same, loosely", CAPTIONS, "A noun counts as well if it and a label end in each "
           "other: \"brown dog\" and \"dog\". Over images with regions.", "share"),
    Metric("noun_coverage", "nouns with a region, all images", CAPTIONS, "Share of the nouns of all images, of which "
           "those without regions cover nothing. Not of a quick look.", "share"),
    Metric("nouns_distinct", "different nouns", CAPTIONS, "Of all captions that were read. nouns.csv has them all."),
    Metric("patches_labelled", "patches labelled", PATCHES, "Share of the patches, under stage 1's crop or padding, of "
           "which a region covers at least --min_coverage. Over measured images.", "share"),
    Metric("patches_labelled_all_images", "patches labelled, all images", PATCHES, "The same, where images without "
           "regions label no patch.", "share"),
    Metric("patches_touched", "patches touched", PATCHES, "Share of the patches that some region covers, however "
           "little of them: those that PAT learns from unless its min_coverage is set.", "share"),
    Metric("patches_several", "patches with several labels", PATCHES, "Share of the patches that are labelled by two "
           "different labels or more.", "share"),
    Metric("images_without_labelled_patch", "images without a labelled patch", PATCHES, "Measured images of which no "
           "region covers enough of any patch."),
    Metric("regions_removed", "regions cut away", PATCHES, "Share of the regions that touch no patch after the crop.",
           "share"),
)  # fmt: skip
GROUPS = tuple(dict.fromkeys(metric.group for metric in METRICS))


def shown(value: Any, unit: Unit) -> str:
    """A value as tables print it."""
    if value is None:
        return "–"
    if unit == "flag":
        return "yes" if value else "no"
    if unit == "count":
        return f"{value:,}"
    if unit == "number":
        return f"{value:.3f}" if abs(value) < 1 else f"{value:,.1f}"
    return f"{100 * value:.2g} %" if 0 < value < 0.01 else f"{100 * value:.1f} %"
