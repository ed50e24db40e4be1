"""The answering model: LLaVA's own answers, batches equal single questions, every layout, clear errors."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_pat.convert.command import main as convert
from llava_pat.data.templates import get_template
from llava_pat.data.tokenize import encode
from llava_pat.evaluation.model import Answerer, choose_template
from llava_pat.evaluation.questions import Question, questions_hash
from llava_pat.models.adapters import add_lora, save_lora
from llava_pat.models.from_folder import LoadedModel, load_model
from llava_pat.models.generate import Decoding
from llava_pat.models.loading import load_image_processor
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import DataError, Turn
from tests.evaluation.conftest import CHECKPOINT, WRITTEN, asked

PLAYGROUND = Path(__file__).parents[2] / "playground" / "models"
GOLDEN = json.loads((WRITTEN / "golden.json").read_text(encoding="utf-8"))["generation"]


def golden_questions():
    """Without those that spell a special token: to LLaVA that is one, here text stays text."""
    kept = [sample for sample in GOLDEN if "</s>" not in sample["question"]]
    images = [WRITTEN / "images" / sample["image"] for sample in kept]
    return [Question(i, (images[i],), kept[i]["question"]) for i in range(len(kept))], kept


def test_llavas_own_answers(answerer):
    questions, kept = golden_questions()
    assert len(kept) > 10
    for question, sample in zip(questions, kept, strict=True):
        assert answerer._prompt(question) == sample["input_ids"]
    longest = max(len(sample["greedy_ids"]) for sample in kept) - 1
    expected = [sample["greedy_text"] for sample in kept]
    assert answerer.answer(questions, longest, 1) == expected
    assert answerer.answer(questions, longest, 8) == expected


def test_a_batch_of_any_size_equals_one_at_a_time(lively_answerer):
    questions = asked(64)
    alone = lively_answerer.answer(questions, 24, 1)
    assert len(set(alone)) > 32 and len({len(text) for text in alone}) > 8
    written: list[tuple[int, str]] = []
    for size in (3, 8, 64):
        written.clear()
        together = lively_answerer.answer(
            questions, 24, size, lambda some, texts: written.extend(zip([q.id for q in some], texts, strict=True))
        )
        assert together == alone, size
        assert sorted(written) == list(enumerate(alone)), size


def test_the_same_on_the_playgrounds_models():
    """Its language model and tower, with a projector that knows nothing: what they say does not matter."""
    torch.manual_seed(0)
    model = VisionLanguageModel.from_pretrained(PLAYGROUND / "clip", PLAYGROUND / "llama").eval()
    source, tower = str(PLAYGROUND / "llama"), str(PLAYGROUND / "clip")
    processor = load_image_processor(tower, model.image_size)
    loaded = LoadedModel(model, "llava", source, "pad", {}, tower, processor)
    answerer = Answerer(loaded, "v1", folder="llava-v1.5-playground")
    questions = asked(64)
    alone = answerer.answer(questions, 16, 1)
    assert len(set(alone)) > 8
    assert answerer.answer(questions, 16, 8) == answerer.answer(questions, 16, 64) == alone


def test_an_image_is_read_and_encoded_once_in_a_row(answerer, monkeypatch):
    encoded = []
    whole = answerer.model.encode_images
    monkeypatch.setattr(answerer.model, "encode_images", lambda pixels: encoded.append(len(pixels)) or whole(pixels))
    answerer._encoded.clear()
    questions = [Question(i, (WRITTEN / "images" / f"{i // 8}.png",), f"what {i}") for i in range(32)]
    for size in (1, 8, 32):
        encoded.clear()
        answerer._encoded.clear()
        answerer.answer(questions, 2, size)
        assert sum(encoded) == 4, size


def test_bytes_equal_the_file(answerer):
    path = WRITTEN / "images" / "1.png"
    questions = [Question(1, (path,), "what is this"), Question(2, (path.read_bytes(),), "what is this")]
    first, second = answerer.answer(questions, 12, 2)
    assert first == second != ""


def test_marks_in_the_text_say_where_the_images_stand(answerer):
    paths = (WRITTEN / "images" / "1.png", WRITTEN / "images" / "2.png")
    front = answerer._prompt(Question(1, paths, "what"))
    inside = answerer._prompt(Question(1, paths, "this <image> or <image>?"))
    assert front.count(-200) == inside.count(-200) == 2
    assert answerer._prompt(Question(1, paths, "<image>\n<image>\nwhat")) == front != inside
    with pytest.raises(DataError, match="x:9: question 1 has 2 images and 1 <image> in its text"):
        answerer._prompt(Question(1, paths, "<image> what", where="x:9"))


def test_a_prompt_with_history_is_the_one_that_training_saw(answerer):
    """Ids of a whole conversation, as training encodes it, begin with those of each of its prompts."""
    image = (WRITTEN / "images" / "1.png",)
    turns = [Turn("human", "what is this"), Turn("gpt", "a red circle"), Turn("human", "where"), Turn("gpt", "left of")]
    trained = [Turn("human", f"<image>\n{turns[0].value}"), *turns[1:]]
    whole = encode(trained, answerer.template, answerer.tokenizer)
    for place in (0, 2):
        asked_now = Question(1, image, turns[place].value, history=tuple(turns[:place]))
        prompt = answerer._prompt(asked_now)
        assert whole.input_ids[: len(prompt)] == prompt
        learned = [label for label in whole.labels[len(prompt) :] if label != -100]
        assert answerer.tokenizer.decode(learned).startswith(turns[place + 1].value)
    marked = Question(1, image, "where", history=(Turn("human", "<image>\nwhat is this"), turns[1]))
    assert answerer._prompt(marked) == answerer._prompt(Question(1, image, "where", history=tuple(turns[:2])))
    assert questions_hash([marked]) != questions_hash([Question(1, image, "where")]), "another history, other questions"
    with pytest.raises(DataError, match="1 images and 2 <image>"):
        answerer._prompt(Question(1, image, "<image> where", history=marked.history))


def test_sampling_depends_on_the_question_and_the_seed_only(lively):
    def answers(questions, size, seed=0):
        loaded = load_model(lively, dtype=torch.float32)
        warm = Answerer(loaded, "v1", folder=lively, decoding=Decoding(temperature=1.5, top_p=0.95, seed=seed))
        return warm.answer(questions, 8, size)

    questions = asked(12)
    first = answers(questions, 12)
    assert len(set(first)) > 6
    assert answers(questions, 5) == first
    assert answers(questions[6:], 1) == first[6:]
    assert answers(questions, 12, seed=1) != first


def test_beams(lively):
    loaded = load_model(lively, dtype=torch.float32)
    wide = Answerer(loaded, "v1", folder=lively, decoding=Decoding(num_beams=3))
    questions = asked(6)
    assert wide.answer(questions, 8, 6) == wide.answer(questions, 8, 1)


def test_every_layout(tmp_path, lively, lively_answerer, capsys):
    for name in ("clip", "llm", "out-llava-pt"):
        shutil.copytree(WRITTEN / name, tmp_path / name)
    assert convert([str(lively), str(tmp_path / "llava-v1.5-hf")]) == 0
    capsys.readouterr()
    questions = asked(8)
    found = {"llava": lively_answerer.answer(questions, 12, 4)}
    hf = Answerer.from_folder(tmp_path / "llava-v1.5-hf", template="v1", device="cpu", dtype="fp32")
    found["hf"] = hf.answer(questions, 12, 4)
    assert found["hf"] == found["llava"]
    stage1 = Answerer.from_folder(tmp_path / "out-llava-pt", base=str(tmp_path / "llm"), template="plain", device="cpu")
    assert (hf.loaded.kind, stage1.loaded.kind) == ("hf", "stage1")
    assert all("\n" not in text for text in stage1.answer(questions[:4], 12, 4))
    base = load_model(lively, dtype=torch.float32)
    torch.manual_seed(0)
    add_lora(base.model, r=4, alpha=8, dropout=0.0, bias="none")
    for name, parameter in base.model.llm.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    config = json.loads((lively / "config.json").read_text())
    save_lora(base.model, tmp_path / "llava-v1.5-lora", config)
    expected = Answerer(base, "v1", folder="x").answer(questions, 12, 4)
    lora = Answerer.from_folder(tmp_path / "llava-v1.5-lora", base=str(lively), template="v1", device="cpu")
    assert lora.loaded.kind == "lora"
    assert lora.answer(questions, 12, 4) == expected != found["llava"]
    assert set(lora.fingerprint["parts"]) == {"language_model", "vision_tower"}


def test_an_end_that_is_text(answerer):
    """v0 ends an answer with ###; nothing in the tokenizer does."""
    loaded = load_model(CHECKPOINT, dtype=torch.float32)
    v0 = Answerer(loaded, "v0", folder=CHECKPOINT)
    assert v0._end_text == "###" == get_template("v0").close
    ids = v0.tokenizer.encode("a red circle###Human: b", add_special_tokens=False)
    assert v0._text(ids) == "a red circle"
    assert [v0._ended(ids[:n]) for n in range(1, len(ids))].index(True) < len(ids) - 3
    assert answerer._end_text is None and answerer._text(ids) == "a red circle###Human: b"


