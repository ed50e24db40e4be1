"""The language model's rows: which tokens are answers, and what "right" means."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaForCausalLM

from llava_pat.data.templates import get_template
from llava_pat.data.tokenize import encode, load_tokenizer
from llava_pat.types import IGNORE_INDEX, Turn
from playground import language_model, text, world
from playground.vocabulary import LLAMA_PIECES

FOLDER = Path(language_model.__file__).parent / "models" / "llama"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def documents():
    return [language_model.document(0, "train", index, kind) for kind in language_model.ROWS for index in range(6)]


@pytest.fixture(scope="module")
def encoded(tokenizer, documents):
    return language_model.encode(tokenizer, documents)


ENDS = {"plain": "\n", "drill": ";"}  # every other answer ends with </s>


def test_answers_are_where_the_text_says(documents):
    kinds = set()
    for one in documents:
        assert one.answers
        kinds |= {kind for kind, _, _ in one.answers}
        for kind, start, end in one.answers:
            assert one.text[start:end].endswith(ENDS.get(kind, "</s>"))
            assert one.text[:start].endswith(" " if kind in ENDS else " ASSISTANT: ")
    assert kinds == {*text.QUESTION_TYPES, "rec", "reg", "caption", "plain", "drill"}


def test_spans_decode_to_exactly_the_answers(tokenizer, documents, encoded):
    ids, _, spans = encoded
    for row, one in enumerate(documents):
        assert len(spans[row]) >= min(3, len(one.answers))
        for (kind, first, last), (said, start, end) in zip(spans[row], one.answers, strict=False):
            assert kind == said
            # sentencepiece joins the space before a word to the word: it is the first token's, and no one's answer
            assert tokenizer.decode(ids[row, first:last]).strip(" ") == one.text[start:end].strip(" "), one.text
            before = tokenizer.decode(ids[row, 1:first])  # shows the dummy prefix behind </s> as a space
            assert one.text[:start].split() == before.replace("</s> ", "</s>").split()


def lookup(scene: world.Scene, asked: str) -> list[str]:
    """What a drill's question can mean: a box is asked by its label, a label by its box, one word by the other."""
    boxes = {text.write_box(scene, thing.box): thing.label for thing in scene.things}
    if asked in boxes:
        return [boxes[asked]]
    if asked.endswith(" is"):
        word = asked.removesuffix(" is")
        return [t.colour if word == t.kind else t.kind for t in scene.things if word in (t.kind, t.colour)]
    return [box for box, label in boxes.items() if label == asked]


def test_drills_are_true():
    shapes = set()
    for index in range(60):
        scene = world.scene(0, "train", index)
        one = language_model.drill(scene, np.random.default_rng(index))
        position = len(text.scene_as_text(scene, np.random.default_rng(0)))  # every order is as long
        assert one.text[:position].endswith("].")
        for kind, start, end in one.answers:
            asked, answer = one.text[position:start].strip(), one.text[start:end].removesuffix(";")
            assert kind == "drill" and lookup(scene, asked) == [answer], (asked, answer)
            shapes.add((asked[0] == "[", answer[0] == "[", asked.endswith(" is")))
            position = end
        assert position == len(one.text)
    assert len(shapes) == 3, "label to box, box to label, word to word"


def reading(scene: world.Scene, question: str) -> str | None:
    """The answer to one of the hard questions, by reading the question; None for the other types."""
    labels = {thing.label: thing for thing in scene.things}
    words = question.removesuffix("?").split()
    if words[:2] == ["Is", "there"]:
        return "yes" if " ".join(words[3:5]) in labels else "no"
    if words[0] == "Is":
        one, two = labels[" ".join(words[2:4])], labels[" ".join(words[-2:])]
        return "yes" if text.relation(scene, one, two, " ".join(words[4:-3])) else "no"
    if words[:2] != ["How", "many"]:
        return None
    named = {"digits": world.DIGITS, "shapes": world.SHAPES, "objects": world.KINDS}.get(words[2], world.KINDS)
    wanted = [t for t in scene.things if t.kind in named and (words[3] == "objects") <= (t.colour == words[2])]
    return str(len(wanted))


