"""M4C's answer normalisation and TextVQA's accuracy, as in `m4c_evaluator.py` and `eval_textvqa.py` of LLaVA.

LLaVA (haotian-liu/LLaVA at c121f04, llava/eval) uses the normalisation for its VQAv2 and VizWiz submissions as well.
Where it differs from VQA's own: scorers/vqa_accuracy.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llava_pat.evaluation.scorers.answer_text import plain_words, without_punctuation
from llava_pat.evaluation.scorers.vqa_accuracy import leave_one_out

PEOPLE = 10
_THOUSANDS = re.compile(r"(?<=\d),+(?=\d)")
_FULL_STOP = re.compile(r"\.(?!\d)")


def m4c_answer(text: str) -> str:
    """The answer as M4C's EvalAIAnswerProcessor writes it."""
    bare = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    one_line = bare.replace("\n", " ").replace("\t", " ").strip()
    return plain_words(without_punctuation(one_line, _THOUSANDS, _FULL_STOP))


def textvqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Soft accuracy of one answer by M4C's rules, 0 to 1.

    Raises:
        ValueError: not exactly ten references, as in the original.
    """
    if len(references) != PEOPLE:
        raise ValueError(f"{len(references)} reference answers; TextVQA has {PEOPLE} for each question")
    return leave_one_out(m4c_answer(answer), [m4c_answer(reference) for reference in references])


def question_of_prompt(prompt: str) -> str:
    """The question within one of LLaVA's TextVQA prompts, in lower case: half of the key of its annotation.

    Raises:
        ValueError: none of the forms that LLaVA's question files have.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if found:
            return found.group(1).lower()
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise ValueError(f"no question found in the TextVQA prompt {prompt!r}; LLaVA's have two or three lines")
