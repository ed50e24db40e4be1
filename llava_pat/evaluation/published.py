"""Published figures to stand beside ours; every row with its source, nothing that was not printed there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ZOO = "docs/MODEL_ZOO.md of haotian-liu/LLaVA at c121f04"
SEA = "SEA, arXiv 2408.11813 (EMNLP version); its LLaVA rows are its authors' own runs"
PAT = "PAT, arXiv 2505.17316, abstract"

BENCHMARKS = (
    "VQAv2", "GQA", "VizWiz", "SQA-I", "TextVQA", "POPE", "MME", "MMB", "MMB-CN", "SEED", "LLaVA-W", "MM-Vet",
)  # fmt: skip
_SEA_ORDER = ("VQAv2", "TextVQA", "GQA", "SQA-I", "MMB", "POPE", "VizWiz", "MM-Vet")


@dataclass(frozen=True)
class Published:
    """One row of a paper."""

    name: str
    figures: Mapping[str, float]
    """One of BENCHMARKS -> the figure as printed."""
    source: str


def _zoo(name: str, *figures: float) -> Published:
    return Published(name, dict(zip(BENCHMARKS, figures, strict=True)), ZOO)


def _sea(name: str, *figures: float) -> Published:
    return Published(name, dict(zip(_SEA_ORDER, figures, strict=True)), SEA)


ROWS = (
    _zoo("LLaVA-1.5-7B", 78.5, 62.0, 50.0, 66.8, 58.2, 85.9, 1510.7, 64.3, 58.3, 58.6, 65.4, 31.1),
    _zoo("LLaVA-1.5-13B", 80.0, 63.3, 53.6, 71.6, 61.3, 85.9, 1531.3, 67.7, 63.6, 61.6, 72.5, 36.1),
    _sea("SEA's LLaVA 7B", 78.8, 58.3, 62.0, 67.9, 66.2, 86.5, 45.7, 30.7),
    _sea("SEA 7B", 79.1, 58.9, 63.2, 69.4, 66.8, 87.6, 48.8, 31.9),
    _sea("SEA's LLaVA 13B", 80.0, 60.8, 63.3, 71.6, 67.7, 87.6, 53.6, 35.1),
    _sea("SEA 13B", 79.8, 60.4, 63.8, 71.7, 68.0, 87.6, 57.3, 35.8),
)

STATEMENTS = (
    f"{PAT}: with the same fine-tuning, +16 % on referring-expression grounding, +4 % on question answering, +3 % on "
    "instruction-following benchmarks. It does not say whether these are relative or absolute, and none of its tables "
    "is in our reach: there is no PAT row.",
)

COLUMN = {
    "vqav2": "VQAv2",
    "gqa": "GQA",
    "vizwiz": "VizWiz",
    "scienceqa": "SQA-I",
    "textvqa": "TextVQA",
    "pope": "POPE",
    "mme": "MME",
    "mmbench": "MMB",
    "mmbench_cn": "MMB-CN",
    "seed_all": "SEED",
    "llava_bench": "LLaVA-W",
    "mmvet": "MM-Vet",
}
"""Our benchmark -> the papers' one, where our headline is the figure that they print (for those that only a server can
score: what it says of the submission)."""


def published(benchmark: str) -> dict[str, float]:
    """Row name -> figure, for the rows that have one comparable with our headline; empty for other benchmarks."""
    column = COLUMN.get(benchmark)
    return {row.name: row.figures[column] for row in ROWS if column in row.figures}
