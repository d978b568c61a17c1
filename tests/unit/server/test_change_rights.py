"""Who may change probes and presets over HTTP: nobody, unless the operator has said so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ksteer_vllm.errors import LifecycleError
from ksteer_vllm.server.endpoints.service import Service

KEY = "an admin's key"


def service(probe_dirs: tuple[str, ...], admin_key: str | None) -> Service:
    registry = SimpleNamespace(config=SimpleNamespace(probe_dirs=probe_dirs))
    engine: Any = SimpleNamespace(
        input_processor=SimpleNamespace(ksteer_admission=SimpleNamespace(registry=registry))
    )
    lifecycle: Any = None
    return Service(engine, SimpleNamespace(), lifecycle, admin_key)


@pytest.mark.parametrize("given", [None, "", KEY])
def test_a_server_nobody_opened_takes_no_change(given: str | None) -> None:
    with pytest.raises(
        LifecycleError, match="without --ksteer-probe-dir and --ksteer-admin-key-file"
    ) as refusal:
        service((), None).check_admin(given)
    assert refusal.value.status == 403


@pytest.mark.parametrize("given", [None, KEY])
def test_a_probe_directory_alone_opens_it_to_every_client(given: str | None) -> None:
    service(("probes",), None).check_admin(given)


@pytest.mark.parametrize("probe_dirs", [(), ("probes",)])
@pytest.mark.parametrize("given", [None, "", "another", KEY + " ", "ä"])
def test_with_an_admin_key_only_its_holder_may(probe_dirs: tuple[str, ...], given: str | None) -> None:
    guarded = service(probe_dirs, KEY)
    guarded.check_admin(KEY)
    with pytest.raises(LifecycleError, match="missing or wrong") as refusal:
        guarded.check_admin(given)
    assert refusal.value.status == 403
