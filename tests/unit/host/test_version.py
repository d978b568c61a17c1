"""The version guard and the ledger of patches."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from packaging.version import Version

from ksteer_vllm import HostVersionError
from ksteer_vllm.host import ledger, runner_v2
from ksteer_vllm.host.ledger import Patch, apply, missing
from ksteer_vllm.host.version import OLDEST, TESTED_RANGE, check_version, require_methods, vllm_version


@pytest.mark.parametrize("version", ["0.25.0", "0.25.9+cpu", "0.9.2", "0.26.0rc1.dev5"])
def test_an_older_vllm_is_refused(version: str) -> None:
    if Version(Version(version).base_version) >= OLDEST:
        assert check_version(Version(version))
        return
    with pytest.raises(HostVersionError, match=f"needs vLLM {OLDEST} .*{TESTED_RANGE}.*found {version[:4]}"):
        check_version(Version(version))


@pytest.mark.parametrize("version", ["0.26.0", "0.26.1+cu130", "0.27.1+cpu", "0.32.0", "0.32.9"])
def test_the_tested_range(version: str, heard: list[str]) -> None:
    assert check_version(Version(version))
    assert not heard


@pytest.mark.parametrize("version", ["0.33.0", "0.33.0.dev3", "1.0"])
def test_a_newer_vllm_is_warned_about(version: str, heard: list[str]) -> None:
    assert not check_version(Version(version))
    (message,) = heard
    assert TESTED_RANGE in message
    assert version in message


def test_the_installed_vllm_is_in_the_range() -> None:
    assert vllm_version() >= OLDEST


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module to patch, which counts how often its functions were wrapped."""
    module = ModuleType("host_of_the_ledger_test")
    module.__spec__ = sys.modules[__name__].__spec__

    class Thing:
        def method(self, value: int) -> int:
            return value

        @classmethod
        def of_class(cls, value: int) -> int:
            return value

        @staticmethod
        def alone(value: int) -> int:
            return value

    class Heir(Thing):
        pass

    module.Thing, module.Heir, module.function = Thing, Heir, lambda value: value  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def plus_one(original: Any) -> Any:
    return lambda *args: original(*args) + 1


def patch(*targets: str) -> Patch:
    return Patch(tuple(f"host_of_the_ledger_test:{target}" for target in targets), plus_one, "why", "when")


def test_every_kind_of_symbol_is_replaced_once(host: Any) -> None:
    patches = [patch(name) for name in ("function", "Thing.method", "Thing.of_class", "Thing.alone")]
    apply(patches)
    apply(patches)
    assert host.function(1) == 2
    assert (host.Thing().method(1), host.Thing.of_class(1), host.Thing.alone(1)) == (2, 2, 2)


def test_two_patches_of_one_symbol_are_both_applied_once(host: Any) -> None:
    def doubled(original: Any) -> Any:
        return lambda *args: original(*args) * 2

    patches = [patch("function"), Patch(("host_of_the_ledger_test:function",), doubled, "why", "when")]
    apply(patches)
    apply(patches)
    assert host.function(1) == 4


def test_of_several_spellings_those_there_are_replaced(host: Any) -> None:
    other = Patch(
        ("no_such_package.module:name", "host_of_the_ledger_test:function"), plus_one, "why", "when"
    )
    assert missing([other]) == []
    apply([other])
    assert host.function(1) == 2


@pytest.mark.parametrize(
    "target",
    [
        "no_such_package:f",
        "no_such_package.module:f",
        "host_of_the_ledger_test:gone",
        "host_of_the_ledger_test:Thing.gone",
        "host_of_the_ledger_test:Gone.method",
        "host_of_the_ledger_test:Heir.method",
    ],
)
def test_a_missing_seam_is_named_and_nothing_is_replaced(host: Any, target: str) -> None:
    lost = Patch((target, "also.not:there"), plus_one, "why", "when")
    with pytest.raises(HostVersionError) as refusal:
        apply([patch("function"), lost])
    assert f"{target} or also.not:there" in str(refusal.value)
    assert TESTED_RANGE in str(refusal.value)
    assert host.function(1) == 1


def test_the_real_ledger_is_complete_here_and_says_why() -> None:
    from ksteer_vllm.host.seams import ENGINE
    from ksteer_vllm.server.seams import HTTP, LAUNCH

    assert missing([*ENGINE, *LAUNCH, *HTTP]) == []
    for entry in (*ENGINE, *LAUNCH, *HTTP):
        assert entry.why
        assert entry.delete_when
        assert all(":" in target and target.startswith("vllm.") for target in entry.targets)


def test_a_vllm_without_a_seam_stops_the_plugin_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start-up self-check, as vLLM runs it through the entry point."""
    from vllm.v1.core import kv_cache_utils

    from ksteer_vllm.plugin import register

    monkeypatch.delattr(kv_cache_utils, "generate_block_hash_extra_keys")
    with pytest.raises(HostVersionError, match=r"kv_cache_utils:generate_block_hash_extra_keys"):
        register()


def test_a_class_without_a_method_that_is_overridden_is_refused() -> None:
    """An override of a method vLLM no longer calls would leave requests unsteered without a word."""

    class ModelState:
        def add_request(self) -> None: ...

    require_methods(ModelState, ["add_request"])
    with pytest.raises(HostVersionError, match=r"ModelState lacks prepare_inputs, remove_request; tested"):
        require_methods(ModelState, ["add_request", "prepare_inputs", "remove_request"])


@pytest.mark.parametrize("name", ["add_request", "remove_request", "prepare_inputs", "prepare_dummy_inputs"])
def test_the_v2_runners_state_has_what_is_overridden(name: str) -> None:
    class Complete:
        def add_request(self) -> None: ...
        def remove_request(self) -> None: ...
        def prepare_inputs(self) -> None: ...
        def prepare_dummy_inputs(self) -> None: ...

    lacking = type("Lacking", (), {k: v for k, v in vars(Complete).items() if k != name and k[0] != "_"})
    runner_v2.hook(SimpleNamespace(model_state=Complete()), Mock())
    with pytest.raises(HostVersionError, match=f"Lacking lacks {name}"):
        runner_v2.hook(SimpleNamespace(model_state=lacking()), Mock())


def test_registering_twice_wraps_once() -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    from ksteer_vllm.plugin import register

    register()
    first = InputProcessor.process_inputs
    register()
    assert InputProcessor.process_inputs is first
    assert getattr(first, ledger._MARK)
