"""vLLM's gRPC server: refused at start-up by name, since its requests have no place for a spec."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("vllm")

from ksteer_vllm.errors import ConfigError
from tests.server.http.parsing import engine_additional_config

REFUSAL = r"steering cannot run with vLLM's gRPC server \(--grpc\)"


def test_the_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match=REFUSAL):
        engine_additional_config("--plugin", "ksteer", "--grpc")


def test_so_is_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m vllm.entrypoints.grpc_server` has no such flag."""
    monkeypatch.setattr(sys.modules["__main__"], "serve_grpc", None, raising=False)
    with pytest.raises(ConfigError, match=REFUSAL):
        engine_additional_config("--plugin", "ksteer")


def test_a_plain_grpc_server_is_left_alone() -> None:
    assert not engine_additional_config("--grpc")
