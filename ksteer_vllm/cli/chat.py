"""`ksteer chat`: talk to a steered model, with a slider per label."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ksteer_vllm.bench.chat.speaker import ChatPlan
from ksteer_vllm.cli.from_models import From, command
from ksteer_vllm.cli.options import Engine, EngineOptions, json_object, one_process, quiet_vllm
from ksteer_vllm.errors import UsageError, listing

if TYPE_CHECKING:
    from ksteer_vllm.bench.chat.speaker import Speaker

__all__ = ["chat"]


@command
def chat(
    probe: Annotated[
        str, typer.Argument(help="A probe folder; with --url, the name of a probe the server has loaded.")
    ],
    plan: Annotated[ChatPlan, From(ChatPlan)],
    engine: Engine,
    model: Annotated[
        str,
        typer.Option(
            help="The model, a folder or a name on the hub; default: the folder the probe was fitted on."
        ),
    ] = "",
    url: Annotated[
        str,
        typer.Option(
            help="A running server to talk to instead of an own engine, such as http://localhost:8000."
        ),
    ] = "",
    api_key: Annotated[
        str, typer.Option(envvar="KSTEER_API_KEY", help="The server's API key, if it requires one.")
    ] = "",
    edit: Annotated[
        str,
        typer.Option(metavar="JSON", help='Further fields of every spec, such as \'{"method": "add"}\'.'),
    ] = "",
    chat_template_kwargs: Annotated[
        str,
        typer.Option(
            metavar="JSON",
            help="Arguments of the chat template, such as '{\"enable_thinking\": false}'; default: "
            "those that the probe was made with.",
        ),
    ] = "",
) -> None:
    """Talk to a steered model in the terminal.

    Every label has a slider: `/warm 0.5` turns it up, `/warm -0.5` down, `/warm off` sets it to 0. The
    largest slider is the strength, 1 being the one the probe was calibrated to; the sliders' ratios are the
    labels' weights. `/help` lists the other commands. Without a terminal, lines are read from standard input.
    """
    from ksteer_vllm.bench.chat.session import ChatSession
    from ksteer_vllm.bench.chat.terminal import say, typed_lines

    fields = json_object("edit", edit, "fields of the spec")
    arguments = json_object("--chat-template-kwargs", chat_template_kwargs, "arguments of the chat template")
    if not url and plan.seed is None:  # one noise for all replies to a question: what differs is the steering
        plan = plan.model_copy(update={"seed": secrets.randbelow(2**31)})
    if url:
        speaker = _server(url, probe, plan, api_key, arguments, model, engine)
    else:
        speaker = _engine(probe, model, plan, arguments, engine)
    with closing(speaker):
        session = ChatSession(speaker, plan, fields, say)
        say(f"{speaker.about['model']}, steered by {probe}. Labels: {listing(speaker.labels)}. ")
        say("/help says what can be typed.\n")
        session.run(typed_lines())


def _server(
    url: str,
    probe: str,
    plan: ChatPlan,
    api_key: str,
    template_arguments: Mapping[str, Any],
    model: str,
    engine: EngineOptions,
) -> Speaker:
    from ksteer_vllm.bench.chat.over_http import ServerSpeaker

    if model or engine.arguments():
        own = [*(["model"] if model else []), *engine.arguments()]
        raise UsageError(f"url: a running server has its own {', '.join(own)}")
    return ServerSpeaker(url, probe, plan, api_key, template_arguments)


def _engine(
    probe: str, model: str, plan: ChatPlan, template_arguments: Mapping[str, Any], engine: EngineOptions
) -> Speaker:
    quiet_vllm()
    one_process()
    from ksteer_vllm.bench.chat.in_process import EngineSpeaker

    return EngineSpeaker.start(probe, model, plan, engine.arguments(), template_arguments)