def test_quizzes_are_true_and_no_question_answers_another():
    types = []
    for index in range(60):
        scene = world.scene(0, "train", index)
        one = language_model.quiz(scene, np.random.default_rng(index))
        asked, position = [], 0
        for _, start, end in one.answers:
            question = one.text[position:start].split("\n")[-1].removeprefix("USER: ").removesuffix(" ASSISTANT: ")
            answer = one.text[start:end].removesuffix("</s>")
            assert reading(scene, question) in (None, answer), (question, answer)
            asked.append(question)
            position = end
        assert len(asked) == len(set(asked)) <= language_model.QUIZ_QUESTIONS
        pairs = []
        for words in (question.removesuffix("?").split() for question in asked if question.startswith("Is the ")):
            pairs.append((frozenset([" ".join(words[2:4]), " ".join(words[-2:])]), "of" in words))
        assert len(pairs) == len(set(pairs)), asked
        types.append(frozenset(kind for kind, _, _ in one.answers))
    assert {frozenset([kind]) for kind in language_model.HARD_TYPES} < set(types) and max(map(len, types)) > 3


def test_the_schedule():
    """Drills alone at first, of small scenes; every kind later, and drills never vanish."""
    ends = list(language_model.SCHEDULE)
    assert ends == sorted(ends) and ends[-1] == 1
    assert all(sum(shares.values()) == pytest.approx(1) for shares in language_model.SCHEDULE.values())
    drawn = [[language_model.row_kind(0, step, progress) for step in range(400)] for progress in (0.0, 0.1, 1.0)]
    assert set(drawn[0]) == {"drill"} and set(drawn[1]) == set(drawn[2]) == set(language_model.ROWS)
    assert drawn[1].count("drill") > 2 * drawn[2].count("drill") > 0
    seen: set[str] = set()
    for step, sizes in ((0, {2, 3}), (4, {2, 3, 4, 5}), (5, {2, 3, 4, 5})):
        kind, made = language_model.batch(0, step, 20, 12)
        assert len(made) == 12 * language_model.ROWS[kind] and (kind == "drill" or step > 0)
        scenes = {one.text[: one.answers[0][1]].split("].")[0] for one in made}
        assert {scene.count("[") for scene in scenes} == sizes and not seen & scenes
        seen |= scenes


@torch.no_grad()
def test_a_model_begins_by_looking_back(tokenizer):
    """At the start, the first layer's heads look where BACK says, and queries meet their like in the others."""
    torch.manual_seed(0)
    config = language_model.llama_config(len(tokenizer))
    config.num_hidden_layers = 2
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    numbers = language_model.number_values(tokenizer)
    language_model.begin(model, numbers)
    ids = torch.tensor([tokenizer.encode("USER: Where is the red three? ASSISTANT: [0.12, 0.30, 0.55, 0.91]</s>")])
    first = model(input_ids=ids, output_attentions=True).attentions[0][0]  # [heads, query, key]
    for head, distance in enumerate(language_model.BACK):
        looked = torch.stack([first[head, at, at - distance] for at in range(4, ids.shape[1])])
        assert looked.min() > 0.5, (head, looked)
    attention = model.model.layers[1].self_attn
    assert torch.equal(attention.q_proj.weight, attention.k_proj.weight)
    assert torch.equal(attention.o_proj.weight, attention.v_proj.weight.T * 0.5)


def test_number_values(tokenizer):
    found = language_model.number_values(tokenizer)
    values = {tokenizer.convert_ids_to_tokens(token): value for token, value in found.items()}
    assert values["▁[0.31,"] == values["▁0.31,"] == values["▁0.31]"] == 0.31 and values["▁1.00]"] == 1
    assert len(values) == 6 * 101 and "0.3" not in values


def test_weights(documents, encoded):
    """One on answers (their ends included), a twentieth elsewhere, nothing on BOS and padding."""
    ids, weights, spans = encoded
    assert ids.shape == weights.shape and ids.shape[1] <= language_model.MAX_TOKENS
    for row in range(len(documents)):
        expected = torch.full((ids.shape[1],), language_model.BACKGROUND_WEIGHT)
        expected[0] = 0
        length = int((ids[row] != 0).nonzero().max()) + 1  # pad is 0, which no text has
        expected[length:] = 0
        for _, first, last in spans[row]:
            expected[first:last] = 1
        whole = spans[row][-1][2]  # a cut-off answer has weight but no span; it is not checked here
        assert torch.equal(weights[row, :whole], expected[:whole])
        assert not weights[row, length:].any()


