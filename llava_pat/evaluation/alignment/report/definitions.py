"""What each metric is called in the report, what it means, which way is better. Formulas: docs/analysis.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One line of the table."""

    name: str
    title: str
    group: str
    text: str
    better: Literal["higher", "lower"] | None = None
    """None: neither way is better in itself."""
    unit: Literal["share", "cosine", "nats", "count", "number"] = "number"
    plotted: bool = True
    """Whether it has a panel in the plot of metrics."""


ALIGNMENT = "Patch alignment"
SEGMENTS = "Segmentation by words"
PARTS = "Patches as sums of words"
DISTANCE = "Captions and word distances"
LAYERS = "Inside the language model"
ENTROPY = "Von Neumann entropy"
DATA = "Data"
OTHER = "Other"
GROUPS = (ALIGNMENT, SEGMENTS, PARTS, DISTANCE, LAYERS, ENTROPY, DATA, OTHER)

_POOLED = "of all patches of all images, each at length 1"
_PER_IMAGE = "of one image's patches, each at length 1; mean over images"

_KNOWN = (
    Metric("patch_cosine", "cosine with the label", ALIGNMENT,
           "Mean over labelled patches (a region covers enough of them) of the cosine between the projected patch and "
           "the nearest of its whole labels, a label being the mean of its tokens' input embeddings. A high cosine is "
           "cheap: see the mean word.", "higher", "cosine"),
    Metric("cosine_gap", "right minus wrong cosine", ALIGNMENT,
           "Mean cosine of labelled patches with right words of the object vocabulary, minus that with wrong words.",
           "higher", "cosine"),
    Metric("hit_at_1", "hit@1", ALIGNMENT,
           "Share of labelled patches whose nearest word of the object vocabulary is in their label. Ties are misses.",
           "higher", "share"),
    Metric("hit_at_5", "hit@5", ALIGNMENT,
           "Share of labelled patches with fewer than five wrong words as near as the nearest right one.",
           "higher", "share", False),
    Metric("hit_at_10", "hit@10", ALIGNMENT,
           "Share of labelled patches with fewer than ten wrong words as near as the nearest right one.",
           "higher", "share", False),
    Metric("hit_label_at_1", "hit@1, whole labels", ALIGNMENT,
           "As hit@1, the vocabulary being the distinct labels of the data, whole.", "higher", "share"),
    Metric("mean_reciprocal_rank", "mean reciprocal rank", ALIGNMENT,
           "Mean of 1 / rank of the nearest right word in the object vocabulary.", "higher", "share", False),
    Metric("median_rank", "median rank", ALIGNMENT,
           "Median rank of the nearest right word in the object vocabulary; 1 is best.", "lower", "number", False),
    Metric("patchdis_miou", "PatchDis mIoU", SEGMENTS,
           "Each patch with a class is read as the nearest class word; intersection over union of each class, mean of "
           "the classes that occur. Each facet has its own classes.", "higher", "share"),
    Metric("patchdis_miou_background", "PatchDis mIoU, background", SEGMENTS,
           "The same over all patches of annotated images: a background patch that is read as a class is a mistake, and"
           " none can be read as background.", "higher", "share", False),
    Metric("omp_explained", "energy explained", PARTS,
           "Share of a labelled patch's squared length that at most five words of the language model explain, found by "
           "orthogonal matching pursuit; mean.", "higher", "share"),
    Metric("omp_overlap", "label among the words", PARTS,
           "Share of labelled patches with a word of their label among the words found.", "higher", "share"),
    Metric("omp_recall", "words of the label found", PARTS,
           "Mean share of a patch's right words that are among the words found.", "higher", "share", False),
    Metric("omp_recall_several", "the same, labels of several words", PARTS,
           "Mean share of the right words found, over patches with at least two.", "higher", "share", False),
    Metric("omp_precision", "words found that are right", PARTS,
           "Mean share of the words found that are right. Few words found raise it.", "higher", "share", False),
    Metric("tacs", "TACS", DISTANCE,
           "Of each image the ten patches that are nearest to a token of the caption; mean of their cosines (SEA).",
           "higher", "cosine"),
    Metric("modality_distance", "modality distance D", DISTANCE,
           "Mean Euclidean distance of a patch to the nearest word (SEA, eq. 5). It follows the length of the vectors: "
           "read it with the two norms below. So neither way is marked as better.", None, "number"),
    Metric("visual_norm", "length of patches", DISTANCE, "Mean Euclidean length of projected patches.", None, "number",
           False),
    Metric("word_norm", "length of words", DISTANCE, "Mean Euclidean length of word vectors.", None, "number", False),
    Metric("ima_mean", "IMA, mean of layers", LAYERS,
           "Cosine of the mean hidden state of image positions with that of text positions, averaged over layers "
           "(Implicit Multimodal Alignment). Descriptive: neither way is marked as better.", None, "cosine"),
    Metric("ima_first", "IMA, input", LAYERS, "The same, of the input of the first layer.", None, "cosine", False),
    Metric("ima_last", "IMA, last layer", LAYERS, "The same, after the last layer.", None, "cosine", False),
    Metric("entropy_change", "change", ENTROPY,
           "Entropy after the projector minus before it; below 0 the projector compresses. The sign can differ from "
           "the centred one.", None, "nats", False),
    Metric("entropy_change_centred", "change, centred", ENTROPY,
           "The same with the mean vector taken away first, before and after.", None, "nats", False),
    Metric("entropy_features", "before the projector", ENTROPY, f"Entropy in nats {_POOLED}: the tower's features.",
           None, "nats", False),
    Metric("entropy_patches", "after the projector", ENTROPY, f"Entropy in nats {_POOLED}.", None, "nats", False),
    Metric("entropy_features_centred", "before, centred", ENTROPY,
           f"Entropy in nats {_POOLED}, less their mean: the tower's features.", None, "nats", False),
    Metric("entropy_patches_centred", "after, centred", ENTROPY, f"Entropy in nats {_POOLED}, less their mean.",
           None, "nats", False),
    Metric("entropy_features_image", "before, per image", ENTROPY, f"Entropy in nats {_PER_IMAGE}.", None, "nats",
           False),
    Metric("entropy_patches_image", "after, per image", ENTROPY, f"Entropy in nats {_PER_IMAGE}.", None, "nats",
           False),
    Metric("entropy_features_image_centred", "before, per image, centred", ENTROPY,
           f"Entropy in nats {_PER_IMAGE}; the image's mean vector taken away.", None, "nats", False),
    Metric("entropy_patches_image_centred", "after, per image, centred", ENTROPY,
           f"Entropy in nats {_PER_IMAGE}; the image's mean vector taken away.", None, "nats", False),
    Metric("caption_loss", "caption loss", OTHER, "Cross entropy of the held-out captions, nats per token.", "lower",
           "nats", False),
    Metric("omp_patches", "patches in sums of words", DATA, "Labelled patches that matching pursuit was run on.", None,
           "count", False),
    Metric("images", "images", DATA, "Images measured.", None, "count", False),
    Metric("labelled_patches", "labelled patches", DATA, "Patches that carry a word of the object vocabulary.", None,
           "count", False),
)  # fmt: skip
POSITIVE = "_nonnegative"
KNOWN = {metric.name: metric for metric in _KNOWN}
_ORDER = {name: place for place, name in enumerate(KNOWN)}


