"""KV transfer: a connector that matches blocks by their tokens alone would mix steered and plain caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ksteer_vllm
from ksteer_vllm import ConfigError
from ksteer_vllm.host import settings
from ksteer_vllm.host.requests import Admission, admit_into
from testbed.compare import VISIBLE
from tests.claims.matrix.cases import SPECS, prompts
from tests.support.engines import OPTIONS, generate_one, sampling, start_engine
from tests.support.oracle import Oracle

KV = "vllm.distributed.kv_transfer.kv_connector.v1"
EXAMPLE = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_producer"}
OFFLOAD = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
FOREIGN = {**OFFLOAD, "kv_connector_module_path": f"{KV}.offloading_connector"}


def several(*children: dict[str, Any]) -> dict[str, Any]:
    extra = {"connectors": list(children)}
    return {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}


def configure(model: Path, probes: dict[str, Path], transfer: dict[str, Any]) -> Any:
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import EngineArgs

    arguments = {**OPTIONS, "additional_config": ksteer_vllm.enable(probes=probes)}
    return EngineArgs(
        model=str(model), kv_transfer_config=KVTransferConfig(**transfer), **arguments
    ).create_engine_config()


@pytest.mark.parametrize(
    "transfer",
    [EXAMPLE, NIXL, FOREIGN, several(OFFLOAD, NIXL)],
    ids=["shared storage", "disaggregated prefill", "somebody's own", "one of several"],
)
def test_a_connector_that_is_not_keyed_is_refused(
    transfer: dict[str, Any], llama: Path, tiny_probes: Callable[[Path], dict[str, Path]]
) -> None:
    with pytest.raises(
        ConfigError, match=r"cannot run with KV transfer or disaggregated prefill through \w+"
    ):
        configure(llama, tiny_probes(llama), transfer)


@pytest.mark.parametrize("transfer", [OFFLOAD, several(OFFLOAD)], ids=["alone", "one of several"])
def test_a_keyed_connector_is_allowed(
    transfer: dict[str, Any], llama: Path, tiny_probes: Callable[[Path], dict[str, Path]]
) -> None:
    config = configure(llama, tiny_probes(llama), transfer)
    assert config.kv_transfer_config.kv_connector == transfer["kv_connector"]


def test_why_a_connector_that_is_not_keyed_is_refused(
    llama: Path,
    tmp_path: Path,
    tiny_probes: Callable[[Path], dict[str, Path]],
    oracle_of: Callable[[Path], Oracle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the refusal taken out, a plain request reads what a steered one left. If this fails, vLLM's
    example connector has learnt the block hashes, and may be allowed."""
    monkeypatch.setattr(settings, "_refuse_kv_transfer", lambda transfer: None)
    from vllm.config import KVTransferConfig
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    transfer = KVTransferConfig(**EXAMPLE, kv_connector_extra_config={"shared_storage_path": str(tmp_path)})
    prompt = prompts(1)[0]
    llm = start_engine(llama, tiny_probes(llama), steering={"layers": "all"}, kv_transfer_config=transfer)
    try:
        generate_one(llm, prompt, SPECS["prompt"])
        llm.reset_prefix_cache()
        plain = generate_one(llm, prompt)
    finally:
        ensure_kv_transfer_shutdown()  # the connector belongs to the process, and later engines would use it
    error, _ = oracle_of(llama)._error(prompt, plain, None)
    assert error > VISIBLE


def test_offloaded_blocks_are_keyed_by_what_was_done_to_them(
    llama: Path, tiny_probes: Callable[[Path], dict[str, Path]]
) -> None:
    """The keys vLLM's own OffloadingConnector looks up and stores under, for one prompt and several specs."""
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading import scheduler

    config = configure(llama, tiny_probes(llama), OFFLOAD)
    admission = Admission.for_engine(config)
    prompt = prompts(1, 96)[0]
    specs = [
        None,
        {"probe": "tones", "target": ["warm"], "alpha": 1, "where": "generation"},
        {"probe": "tones", "target": ["warm"], "alpha": 1, "where": "prompt"},
        {"probe": "tones", "target": ["warm"], "alpha": 2, "where": "prompt"},
        {"probe": "tones", "target": ["warm"], "alpha": 1, "where": {"prompt": [32, None]}},
    ]
    keys = [offload_keys(scheduler, admission, prompt, spec) for spec in specs]
    plain, generation, whole, stronger, later = keys
    assert all(len(each) == 3 for each in keys)
    assert generation[:2] == plain[:2]  # the last prompt token is generation index 0
    assert later[0] == plain[0]
    for index in range(3):
        assert len({whole[index], stronger[index], plain[index]}) == 3
    assert later[1] not in (plain[1], whole[1])


def offload_keys(scheduler: Any, admission: Admission, prompt: list[int], spec: Any) -> list[bytes]:
    """The keys of a request's full blocks of 32 tokens, made by the connector's own code."""
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    params = sampling(spec)
    admitted = admission.check(params, num_prompt_tokens=len(prompt))
    if admitted is not None:
        admit_into(SimpleNamespace(sampling_params=params, prompt_token_ids=prompt), admitted)
    request = Request(
        request_id="r",
        prompt_token_ids=prompt,
        sampling_params=params,
        pooling_params=None,
        block_hasher=get_request_block_hasher(32, sha256),
    )
    group_config = SimpleNamespace(hashes_per_chunk=1, group_idx=0, tokens_per_chunk=32)
    group = SimpleNamespace(offload_keys=[])
    state = SimpleNamespace(
        config=SimpleNamespace(kv_group_configs=[group_config]),
        group_states=[group],
        req=request,
        req_context=SimpleNamespace(set_offload_key_position=lambda key, position: None),
    )
    scheduler.RequestOffloadState.update_offload_keys(state)
    return list(group.offload_keys)
