"""The command line of LLaVA's four answering scripts: its flags, its files, and a few of ours.

Source: llava/eval/model_vqa{,_loader,_science,_mmbench}.py of haotian-liu/LLaVA at c121f04. Other than there, the
temperature is 0 unless it is given (LLaVA's published commands all give 0), and the template follows the checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import transformers

from llava_pat.evaluation.model import DTYPES, Answerer
from llava_pat.evaluation.questions import (
    LETTER_ONLY,
    Question,
    check_images,
    chunk,
    read_mmbench,
    read_questions,
    read_science,
)
from llava_pat.evaluation.run import answer_questions, end_ranks, start_ranks
from llava_pat.models.generate import Decoding

SCRIPTS = {"loader": 128, "vqa": 1024, "science": 1024, "mmbench": 1024}
"""LLaVA's script -> its max_new_tokens."""


def main(script: str, description: str | None, arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when all answers are in the file, 2 with one line on stderr when they are not.

    script: of SCRIPTS, which of LLaVA's scripts this is.
    """
    options = _parser(script, description).parse_args(arguments)
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(message)s")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        decoding = Decoding(options.temperature, options.top_p, options.num_beams, options.seed)
        questions = chunk(_questions(script, options), options.num_chunks, options.chunk_idx)
        check_images(questions)
        rank, world_size = start_ranks()
        answerer = Answerer.from_folder(
            options.model_path,
            base=options.model_base,
            vision_tower=options.vision_tower,
            template=options.conv_mode,
            dtype=options.dtype,
            device=options.device,
            decoding=decoding,
        )
        answer_questions(
            answerer,
            questions,
            options.answers_file,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            rank=rank,
            world_size=world_size,
            restart=options.restart,
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"model_vqa: {error}", file=sys.stderr)
        return 2
    finally:
        end_ranks()
    return 0


def _questions(script: str, options: argparse.Namespace) -> list[Question]:
    if script == "science":
        return read_science(options.question_file, options.image_folder, single_pred_prompt=options.single_pred_prompt)
    if script == "mmbench":
        return read_mmbench(
            options.question_file,
            all_rounds=options.all_rounds,
            single_pred_prompt=options.single_pred_prompt,
            lang=options.lang,
        )
    return read_questions(options.question_file, options.image_folder)


def _parser(script: str, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model-path", required=True, help="a folder or hub id: LLaVA's layout, llava-hf, a stage-1 or a LoRA folder")
    add("--model-base", help="the language model of a stage-1 or LoRA folder (default: what its config.json names)")
    add("--image-folder", default="", help="what image names are relative to")
    add("--question-file", required=True)
    add("--answers-file", default="answer.jsonl", help="answers that are there already stay; killed runs go on")
    add("--conv-mode", help="template (default: of the folder's config.yaml, else by LLaVA's rules for its name)")
    add("--num-chunks", type=int, default=1)
    add("--chunk-idx", type=int, default=0)
    add("--temperature", type=float, default=0.0, help="0 takes the most likely token (LLaVA's default is 0.2; its "
        "published commands give 0)")  # fmt: skip
    add("--top_p", type=float)
    add("--num_beams", type=int, default=1)
    add("--max_new_tokens", type=int, default=SCRIPTS[script], help=f"(default: {SCRIPTS[script]}, LLaVA's)")
    if script in ("science", "mmbench"):
        add("--single-pred-prompt", action="store_true", help="ask for the option's letter only")
    if script == "science":
        add("--answer-prompter", action="store_true", help="taken for LLaVA's sake: there it does nothing either")
    if script == "mmbench":
        add("--all-rounds", action="store_true", help="ask once an option, the options turned by one each time")
        add("--lang", choices=list(LETTER_ONLY), default="en")
    add("--batch-size", type=int, default=8, help="questions at a time (default: 8; 1 is LLaVA's, and exact in fp16)")
    add("--dtype", choices=["auto", *DTYPES], default="auto", help="auto: fp16 on a GPU, as LLaVA, fp32 on a CPU")
    add("--device", help="such as cpu or cuda (default: the GPU if there is one)")
    add("--vision-tower", help="in place of the one that config.json names")
    add("--seed", type=int, default=0, help="for a temperature")
    add("--restart", action="store_true", help="an answer file that is there is replaced, not gone on with")
    return parser
