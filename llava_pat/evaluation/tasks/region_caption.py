"""Region captioning on RefCOCO, RefCOCO+, RefCOCOg: what is in this box? CIDEr and the others, by pycocoevalcap."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from llava_pat.data.geometry import Box
from llava_pat.evaluation.benchmark import Answers, Benchmark, Scores, texts_of
from llava_pat.evaluation.questions import Question, image_in
from llava_pat.evaluation.referring import Expression, read_expressions
from llava_pat.evaluation.scorers.captions import caption_scores
from llava_pat.evaluation.scorers.rec import pixels_to_square
from llava_pat.evaluation.tasks.refcoco import refer_files

PROMPT = "Please provide a short description for this region: {}"
"""LLaVA's in mix665K; the box follows as Python writes numbers rounded to two places: [0.28, 0.34, 0.4, 0.71]."""


def written_box(box: Box, size: tuple[int, int]) -> str:
    """A box in pixels as LLaVA's data writes it: shares of the padded square."""
    return str([round(value, 2) for value in pixels_to_square(box, *size)])


class RegionCaption(Benchmark):
    """One split. A question is one object, known by its ref_id; its sentences are the references."""

    split: ClassVar[str]
    max_new_tokens = 64

    def questions(self, root: Path) -> list[Question]:
        refs, _, images = (self.path(root, needed.path) for needed in self.needs)
        return [
            Question(
                id=expression.ref_id,
                images=(image_in(images, expression.image, f"{refs}: ref_id {expression.ref_id}"),),
                text=PROMPT.format(written_box(expression.box, expression.size)),
                where=f"{refs}: ref_id {expression.ref_id}",
            )
            for expression in self._expressions(root)
        ]

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        captions = {q.id: text for q, text in zip(questions, texts, strict=True) if text is not None}
        expressions = [expression for expression in self._expressions(root) if expression.ref_id in captions]
        references = {e.ref_id: [sentence for _, sentence in e.sentences] for e in expressions}
        found = caption_scores(references, captions)
        return Scores(found.metrics, notes=notes + found.notes)

    def _expressions(self, root: Path) -> list[Expression]:
        refs, instances, _ = (self.path(root, needed.path) for needed in self.needs)
        return read_expressions(refs, instances, self.split)


class RegionRefcocoTestA(RegionCaption):
    name, title, folder, split = "region_refcoco_testA", "Regions of RefCOCO testA", "refcoco", "testA"
    needs = refer_files("unc")


class RegionRefcocoTestB(RegionCaption):
    name, title, folder, split = "region_refcoco_testB", "Regions of RefCOCO testB", "refcoco", "testB"
    needs = refer_files("unc")


class RegionRefcocoPlusTestA(RegionCaption):
    name, title, folder, split = "region_refcoco+_testA", "Regions of RefCOCO+ testA", "refcoco+", "testA"
    needs = refer_files("unc")


class RegionRefcocoPlusTestB(RegionCaption):
    name, title, folder, split = "region_refcoco+_testB", "Regions of RefCOCO+ testB", "refcoco+", "testB"
    needs = refer_files("unc")


class RegionRefcocogVal(RegionCaption):
    name, title, folder, split = "region_refcocog_val", "Regions of RefCOCOg val (umd)", "refcocog", "val"
    needs = refer_files("umd")
