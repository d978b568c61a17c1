"""A note in the log where the server's chat template is not the one a probe was made with."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ksteer_vllm.probes.metadata import ProbeMetadata

__all__ = ["notes_on", "warn_of_other_forms"]

logger = logging.getLogger("vllm.ksteer")


def warn_of_other_forms(probes: Mapping[str, ProbeMetadata], tokenizer: Any, args: Any) -> None:
    """Log a warning for every probe that was made with prompts of another form than the server makes.

    Args:
        probes: Name -> probe.
        tokenizer: The server's.
        args: Its command line, of which `chat_template` and `default_chat_template_kwargs` are read.
    """
    given = getattr(args, "chat_template", None)
    text = given or getattr(tokenizer, "chat_template", None)
    if given and "{" not in str(given):  # otherwise it is the template itself
        text = Path(given).read_text(encoding="utf-8")
    arguments = getattr(args, "default_chat_template_kwargs", None) or {}
    for name, probe in probes.items():
        for note in notes_on(probe.training.get("prompts"), text, arguments):
            logger.warning("ksteer: probe %s: %s", name, note)


def notes_on(made_with: Any, template: str | None, arguments: Mapping[str, Any]) -> Iterator[str]:
    """What differs between a probe's prompts and a server's chats.

    Args:
        made_with: `training.prompts` of the probe, as `ksteer fit --behaviours` writes it; None says nothing.
        template: The server's chat template, if it has one.
        arguments: The template arguments of requests that give none.
    """
    if not isinstance(made_with, Mapping) or template is None:
        return
    if made_with.get("raw"):
        yield "made with raw prompts; chats go through a chat template, where it may steer less well"
        return
    if made_with.get("chat_template") != hashlib.sha256(template.encode()).hexdigest():
        yield "made with another chat template than the server's, where it may steer less well"
    wanted = made_with.get("chat_template_kwargs", {})
    if wanted != dict(arguments):
        yield (
            f"made with chat_template_kwargs {wanted}, and requests that give none get {dict(arguments)}; "
            "see --default-chat-template-kwargs"
        )
