"""What went wrong: how often, and the first of each."""

from __future__ import annotations

from dataclasses import dataclass, field

WITHOUT = "images without regions"
WITH = "images with regions"
LINES = "lines that training refuses"
INSIDE = "labels, boxes and regions"
"""Units, in the order in which they are shown."""
_ORDER = (WITHOUT, WITH, LINES, INSIDE)


@dataclass
class Fault:
    """One reason."""

    unit: str
    reason: str
    count: int
    where: str
    """Of the first."""
    image: str | None = None
    """The first, where it is one that can be shown."""


@dataclass
class Faults:
    """All of them, by unit and reason."""

    found: dict[tuple[str, str], Fault] = field(default_factory=dict)

    def add(self, unit: str, reason: str, where: str, image: str | None = None, count: int = 1) -> None:
        """Once more, or `count` times more."""
        known = self.found.get((unit, reason))
        if known is None:
            self.found[unit, reason] = Fault(unit, reason, count, where, image)
        else:
            known.count += count

    def merge(self, later: Faults) -> None:
        """What was found further on in the file."""
        for fault in later.found.values():
            self.add(fault.unit, fault.reason, fault.where, fault.image, fault.count)

    def count(self, unit: str, reason: str | None = None) -> int:
        """Of a unit's reasons, or of one of them."""
        return sum(
            fault.count for fault in self.found.values() if fault.unit == unit and reason in (None, fault.reason)
        )

    def ranked(self) -> list[Fault]:
        """Unit by unit, most frequent first."""
        return sorted(self.found.values(), key=lambda fault: (_ORDER.index(fault.unit), -fault.count, fault.reason))
