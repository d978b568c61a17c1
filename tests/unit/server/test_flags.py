"""`--plugin ksteer` and `--ksteer-*` in vLLM's own parser, without starting an engine."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.server.http.parsing import engine_additional_config, serve_flags, serve_parser

FLAGS = (
    "--plugin", "--ksteer-probe", "--ksteer-layers", "--ksteer-max-probes", "--ksteer-max-width",
    "--ksteer-max-steps", "--ksteer-max-stages", "--no-ksteer-reports", "--ksteer-decoder",
    "--ksteer-kernels", "--ksteer-presets", "--ksteer-default", "--ksteer-probe-dir",
    "--ksteer-admin-key-file", "--ksteer-max-stack", "--ksteer-max-request-layers",
    "--ksteer-max-spec-bytes", "--ksteer-max-slots", "--ksteer-max-labels",
)  # fmt: skip
OTHER = ("--additional-config", '{"other": 1, "more": {"deep": [2]}}')
PLUGIN = ("--plugin", "ksteer")
PROBE = ("--ksteer-probe", "tones=/probes/tones")


def steering(*arguments: str) -> dict[str, Any]:
    return engine_additional_config(*arguments)["ksteer"]


def test_defaults_are_those_of_enable() -> None:
    import ksteer_vllm

    assert engine_additional_config(*PLUGIN) == ksteer_vllm.enable()
    assert engine_additional_config(*PROBE) == ksteer_vllm.enable(probes={"tones": "/probes/tones"})


def test_without_our_flags_nothing_changes() -> None:
    assert not engine_additional_config()
    assert engine_additional_config(*OTHER) == json.loads(OTHER[1])


@pytest.mark.parametrize("order", itertools.permutations([OTHER, PLUGIN, PROBE, ("--ksteer-layers", "2,1")]))
def test_any_order_beside_additional_config(order: tuple[tuple[str, ...], ...]) -> None:
    config = engine_additional_config(*itertools.chain.from_iterable(order))
    assert config.pop("ksteer")["layers"] == [1, 2]
    assert config == json.loads(OTHER[1])
    json.dumps(config)


def test_dotted_additional_config_goes_along() -> None:
    config = engine_additional_config("--additional-config.other", "1", *PROBE)
    assert config["other"] == 1
    assert config["ksteer"]["probes"] == {"tones": {"path": "/probes/tones"}}


def test_flags_extend_what_additional_config_says() -> None:
    given = json.dumps({"ksteer": {"probes": {"moods": "/probes/moods"}, "max_steps": 9, "max_probes": 3}})
    config = steering("--ksteer-max-steps", "7", "--additional-config", given, *PROBE)
    assert set(config["probes"]) == {"moods", "tones"}
    assert (config["max_steps"], config["max_probes"]) == (7, 3)
    assert steering("--additional-config", given, "--ksteer-layers", "all")["layers"] == "all"


@pytest.mark.parametrize(
    ("text", "layers"), [("all", "all"), ("probe", "probe"), ("1,2", [1, 2]), ("7", [7]), ("3,1,3", [1, 3])]
)
def test_layers(text: str, layers: Any) -> None:
    assert steering(*PLUGIN, "--ksteer-layers", text)["layers"] == layers
    assert steering(*PLUGIN, f"--ksteer-layers={text}")["layers"] == layers


def test_every_flag_reaches_the_configuration() -> None:
    config = steering(
        *PLUGIN, *PLUGIN, *PROBE, "--ksteer-probe", "moods=rel/a=b", "--ksteer-max-probes", "4",
        "--ksteer-max-width", "512", "--ksteer-max-steps", "32", "--ksteer-max-stages", "5",
        "--no-ksteer-reports", "--ksteer-decoder", "model.stack", "--ksteer-kernels", "torch",
    )  # fmt: skip
    assert {name: source["path"] for name, source in config["probes"].items()} == {
        "tones": "/probes/tones",
        "moods": "rel/a=b",
    }
    assert (config["max_probes"], config["max_width"], config["max_steps"]) == (4, 512, 32)
    assert (config["max_stages"], config["reports"]) == (5, False)
    assert (config["decoder"], config["kernels"]) == ("model.stack", "torch")


def test_limits_and_presets_reach_the_configuration(tmp_path: Path) -> None:
    presets = tmp_path / "presets.yaml"
    presets.write_text("warm: {probe: tones, target: [warm]}\n")
    (tmp_path / "link").symlink_to(tmp_path / "probes")
    (tmp_path / "probes").mkdir()
    (tmp_path / "key").write_text(" secret\n")
    given = json.dumps({"ksteer": {"presets": {"cold": {"probe": "tones", "target": ["cold"]}}}})
    arguments = (
        *PROBE, "--ksteer-presets", str(presets), "--ksteer-default", "warm", "--additional-config", given,
        "--ksteer-probe-dir", str(tmp_path / "link"), "--ksteer-probe-dir", str(tmp_path),
        "--ksteer-admin-key-file", str(tmp_path / "key"), "--ksteer-max-stack", "3",
        "--ksteer-max-request-layers", "4", "--ksteer-max-spec-bytes", "500", "--ksteer-max-slots", "6",
        "--ksteer-max-labels", "7",
    )  # fmt: skip
    config = steering(*arguments)
    assert set(config["presets"]) == {"warm", "cold"}
    assert config["default"] == "warm"
    assert config["probe_dirs"] == [str((tmp_path / "probes").resolve()), str(tmp_path.resolve())]
    limits = ("max_stack", "max_request_layers", "max_spec_bytes", "max_slots", "max_labels")
    assert [config[name] for name in limits] == [3, 4, 500, 6, 7]
    assert "key" not in json.dumps(config)
    parsed = serve_parser().parse_args(["tiny", *arguments])
    assert parsed.ksteer_admin_key_file == str((tmp_path / "key").resolve())
    assert "secret" not in repr(parsed)


@pytest.mark.parametrize(
    ("flag", "content", "says"),
    [
        ("--ksteer-presets", None, "cannot read"),
        ("--ksteer-presets", "warm: 3", "preset 'warm': ksteer: expected a spec"),
        ("--ksteer-probe-dir", None, "not a directory"),
        ("--ksteer-probe-dir", "a file", "not a directory"),
        ("--ksteer-admin-key-file", None, "cannot read"),
        ("--ksteer-admin-key-file", " \n", "is empty"),
    ],
)
def test_files_and_directories_that_will_not_do(
    tmp_path: Path, flag: str, content: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "given"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        serve_parser().parse_args(["tiny", *PLUGIN, flag, str(path)])
    error = capsys.readouterr().err.rpartition("error: ")[2]
    assert flag in error
    assert says in error


def test_reports_are_on_unless_turned_off_somewhere() -> None:
    off = ("--additional-config", '{"ksteer": {"reports": false}}')
    assert steering(*PLUGIN)["reports"] is True
    assert steering(*off)["reports"] is False
    assert steering(*off, *PLUGIN)["reports"] is False
    assert steering("--no-ksteer-reports", *PROBE)["reports"] is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--plugin", "kster"), ("--plugin", "kster", "ksteer")),
        (("--ksteer-probe", "tones"), ("--ksteer-probe", "NAME=FOLDER", "'tones'")),
        (("--ksteer-probe", "=folder"), ("--ksteer-probe", "NAME=FOLDER")),
        (("--ksteer-probe", "tones="), ("--ksteer-probe", "NAME=FOLDER")),
        (("--ksteer-layers", "some"), ("--ksteer-layers", "probe, all or a list", "'some'")),
        (("--ksteer-layers", "1,-2"), ("--ksteer-layers", "count from 0", "-2")),
        (("--ksteer-layers", ""), ("--ksteer-layers", "probe, all or a list")),
        (("--ksteer-max-steps", "0"), ("--ksteer-max-steps", "greater than or equal to 1", "'0'")),
        (("--ksteer-max-steps", "many"), ("--ksteer-max-steps", "valid integer", "'many'")),
        (("--ksteer-max-probes", "100000"), ("--ksteer-max-probes", "less than or equal to 4096")),
        (("--ksteer-max-width", "2.5"), ("--ksteer-max-width", "valid integer")),
        (("--ksteer-max-stages", "0"), ("--ksteer-max-stages", "greater than or equal to 1", "'0'")),
        (("--ksteer-max-stages", "65"), ("--ksteer-max-stages", "less than or equal to 64")),
        (("--no-ksteer-reports=1",), ("--no-ksteer-reports",)),
        (("--ksteer-kernels", "cuda"), ("--ksteer-kernels", "cuda", "triton")),
        (("--ksteer-strength", "1"), ("unrecognized arguments", "--ksteer-strength")),
    ],
)
def test_bad_values_are_usage_errors(
    arguments: tuple[str, ...], says: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        serve_parser().parse_args(["tiny", *PLUGIN, *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err.rpartition("error: ")[2]
    assert all(words in error for words in says), error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--ksteer-layers", "all"), "--ksteer-layers needs --plugin ksteer"),
        (("--ksteer-max-steps", "8"), "--ksteer-max-steps needs --plugin ksteer"),
        (("--ksteer-max-stages", "3"), "--ksteer-max-stages needs --plugin ksteer"),
        (("--no-ksteer-reports",), "--no-ksteer-reports needs --plugin ksteer"),
        (("--ksteer-kernels", "torch", *OTHER), "--ksteer-kernels needs --plugin ksteer"),
        (("--ksteer-default", "warm"), "--ksteer-default needs --plugin ksteer"),
        (("--ksteer-probe-dir", "."), "--ksteer-probe-dir needs --plugin ksteer"),
        ((*PLUGIN, "--ksteer-default", "warm"), "default: no preset named 'warm'; available: none"),
        ((*PROBE, "--ksteer-probe", "tones=other"), "--ksteer-probe: tones is given twice"),
        (
            (*PROBE, "--ksteer-probe", "b=c", "--ksteer-max-probes", "1"),
            "max_probes: at most 1 probes, got 2",
        ),
        (
            (*PLUGIN, "--additional-config", '{"ksteer": {"strength": 1}}'),
            "strength: unknown; allowed: probes",
        ),
    ],
)
def test_flags_that_do_not_go_together(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        serve_parser().parse_args(["tiny", *arguments])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err.rpartition("error: ")[2]


def test_parsed_arguments_carry_the_configuration_themselves() -> None:
    """Other processes of vLLM read them before the plugin is loaded there."""
    parsed = serve_parser().parse_args(["tiny", *PLUGIN, *OTHER, *PROBE])
    assert parsed.additional_config == engine_additional_config(*PLUGIN, *OTHER, *PROBE)
    assert set(parsed.additional_config) == {"other", "more", "ksteer"}


def test_the_rust_front_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would send requests to the engine past every check."""
    import vllm.envs  # set there and not in the environment, which vLLM reads once per process

    from ksteer_vllm.errors import ConfigError

    monkeypatch.setattr(vllm.envs, "VLLM_USE_RUST_FRONTEND", True, raising=False)
    with pytest.raises(ConfigError, match="Rust front end"):
        engine_additional_config(*PLUGIN)
    assert engine_additional_config(*OTHER) == json.loads(OTHER[1])


def test_flags_are_added_once_and_vllms_own_stay() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from ksteer_vllm.server.flags import add_flags

    assert set(FLAGS) <= serve_flags()
    parser = FlexibleArgumentParser()
    for _ in range(2):
        parser = add_flags(parser)
    AsyncEngineArgs.add_cli_args(parser)
    assert "--additional-config" in parser._option_string_actions


def test_help_describes_every_flag() -> None:
    text = serve_parser().format_help()
    for flag in FLAGS:
        assert flag in text
