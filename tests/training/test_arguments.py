"""The command line of stage 1: LLaVA's published list, YAML and flags, what is mapped and what is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from llava_pat.training import consistency
from llava_pat.training.arguments import PRETRAIN, PretrainArguments, parse_pretrain
from llava_pat.training.command_line import build_parser
from llava_pat.training.flags import ConfigError, Setting, read_argv, translate
from llava_pat.training.run_config import write_config

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["--model_name_or_path", "m", "--vision_tower", "v", "--data_path", "d.json", "--image_folder", "i"]

# LLaVA's scripts/v1_5/pretrain.sh, as its users' scripts have it today.
PUBLISHED = """
--deepspeed ./scripts/zero2.json --model_name_or_path lmsys/vicuna-13b-v1.5 --version plain
--data_path ./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json
--image_folder ./playground/data/LLaVA-Pretrain/images --vision_tower openai/clip-vit-large-patch14-336
--mm_projector_type mlp2x_gelu --tune_mm_mlp_adapter True --mm_vision_select_layer -2 --mm_use_im_start_end False
--mm_use_im_patch_token False --bf16 True --output_dir ./checkpoints/llava-v1.5-13b-pretrain --num_train_epochs 1
--per_device_train_batch_size 32 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1
--evaluation_strategy no --save_strategy steps --save_steps 24000 --save_total_limit 1 --learning_rate 1e-3
--weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --tf32 True --model_max_length 2048
--gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True --report_to wandb
""".split()


@pytest.fixture(autouse=True)
def cpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test sees a machine without an accelerator and no launcher, wherever it runs."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(consistency, "is_torch_tf32_available", lambda: False)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "OUTPUT_DIR"):
        monkeypatch.delenv(name, raising=False)


def settings_of(arguments: PretrainArguments) -> list[dict]:
    ignored = {"distributed_state"}
    return [{f.name: vars(p)[f.name] for f in fields(p) if f.name not in ignored} for p in arguments]


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_the_published_list_is_accepted_word_for_word() -> None:
    model, data, alignment, training = parse_pretrain(PUBLISHED)
    assert (model.model_name_or_path, model.version) == ("lmsys/vicuna-13b-v1.5", "plain")
    assert (model.mm_projector_type, model.mm_vision_select_layer) == ("mlp2x_gelu", -2)
    assert model.vision_tower == "openai/clip-vit-large-patch14-336"
    assert data.data_path.endswith("558k.json") and data.image_aspect_ratio == "square"
    assert alignment.alignment == "none"
    assert (training.learning_rate, training.weight_decay, training.warmup_steps) == (1e-3, 0.0, 0.03)
    assert (training.lr_scheduler_type.value, training.optim.value) == ("cosine", "adamw_torch")
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (32, 1)
    assert (training.save_steps, training.save_total_limit, training.num_train_epochs) == (24000, 1, 1)
    assert training.eval_strategy.value == "no" and training.report_to == ["wandb"]
    assert training.bf16 and training.gradient_checkpointing and training.model_max_length == 2048
    assert training.get_warmup_steps(2181) == 66  # ceil(0.03 * 2181), the share and not three hundredths of a step


def test_the_recipe_is_the_default() -> None:
    without = parse_pretrain(NEEDED)
    published = parse_pretrain(
        [*PUBLISHED, *NEEDED, "--report_to", "none", "--output_dir", without.training.output_dir]
    )
    mine, theirs = settings_of(without), settings_of(published)
    differing = {name for a, b in zip(mine, theirs, strict=True) for name in a if a[name] != b[name]}
    assert differing == set()


def test_each_mapped_flag_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parse_pretrain(PUBLISHED)
    lines = capsys.readouterr().out.splitlines()
    for flag in ("--evaluation_strategy", "--warmup_ratio", "--lazy_preprocess", "--tf32", "--deepspeed"):
        assert sum(flag in line for line in lines) == 1, flag
    parse_pretrain(NEEDED)
    assert "--tf32" not in capsys.readouterr().out  # nobody asked for it


def test_only_rank_0_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    parse_pretrain([*NEEDED, "--lazy_preprocess", "True"])
    assert capsys.readouterr().out == ""


def test_bf16_on_a_cpu_runs_on_the_cpu() -> None:
    training = parse_pretrain([*NEEDED, "--bf16", "True"]).training
    assert training.bf16 and training.use_cpu and training.device.type == "cpu"


def test_flags_override_the_yaml_and_the_yaml_the_defaults(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "learning_rate: 2e-4\nnum_train_epochs: 3\nbf16: false\nmm_vision_select_layer: -1\n")
    training = parse_pretrain([*NEEDED, "--num_train_epochs", "5", "--config", str(path)]).training
    assert (training.learning_rate, training.num_train_epochs, training.bf16) == (2e-4, 5, False)
    assert training.save_steps == 24000
    assert parse_pretrain(["--config", str(path), *NEEDED]).model.mm_vision_select_layer == -1


def test_old_names_work_in_the_yaml_too_and_the_flag_still_wins(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "warmup_ratio: 0.1\n")
    assert parse_pretrain(["--config", str(path), *NEEDED]).training.warmup_steps == 0.1
    assert parse_pretrain(["--config", str(path), *NEEDED, "--warmup_steps", "7"]).training.warmup_steps == 7


def test_objective_keywords_from_yaml_and_flag(tmp_path: Path) -> None:
    path = yaml_file(
        tmp_path, "alignment: pat\nregions_path: r.jsonl\nalignment_args: {unit: patch, min_coverage: 0.5}\n"
    )
    alignment = parse_pretrain(["--config", str(path), *NEEDED]).alignment
    assert alignment.alignment_args == {"unit": "patch", "min_coverage": 0.5}
    assert alignment.plan()[""].keywords == {"unit": "patch", "min_coverage": 0.5}
    flags = ["--alignment_args", '{"unit": "region"}', "--alignment_schedule", "constant"]
    alignment = parse_pretrain(["--config", str(path), *NEEDED, *flags]).alignment
    assert alignment.plan()[""].keywords == {"unit": "region", "schedule": "constant"}


def test_several_objectives_from_a_yaml(tmp_path: Path) -> None:
    path = yaml_file(
        tmp_path,
        "alignment: pat+sea\nregions_path: r.jsonl\nalignment_weight: 3\noutput_dir: llava-{alignment}\n"
        "alignment_args:\n  pat: {unit: patch}\n  sea: {labels: regions, weight: 0.5, schedule: linear}\n",
    )
    arguments = parse_pretrain(["--config", str(path), *NEEDED])
    plan = arguments.alignment.plan()
    assert (plan["pat"].weight, plan["pat"].keywords) == (3.0, {"unit": "patch"})
    assert (plan["sea"].weight, plan["sea"].keywords) == (0.5, {"labels": "regions", "schedule": "linear"})
    assert arguments.training.output_dir == "llava-pat-sea"


def test_the_baseline_behind_a_pat_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = yaml_file(tmp_path, "alignment: pat\nregions_path: r.jsonl\nalignment_args: {unit: patch}\n")
    alignment = parse_pretrain(["--config", str(path), *NEEDED, "--alignment", "none"]).alignment
    assert alignment.alignment == "none" and alignment.alignment_args == {}
    assert "left out" in capsys.readouterr().out


def test_an_empty_flag_takes_back_what_the_yaml_set(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "regions_path: r.jsonl\n")
    assert parse_pretrain(["--config", str(path), *NEEDED, "--regions_path", ""]).data.regions_path is None


def test_output_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = yaml_file(tmp_path, "output_dir: checkpoints/llava-x-{alignment}\n")
    config = ["--config", str(path), *NEEDED]
    pat = ["--alignment", "pat", "--regions_path", "r"]
    assert parse_pretrain([*config, *pat]).training.output_dir == "checkpoints/llava-x-pat"
    assert parse_pretrain(config).training.output_dir == "checkpoints/llava-x-none"
    assert parse_pretrain(NEEDED).training.output_dir == "checkpoints/llava-v1.5-pretrain-none"
    monkeypatch.setenv("OUTPUT_DIR", "elsewhere/llava-y")
    assert parse_pretrain(config).training.output_dir == "elsewhere/llava-y"
    assert parse_pretrain([*config, "--output_dir", "llava-z"]).training.output_dir == "llava-z"
    assert parse_pretrain([*config, "--output_dir", "llava-z"]).training.run_name == "llava-z"


def test_a_name_that_breaks_llavas_evaluation_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    parse_pretrain([*NEEDED, "--output_dir", "out/llava-plain"])
    assert "'plain'" in capsys.readouterr().out


@pytest.mark.parametrize(("processes", "accumulation"), [("8", 1), ("2", 4), ("1", 8)])
def test_the_global_batch_on_any_number_of_processes(
    processes: str, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"global_batch_size": 256, "per_device_train_batch_size": 32, "gradient_accumulation_steps": 1}
    monkeypatch.setenv("WORLD_SIZE", processes)
    consistency._resolve_batch(values, {"global_batch_size": 1}, [])
    assert values["gradient_accumulation_steps"] == accumulation


def test_a_flag_for_accumulation_beats_the_yamls_global_batch(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "global_batch_size: 256\n")
    training = parse_pretrain(["--config", str(path), *NEEDED, "--gradient_accumulation_steps", "2"]).training
    assert (training.gradient_accumulation_steps, training.global_batch_size) == (2, 64)


def test_an_explicit_fp16_beats_the_default_bf16_on_a_gpu() -> None:
    values = {"fp16": True, "bf16": True, "use_cpu": False, "tf32": None}
    consistency._resolve_precision(values, {"fp16": 2}, [])
    assert values["fp16"] and not values["bf16"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--alignmnet", "pat"], ["alignmnet", "did you mean --alignment"]),
        (["--evaluation_strateg", "no"], ["evaluation_strategy"]),
        (["--zzzz", "1"], ["zzzz", "--help"]),
        (["--alignment", "pat"], ["pat", "regions", "--regions_path", "--alignment none"]),
        (["--alignment", "pta"], ["pta", "none", "pat"]),
        (["--alignment_args", '{"unti": 1}'], ["unti", "none"]),
        (["--alignment", "pat", "--regions_path", "r", "--alignment_args", '{"unti": 1}'], ["unti", "unit='region'"]),
        (["--alignment_args", "{unit: patch"], ["not JSON"]),
        (["--alignment_args", "[1]"], ["mapping"]),
        (
            ["--alignment", "pat", "--regions_path", "r", "--alignment_args", '{"schedule": "linear"}'],
            ["--alignment_schedule"],
        ),
        (["--alignment_weight", "nan"], ["alignment_weight"]),
        (["--alignment_weight", "-1"], ["alignment_weight"]),
        (["--bf16", "True", "--fp16", "True"], ["--bf16", "--fp16", "contradict"]),
        (["--fp16", "True"], ["GPU", "--bf16"]),
        (["--mm_use_im_start_end", "True"], ["--mm_use_im_start_end", "must be False"]),
        (["--mm_use_im_patch_token", "True"], ["--mm_use_im_patch_token", "must be False"]),
        (["--tune_mm_mlp_adapter", "False"], ["--tune_mm_mlp_adapter"]),
        (["--image_aspect_ratio", "anyres"], ["anyres", "square", "pad"]),
        (["--bits", "4"], ["--bits 4", "stage 2"]),
        (["--lora_enable", "True"], ["lora_enable", "stage 2"]),
        (["--learning_rate", "fast"], ["learning_rate", "fast"]),
        (["--warmup_ratio", "1.5"], ["warmup_ratio", "1.5", "[0, 1)"]),
        (["--eval_regions_path", "r"], ["--eval_regions_path", "--eval_data_path"]),
        (["--eval_strategy", "steps"], ["--eval_data_path"]),
        (["--global_batch_size", "100"], ["100", "32"]),
        (["--global_batch_size", "256", "--gradient_accumulation_steps", "4"], ["256", "128"]),
        (["--num_train_epochs", "1", "2"], ["2"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
    ],
)
def test_refused_with_one_clear_message(extra: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_pretrain([*NEEDED, *extra])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1\n", ["run.yaml", "learning_rat", "--learning_rate"]),
        ("learning_rate:\n", ["run.yaml", "learning_rate", "no value"]),
        ("- a\n- b\n", ["run.yaml", "list"]),
        ("a: [1\n", ["run.yaml", "not valid YAML", "line"]),
    ],
)
def test_a_bad_yaml_is_named(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_pretrain([*NEEDED, "--config", str(yaml_file(tmp_path, text))])
    for word in words:
        assert word in str(caught.value)


def test_everything_that_is_missing_is_listed_at_once() -> None:
    with pytest.raises(ConfigError, match="--model_name_or_path, --vision_tower, --data_path, --image_folder"):
        parse_pretrain([])


def test_a_word_before_the_first_flag() -> None:
    with pytest.raises(ConfigError, match="stray"):
        parse_pretrain(["stray", *NEEDED])


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_pretrain(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for kind in PretrainArguments.__annotations__:
        assert kind in text.lower()
    for action in build_parser(PRETRAIN)._actions:
        assert action.help, f"{action.option_strings} has no help"
    assert "--alignment_weight" in text and "--per_device_train_batch_size" in text


def test_spellings_of_a_flag() -> None:
    assert [(s.name, s.values) for s in read_argv(["--a-b=1", "--c", "--d", "-2", "3"])] == [
        ("a_b", ("1",)),
        ("c", ()),
        ("d", ("-2", "3")),
    ]


@pytest.mark.parametrize("asked", ["gradient_checkpointing", "activation_checkpointing"])
@pytest.mark.parametrize("installed", ["gradient_checkpointing", "activation_checkpointing"])
def test_either_name_under_either_transformers(asked: str, installed: str) -> None:
    found = translate([Setting(asked, ("False",), "command line")], {installed}, "stage 1", {}, {})
    assert [(s.name, s.values) for s in found.settings] == [(installed, ("False",))]
    assert len(found.notes) == (asked != installed)


def test_checkpointing_can_be_switched_off_and_stays_off(tmp_path: Path) -> None:
    first = parse_pretrain([*NEEDED, "--gradient_checkpointing", "False"])
    assert first.training.gradient_checkpointing is False
    write_config(first, tmp_path / "config.yaml")
    assert parse_pretrain(["--config", str(tmp_path / "config.yaml")]).training.gradient_checkpointing is False


def test_the_written_config_reproduces_the_run(tmp_path: Path) -> None:
    flags = ["--alignment", "pat", "--regions_path", "r", "--alignment_args", '{"unit": "patch"}', "--seed", "7"]
    flags += ["--eval_data_path", "e", "--eval_strategy", "steps", "--eval_steps", "5", "--adam_beta2", "0.95"]
    flags += ["--lr_scheduler_kwargs", '{"num_cycles": 0.5}', "--report_to", "wandb", "--global_batch_size", "64"]
    first = parse_pretrain([*NEEDED, *flags])
    write_config(first, tmp_path / "out" / "config.yaml")
    text = (tmp_path / "out" / "config.yaml").read_text()
    assert "transformers" in text.splitlines()[0] and "use_cpu" not in text and "adam_beta2: 0.95" in text
    again = parse_pretrain(["--config", str(tmp_path / "out" / "config.yaml")])
    assert settings_of(again) == settings_of(first)


def test_a_deepspeed_plan_that_is_absent_or_no_json_is_refused(tmp_path: Path) -> None:
    consistency.read_plan(str(ROOT / "scripts" / "zero2.json"))
    consistency.read_plan('{"zero_optimization": {"stage": 2}}')
    with pytest.raises(ConfigError, match="no such file"):
        consistency.read_plan("nowhere.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        consistency.read_plan(str(tmp_path / "plan.json"))


@pytest.mark.parametrize("flags", [["--resume_from_checkpoint", "somewhere"], ["--load_best_model_at_end", "True"]])
def test_what_stage_1_does_by_itself_or_cannot_do_is_refused(flags: list[str]) -> None:
    with pytest.raises(ConfigError):
        parse_pretrain([*NEEDED, *flags])