def test_which_template(tmp_path):
    assert choose_template("x/llava-v1.5-7b", "mpt") == ("mpt", "--conv-mode")
    name, why = choose_template("liuhaotian/llava-v1.5-7b", None)
    assert name == "llava_v1" and "rule for the name 'llava-v1.5-7b'" in why
    (tmp_path / "config.yaml").write_text("version: v1\nseed: 42\n")
    name, why = choose_template(tmp_path, None)
    assert (name, why) == ("v1", f"version in {tmp_path / 'config.yaml'}")


def test_templates_that_do_not_fit():
    with pytest.raises(
        DataError, match=r"llava-v1.5-tiny: template 'chatml_direct' .* do not fit: .*<\|im_start\|>.*--conv"
    ):
        Answerer.from_folder(CHECKPOINT, template="chatml_direct", device="cpu")
    with pytest.raises(ValueError, match="unknown conversation template 'v9'"):
        Answerer.from_folder(CHECKPOINT, template="v9", device="cpu")


def test_images_that_cannot_be_read(answerer, tmp_path):
    whole = (WRITTEN / "images" / "1.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("hello")
    for name in ("cut.png", "text.png"):
        with pytest.raises(DataError, match=f"q:1: question 'a': image .*{name} cannot be read"):
            answerer.answer([Question("a", (tmp_path / name,), "what", where="q:1")], 2, 1)
    with pytest.raises(DataError, match=r"q:1: question 'a': its image \(5 bytes\) cannot be read"):
        answerer.answer([Question("a", (b"hello",), "what", where="q:1")], 2, 1)


def test_a_question_longer_than_the_context(answerer):
    with pytest.raises(DataError, match=r"q:1: question 'a' takes \d+ positions .* but the language model has 2048"):
        answerer.answer([Question("a", (), "circle " * 2000, where="q:1")], 2, 1)


def test_colours_and_modes_of_images(answerer):
    """Palette, grey and transparency: as the same picture in RGB."""
    texts = set()
    for mode in ("P", "L", "RGBA"):
        image = Image.open(WRITTEN / "images" / "3.png").convert("RGB").convert(mode)
        pair = []
        for picture in (image, image.convert("RGB")):
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            pair.append(Question(mode, (stream.getvalue(),), "what is this"))
        first, second = answerer.answer(pair, 12, 1)
        assert first == second
        texts.add(first)
    assert texts


def test_fingerprint(answerer):
    found = answerer.fingerprint
    assert (found["model_id"], found["checkpoint"]["layout"], found["template"]) == ("llava-v1.5-tiny", "llava", "v1")
    assert (found["dtype"], found["device"], found["image_aspect_ratio"]) == ("float32", "cpu", "pad")
    assert len(found["checkpoint"]["sha256"]) == 64 and set(found["parts"]) == {"vision_tower"}
    assert {"torch", "transformers", "llava_pat", "python"} <= set(found["versions"])
    json.dumps(found)
