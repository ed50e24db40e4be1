"""What a data set holds, as the check saw it."""

from __future__ import annotations

from dataclasses import dataclass

from llava_pat.data.check.manifest import SeenImages
from llava_pat.data.records import Skipped

_SHOWN = 3


@dataclass(frozen=True)
class Lost:
    """An image that is not there or cannot be read."""

    image: str  # as the records name it
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds. The four numbers from `regions_removed` on are of `region_images_examined` images."""

    records: int  # that are trained on
    images: int  # of those records
    text_only: int
    supervised_tokens: int
    longest: int  # positions of the longest sequence, images expanded, after truncation
    truncated: int  # sequences cut at model_max_length
    images_with_regions: int
    regions: int
    region_images_unused: int  # annotated images that no record uses
    region_images_examined: int
    regions_removed: int  # no patch is left under them after the crop
    labelled_patches: int
    multi_label_patches: int  # under two regions or more
    leading_answers: int  # conversations whose first message was an answer, which is dropped
    skipped: tuple[Skipped, ...]  # left out when the file was read
    unusable: tuple[Skipped, ...]  # found here; the index is the place in the data set (LlavaDataset.without)
    named_images: int  # different images that the records name
    renamed: int  # of them, found with another extension
    lost: tuple[Lost, ...]  # of them, not there or unreadable
    lost_records: tuple[int, ...]  # places in the data set that are left out for a lost image
    blank: tuple[str, ...]  # lost images in whose place an empty one is trained on
    vanished: tuple[str, ...]  # images that a run lost under way; their records are kept
    seen: SeenImages | None  # what a later start of the run must know of the images, where it was asked for
    manifest: str  # one hash of the records that are trained on, their regions, and the sizes of their images

    @property
    def left_out(self) -> tuple[int, ...]:
        """Places in the data set that are not to be trained on."""
        return tuple(sorted({entry.index for entry in self.unusable} | set(self.lost_records)))

    def __str__(self) -> str:
        lines = [
            f"{self.records} records ({self.text_only} text only), {self.images} images, "
            f"{self.supervised_tokens} supervised tokens, longest sequence {self.longest}, {self.truncated} truncated"
        ]
        if self.leading_answers:
            lines.append(f"{self.leading_answers} conversations began with an answer; it was dropped, as LLaVA does")
        left_out = self.skipped + self.unusable
        if left_out:
            lines += [f"{len(left_out)} records are left out:", *_first([entry.reason for entry in left_out])]
        if self.renamed:
            lines.append(f"{self.renamed} images have another extension than the records say; they were found")
        if self.lost:
            done = "; empty images take their place" if self.blank else ""
            done = f"; {len(self.lost_records)} records are left out for them" if self.lost_records else done
            lines.append(f"{len(self.lost)} of {self.named_images} images are missing or broken{done}:")
            lines += _first([entry.reason for entry in self.lost])
        if self.vanished:
            names = ", ".join(self.vanished[:_SHOWN]) + (" ..." if len(self.vanished) > _SHOWN else "")
            lines.append(f"{len(self.vanished)} images went missing or broke since the run began: {names}")
        if self.images_with_regions:
            lines.append(
                f"{self.images_with_regions} images with {self.regions} regions; of {self.region_images_examined} "
                f"looked at closely: {self.regions_removed} regions removed by the crop, {self.labelled_patches} "
                f"labelled patches, {self.multi_label_patches} of them under several labels"
            )
        lines.append(f"manifest {self.manifest[:16]}")
        return "\n".join(lines)


def _first(reasons: list[str]) -> list[str]:
    more = [f"  and {len(reasons) - _SHOWN} more"] * (len(reasons) > _SHOWN)
    return [f"  {reason}" for reason in reasons[:_SHOWN]] + more
