"""The checkpoint that LLaVA's own code wrote (tests/assets/llava_written), and questions about its images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llava_pat.evaluation.model import Answerer
from llava_pat.evaluation.questions import Question
from llava_pat.models.from_folder import load_model
from llava_pat.models.llava_config import finetune_config
from llava_pat.models.llava_layout import save_llava

WRITTEN = Path(__file__).parents[1] / "assets" / "llava_written"
CHECKPOINT = WRITTEN / "llava-v1.5-tiny"
WORDS = ("red", "blue", "what is", "the circle", "above", "a three?", "left of", "left of\nit", "how many squares are")


def asked(count: int) -> list[Question]:
    """Questions of several lengths; every fifth without an image, every seventh with two, images in runs of three."""
    questions = []
    for i in range(count):
        images = (WRITTEN / "images" / f"{i // 3 % 20}.png", WRITTEN / "images" / f"{i % 20}.png")
        shown = () if i % 5 == 4 else images[: 1 + (i % 7 == 6)]
        text = " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 2 + i % 6))
        questions.append(Question(i, shown, f"{text} {i}", where=f"made up:{i + 1}"))
    return questions


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def answerer() -> Answerer:
    """LLaVA's checkpoint as it is: trained so little that it says one thing about everything."""
    return Answerer.from_folder(CHECKPOINT, template="v1", device="cpu")


@pytest.fixture(scope="session")
def lively(tmp_path_factory) -> Path:
    """The same with noise in its weights: a folder llava-v1.5-lively that says something else about each question."""
    folder = tmp_path_factory.mktemp("lively") / "llava-v1.5-lively"
    model = load_model(CHECKPOINT, dtype=torch.float32).model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (model.llm, model.projector):
            for parameter in part.parameters():
                parameter += torch.randn(parameter.shape, generator=generator) * (0.12 if parameter.dim() > 1 else 0.0)
        model.llm.get_output_embeddings().weight[2] += 0.04  # the end comes, and not at once
    tower = str(WRITTEN / "clip")
    config = finetune_config(model.llm.config, vision_tower=tower, vision_width=model.vision_width)
    save_llava(model, folder, config, tokenizer_source=CHECKPOINT, dtype=None)
    return folder


@pytest.fixture(scope="session")
def lively_answerer(lively) -> Answerer:
    return Answerer.from_folder(lively, template="v1", device="cpu")
