"""Held-out instruct data -> cases.json, the questions of a parity check (formats: tests/parity/README.md).

    python tests/parity/make_cases.py --data playground/data/instruct_val.json --image_folder playground/data/images \
        --out /tmp/cases.json [--count 20]

Records are taken evenly over the file; each gives one of its questions, not always the first, so that all kinds come.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llava_pat.data.records import load_records, resolve_image
from llava_pat.types import IMAGE_TOKEN


def cases_from(data: Path, image_folder: Path, count: int) -> list[dict]:
    """One question each of `count` records with one image; ValueError when there are fewer."""
    records = [record for record in load_records(data) if len(record.images) == 1]
    if len(records) < count:
        raise ValueError(f"{data}: {len(records)} records with one image, {count} asked for")
    cases = []
    for number in range(count):
        record = records[number * len(records) // count]
        questions = [turn.value for turn in record.turns if turn.role == "human"]
        question = questions[number % len(questions)].replace(IMAGE_TOKEN, "").strip()
        image = resolve_image(image_folder, record.images[0]).resolve()
        cases.append({"id": f"{number:02}-{record.id}", "image": str(image), "question": question})
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--image_folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--template", default="vicuna_v1")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    arguments = parser.parse_args()
    cases = cases_from(arguments.data, arguments.image_folder, arguments.count)
    made = {"template": arguments.template, "max_new_tokens": arguments.max_new_tokens, "cases": cases}
    arguments.out.write_text(json.dumps(made, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"{len(cases)} cases written to {arguments.out}")


if __name__ == "__main__":
    main()
