"""YAML of somebody else: values, or one line that says what is wrong. No tag of it builds anything."""

from __future__ import annotations

import pytest

from llava_pat.data.yaml_file import BadYaml, read_yaml_file
from llava_pat.evaluation.model import choose_template
from llava_pat.training.flags import ConfigError, read_yaml
from llava_pat.types import DataError
from tests.faults.bad_yaml import BAD_YAML


@pytest.mark.parametrize("text", BAD_YAML, ids=lambda text: text[:30])
def test_what_is_no_plain_value(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BadYaml) as caught:
        read_yaml_file(file)
    assert BAD_YAML[text] in str(caught.value)
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
