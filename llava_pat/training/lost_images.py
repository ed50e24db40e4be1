"""Images that go missing or break while a run reads them, where --missing skip or blank goes on without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from llava_pat.training.ranks import from_all
from llava_pat.types import DataError, Record

_SHOWN = 3


class LostImages:
    """Different images that a run has lost so far, on all ranks together. Part of a checkpoint (`state`): a resumed
    run counts on.

    allowed: so many may be lost; what --max_missing leaves.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.names: set[str] = set()

    def count(self, batches: Sequence[Mapping[str, Tensor]], records: Sequence[Record], losses: int) -> None:
        """Take note of a step's losses. losses: how many on all ranks, the same number on each: without any no rank
        asks the others. DataError beyond what is allowed."""
        if not losses:
            return
        mine = {
            records[index].images[place]
            for batch in batches
            if "lost_images" in batch
            for index, place in batch["lost_images"].tolist()
        }
        self.names = self.names.union(*from_all(mine))
        if len(self.names) > self.allowed:
            first = ", ".join(sorted(self.names)[:_SHOWN]) + (" ..." if len(self.names) > _SHOWN else "")
            raise DataError(
                f"{len(self.names)} images went missing or broke while the run read them ({first}), more than the "
                f"{self.allowed} that --max_missing leaves. Fetch them again"
            )

    def state(self) -> dict[str, list[str]]:
        return {"names": sorted(self.names)}

    def restore(self, state: Mapping[str, list[str]]) -> None:
        self.names = set(state["names"])
