"""MMBench, English and Chinese: dev scored here by the option's letter, test for the server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.questions import Question, read_mmbench
from llava_pat.evaluation.scorers.mmbench import ROTATION, circular, option_letter, original_letter
from llava_pat.types import DataError

DOWNLOAD = "https://download.openmmlab.com/mmclassification/datasets/mmbench"
SERVER = "https://mmbench.opencompass.org.cn/mmbench-submission"
DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION_COLUMN = 6


class MmBench(Benchmark):
    """What the four files share. `all_rounds` asks each row once for every rotation of its options (LLaVA's flag)."""

    max_new_tokens = 1024
    script = "mmbench"
    lang: ClassVar[str] = "en"
    file: ClassVar[str]

    def questions(self, root: Path) -> list[Question]:
        return read_mmbench(
            self.path(root, self.file), all_rounds=self.all_rounds, single_pred_prompt=True, lang=self.lang
        )

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        first = {q.id: text for q, text in zip(questions, texts, strict=True) if q.line["round_id"] == 0}
        rows = {question.id: question.extra for question in questions}
        labelled = bool(next(iter(rows.values())).get("answer"))
        submission, note = self._workbook(root, rows, first, out)
        if not labelled and submission is None:
            raise DataError(f"{self.name}: {note}")
        metrics, more = _accuracies(questions, texts) if labelled else ({}, [f"scored by the server only: {SERVER}"])
        return Scores(metrics, submission, notes + more + ([note] if note else []))

    def _workbook(
        self, root: Path, rows: dict[Any, Any], said: dict[Any, str | None], out: Path | None
    ) -> tuple[Path | None, str]:
        """The submission of LLaVA's convert_mmbench_for_submission.py, or why there is none."""
        try:
            from openpyxl import Workbook
        except ModuleNotFoundError:
            return (
                None,
                "no submission file, for it is an Excel workbook: pip install openpyxl, then score again",
            )
        columns = [name for name in next(iter(rows.values())) if name not in DROPPED]
        workbook = Workbook(write_only=True)
        sheet = workbook.create_sheet("Sheet1")
        sheet.append([*columns[:PREDICTION_COLUMN], "prediction", *columns[PREDICTION_COLUMN:]])
        for index, row in rows.items():
            cells = [index if name == "index" else row[name] or None for name in columns]
            sheet.append([*cells[:PREDICTION_COLUMN], said.get(index), *cells[PREDICTION_COLUMN:]])
        path = self.upload_folder(root, out) / f"{self.name}.xlsx"
        workbook.save(path)
        return path, ""


class MmBenchEn(MmBench):
    """MMBench dev of July 2023, the file of LLaVA-1.5's tables."""

    name = "mmbench"
    title = "MMBench dev (EN)"
    folder = "mmbench"
    file = "mmbench_dev_20230712.tsv"
    needs = (Needed(file, "questions, answers and images", f"{DOWNLOAD}/{file}"),)


class MmBenchCn(MmBench):
    """MMBench-CN dev of October 2023, the file of LLaVA-1.5's tables."""

    name = "mmbench_cn"
    title = "MMBench dev (CN)"
    folder = "mmbench_cn"
    file = "mmbench_dev_cn_20231003.tsv"
    lang = "cn"
    needs = (Needed(file, "questions, answers and images", f"{DOWNLOAD}/{file}", instead=(f"../mmbench/{file}",)),)


class MmBenchTestEn(MmBench):
    """MMBench test, for the server."""

    name = "mmbench_test"
    title = "MMBench test (EN)"
    folder = "mmbench"
    file = "mmbench_test_en_20231003.tsv"
    needs = (Needed(file, "questions and images", f"{DOWNLOAD}/{file}", instead=("mmbench_test_20230712.tsv",)),)


class MmBenchTestCn(MmBench):
    """MMBench-CN test, for the server."""

    name = "mmbench_cn_test"
    title = "MMBench test (CN)"
    folder = "mmbench_cn"
    file = "mmbench_test_cn_20231003.tsv"
    lang = "cn"
    needs = (Needed(file, "questions and images", f"{DOWNLOAD}/{file}", instead=(f"../mmbench/{file}",)),)


def _accuracies(questions: Sequence[Question], texts: Sequence[str | None]) -> tuple[dict[str, float], list[str]]:
    """Circular and plain accuracy in percent, the former by category as well, and how many answers gave no letter."""
    right: dict[int, list[bool]] = defaultdict(list)
    plain, unread = [], 0
    category: dict[int, str] = {}
    for question, text in zip(questions, texts, strict=True):
        letter = None if text is None else option_letter(text, question.line["options"])
        unread += text is not None and letter is None
        correct = (
            letter is not None
            and original_letter(letter, question.line["option_char"]) == question.extra["answer"].strip()
        )
        right[question.id].append(correct)
        if question.id < ROTATION and question.line["round_id"] == 0:
            plain.append(correct)
        category[question.id % ROTATION] = question.extra.get("category", "")
    merged = circular(right)
    by_category: dict[str, list[bool]] = defaultdict(list)
    for index, correct in merged.items():
        by_category[category[index]].append(correct)
    metrics = {"accuracy": 100 * sum(merged.values()) / len(merged)}
    if plain:
        metrics["accuracy_without_rotations"] = 100 * sum(plain) / len(plain)
    metrics |= {f"category_{name}": 100 * sum(ok) / len(ok) for name, ok in sorted(by_category.items()) if name}
    note = f"{unread} answers gave no option's letter and count as wrong; the server would ask ChatGPT about them"
    return metrics, [note] if unread else []
