"""The HTTP surface under schemathesis: the server's own description of it, against the server.

Our routes as they are described; the two steered routes with what vLLM takes held fixed and what is ours,
`ksteer` and `vllm_xargs`, drawn from its schema, beside it, and from everything that JSON can say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from testbed.compare import assert_same
from testbed.replies import CHAT, COMPLETIONS, MESSAGES, PROMPT, reply_of, request_body
from testbed.serving import MODEL_NAME
from tests.claims.robust.conftest import Deployment

pytestmark = pytest.mark.slow

EXAMPLES = 30
"""Of each operation; the whole file sends about a thousand requests."""
QUIET = settings(
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
    derandomize=True,  # a new find belongs into a test of its own, not into one run of ten
)
OURS = "/v1/ksteer"
ANYTHING: dict[str, Any] = {}
NAMES = {"type": "string", "pattern": r"^[a-z0-9]{1,3}$|^\.\.?$|^[\x01-\x2c\x3a-\x7e]{1,20}$|^none$"}


def steered_body(spec: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The schema of a request in which only what is ours varies."""
    fixed = {
        name: {"const": value} for name, value in {"model": MODEL_NAME, "max_tokens": 2, **fields}.items()
    }
    ours = {
        "ksteer": {"anyOf": [spec, {"type": "object", "additionalProperties": True}, ANYTHING]},
        "vllm_xargs": {"anyOf": [{"type": "object", "properties": {"ksteer": {"type": "string"}}}, ANYTHING]},
        "stream": {"type": "boolean"},
        "n": {"enum": [1, 2]},
        "user": {"type": "string"},
    }
    return {"type": "object", "properties": {**fixed, **ours}, "required": [*fixed, "ksteer"]}


def restricted(document: dict[str, Any]) -> dict[str, Any]:
    """The server's description, with our routes and the two that are steered."""
    paths = {path: item for path, item in document["paths"].items() if path.startswith(OURS)}
    assert {OURS, f"{OURS}/probes", f"{OURS}/probes/{{name}}", f"{OURS}/presets/{{name}}"} <= set(paths)
    spec = paths[f"{OURS}/presets/{{name}}"]["put"]["requestBody"]["content"]["application/json"]["schema"]
    for path, item in paths.items():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "name":
                    parameter["schema"] = NAMES
            assert operation["responses"], path
    for path, fields in ((COMPLETIONS, {"prompt": PROMPT}), (CHAT, {"messages": MESSAGES})):
        operation = document["paths"][path]["post"]
        content = {"application/json": {"schema": steered_body(spec, **fields)}}
        operation["requestBody"] = {"required": True, "content": content}
        paths[path] = {"post": operation}
    return {**document, "paths": paths}


@pytest.fixture(scope="session")
def api(deployment: Deployment) -> Any:
    url = deployment.first.url
    document = httpx.get(f"{url}/openapi.json", timeout=60).raise_for_status().json()
    schema = schemathesis.openapi.from_dict(restricted(document))
    schema.config.update(base_url=url)
    return schema


def names(deployment: Deployment, kind: str) -> set[str]:
    return set(httpx.get(f"{deployment.first.url}{OURS}", timeout=60).raise_for_status().json()[kind])


@pytest.fixture(scope="module")
def needed(deployment: Deployment) -> set[str]:
    """Names of probes and presets that other tests on these servers rely on."""
    return names(deployment, "probes") | names(deployment, "presets")


@pytest.fixture(scope="module", autouse=True)
def _unharmed(deployment: Deployment) -> Iterator[None]:
    """Known plain and steered requests are answered the same before and after, by the same probes; the log
    has no traceback."""
    first = deployment.first

    def replies() -> list[Any]:
        found = []
        with httpx.Client(base_url=first.url, timeout=60) as client:
            for path in (COMPLETIONS, CHAT):
                for fields in ({}, {"ksteer": {"preset": "warm"}}):
                    response = client.post(path, json=request_body(path, **fields))
                    assert response.status_code == 200, response.text
                    found.append(reply_of(path, response.json()["choices"]))
        return found

    before, logged = replies(), len(first.log)
    probes, presets = names(deployment, "probes"), names(deployment, "presets")
    yield
    for name in names(deployment, "presets") - presets:  # else the replicas would differ, as others see
        gone = httpx.delete(f"{first.url}{OURS}/presets/{quote(name, safe='')}", timeout=60)
        assert gone.status_code == 200
    assert names(deployment, "presets") == presets
    assert names(deployment, "probes") == probes
    for old, new in zip(before, replies(), strict=True):
        assert_same(old, new)
    new_lines = first.log[logged:]
    assert "Traceback" not in new_lines, new_lines[-6000:]
    assert " ERROR " not in new_lines, new_lines[-6000:]


@schemathesis.check
def errors_have_vllms_shape(_: Any, response: Any, case: Any) -> None:
    """{"error": {"message", "type", "param", "code"}}; 5xx only as 503 with Retry-After."""
    status = response.status_code
    if status == 503:
        assert re.fullmatch(r"\d+", response.headers["retry-after"][0])
    else:
        assert status < 500, response.text
    if status < 400 or status == 405:  # 405 is Starlette's own
        return
    answer = response.json()
    if not case.operation.path.startswith(OURS) and "detail" in answer:
        return  # vLLM's routes leave a body that is no text to FastAPI
    error = answer["error"]
    assert {"message", "type", "param", "code"} <= set(error), error
    assert error["code"] == status
    assert isinstance(error["message"], str)
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert "/loadable" not in error["message"], "a path of the server's"


DESCRIBED = ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
OPERATIONS = [
    ("GET", OURS), ("GET", f"{OURS}/probes"), ("POST", f"{OURS}/probes"),
    ("GET", f"{OURS}/probes/{{name}}"), ("POST", f"{OURS}/probes/{{name}}"),
    ("DELETE", f"{OURS}/probes/{{name}}"), ("GET", f"{OURS}/presets"), ("GET", f"{OURS}/presets/{{name}}"),
    ("PUT", f"{OURS}/presets/{{name}}"), ("DELETE", f"{OURS}/presets/{{name}}"),
    ("POST", COMPLETIONS), ("POST", CHAT),
]  # fmt: skip


def test_every_route_of_ours_is_among_them(api: Any) -> None:
    described = {(o.ok().method.upper(), o.ok().path) for o in api.get_all_operations()}
    assert described == set(OPERATIONS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda m: m.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_breaks_it(
    api: Any, needed: set[str], method: str, path: str, mode: GenerationMode
) -> None:
    """POSITIVE: what the description allows; NEGATIVE: what it does not, methods and content types too."""
    operation = api[path][method]
    described = CHECKS.get_by_names(DESCRIBED) if path.startswith(OURS) else []
    checks = [errors_have_vllms_shape, *described]

    @given(case=operation.as_strategy(generation_mode=mode))
    @QUIET
    def send(case: Any) -> None:
        # here and not in the schema: what the schema excludes is what NEGATIVE sends
        assume((case.path_parameters or {}).get("name") not in needed)
        response = case.call(timeout=60)
        case.validate_response(response, checks=checks)

    try:
        send()
    except Unsatisfiable:
        assert mode == GenerationMode.NEGATIVE  # nothing about the operation can be wrong
