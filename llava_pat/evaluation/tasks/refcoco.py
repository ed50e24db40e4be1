"""RefCOCO, RefCOCO+, RefCOCOg comprehension: where is what this sentence means? Accuracy at IoU 0.5."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.questions import Question, image_in
from llava_pat.evaluation.referring import read_expressions
from llava_pat.evaluation.scorers.rec import rec_scores

PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}"
"""LLaVA's in mix665K, without a full stop at the end."""

REFER = "https://github.com/lichengunc/refer (data)"
TRAIN2014 = "http://images.cocodataset.org/zips/train2014.zip"
_HEADLINE = 0.5


def refer_files(split_by: str) -> tuple[Needed, ...]:
    """What a data set of the family needs; `split_by` says whose splits: "unc" or, for RefCOCOg, "umd"."""
    return (
        Needed(f"refs({split_by}).p", "expressions and splits", REFER, (f"refs({split_by}).json",)),
        Needed("instances.json", "boxes", REFER),
        Needed("../coco/train2014", "images", TRAIN2014, ("train2014", "../../coco/train2014")),
    )


class Comprehension(Benchmark):
    """One split. A question is one sentence, known by its sent_id.

    Boxes in answers are shares of the padded square, see scorers/rec.py; the figures are percentages.
    """

    split: ClassVar[str]
    max_new_tokens = 64

    def questions(self, root: Path) -> list[Question]:
        refs, instances, images = (self.path(root, needed.path) for needed in self.needs)
        return [
            Question(
                id=sent_id,
                images=(image_in(images, expression.image, f"{refs}: ref_id {expression.ref_id}"),),
                text=PROMPT.format(sentence),
                extra={"box": expression.box, "size": expression.size},
                where=f"{refs}: ref_id {expression.ref_id}",
            )
            for expression in read_expressions(refs, instances, self.split)
            for sent_id, sentence in expression.sentences
        ]

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        asked = [
            (text, question.extra["box"], question.extra["size"])
            for question, text in zip(questions, texts, strict=True)
            if text is not None
        ]
        found = rec_scores(*zip(*asked, strict=True))
        metrics = {f"accuracy@{_HEADLINE}": 100 * found.accuracy[_HEADLINE]}
        metrics |= {f"accuracy@{threshold}": 100 * share for threshold, share in found.accuracy.items()}
        metrics["mean_iou"] = 100 * found.mean_iou
        for name, count in (("unparsable", found.unparsable), ("swapped", found.swapped)):
            metrics[name] = float(count)
        metrics["out_of_range"] = float(found.out_of_range)
        if found.unparsable:
            notes.append(f"{found.unparsable} of {len(asked)} answers have no box [x0, y0, x1, y1]: misses")
        if found.out_of_range:
            notes.append(
                f"{found.out_of_range} boxes have numbers outside 0 to 1 (percent or pixels?): taken as they stand"
            )
        return Scores(metrics, notes=notes)


class RefcocoVal(Comprehension):
    name, title, folder, split = "refcoco_val", "RefCOCO val", "refcoco", "val"
    needs = refer_files("unc")


class RefcocoTestA(Comprehension):
    name, title, folder, split = "refcoco_testA", "RefCOCO testA", "refcoco", "testA"
    needs = refer_files("unc")


class RefcocoTestB(Comprehension):
    name, title, folder, split = "refcoco_testB", "RefCOCO testB", "refcoco", "testB"
    needs = refer_files("unc")


class RefcocoPlusVal(Comprehension):
    name, title, folder, split = "refcoco+_val", "RefCOCO+ val", "refcoco+", "val"
    needs = refer_files("unc")


class RefcocoPlusTestA(Comprehension):
    name, title, folder, split = "refcoco+_testA", "RefCOCO+ testA", "refcoco+", "testA"
    needs = refer_files("unc")


class RefcocoPlusTestB(Comprehension):
    name, title, folder, split = "refcoco+_testB", "RefCOCO+ testB", "refcoco+", "testB"
    needs = refer_files("unc")


class RefcocogVal(Comprehension):
    name, title, folder, split = "refcocog_val", "RefCOCOg val (umd)", "refcocog", "val"
    needs = refer_files("umd")


class RefcocogTest(Comprehension):
    name, title, folder, split = "refcocog_test", "RefCOCOg test (umd)", "refcocog", "test"
    needs = refer_files("umd")
