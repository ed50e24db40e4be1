"""YAML of somebody else: values, or one line that says what is wrong. No tag of it builds anything."""

from __future__ import annotations

import pytest

from llava_pat.data.yaml_file import BadYaml, read_yaml_file
from llava_pat.evaluation.model import choose_template
from llava_pat.training.flags import ConfigError, read_yaml
from llava_pat.types import DataError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(9)
)

BAD = {
    "!!python/object/apply:os.mkdir [executed]": "could not determine a constructor",
    "a: !!python/object/new:os.system [touch executed]": "could not determine a constructor",
    "a: !!python/name:os.system": "could not determine a constructor",
    "a: !own {b: 1}": "could not determine a constructor",
    "a: !!binary aGVsbG8=": "is a bytes",
    "a: 2024-01-01": "is a date; write it in quotes",
    "a: 2024-13-45": "month must be in 1..12",
    "a: !!set {b, c}": "is a set",
    "a: &a [*a]": "more than 100000 values",
    BOMB: "more than 100000 values",
    "seed: 1\nlearning_rate: 2\nseed: 3": "line 3: 'seed' is on line 1 as well",
    "a: {b: 1, b: 2}": "'b' is on line 1 as well",
    "a: [1": "expected ',' or ']'",
    "a: \ud800": "",
    "[" * 5000: "nested too deeply",
    "a: \0": "special characters are not allowed",
    "? [1, 2]\n: b": "unhashable",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:30])
def test_what_is_no_plain_value(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BadYaml) as caught:
        read_yaml_file(file)
    assert BAD[text] in str(caught.value)
    with pytest.raises(ConfigError, match=f"--config {file}: not valid YAML"):
        read_yaml(file)
    file.rename(tmp_path / "config.yaml")
    with pytest.raises(DataError, match=f"(?s){tmp_path / 'config.yaml'}: .*--conv-mode"):
        choose_template(tmp_path, None)
    assert not (tmp_path / "executed").exists()


def test_plain_values(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("a: 1\nb: [x, 2.5, null, true]\nc: &c {d: e}\nf: *c\ng: {<<: *c, h: 1}\n'2024-01-01': text\n")
    assert read_yaml_file(file) == {
        "a": 1, "b": ["x", 2.5, None, True], "c": {"d": "e"}, "f": {"d": "e"}, "g": {"d": "e", "h": 1},
        "2024-01-01": "text",
    }  # fmt: skip


def test_a_config_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=f"--config {tmp_path}: cannot be read: Is a directory"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
