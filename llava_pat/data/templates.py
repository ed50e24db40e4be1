"""Conversation templates as data: how a conversation becomes one string, and which characters of it are learned.

Every LLaVA format used here is the same row of strings, repeated (tests hold the result to the character):

    opening QUESTION header lead ANSWER close | between QUESTION header lead ANSWER close | ...

The answer, the space before it (`lead`) and its `close` are supervised; all else is not. A template's BOS is the
tokenizer's to add.

    for                                 --version
    Vicuna                              v1
    Llama 2 Chat, Mistral Instruct      llava_llama_2, mistral_instruct
    Llama 3 Instruct (and 3.1, 3.2)     llava_llama_3
    Qwen 1.5 and 2; 2.5; 3              qwen_1_5; qwen_2_5; qwen_3
    Gemma 1 to 3, instruction-tuned     gemma_instruct
    Phi-3 and 3.5 mini Instruct         phi_3
    base models                         any whose control strings are the tokenizer's single tokens

Names are LLaVA's, then LLaVA-NeXT's (its conversation.py has qwen_1_5, qwen_2, llava_llama_3, gemma_instruct);
qwen_2_5, qwen_3 and phi_3 are the families' own chat templates, with the system sentence that each adds by itself.

Where labels differ on purpose: LLaVA's preprocess_mpt (`mpt`, `chatml_direct`) leaves an <|im_end|> out of its count of
tokens, finds a "tokenization mismatch" and masks the whole sample. Measured (LLaVA at c121f04, 1 to 3 rounds, with an
image and without): every sample for a byte-level tokenizer and for a Llama one with legacy off; with legacy on each one
but those of two rounds, which lose their first <|im_end|>. LLaVA-NeXT's preprocess_qwen learns every <|im_start|>,
<|im_end|>, newline and assistant header too. Here each answer and the <|im_end|> behind it are learned, no more. The
newline with which LLaVA-NeXT ends a qwen or gemma conversation, from which nothing is learned, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from llava_pat.types import IMAGE_TOKEN, DataError, Turn


@dataclass(frozen=True)
class Span:
    """A stretch of the prompt."""

    text: str
    supervised: bool
    control: bool = False  # the template's own special token (an end of sequence), never the user's text


@dataclass(frozen=True)
class Template:
    """One conversation format. `close` ends an answer; `controls` are strings that must be single tokens."""

    name: str
    opening: str
    between: str
    header: str
    lead: str
    close: str
    controls: tuple[str, ...] = ()
    end: str | None = None  # the control that ends an answer
    end_is_eos: bool = False  # generation stops at the tokenizer's eos: `end` must be it
    caption_only: bool = False  # LLaVA's `plain`: the question is dropped, one round, the image alone stays
    text_stays_text: bool = True  # False: "</s>" inside a text becomes the special token, as in LLaVA

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        """Spans whose texts join to the full prompt. A last human turn without an answer leaves the prompt open.

        `turns` alternate human, gpt; image markers stand where `place_images` put them. Raises DataError when the
        template cannot hold the conversation.
        """
        if self.caption_only and (len(turns) > 2 or IMAGE_TOKEN not in turns[0].value):
            raise DataError(
                f"template {self.name!r} holds one image and its caption; this conversation has {len(turns)} messages "
                f"and {turns[0].value.count(IMAGE_TOKEN)} {IMAGE_TOKEN} in the first; use another --version for it"
            )
        spans: list[Span] = []
        for position, turn in enumerate(turns):
            if position % 2 == 0:
                question = IMAGE_TOKEN * turn.value.count(IMAGE_TOKEN) if self.caption_only else turn.value
                spans += _cut(self.between if position else self.opening, False, self.controls)
                spans.append(Span(question, supervised=False))
                spans += _cut(self.header, False, self.controls)
            else:
                spans.append(Span(self.lead + turn.value, supervised=True))
                spans += _cut(self.close, True, self.controls)
        return [span for span in spans if span.text]


@lru_cache(maxsize=256)
def _cut(text: str, supervised: bool, controls: tuple[str, ...]) -> tuple[Span, ...]:
    """A template string, cut so that each control is a span of its own."""
    if not controls:
        return (Span(text, supervised),)
    parts = re.split("(" + "|".join(map(re.escape, controls)) + ")", text)
    return tuple(Span(part, supervised, control=part in controls) for part in parts if part)


def place_images(turns: Sequence[Turn]) -> list[Turn]:
    """Put the image where LLaVA's preprocess_multimodal puts it: in front of its message, on a line of its own.

    A conversation with several images keeps them where they stand: there the position says which image is meant.
    """
    if sum(turn.value.count(IMAGE_TOKEN) for turn in turns) != 1:
        return list(turns)
    return [
        Turn(turn.role, f"{IMAGE_TOKEN}\n{turn.value.replace(IMAGE_TOKEN, '').strip()}".strip())
        if IMAGE_TOKEN in turn.value
        else turn
        for turn in turns
    ]


def render_prompt(template: Template, question: str) -> str:
    """The prompt for generation: the question (with its `<image>`, moved to the front) and an open assistant turn."""
    return "".join(span.text for span in template.render(place_images([Turn("human", question)])))


def get_template(name: str) -> Template:
    """A template by LLaVA's name for it (`--version`, `--conv-mode`); ValueError lists the names."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown conversation template {name!r}; there are: {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


