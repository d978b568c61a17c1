"""A spec's way from an OpenAI request into sampling parameters, on vLLM's own request classes."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("vllm")

SPEC = {"probe": "tones", "target": ["warm"]}
REQUESTS = ["completion", "chat"]


@pytest.fixture(scope="module", autouse=True)
def patched() -> None:
    from ksteer_vllm.host.ledger import apply
    from ksteer_vllm.server.seams import HTTP

    apply(HTTP)


def request_of(kind: str, **fields: Any) -> Any:
    if kind == "completion":
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

        return CompletionRequest.model_validate({"model": "m", "prompt": "a", **fields})
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest.model_validate({"model": "m", "messages": [], **fields})


def extra_args(request: Any) -> Any:
    return request.to_sampling_params(4, {}).extra_args


@pytest.mark.parametrize("kind", REQUESTS)
def test_both_spellings_reach_extra_args(kind: str) -> None:
    assert extra_args(request_of(kind, ksteer=SPEC)) == {"ksteer": SPEC}
    text = json.dumps(SPEC)
    assert extra_args(request_of(kind, vllm_xargs={"ksteer": text})) == {"ksteer": text}


@pytest.mark.parametrize("kind", REQUESTS)
def test_other_xargs_stay_and_the_request_is_not_changed(kind: str) -> None:
    request = request_of(kind, ksteer=SPEC, vllm_xargs={"mine": 1})
    assert extra_args(request) == {"mine": 1, "ksteer": SPEC}
    assert request.vllm_xargs == {"mine": 1}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_plain_request_is_vllms_own(kind: str) -> None:
    for fields in ({}, {"ksteer": None}, {"other": {"ksteer": SPEC}}):
        assert not extra_args(request_of(kind, **fields))
    assert extra_args(request_of(kind, vllm_xargs={"mine": 1})) == {"mine": 1}


@pytest.mark.parametrize("kind", REQUESTS)
def test_given_twice_or_where_nobody_reads_it(kind: str) -> None:
    from ksteer_vllm.host.requests import AdmissionError

    for fields in (
        {"ksteer": SPEC, "vllm_xargs": {"ksteer": "{}"}},
        {"extra_body": {"ksteer": SPEC}},
        {"extra_args": {"ksteer": SPEC}, "ksteer": SPEC},
    ):
        with pytest.raises(AdmissionError, match=r"^ksteer: "):
            extra_args(request_of(kind, **fields))


@pytest.mark.parametrize("kind", REQUESTS)
def test_beam_search_refuses(kind: str) -> None:
    from ksteer_vllm.host.requests import AdmissionError

    for fields in ({"ksteer": SPEC}, {"vllm_xargs": {"ksteer": "{}"}}):
        with pytest.raises(AdmissionError, match="beam search"):
            request_of(kind, use_beam_search=True, **fields).to_beam_search_params(4, {})
    assert request_of(kind, use_beam_search=True).to_beam_search_params(4, {}).max_tokens == 4


def test_the_refusal_is_vllms_validation_error_and_a_value_error() -> None:
    from vllm.exceptions import VLLMValidationError

    from ksteer_vllm.errors import SpecError
    from ksteer_vllm.host.requests import AdmissionError

    error = AdmissionError.of(SpecError("alpha", "must be finite, got nan"))
    assert isinstance(error, VLLMValidationError)
    assert isinstance(error, ValueError)
    assert str(error) == "ksteer.alpha: must be finite, got nan"
    assert error.parameter == "ksteer.alpha"
    assert AdmissionError.of(SpecError("target.\ud800", "unknown label")).parameter == "ksteer.target.?"


def test_prompt_lengths() -> None:
    import numpy
    import torch
    from vllm.v1.engine import EngineCoreRequest

    from ksteer_vllm.host.requests import prompt_length

    class Request:
        prompt_token_ids = None
        prompt_embeds = torch.zeros(4, 8)

    assert {"prompt_token_ids", "prompt_embeds"} <= set(EngineCoreRequest.__struct_fields__)
    for prompt, length in [
        ({"prompt_token_ids": [1, 2]}, 2),
        ({"type": "token", "prompt_token_ids": (1, 2, 3), "prompt": "a b c"}, 3),
        ({"prompt_token_ids": numpy.arange(5)}, 5),
        ({"type": "embeds", "prompt_embeds": torch.zeros(7, 8)}, 7),
        ({"type": "enc_dec", "encoder_prompt": {}, "decoder_prompt": {"prompt_token_ids": [1]}}, 1),
        ({"prompt_token_ids": []}, 0),
        ([1, 2, 3], 3),
        (Request(), 4),
        ({"prompt": "a b"}, None),
        ("a b", None),
        (object(), None),
    ]:
        assert prompt_length(prompt) == length, prompt
