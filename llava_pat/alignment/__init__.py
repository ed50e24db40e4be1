"""Alignment objectives: one file, one objective, one value of --alignment. See docs/objectives.md."""

from __future__ import annotations

from llava_pat.alignment.base import AlignmentObjective
from llava_pat.alignment.combined import CombinedObjective, Part, build_planned, plan_objectives, requirements
from llava_pat.alignment.registry import accepted_keywords, available, build_objective, find_objective

__all__ = [
    "AlignmentObjective",
    "CombinedObjective",
    "Part",
    "accepted_keywords",
    "available",
    "build_objective",
    "build_planned",
    "find_objective",
    "plan_objectives",
    "requirements",
]
