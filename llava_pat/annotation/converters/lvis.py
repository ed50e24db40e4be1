"""LVIS v1 (https://www.lvisdataset.org/dataset): COCO's layout without file_name and iscrowd.

    images:      {"id", "coco_url", "width", "height", "neg_category_ids", "not_exhaustive_category_ids"}
    categories:  {"id", "name": "bow_(weapon)", "synonyms": ["bow_(weapon)"], "synset": "bow.n.04", "frequency": "f"}

lvis_v1_train.json has images of COCO's train2017 and of its val2017: only coco_url says which. What an image is known
not to show (neg_category_ids) makes no region.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from llava_pat.annotation.converters.coco_instances import CocoInstances
from llava_pat.annotation.labels import drop_qualifier
from llava_pat.data.json_files import field


class Lvis(CocoInstances):
    """COCO's images with masks of 1,203 categories."""

    name = "lvis"
    title = "LVIS v1"
    about = (
        "The mask of every instance, labelled with its category's name. What it has in brackets goes: bow_(weapon) "
        "and bow_(decorative_ribbons) are both 'bow'."
    )
    annotations_help = "lvis_v1_train.json"

    def __init__(self, annotations: Path) -> None:
        super().__init__(annotations)

    @staticmethod
    def add_options(parser: ArgumentParser) -> None:
        """LVIS has no crowds."""

    def label(self, category: dict[str, Any]) -> str:
        return drop_qualifier(str(field(category, "name", self.annotations, f"category {category['id']}")))