def _vicuna(name: str, person: str) -> Template:
    system = (
        f"A chat between a curious {person} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
    )
    return Template(
        name, f"{system} USER: ", "USER: ", " ASSISTANT:", " ", "</s>", controls=("</s>",), end="</s>", end_is_eos=True
    )


def _chatml(name: str, system: str | None, line: str = "") -> Template:
    """`line` stands behind <|im_end|>: a newline in ChatML as its inventors and Qwen write it, nothing in LLaVA's."""
    preamble = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>{line}"
    return Template(
        name,
        opening=f"{preamble}<|im_start|>user\n",
        between=f"{line}<|im_start|>user\n",
        header=f"<|im_end|>{line}<|im_start|>assistant\n",
        lead="",
        close="<|im_end|>",
        controls=("<|im_start|>", "<|im_end|>"),
        end="<|im_end|>",
    )


# LLaVA's plain labels are right even where a caption spells a special token, so its ids are kept to the id
_PLAIN = Template("plain", "", "", "", "", "\n", caption_only=True, text_stays_text=False)
_V0 = Template(
    "v0",
    opening=(
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions.###Human: "
    ),
    between="Human: ",
    header="###Assistant:",
    lead=" ",
    close="###",
)
_V1 = _vicuna("v1", "user")
_LLAVA_V1 = _vicuna("llava_v1", "human")
_HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_LLAMA_2 = Template(
    "llava_llama_2",
    opening=f"[INST] <<SYS>>\n{_HELPFUL}\n<</SYS>>\n\n",
    between="<s>[INST] ",
    header=" [/INST]",
    lead=" ",
    close=" </s>",
    controls=("<s>", "</s>"),
    end="</s>",
    end_is_eos=True,
)
_MISTRAL = Template(
    "mistral_instruct", "[INST] ", "[INST] ", " [/INST]", " ", " </s>", controls=("</s>",), end="</s>", end_is_eos=True
)
_CHATML = _chatml("chatml_direct", "Answer the questions.")
_MPT = _chatml(
    "mpt",
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
)
_QWEN = _chatml("qwen_1_5", "You are a helpful assistant.", line="\n")
_QWEN_2_5 = _chatml("qwen_2_5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", line="\n")
_QWEN_3 = _chatml("qwen_3", None, line="\n")  # without <think>: as the Instruct models of 2507, and older ones' history
_LLAMA_3 = Template(
    "llava_llama_3",
    opening=(
        f"<|start_header_id|>system<|end_header_id|>\n\n{_HELPFUL}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
    ),
    between="<|start_header_id|>user<|end_header_id|>\n\n",
    header="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    lead="",
    close="<|eot_id|>",
    controls=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    end="<|eot_id|>",
)
_GEMMA = Template(
    "gemma_instruct",
    opening="<start_of_turn>user\n",
    between="\n<start_of_turn>user\n",
    header="<end_of_turn>\n<start_of_turn>model\n",
    lead="",
    close="<end_of_turn>",
    controls=("<start_of_turn>", "<end_of_turn>"),
    end="<end_of_turn>",
)
_PHI_3 = Template(
    "phi_3",
    opening="<|user|>\n",
    between="\n<|user|>\n",
    header="<|end|>\n<|assistant|>\n",
    lead="",
    close="<|end|>",
    controls=("<|user|>", "<|assistant|>", "<|end|>"),
    end="<|end|>",
)

TEMPLATES: dict[str, Template] = {
    "plain": _PLAIN,
    "v0": _V0,
    "llava_v0": _V0,
    "v1": _V1,
    "vicuna_v1": _V1,
    "llava_v1": _LLAVA_V1,
    "llama_2": _LLAMA_2,
    "llava_llama_2": _LLAMA_2,
    "mistral_instruct": _MISTRAL,
    "mistral_direct": _CHATML,
    "chatml_direct": _CHATML,
    "mpt": _MPT,
    "qwen_1_5": _QWEN,
    "qwen_2": _QWEN,
    "qwen_2_5": _QWEN_2_5,
    "qwen_3": _QWEN_3,
    "llava_llama_3": _LLAMA_3,
    "llama_3": _LLAMA_3,
    "gemma_instruct": _GEMMA,
    "phi_3": _PHI_3,
}
