"""RefCOCO's pickles with bytes changed at random: lists and dicts, or an error that names the file."""

from __future__ import annotations

import pickle
import random

import pytest

from llava_pat.data.refer_files import read_refs
from llava_pat.types import DataError

REFS = [{"ref_id": i, "split": "val", "sentences": [{"sent": "a dog"}], "box": (1.5, None, True)} for i in range(5)]


@pytest.mark.filterwarnings("ignore")
def test_changed_bytes(tmp_path):
    file, rng = tmp_path / "refs(unc).p", random.Random(0)
    whole, refused = pickle.dumps(REFS, protocol=2), 0
    for _ in range(3000):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 5)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        file.write_bytes(bytes(changed))
        try:
            assert all(isinstance(ref, dict) for ref in read_refs(file))
        except DataError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 2000


def test_a_text_without_end_is_not_waited_for(tmp_path):
    (tmp_path / "refs.p").write_bytes(b"\x80\x02\x8d" + (2**50).to_bytes(8, "little"))  # BINUNICODE8 of a petabyte
    with pytest.raises(DataError, match="no whole pickle"):
        read_refs(tmp_path / "refs.p")
