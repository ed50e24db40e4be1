"""Labels by RAM++ (arXiv 2310.15200), for those who have the authors' package; transformers has no RAM.

    pip install git+https://github.com/xinyu1205/recognize-anything.git

Written after that package's inference_ram_plus.py: ram.models.ram_plus(pretrained, image_size, vit), ram.get_transform,
ram.inference_ram -> (English tags joined by " | ", Chinese tags). Not run here: the package is on no registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llava_pat.annotation.pretrained import Placement, require_package
from llava_pat.annotation.stages import Images, Tagger
from llava_pat.types import DataError

_INSTALL = "pip install git+https://github.com/xinyu1205/recognize-anything.git"


@dataclass(frozen=True)
class RamOptions:
    checkpoint: str = ""
    """ram_plus_swin_large_14m.pth of the authors. Needed."""
    image_size: int = 384
    vit: str = "swin_l"


class RamTagger(Tagger):
    """What RAM++ sees."""

    Options = RamOptions

    def __init__(self, options: RamOptions, place: Placement) -> None:
        require_package("ram", "the ram tagger", _INSTALL)
        if not options.checkpoint:
            raise DataError("ram tagger: checkpoint is not given; it is the authors' ram_plus_swin_large_14m.pth")
        from ram import get_transform, inference_ram
        from ram.models import ram_plus

        self._place, self._infer = place, inference_ram
        self._transform = get_transform(image_size=options.image_size)
        model = ram_plus(pretrained=options.checkpoint, image_size=options.image_size, vit=options.vit)
        self._model = model.eval().to(place.device)

    @torch.inference_mode()
    def tag(self, images: Images, captions: Sequence[str]) -> list[list[str]]:
        found = []
        for image in images:  # its inference_ram joins the tags of one image
            english, _ = self._infer(self._transform(image).unsqueeze(0).to(self._place.device), self._model)
            found.append([tag.strip() for tag in english.split("|") if tag.strip()])
        return found

    @property
    def version(self) -> str:
        return "ram_plus"
