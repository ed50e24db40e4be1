"""Lessons ask what is true of a row's scene, at the right tokens, and their loss is what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaForCausalLM

from playground import language_model, lessons, rows, text, world

FOLDER = Path(lessons.__file__).parent / "models" / "llama"
ROW = (
    "Scene: red three [0.10, 0.30, 0.50, 0.90]; blue star [0.60, 0.00, 0.80, 0.20].\n"
    "Is the blue star right of the red three? ASSISTANT: yes</s>Where is the red three? [0.10, 0.30, 0.50, 0.90] "
    "Is there a red star?"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_a_row_by_hand():
    asked = [(name, ROW[:at].split()[-1], right) for name, at, right in lessons.lessons_of(ROW)]
    three, star = [3, 0], [13, 2]  # kind, colour
    one, other = [0.1, 0.3, 0.5, 0.9], [0.6, 0.0, 0.8, 0.2]
    assert asked[0] == ("counts", "0.20].", [2, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0])
    assert asked[1:6] == [
        *(("own label", "0.90]", three), ("own box", "0.90]", one)),
        *(("own label", "0.20]", star), ("own box", "0.20]", other)),
        ("label", "0.90]", three),
    ]
    assert asked[6:9] == [("box", "star", other), ("box", "three", one), ("box", "three", one)], "no red star"
    assert asked[9] == ("answer", "three", [0])
    ((name, word, right),) = asked[10:]
    assert (name, word) == ("between", "three") and right == pytest.approx([0.4, -0.5])


@pytest.mark.parametrize("kind", [kind for kind in rows.ROWS if kind != "plain"])
def test_lessons_are_true(kind):
    for index in range(10):
        one = rows.document(0, "train", index, kind)
        scene = world.scene(0, "train", index)
        boxes = {t.label: [float(n) for n in text.write_box(scene, t.box)[1:-1].split(", ")] for t in scene.things}
        names = {t.label: [world.KINDS.index(t.kind), list(world.COLOURS).index(t.colour)] for t in scene.things}
        for lesson, at, right in lessons.lessons_of(one.text):
            before = one.text[:at]
            if lesson == "box":
                assert right == boxes[" ".join(before.split()[-2:])]
            elif lesson in ("label", "own label"):
                numbers = [float(n) for n in before[before.rindex("[") + 1 : -1].split(", ")]
                assert numbers in [boxes[label] for label, name in names.items() if name == right]
            elif lesson == "answer":
                said = one.text[at:].split("ASSISTANT: ")[1].split("</s>")[0]
                assert one.text[at] == "?" and lessons.ANSWERS[right[0]] == said
            elif lesson == "counts":
                assert right[0] == len(scene.things) == sum(right[3:]) == right[1] + right[2]
                assert right[1] == sum(t.kind in world.DIGITS for t in scene.things)


def test_marks_are_at_the_last_token_of_what_they_ask_about(tokenizer):
    document = rows.Document()
    document.say("")
    document.answer("kind", ROW)
    short = rows.Document()
    short.say(ROW[:120])
    marks = lessons.marked(tokenizer, [document, short])
    ids, _, _ = rows.encode(tokenizer, [document, short])
    found = {
        name: [tokenizer.decode(ids[row, token]).strip() for row, token in zip(*places[:2], strict=True)]
        for name, places in marks.items()
    }
    assert set(found["box"]) == {"star", "three"} and found["between"] == ["three"] * 2
    assert set(found["own box"]) == {"0.90]", "0.20]"} and found["counts"] == ["."] * 2
    assert marks["label"][0].tolist() == [0], "the second row ends before"
    assert marks["own label"][2].dtype == torch.int64 and marks["box"][2].dtype == torch.float32


def test_plain_rows_have_no_lessons(tokenizer):
    assert lessons.marked(tokenizer, [rows.document(0, "train", 3, "plain")]) == {}


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    config = language_model.llama_config(1310)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 4, 40, 40
    config.head_dim = 8
    return lessons.Lessons(LlamaForCausalLM(config))


def test_the_loss_by_hand(small, tokenizer):
    made = [rows.document(0, "train", index, "relation") for index in range(3)]
    ids, _, _ = rows.encode(tokenizer, made)
    marks = lessons.marked(tokenizer, made)
    with torch.no_grad():
        hidden = small.model(input_ids=ids, output_hidden_states=True).hidden_states
        found = small.loss(hidden, marks)
    expected = 0.0
    for name, (row, token, right) in marks.items():
        states = hidden[lessons.LESSONS[name].depth].numpy()[row.numpy(), token.numpy()]
        states = states / np.linalg.norm(states, axis=1, keepdims=True) * np.sqrt(40)
        weight, bias = (p.detach().numpy() for p in (small.read[name].weight, small.read[name].bias))
        if name in ("box", "own box", "between"):
            expected += 4 * np.abs(0.03 * states @ weight.T + bias - right.numpy()).mean()
            continue
        said, first, each = states @ weight.T + bias, 0, []
        for i, size in enumerate(lessons.LESSONS[name].classes):
            part = said[:, first : first + size]
            chosen = part[np.arange(len(part)), right[:, i].numpy()]
            each.append(np.mean(np.log(np.exp(part).sum(1)) - chosen))
            first += size
        expected += 3 * np.mean(each) if name == "counts" else np.sum(each)
    assert float(found) == pytest.approx(0.5 * expected, rel=1e-5)
    assert float(small.loss(hidden, {})) == 0


def test_read_outs_begin_at_ridge_regression(small, tokenizer):
    from sklearn.linear_model import Ridge

    made = [rows.document(0, "train", index, kind) for index in range(8) for kind in ("drill", "relation")]
    small.begin(tokenizer, made)
    with torch.no_grad():
        hidden = small.model(input_ids=rows.encode(tokenizer, made)[0], output_hidden_states=True).hidden_states
    for name in ("own box", "box", "between"):
        row, token, right = lessons.marked(tokenizer, made)[name]
        states = F.normalize(hidden[lessons.LESSONS[name].depth][row, token], dim=-1).double() * 40**0.5 * 0.03
        fitted = Ridge(alpha=lessons.RIDGE * 0.03**2).fit(states, right.double())
        np.testing.assert_allclose(small.read[name].weight.detach(), fitted.coef_, atol=2e-3)
        np.testing.assert_allclose(small.read[name].bias.detach(), fitted.intercept_, atol=2e-3)
