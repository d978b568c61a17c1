"""Finding a spec in a request body: every spelling is found, mere mentions are not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ksteer_vllm.server.bodies import (
    CARRIERS,
    carries_spec,
    form_asks_for_steering,
    json_asks_for_steering,
    json_opts_out_beside_a_preset,
)

pytestmark = pytest.mark.pure

SPEC = {"probe": "tones", "target": ["warm"]}

CARRYING: list[Any] = [
    {"ksteer": SPEC},
    {"ksteer": "{}"},
    {"ksteer": {}},
    {"ksteer": True},
    {"ksteer": 0},
    {"ksteer": ""},
    *({carrier: {"ksteer": SPEC}} for carrier in CARRIERS),
    {"sampling_params": {"extra_args": {"ksteer": SPEC}}},
    {"requests": [{"body": {}}, {"body": {"vllm_xargs": {"ksteer": "{}"}}}]},
    [{"prompt": "a"}, {"ksteer": SPEC}],
    {"prompt": "a", "ksteer": None, "vllm_xargs": {"ksteer": "{}"}},
]

PLAIN: list[Any] = [
    {},
    [],
    None,
    "ksteer",
    7,
    {"ksteer": None},
    {"vllm_xargs": {"ksteer": None}},
    {"vllm_xargs": None, "extra_args": [], "requests": "ksteer"},
    {"prompt": '{"ksteer": {"probe": "tones"}}'},
    {"messages": [{"role": "user", "content": "ksteer", "ksteer": SPEC}]},
    {"metadata": {"ksteer": "a note"}},
    {"tools": [{"function": {"parameters": {"properties": {"ksteer": {"type": "string"}}}}}]},
    {"ksteering": SPEC},
    {"vllm_xargs": {"other": "ksteer"}},
]


def escaped(text: str) -> str:
    return text.replace("ksteer", "\\u006bst\\u0065er")


@pytest.mark.parametrize("body", CARRYING, ids=repr)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le"])
def test_a_spec_is_found(body: Any, encoding: str) -> None:
    assert carries_spec(body)
    assert json_asks_for_steering(json.dumps(body).encode(encoding))
    assert json_asks_for_steering(escaped(json.dumps(body)).encode(encoding))


@pytest.mark.parametrize("body", PLAIN, ids=repr)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_mention_is_no_spec(body: Any, encoding: str) -> None:
    assert not carries_spec(body)
    assert not json_asks_for_steering(json.dumps(body).encode(encoding))
    assert not json_asks_for_steering(escaped(json.dumps(body)).encode(encoding))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ksteer",
        b'{"ksteer": ',
        b'{"ksteer": {}',
        b"\xff\xfe\x00",
        b"ksteer\xff",
        b"1" * 5000 + b"ksteer",
    ],
)
def test_what_is_not_json_is_left_to_the_route(body: bytes) -> None:
    assert not json_asks_for_steering(body)


def test_duplicate_keys_count_as_json_reads_them() -> None:
    assert json_asks_for_steering(b'{"ksteer": null, "ksteer": {}}')
    assert not json_asks_for_steering(b'{"ksteer": {}, "ksteer": null}')


@pytest.mark.parametrize("depth", [10, 900, 1100, 100_000])
def test_depth_hides_nothing(depth: int) -> None:
    nested = "[" * depth + '{"ksteer": {}}' + "]" * depth
    assert json_asks_for_steering(nested.encode())
    assert json_asks_for_steering(f'{{"requests": {nested}}}'.encode())
    assert not json_asks_for_steering(("[" * depth + "]" * depth).encode())


@pytest.mark.parametrize(
    "fields",
    [
        [("ksteer", "{}")],
        [("file", object()), ("ksteer", "")],
        [("ksteer[probe]", "tones")],
        [("vllm_xargs[ksteer]", "{}")],
        [("vllm_xargs", '{"ksteer": "{}"}')],
        [("vllm_xargs", escaped('{"ksteer": "{}"}'))],
    ],
)
def test_a_spec_in_a_form_is_found(fields: list[tuple[str, Any]]) -> None:
    assert form_asks_for_steering(fields)


@pytest.mark.parametrize(
    "fields",
    [[], [("prompt", "ksteer")], [("file", object())], [("vllm_xargs", "ksteer")], [("vllm_xargs", object())],
     [("vllm_xargs", '{"other": "ksteer"}')], [("prompt[ksteer]", "1")]],
)  # fmt: skip
def test_a_mention_in_a_form_is_no_spec(fields: list[tuple[str, Any]]) -> None:
    assert not form_asks_for_steering(fields)


@pytest.mark.parametrize(
    "body",
    [{"ksteer": False}, {"ksteer": "false"}, {"vllm_xargs": {"ksteer": '{"preset": "none"}'}},
     {"requests": [{"ksteer": {"preset": "none"}}, {}]}],
    ids=repr,
)  # fmt: skip
def test_an_opt_out_is_no_spec_but_can_be_found(body: Any) -> None:
    text = json.dumps(body).encode()
    assert not carries_spec(body)
    assert not json_asks_for_steering(text)
    assert carries_spec(body, opt_outs=True)
    assert json_asks_for_steering(text, opt_outs=True)
    assert carries_spec([body, {"ksteer": {}}])
    assert not json_opts_out_beside_a_preset(text)
    assert json_opts_out_beside_a_preset(json.dumps({**body, "model": "tiny:warm"}).encode())


@pytest.mark.parametrize(
    ("field", "found"), [(("ksteer", "false"), False), (("vllm_xargs[ksteer]", "false"), False),
                         (("ksteer[probe]", "false"), True), (("vllm_xargs", '{"ksteer": "false"}'), False)]
)  # fmt: skip
def test_an_opt_out_in_a_form(field: tuple[str, str], found: bool) -> None:
    assert form_asks_for_steering([field]) is found
    assert form_asks_for_steering([field], opt_outs=True)
