"""Builds the playground's base models from nothing: tokenizers, CLIP, Llama, and their model card.

    python -m playground.build                      # everything that is not finished yet; hours on two cores
    python -m playground.build tower --threads 2    # one part

Training states go to `playground/build/` and a killed build goes on from there. The finished models are in
`playground/models/clip` and `playground/models/llama`, committed; delete a state to train a part anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HERE = Path(__file__).parent
LLM_STEPS, LLM_BATCH = 1300, 12
PARTS = ("tokenizers", "tower", "llm", "card")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to build (default: all, in this order)")
    parser.add_argument("--models", type=Path, default=HERE / "models", help="where the finished models go")
    parser.add_argument("--work", type=Path, default=HERE / "build", help="where the training states are kept")
    parser.add_argument("--tower_steps", type=int, default=7000)
    parser.add_argument("--llm_steps", type=int, default=LLM_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    import torch

    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    clip, llama = arguments.models / "clip", arguments.models / "llama"
    for part in arguments.parts or PARTS:
        print(f"== {part}", flush=True)
        if part == "tokenizers":
            from playground import vocabulary

            vocabulary.build_clip_tokenizer(clip)
            vocabulary.build_llama_tokenizer(llama)
        elif part == "tower":
            from playground import tower

            tower.train(clip, arguments.work, arguments.tower_steps, batch_size=64, seed=arguments.seed)
        elif part == "llm":
            from playground import language_model

            language_model.train(llama, arguments.work, arguments.llm_steps, batch_size=LLM_BATCH, seed=arguments.seed)
        else:
            from playground import card

            card.write(arguments.models, arguments.seed)


if __name__ == "__main__":
    main()