def metric(name: str) -> Metric:
    """The definition of a metric; of one that is not known here, its name and no more."""
    if name in KNOWN:
        return KNOWN[name]
    if name.endswith(POSITIVE) and name.removesuffix(POSITIVE) in KNOWN:
        free = KNOWN[name.removesuffix(POSITIVE)]
        text = f"{free.text} Here words may only be added, never subtracted."
        return replace(free, name=name, title=f"{free.title}, weights ≥ 0", text=text, plotted=False)
    if name.startswith("hit_"):
        facet = name.removeprefix("hit_")
        text = (
            f"Among the words of the facet {facet!r} alone: is the nearest one right? Over patches with exactly one of "
            "these words in their label."
        )
        return Metric(name, f"hit@1, {facet}", ALIGNMENT, text, "higher", "share")
    if name.startswith("patches_"):
        facet = name.removeprefix("patches_")
        return Metric(name, f"patches, {facet}", DATA, f"Patches behind hit@1, {facet}.", None, "count", False)
    return Metric(name, name, OTHER, "", None, "number", False)


def in_order(names: set[str]) -> list[Metric]:
    """Metrics by group, and inside a group as listed here; facets after hit@10, unknown ones last."""

    def place(item: Metric) -> tuple[int, float, str]:
        number = float(_ORDER.get(item.name.removesuffix(POSITIVE), 999))
        if item.group == ALIGNMENT and item.name not in _ORDER:
            number = _ORDER["hit_at_10"] + 0.5
        return GROUPS.index(item.group), number, item.name

    return sorted(map(metric, names), key=place)


def shown(value: float, unit: str) -> str:
    """A value as the table prints it."""
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "number":
        return (f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}").replace("-", "−")
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")
