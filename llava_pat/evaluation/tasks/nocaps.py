"""nocaps: captions of objects that COCO does not name. Validation is scored here, test by its server."""

from __future__ import annotations

import json
from pathlib import Path

from llava_pat.data.json_files import field, read_json
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.questions import Question, image_in
from llava_pat.evaluation.tasks.coco_caption import PROMPT, CaptionBenchmark, Captioned, read_coco

DOWNLOAD = "https://nocaps.org/download"
SERVER = "https://eval.ai/web/challenges/challenge-page/355"
DOMAINS = ("in-domain", "near-domain", "out-domain")


class NocapsVal(CaptionBenchmark):
    """4,500 images with ten captions each.

    CIDEr of a domain is the mean over its images, with word weights of the whole set.
    """

    name = "nocaps"
    title = "nocaps val"
    folder = "nocaps"
    needs = (
        Needed("nocaps_val_4500_captions.json", "captions", DOWNLOAD),
        Needed("val", "images (of Open Images, by the URLs in the JSON)", DOWNLOAD, ("validation", "images")),
    )

    def images(self, root: Path) -> list[Captioned]:
        return read_coco(*(self.path(root, needed.path) for needed in self.needs))

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        found, notes = self.caption_scores(root, answers)
        metrics = dict(found.metrics)
        headline = next(iter(metrics))
        file = self.path(root, self.needs[0].path)
        domains = {image["id"]: field(image, "domain", file, image["id"]) for image in read_json(file)["images"]}
        for domain in DOMAINS:
            scores = [score for image, score in found.cider.items() if domains[image] == domain]
            if scores:
                metrics[f"{headline}_{domain}"] = sum(scores) / len(scores)
        return Scores(metrics, notes=notes)


class NocapsTest(Benchmark):
    """10,600 images whose captions are not public: writes the server's file."""

    name = "nocaps_test"
    title = "nocaps test"
    folder = "nocaps"
    needs = (
        Needed("nocaps_test_image_info.json", "the list of images", DOWNLOAD),
        Needed("test", "images (of Open Images, by the URLs in the JSON)", DOWNLOAD, ("images",)),
    )

    def questions(self, root: Path) -> list[Question]:
        file, images = (self.path(root, needed.path) for needed in self.needs)
        return [
            Question(
                id=image["id"],
                images=(
                    image_in(images, field(image, "file_name", file, image["id"]), f"{file}, image {image['id']}"),
                ),
                text=PROMPT,
            )
            for image in field(read_json(file), "images", file, "top level")
        ]

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        submission = self.upload_folder(root, out) / f"{self.name}.json"
        pairs = zip(questions, texts, strict=True)
        lines = [{"image_id": question.id, "caption": text or ""} for question, text in pairs]
        submission.write_text(json.dumps(lines, ensure_ascii=False), encoding="utf-8")
        return Scores({}, submission, [*notes, f"scored by the server only: upload {submission} to {SERVER}"])
