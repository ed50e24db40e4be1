"""Segmenters, one file each: which pixels of a box. A new one: a Segmenter in a file, and its name here."""

from llava_pat.annotation.segmenters.boxes import Boxes
from llava_pat.annotation.segmenters.sam import Sam
from llava_pat.annotation.segmenters.sam2 import Sam2
from llava_pat.annotation.stages import Segmenter

SEGMENTERS: dict[str, type[Segmenter]] = {"sam": Sam, "sam2": Sam2, "boxes": Boxes}
