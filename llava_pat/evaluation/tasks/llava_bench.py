"""LLaVA-Bench (In-the-Wild): a judge compares free answers with GPT-4's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from llava_pat.data.json_files import field, read_json, read_jsonl
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.questions import Question, read_questions
from llava_pat.evaluation.scorers.reviews import UNREADABLE, review_scores, summarise_reviews
from llava_pat.evaluation.submissions import write_jsonl
from llava_pat.types import DataError

HUB = "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"
RULES = "https://github.com/haotian-liu/LLaVA/blob/main/llava/eval/table/rule.json"
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."


class LlavaBench(Benchmark):
    """LLaVA-Bench in the wild (60 questions). The figure is the model's mean score in percent of GPT-4's.

    What is to be judged is written to `llava_bench_to_judge.jsonl`. Reviews are read from `llava_bench_reviews.jsonl`
    beside it (LLaVA's lines: question_id, content; a person's or another program's text does), or asked of a `judge`.
    """

    name = "llava_bench"
    title = "LLaVA-Bench (in the wild)"
    folder = "llava-bench-in-the-wild"
    max_new_tokens = 1024
    script = "vqa"
    needs = (
        Needed("questions.jsonl", "questions", HUB),
        Needed("context.jsonl", "descriptions of the images, for the judge", HUB),
        Needed("answers_gpt4.jsonl", "GPT-4's answers, to compare with", HUB),
        Needed("images", "images", HUB),
        Needed("rule.json", "LLaVA's instructions to the judge", RULES),
    )

    def questions(self, root: Path) -> list[Question]:
        return read_questions(self.path(root, "questions.jsonl"), self.path(root, "images"), unique_ids=True)

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        said = [(q, text) for q, text in zip(questions, texts, strict=True) if text is not None]
        to_judge = self._to_judge(root, said)
        folder = self.upload_folder(root, out)
        submission = write_jsonl(folder / f"{self.name}_to_judge.jsonl", to_judge)
        review_file = folder / f"{self.name}_reviews.jsonl"
        reviews = {line["question_id"]: line for line in read_jsonl(review_file)} if review_file.is_file() else {}
        if self.judge is not None:
            self._ask(to_judge, reviews, review_file)
        if not reviews:
            how = f"name a judge, or put reviews of {submission} there: {review_file}"
            return Scores({}, submission, [*notes, f"not judged: {how}"])
        return self._summary(to_judge, reviews, review_file, submission, notes)

    def _summary(
        self, to_judge: list[dict[str, Any]], reviews: dict[Any, Any], file: Path, submission: Path, notes: list[str]
    ) -> Scores:
        judged = [line for line in to_judge if line["question_id"] in reviews]
        unsigned, scored = 0, []
        for number, line in enumerate(judged):
            review = reviews[line["question_id"]]
            unsigned += "answer_sha256" not in review
            if review.get("answer_sha256", line["answer_sha256"]) != line["answer_sha256"]:
                key = line["question_id"]
                raise DataError(f"{file} reviews other answers than these (first: {key}); remove it to judge anew")
            scored.append((line["category"], review_scores(field(review, "content", file, number))))
        if not scored:
            raise DataError(f"{file}: none of its {len(reviews)} reviews is of a question of this benchmark")
        notes = list(notes)
        if unsigned:
            notes.append(f"{unsigned} reviews in {file} do not say which answers they are of; they are taken for these")
        if len(scored) < len(to_judge):
            notes.append(f"{len(scored)} of {len(to_judge)} answers are reviewed: the figures are over those")
        unread = sum(pair == UNREADABLE for _, pair in scored)
        if unread:
            notes.append(f"{unread} reviews do not begin with two scores and count as -1 and -1, as in LLaVA's summary")
        judges = sorted({reviews[line["question_id"]].get("judge", "somebody unnamed") for line in judged})
        return Scores(summarise_reviews(scored), submission, [*notes, f"judged by {', '.join(judges)}"])

    def _to_judge(self, root: Path, said: list[tuple[Question, str]]) -> list[dict[str, Any]]:
        """What LLaVA's eval_gpt_review_bench.py sends, one line for each answer."""
        contexts = {line["image"]: line["caption"] for line in read_jsonl(self.path(root, "context.jsonl"))}
        references = {line["question_id"]: line["text"] for line in read_jsonl(self.path(root, "answers_gpt4.jsonl"))}
        file = self.path(root, "rule.json")
        rules, lines = read_json(file), []
        for question, text in said:
            category = f"llava_bench_{question.extra['category']}"
            rule = field(rules, category, file, category)
            caption = contexts[Path(question.images[0]).name]
            context = "\n".join(caption) if isinstance(caption, list) else caption
            role = rule["role"]
            content = (
                f"[Context]\n{context}\n\n[Question]\n{question.text}\n\n"
                f"[{role} 1]\n{references[question.id]}\n\n[End of {role} 1]\n\n"
                f"[{role} 2]\n{text}\n\n[End of {role} 2]\n\n[System]\n{rule['prompt']}\n\n"
            )
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            lines.append(
                {"question_id": question.id, "category": category, "content": content, "answer_sha256": sha256}
            )
        return lines

    def _ask(self, to_judge: list[dict[str, Any]], reviews: dict[Any, Any], file: Path) -> None:
        """Ask for the reviews that are not there yet, saving after each."""
        assert self.judge is not None
        for line in to_judge:
            if line["question_id"] in reviews:
                continue
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": line["content"]}]
            review = self.judge.ask(messages, temperature=0.2, max_tokens=1024)
            reviews[line["question_id"]] = line | {
                "content": review,
                "tuple": list(review_scores(review)),
                "judge": self.judge.model,
            }
            write_jsonl(file, list(reviews.values()))
