r"""Merges a LoRA folder into its base: one whole folder in LLaVA's layout, verified before it is there.

    python -m llava_pat.merge checkpoints/llava-v1.5-7b-lora checkpoints/llava-v1.5-7b-merged \
        --base lmsys/vicuna-7b-v1.5

The logits of the unmerged and of the merged model are compared on made-up prompts with and without images, in memory
and again from the written files; where they differ by more than rounding, nothing is left. After a QLoRA run the merge
goes into the quantised base turned back into floats (--into trained, the default): that is the model that was trained.
--into plain takes the base as it is, as LLaVA does when it loads the unmerged folder with --model-base.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers

from llava_pat.models.llava_config import read_config, text_family
from llava_pat.models.llava_names import check_output_name, conversation_mode, evaluation_command
from llava_pat.models.merge import BASES, DTYPES, merge_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the folder is there, 2 with one line on stderr when it is not."""
    options = _parser().parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        conversation_mode(options.template)  # an unknown one should not cost a merge
        problems = check_output_name(options.out, lora=False, family=text_family(read_config(options.lora_folder)))
        if problems:
            raise ValueError("; ".join(problems))
        report = merge_folder(
            options.lora_folder,
            options.base,
            options.out,
            dtype=None if options.dtype is None else DTYPES[options.dtype],
            vision_tower=options.vision_tower,
            into=options.into,
            max_shard_size=options.max_shard_size,
            device=options.device,
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"merge: {error}", file=sys.stderr)
        return 2
    base = report.base if report.quantized is None else f"{report.base}, {report.quantized.bits} bits turned back"
    print(f"merged into {base}, {report.dtype}")
    if report.dequantized is not None:
        print(f"  the trained model against its base turned back into floats: {report.dequantized}")
    print(f"  unmerged against merged: {report.merged}")
    print(f"  unmerged against the files written: {report.written}")
    print(f"done: {report.out}\n\n{evaluation_command(report.out, base=None, template=options.template)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava_pat.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lora_folder", type=Path, help="what finetune_lora.sh or finetune_qlora.sh left, or LLaVA")
    parser.add_argument("out", type=Path, help="a new folder; its name must hold 'llava' and must not hold 'lora'")
    parser.add_argument("--base", help="the language model that was trained on (default: what the LoRA folder names)")
    parser.add_argument("--vision_tower", help="where the vision tower is (default: what config.json names). It is "
        "written into config.json, so for other machines give the hub id")  # fmt: skip
    parser.add_argument("--dtype", choices=list(DTYPES), help="of the weights (default: torch_dtype of config.json)")
    parser.add_argument("--into", choices=BASES, default="trained", help="after QLoRA: which base (default: trained)")
    parser.add_argument("--max_shard_size", default="5GB", help="of a weight file, such as 500MB (default: 5GB)")
    parser.add_argument("--device", default="cpu", help="where answers are compared, such as cuda (default: cpu; a "
        "quantised base is made where transformers puts it: on the GPU if there is one)")  # fmt: skip
    parser.add_argument("--template", default="v1", help="conversation template of the run, for the evaluation command "
        "that is printed at the end (default: v1)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
