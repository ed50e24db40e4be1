"""COCO captions: Karpathy's test split (5,000 images of val2014), and val2017."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llava_pat.data.json_files import field, read_json
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.questions import Question, image_in
from llava_pat.evaluation.scorers.captions import CaptionScores, caption_scores
from llava_pat.types import DataError

PROMPT = "Provide a one-sentence caption for the provided image."
"""LLaVA's for captions in mix665K (TextCaps); lmms-eval asks the same."""


@dataclass(frozen=True)
class Captioned:
    """An image and what people said about it."""

    id: int
    file: Path
    references: tuple[str, ...]


class CaptionBenchmark(Benchmark):
    """Any set of images with reference captions; a question is an image, known by its id."""

    prompt: ClassVar[str] = PROMPT
    max_new_tokens = 128

    @abstractmethod
    def images(self, root: Path) -> list[Captioned]:
        """Images in the official order."""

    def questions(self, root: Path) -> list[Question]:
        return [Question(id=image.id, images=(image.file,), text=self.prompt) for image in self.images(root)]

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        found, notes = self.caption_scores(root, answers)
        return Scores(found.metrics, notes=notes)

    def caption_scores(self, root: Path, answers: Answers) -> tuple[CaptionScores, list[str]]:
        """The scorer's figures for the images that have an answer, and notes on them."""
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        captions = {q.id: text for q, text in zip(questions, texts, strict=True) if text is not None}
        references = {image.id: image.references for image in self.images(root) if image.id in captions}
        found = caption_scores(references, captions)
        return found, notes + found.notes


def read_coco(file: Path, images: Path) -> list[Captioned]:
    """COCO's caption format: `images` (id, file_name) and `annotations` (image_id, caption), in the order of images."""
    content = read_json(file)
    said: dict[int, list[str]] = {image["id"]: [] for image in field(content, "images", file, "top level")}
    for number, annotation in enumerate(field(content, "annotations", file, "top level")):
        image = field(annotation, "image_id", file, number)
        if image not in said:
            raise DataError(f"{file}: annotation {number} is about image {image}, which is not among its images")
        said[image].append(field(annotation, "caption", file, number))
    return [
        Captioned(
            image["id"],
            image_in(images, field(image, "file_name", file, image["id"]), f"{file}, image {image['id']}"),
            tuple(said[image["id"]]),
        )
        for image in content["images"]
    ]


class CocoKarpathy(CaptionBenchmark):
    """What papers call COCO captioning."""

    name = "coco_caption"
    title = "COCO captions (Karpathy test)"
    folder = "coco"
    needs = (
        Needed(
            "dataset_coco.json",
            "Karpathy's splits and captions",
            "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        ),
        Needed("val2014", "images", "http://images.cocodataset.org/zips/val2014.zip", ("../pope/val2014",)),
    )

    def images(self, root: Path) -> list[Captioned]:
        file, folder = (self.path(root, needed.path) for needed in self.needs)
        content = field(read_json(file), "images", file, "top level")
        chosen = [image for image in content if field(image, "split", file, image.get("cocoid")) == "test"]
        if not chosen:
            raise DataError(f"{file}: none of its {len(content)} images is of the split test; is it dataset_coco.json?")
        return [
            Captioned(
                field(image, "cocoid", file, image.get("imgid")),
                image_in(
                    folder, field(image, "filename", file, image.get("imgid")), f"{file}, image {image.get('imgid')}"
                ),
                tuple(sentence["raw"] for sentence in field(image, "sentences", file, image.get("imgid"))),
            )
            for image in chosen
        ]


class CocoVal2017(CaptionBenchmark):
    """The official validation set of 2017."""

    name = "coco_caption_val2017"
    title = "COCO captions (val2017)"
    folder = "coco"
    needs = (
        Needed(
            "annotations/captions_val2017.json",
            "captions",
            "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        ),
        Needed("val2017", "images", "http://images.cocodataset.org/zips/val2017.zip"),
    )

    def images(self, root: Path) -> list[Captioned]:
        return read_coco(*(self.path(root, needed.path) for needed in self.needs))