def test_a_cut_off_answer_is_no_answer(tokenizer):
    one = language_model.Document("red " * language_model.MAX_TOKENS)
    one.answer("kind", "three</s>")
    short = language_model.Document("USER: what? ASSISTANT: ")
    short.answer("kind", "three</s>")
    ids, _, spans = language_model.encode(tokenizer, [one, short])
    assert ids.shape == (2, language_model.MAX_TOKENS)
    assert spans[0] == []
    ((kind, first, last),) = spans[1]
    assert kind == "kind" and ids[1, first:last].tolist() == [*tokenizer.encode("three", add_special_tokens=False), 2]


def test_conversations_are_in_llavas_template():
    """The same ids and the same supervised tokens as llava_pat's `v1`, so that stage 2 looks familiar to the model."""
    tokenizer = load_tokenizer(FOLDER)
    scene = world.scene(0, "train", 3)
    one = language_model.conversation(scene, np.random.default_rng(0), system=True)
    body = one.text.split("USER: ", 1)[1].removesuffix("</s>")
    turns = []
    for part in body.split("</s>USER: "):
        question, answer = part.split(" ASSISTANT: ")
        turns += [Turn("human", question), Turn("gpt", answer)]
    wanted = encode(turns, get_template("v1"), tokenizer)
    ids, _, spans = language_model.encode(tokenizer, [one])
    assert ids[0].tolist() == wanted.input_ids[: language_model.MAX_TOKENS]
    learned = {i for i, label in enumerate(wanted.labels) if label != IGNORE_INDEX}
    for _, first, last in spans[0]:
        assert set(range(first, last)) <= learned


def test_a_hint_comes_once_and_only_for_questions():
    hinted = 0
    for index in range(40):
        one = language_model.conversation(world.scene(0, "train", index), np.random.default_rng(index))
        assert one.text.count(text.SHORT_ANSWER) <= 1
        assert one.text.count("Scene: ") == 1
        hinted += text.SHORT_ANSWER in one.text
    assert 4 <= hinted <= 22, "three in ten"


def test_documents_follow_from_their_index():
    for kind in language_model.ROWS:
        one = language_model.document(0, "train", 7, kind)
        language_model.document(0, "val", 2, kind)
        assert one == language_model.document(0, "train", 7, kind)
        assert one != language_model.document(0, "val", 7, kind) and one != language_model.document(1, "train", 7, kind)


def test_plain_rows_have_stage_1s_shape():
    one = language_model.plain(0, "train", 5, np.random.default_rng(0))
    lines = one.text.split("\n")
    assert len(lines) == 4 and lines[-1] == "" and len(one.answers) == 3
    for line, (_, start, end) in zip(lines, one.answers, strict=False):
        scene, caption = line[: -(end - start)], one.text[start : end - 1]
        assert line.endswith(caption) and scene.count("[") == scene.count("]") >= 2


def model_that(predicts):
    """Stands in for a LlamaForCausalLM: logits from the ids that it is shown."""

    def call(input_ids):
        return SimpleNamespace(logits=F.one_hot(predicts(input_ids), LLAMA_PIECES).float())

    return call


def test_accuracy_of_a_model_that_is_always_right(tokenizer):
    always = model_that(lambda ids: ids.roll(-1, dims=1))
    found = language_model.accuracy(always, tokenizer, seed=0, scenes=20)
    assert found == dict.fromkeys(sorted([*text.QUESTION_TYPES, "rec", "reg", "caption"]), 1.0)


def test_accuracy_of_a_model_that_never_stops(tokenizer):
    """Everything right but the end: no answer is exactly right."""
    never = model_that(lambda ids: torch.where(ids == 2, 5, ids).roll(-1, dims=1))
    assert set(language_model.accuracy(never, tokenizer, seed=0, scenes=4).values()) == {0.0}


def test_accuracy_of_a_model_that_says_yes(tokenizer):
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("yes", "no"))
    found = language_model.accuracy(
        model_that(lambda ids: torch.where(ids == no, yes, ids).roll(-1, dims=1)), tokenizer, seed=0, scenes=40
    )
    assert 0.2 < found["existence"] < 0.8 and 0.2 < found["relation"] < 0.8
    assert found["kind"] == found["colour"] == found["rec"] == 1.0


def test_export_loads(tmp_path):
    torch.manual_seed(0)
    config = language_model.llama_config(40)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 1, 16, 32
    config.head_dim = 4
    model = LlamaForCausalLM(config)
    language_model.export(model, tmp_path)
    loaded, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(torch.bfloat16).float()), name
    ids = torch.arange(3, 19).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0.05, atol=0.02)
