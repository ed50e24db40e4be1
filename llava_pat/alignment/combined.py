"""Several objectives in one run: `pat+sea`. Each keeps its weight, its schedule and its count; the task adds them up.

plan_objectives("pat+sea", {"sea": {"weight": 1.0, "window": 4}}, weight=5.0, schedule=None)
-> {"pat": Part("pat", {}, 5.0), "sea": Part("sea", {"window": 4}, 1.0)}
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from llava_pat.alignment.base import AlignmentObjective, check_provided
from llava_pat.alignment.registry import accepted_keywords, build_objective, find_objective

SEPARATOR = "+"


@dataclass(frozen=True)
class Part:
    """One objective of a run, before it is built."""

    objective: str  # as find_objective takes it
    keywords: Mapping[str, Any]
    weight: float  # at full strength


class CombinedObjective(nn.Module):
    """Objectives side by side, by name. Not an objective itself: sums over different items have no common count."""

    def __init__(self, parts: Mapping[str, AlignmentObjective]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    @property
    def requires(self) -> frozenset[str]:
        """What any of them requires."""
        return frozenset().union(*(part.requires for part in self.parts.values()))

    def check_requirements(self, provided: Collection[str]) -> None:
        """As AlignmentObjective.check_requirements, of each in turn."""
        for name, part in self.parts.items():
            check_provided(name, part.requires, provided)


def split_names(alignment: str) -> dict[str, str]:
    """`pat+their_package.pull` -> {"pat": "pat", "pull": "their_package.pull"}; one objective alone has the name "".

    Raises:
        ValueError: nothing between two signs, or two of one name.
    """
    paths = alignment.split(SEPARATOR)
    if len(paths) == 1:
        return {"": alignment}
    names = [re.split(r"[.:]", path)[-1] for path in paths]
    if "" in names:
        raise ValueError(f"{alignment!r} has nothing on one side of a {SEPARATOR}; write pat{SEPARATOR}sea")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{alignment!r} names {', '.join(twice)} twice; a run has one objective of a name")
    return dict(zip(names, paths, strict=True))


def plan_objectives(
    alignment: str, arguments: Mapping[str, Any], weight: float, schedule: str | None
) -> dict[str, Part]:
    """What a run's flags ask for, by name; checked as far as it can be without the model.

    Args:
        alignment: one objective, or several with `+` between them.
        arguments: one objective's keywords; of several, a mapping for each name, in which `weight` and `schedule` stand
            beside the keywords.
        weight, schedule: of the objectives that say nothing else; schedule None is each objective's own default.

    Raises:
        ValueError: an unknown objective, name or keyword, a weight that is none.
        TypeError: an objective of somebody's that breaks the constructor's rule.
    """
    paths = split_names(alignment)
    if len(paths) == 1:
        if "schedule" in arguments:
            raise ValueError("alignment_args has a schedule: give it as --alignment_schedule")
        return {"": _part(alignment, "alignment_args", arguments, weight, schedule)}
    unknown = sorted(set(arguments) - set(paths))
    if unknown:
        raise ValueError(
            f"alignment_args has {', '.join(unknown)}; of several objectives its keys are their names, "
            f"{' and '.join(paths)}, each with a mapping of keywords"
        )
    plan = {}
    for name, path in paths.items():
        own, where = arguments.get(name, {}), f"alignment_args: {name}"
        if not isinstance(own, Mapping):
            raise ValueError(f"{where} is {own!r}; expected a mapping of keywords")
        if path == "none":
            raise ValueError(f"none in {alignment!r} adds nothing; leave it out")
        rest = {key: value for key, value in own.items() if key not in ("weight", "schedule")}
        plan[name] = _part(path, where, rest, own.get("weight", weight), own.get("schedule", schedule))
    return plan


def requirements(plan: Mapping[str, Part]) -> frozenset[str]:
    """The names of the data that any part needs, with the keywords that it will be built with."""
    needed = (find_objective(part.objective).requires_with(part.keywords) for part in plan.values())
    return frozenset().union(*needed)


def build_planned(plan: Mapping[str, Part], **widths: int) -> AlignmentObjective | CombinedObjective:
    """Build what was planned; widths: hidden_size and vision_width, as for build_objective. Raises as that does."""
    built = {name: build_objective(part.objective, **widths, **part.keywords) for name, part in plan.items()}
    return built[""] if "" in built else CombinedObjective(built)


def _part(path: str, where: str, keywords: Mapping[str, Any], weight: Any, schedule: str | None) -> Part:
    accepted = accepted_keywords(find_objective(path))
    for name in keywords:
        if name not in accepted:
            listed = ", ".join(f"{key}={value!r}" for key, value in accepted.items() if key != "schedule") or "none"
            raise ValueError(f"{where}: {path} has no keyword {name!r}; its keywords and defaults: {listed}")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise ValueError(f"{where}: weight is {weight!r}; expected a finite number >= 0")
    timed = {"schedule": schedule} if schedule is not None and "schedule" in accepted else {}
    return Part(path, {**keywords, **timed}, float(weight))
