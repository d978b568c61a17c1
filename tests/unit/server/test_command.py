"""What a steered `vllm serve` cannot start with: one line that says what to do, and exit status 2."""

from __future__ import annotations

import errno
import json
import pickle
import socket
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from ksteer_vllm.demo import MODEL_DIR
from ksteer_vllm.errors import ConfigError
from ksteer_vllm.server.command import end_in_one_line
from testbed.probes import random_probe
from tests.server.http.parsing import serve_parser

RAN: list[Namespace] = []


def serves(args: Namespace) -> None:
    RAN.append(args)


def binds_a_taken_port(args: Namespace) -> None:
    with socket.socket() as taken, socket.socket() as other:
        taken.bind(("127.0.0.1", 0))
        other.bind(taken.getsockname())


def meets_another_model(args: Namespace) -> None:
    raise ConfigError("probe 'tones' was fitted on 'tiny'\nwith hidden_size 32")


@pytest.fixture
def probe(tmp_path: Path) -> str:
    return str(random_probe().save(tmp_path / "tones"))


def parsed(*arguments: str, model: str = str(MODEL_DIR), command: Any = serves) -> Namespace:
    """The arguments of `vllm serve`, with the function that its parser leaves in them."""
    parser = serve_parser()
    parser.set_defaults(dispatch_function=command)
    try:
        return parser.parse_args([model, *arguments])
    finally:
        del parser._defaults["dispatch_function"]


def line_of(args: Namespace, capsys: pytest.CaptureFixture[str]) -> str:
    RAN.clear()
    with pytest.raises(SystemExit) as left:
        args.dispatch_function(args)
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("ksteer: ")
    assert printed.count("\n") == 1
    return printed.removeprefix("ksteer: ").rstrip("\n")


def test_a_command_that_can_start_runs(probe: str) -> None:
    RAN.clear()
    args = parsed("--ksteer-probe", f"tones={probe}")
    for given in (args, pickle.loads(pickle.dumps(args))):  # as they reach further API servers
        given.dispatch_function(given)
    assert len(RAN) == 2
    assert parsed().dispatch_function is serves, "without steering the command is vLLM's own"


def test_folders_that_are_missing_end_before_anything_runs(
    probe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "absent")
    said = line_of(parsed("--ksteer-probe", f"tones={absent}"), capsys)
    assert said.startswith(
        f"probe 'tones': {absent}/probe.json: No such file or directory; a probe folder is"
    )
    said = line_of(parsed("--ksteer-probe", f"tones={probe}", model=absent), capsys)
    assert said == f"model {absent}: no such folder"
    assert not RAN


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"probe": "tone"}, "ksteer.probe: no probe named 'tone'; loaded: tones; did you mean 'tones'?"),
        ({"target": ["warn"]}, "ksteer.target.warn: unknown label 'warn'; probe 'tones' has: warm, "),
        ({"metric": "covariance"}, "ksteer.metric: "),
    ],
)  # fmt: skip
def test_presets_are_checked_against_the_probes(
    spec: dict[str, Any], says: str, probe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "presets.yaml"
    file.write_text(json.dumps({"mine": {"probe": "tones", "target": ["warm"], "alpha": 1, **spec}}))
    said = line_of(parsed("--ksteer-probe", f"tones={probe}", "--ksteer-presets", str(file)), capsys)
    assert said.startswith(f"preset 'mine': {says}")
    assert not RAN


def test_what_ends_the_command_itself_is_one_line_too(probe: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--ksteer-probe", f"tones={probe}")
    said = line_of(parsed(*flags, command=meets_another_model), capsys)
    assert said == "probe 'tones' was fitted on 'tiny' with hidden_size 32"
    said = line_of(parsed(*flags, "--port", "8123", command=binds_a_taken_port), capsys)
    assert said == "0.0.0.0:8123: another process listens there; stop it, or choose another --port"


def test_other_errors_keep_their_traceback(probe: str) -> None:
    def breaks(args: Namespace) -> None:
        raise OSError(errno.EIO, "Input/output error")

    args = parsed("--ksteer-probe", f"tones={probe}", command=breaks)
    with pytest.raises(OSError, match="Input/output"):
        args.dispatch_function(args)
    end_in_one_line(Namespace())  # vLLM's module form has no command in its arguments
