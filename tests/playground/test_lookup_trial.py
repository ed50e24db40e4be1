"""The trial's rows ask for what stands in the list, each fact once; the command trains and reports."""

from __future__ import annotations

import numpy as np
import pytest

from playground import lookup_trial


@pytest.mark.parametrize("mode", ["words", "number", "box"])
def test_every_answer_is_in_the_list_and_asked_once(mode: str) -> None:
    for seed in range(20):
        document = lookup_trial.document(mode, np.random.default_rng(seed))
        listed, _, asked = document.text.partition(". ")
        answers = [document.text[start:end] for _, start, end in document.answers]
        assert all(answer.removesuffix(";") in listed for answer in answers)
        facts = [fact.strip() for fact in asked.split(";") if fact.strip()]
        assert len(facts) == len(set(facts)) == len(answers) >= 2


def test_the_pieces_are_what_their_names_say(tmp_path) -> None:
    pieces = {}
    for name, merges in lookup_trial.NUMBERS.items():
        pieces_wanted = lookup_trial.LEARNED_PIECES + len(merges)
        lookup_trial.vocabulary.build_llama_tokenizer(tmp_path / name, merges, pieces_wanted)
        pieces[name] = lookup_trial.load_tokenizer(str(tmp_path / name), 2048).tokenize("red [0.31, 0.42]")
    assert pieces == {
        "boxed": ["▁red", "▁[0.31,", "▁0.42]"],
        "whole": ["▁red", "▁[", "0.31", ",", "▁", "0.42", "]"],
        "split": ["▁red", "▁[", "0.3", "1", ",", "▁", "0.4", "2", "]"],
        "spaced": ["▁red", "▁[", "0.3", "1", ",", "▁0.4", "2", "]"],
    }


def test_an_unknown_stage_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        lookup_trial.main(["--plan", "numbers:5"])
    assert "unknown stage 'numbers'" in capsys.readouterr().err
