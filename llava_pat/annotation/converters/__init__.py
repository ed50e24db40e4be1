"""Region data sets, one file each. A new one: a Converter in a file of its own, and its name here."""

from llava_pat.annotation.converters.base import Converter
from llava_pat.annotation.converters.coco_instances import CocoInstances
from llava_pat.annotation.converters.coco_panoptic import CocoPanoptic
from llava_pat.annotation.converters.flickr30k_entities import Flickr30kEntities
from llava_pat.annotation.converters.lvis import Lvis
from llava_pat.annotation.converters.open_images import OpenImages
from llava_pat.annotation.converters.refcoco import RefCoco
from llava_pat.annotation.converters.visual_genome import VisualGenome

CONVERTERS: dict[str, type[Converter]] = {
    kind.name: kind
    for kind in (CocoInstances, CocoPanoptic, Lvis, RefCoco, VisualGenome, Flickr30kEntities, OpenImages)
}
"""By the name that the command knows them by."""
