"""What the tests of features over HTTP send, and what an offline engine must answer to the same."""

from __future__ import annotations

from typing import Any

from testbed.replies import MODEL_NAME
from tests.claims.matrix_http.chat_model import encode, unlikely

RESPONSES = "/v1/responses"
CHAT_TEXT = "<s>user: hi\nassistant: <think>"
"""What MESSAGES becomes in the model's template."""
MESSAGES = [{"role": "user", "content": "hi"}]
PROMPT = list(encode(f"{CHAT_TEXT}</think>"))
"""Token ids; the reasoning is closed, so that a grammar binds from the first generated token."""

SPEC: dict[str, Any] = {"probe": "tones", "target": ["warm"], "alpha": 3.0}
BOTH = {**SPEC, "where": "both"}
REPORTING = {**SPEC, "report": True}
PRESET = "warm"
"""Name of the preset that is SPEC: the model `tiny:warm`."""

THINKING = 6
"""Reasoning tokens before vLLM closes the reasoning: the tiny model does not by itself."""

TERSE = {**unlikely(" \n\t\r"), **unlikely(",<<tool_call>", bias=-50.0)}
"""A `logit_bias` for JSON that soon ends: no white space, no list longer than it must be, no second call."""
CITY = {"type": "string", "pattern": "^[a-z]{1,6}$"}
OBJECT = {
    "type": "object",
    "properties": {"city": CITY, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CHOICES = ["sunny", "rain", "snow"]
REGEX = "(sun|rain|fog){2} [0-9]{3}"
GRAMMAR = 'root ::= word " " word " " word\nword ::= "sun" | "rain" | "fog"\n'

STRUCTURED: dict[str, dict[str, Any]] = {
    "json": {"json": OBJECT},
    "regex": {"regex": REGEX},
    "choice": {"choice": CHOICES},
    "grammar": {"grammar": GRAMMAR},
}
"""Fields of `structured_outputs`, by name."""
STRUCTURED_LIMIT = 60
STRUCTURED_TOP = 5

FUNCTION = {"name": "get_weather", "description": "The weather.", "parameters": OBJECT, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}


def chat_body(**changes: Any) -> dict[str, Any]:
    """A greedy chat request that reasons for THINKING tokens."""
    body = {
        "model": MODEL_NAME, "messages": MESSAGES, "temperature": 0, "max_tokens": 24,
        "thinking_token_budget": THINKING,
    }  # fmt: skip
    return {**body, **changes}


def responses_body(**changes: Any) -> dict[str, Any]:
    """The same prompt as `chat_body`, all of it reasoning unless `</think>` is made likely."""
    body = {
        "model": MODEL_NAME, "input": "hi", "temperature": 0, "max_output_tokens": 16, "ignore_eos": True,
    }  # fmt: skip
    return {**body, **changes}


CLOSES_REASONING = {**TERSE, str(encode("</think>")[0]): 8.0}
"""A `logit_bias` under which the tiny model ends its reasoning soon."""
