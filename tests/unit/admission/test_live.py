"""What an engine's front end admits while probes and presets change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm.admission.live import LiveRegistry
from ksteer_vllm.admission.runnable import RunnableEdit
from ksteer_vllm.config import ResolvedConfig
from ksteer_vllm.errors import ConfigError, SpecError
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.probes.probe import Probe

ConfigOf = Callable[..., ResolvedConfig]
WARM = {"probe": "a", "target": ["warm"]}


def metadata(directory: Path, name: str) -> ProbeMetadata:
    return Probe.load_metadata(directory / name)


def publish(live: LiveRegistry, catalog: Any) -> None:
    assert live.store.try_lock()
    live.store.publish(catalog)
    live.store.unlock()


def edits(live: LiveRegistry, spec: Any) -> tuple[RunnableEdit, ...]:
    admitted = live.current.admit(spec)
    assert admitted is not None
    return admitted.edits


def digest_of(live: LiveRegistry, spec: Any) -> str:
    return edits(live, spec)[0].digest


def test_a_name_is_the_new_probe_from_one_moment_on(config_of: ConfigOf, directory: Path) -> None:
    live = LiveRegistry(config_of())
    old = digest_of(live, WARM)
    assert old == metadata(directory, "first").digest
    admitted = live.current.admit(WARM).for_request(4, 4)  # type: ignore[union-attr]
    publish(live, live.store.read().with_probe("a", metadata(directory, "second")))
    assert digest_of(live, WARM) == metadata(directory, "second").digest
    assert live.labels(admitted.digests) == {old: ("warm", "cold", "dry")}
    publish(live, live.store.read().without_retiring(old))
    publish(live, live.store.read().without_probe("a"))
    with pytest.raises(SpecError, match="no probe named 'a'"):
        live.current.admit(WARM)


def test_the_fingerprint_follows_the_probe_so_the_prefix_cache_cannot_mix_them(
    config_of: ConfigOf, directory: Path
) -> None:
    live = LiveRegistry(config_of())
    before = live.current.admit(WARM)
    publish(live, live.store.read().with_probe("a", metadata(directory, "second")))
    after = live.current.admit(WARM)
    assert before is not None
    assert after is not None
    assert [edit.canonical for edit in before.edits] == [edit.canonical for edit in after.edits]
    assert before.edits[0].fingerprint != after.edits[0].fingerprint


def test_an_admission_under_way_keeps_its_generation_open(config_of: ConfigOf) -> None:
    live = LiveRegistry(config_of())
    with live.admitting():
        publish(live, live.store.read().with_presets({"warm": WARM}))
        assert not live.settled(1)
        with live.admitting():
            assert not live.settled(1)
        assert not live.settled(1)
    assert live.settled(1)
    with live.admitting():
        assert live.settled(1)
        assert not live.settled(2)


def test_presets_come_and_go(config_of: ConfigOf) -> None:
    live = LiveRegistry(config_of(presets={"warm": WARM}))
    assert edits(live, {"preset": "warm"}) == edits(live, WARM)
    assert edits(live, {"preset": "warm", "alpha": 3.0}) == edits(live, {**WARM, "alpha": 3.0})
    publish(live, live.store.read().with_presets({}))
    with pytest.raises(SpecError, match="no preset named 'warm'"):
        live.current.admit({"preset": "warm"})


def test_presets_and_the_default_are_checked_at_start_up(config_of: ConfigOf) -> None:
    with pytest.raises(ConfigError, match=r"preset 'bad'.*target\.hot.*warm, cold, dry"):
        LiveRegistry(config_of(presets={"bad": {**WARM, "target": ["hot"]}}))
    with pytest.raises(ConfigError, match=r"default.*'absent'.*warm"):
        LiveRegistry(config_of(presets={"warm": WARM}, default="absent"))
    live = LiveRegistry(config_of(presets={"warm": WARM}, default="warm"))
    assert live.current.default is not None
    assert live.current.default.edits == edits(live, WARM)
    for opt_out in (False, {"preset": "none"}, '{"preset": "none"}'):
        assert live.current.admit(opt_out) is None
