"""GQA's accuracy, as in its official eval.py, on answers converted as LLaVA converts them.

Accuracy is equality of strings over the balanced questions, also apart by question type, and "distribution" compares
which answers are given at all (chi-square, lower is better). Validity, plausibility, consistency and grounding need
files that GQA 1.2 does not have; LLaVA leaves them out as well.
Compared with the copy of eval.py in PKU-YuanGroup/Video-LLaVA at 1d28d6e, llava/eval/eval_gqa.py (Stanford's page has
the original as a zip), and LLaVA's scripts/convert_gqa_for_eval.py at c121f04.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

SEMANTIC = {"attr": "attribute", "cat": "category", "global": "scene", "obj": "object", "rel": "relation"}


def gqa_answer(text: str) -> str:
    """The prediction that LLaVA hands to eval.py: full stops at the end removed, lower case."""
    return text.rstrip(".").lower()


def gqa_metrics(questions: Sequence[Mapping[str, Any]], predictions: Sequence[str]) -> dict[str, float]:
    """Accuracy of converted predictions, in percent.

    Args:
        questions: entries of the questions file; those not `isBalanced` are skipped, as in eval.py.
        predictions: one for each question, by `gqa_answer`.

    Raises:
        ValueError: no balanced question.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for question, predicted in zip(questions, predictions, strict=True):
        if not question["isBalanced"]:
            continue
        correct = predicted == question["answer"]
        structural, semantic = question["types"]["structural"], question["types"]["semantic"]
        answer_type = "open" if structural == "query" else "binary"
        types = (f"structural_{structural}", f"semantic_{SEMANTIC.get(semantic, semantic)}")
        for metric in ("accuracy", answer_type, *types):
            right[metric].append(correct)
        group = question["groups"]["global"]
        if group is not None:
            gold[group][question["answer"]] += 1
            said[group][predicted] += 1
    if not right:
        raise ValueError(f"none of {len(questions)} GQA questions is balanced; accuracy is over the balanced ones")
    first = ["accuracy", *(metric for metric in ("binary", "open") if metric in right)]
    names = first + sorted(set(right) - set(first))
    metrics = {metric: 100 * sum(right[metric]) / len(right[metric]) for metric in names}
    return metrics | ({"distribution": _chi_square(gold, said)} if gold else {})


def _chi_square(gold: Mapping[str, Counter[str]], said: Mapping[str, Counter[str]]) -> float:
    """Chi-square of said against gold answers, weighted by the size of the groups, divided by 100 as in eval.py."""
    weighted = 0.0
    for group, answers in gold.items():
        score = sum((said[group][answer] - expected) ** 2 / expected for answer, expected in answers.items())
        weighted += score * answers.total()
    return weighted / sum(answers.total() for answers in gold.values()) / 100
