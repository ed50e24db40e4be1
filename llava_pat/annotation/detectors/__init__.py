"""Detectors, one file each: where an image's labels are. A new one: a Detector in a file, and its name here."""

from llava_pat.annotation.detectors.florence2 import Florence2Detector
from llava_pat.annotation.detectors.grounding_dino import GroundingDino
from llava_pat.annotation.detectors.owlv2 import Owlv2
from llava_pat.annotation.detectors.sam3 import Sam3
from llava_pat.annotation.stages import Detector

DETECTORS: dict[str, type[Detector]] = {
    "grounding_dino": GroundingDino,
    "owlv2": Owlv2,
    "florence2": Florence2Detector,
    "sam3": Sam3,
}
