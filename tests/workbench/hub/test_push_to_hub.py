"""`KSteering.push_to_hub`: the fitted probe on the hub, and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from ksteer_vllm import KSteering, Probe, SteeringConfig, UsageError
from tests.support.fake_hub import FakeHub, at


def test_a_fitted_probe_is_pushed_with_its_configured_strength(
    hub: FakeHub, probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = KSteering.load(probe, "no-model", steering_config=SteeringConfig(steering_strength=3.0))
    address = steering.push_to_hub("owner/tones", base_model="someone/tiny-llama", **at(hub))
    assert address.startswith(f"{hub.endpoint}/owner/tones/commit/")
    assert hub.repositories["owner/tones"]["private"]
    assert {"README.md", "probe.json", "probe.safetensors"} <= set(hub.files("owner/tones"))

    monkeypatch.setattr("ksteer_vllm.hub.transfer.pull.__kwdefaults__", {"digest": None, **at(hub)})
    again = KSteering.load(tmp_path / "pulled", repo_id="owner/tones")
    assert again.model_name == "someone/tiny-llama"
    assert again.probe.metadata.digest == Probe.load_metadata(probe).digest
    assert again.probe.metadata.default_alpha["gradient"] == 3.0


def test_nothing_is_pushed_before_a_fit(hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="fit"):
        KSteering("no-model").push_to_hub("owner/tones", **at(hub))
    assert not hub.requests
