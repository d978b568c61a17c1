"""The one-command road of `ksteer fit`: from words or labelled replies to a calibrated probe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ksteer_vllm.cli.from_models import From
from ksteer_vllm.errors import UsageError, listing
from ksteer_vllm.experiments.knob.plan import KnobPlan, plan_of

if TYPE_CHECKING:
    from rich.console import Console

    from ksteer_vllm.cli.options import DataOptions
    from ksteer_vllm.experiments.knob.prompts import TemplateChoice

__all__ = ["Knob", "KnobOptions", "OfKnob", "make_from_command_line"]


class KnobOptions(BaseModel):
    """Which road is taken, and how prompts are made on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    behaviours: Annotated[
        Path | None,
        Field(
            description="A YAML file that says in words what the model is to do; it takes the place of DATA. "
            "The model writes the replies, those that show it are fitted to, and the strength is calibrated."
        ),
    ] = None
    calibrate: Annotated[
        bool,
        Field(
            description="Calibrate the probe as well, on prompts held out from DATA or on shipped questions; "
            "DATA has replies."
        ),
    ] = False
    quick: Annotated[
        bool,
        Field(description="With --behaviours or --calibrate: fewer replies and strengths; wider intervals."),
    ] = False
    raw: Annotated[
        bool,
        Field(
            description="With --behaviours or --calibrate: take prompts as they are, without the model's "
            "chat template."
        ),
    ] = False
    chat_template: Annotated[
        Path | None,
        Field(
            description="With --behaviours or --calibrate: a file with the chat template to use instead of "
            "the model's."
        ),
    ] = None
    chat_template_kwargs: Annotated[
        str | None,
        Field(
            description="With --behaviours or --calibrate: further arguments of the chat template, as a JSON "
            'object such as {"enable_thinking": false}.'
        ),
    ] = None

    @property
    def wanted(self) -> bool:
        """Whether a knob is to be made."""
        return self.behaviours is not None or self.calibrate

    def check_alone(self) -> None:
        """Raise UsageError for options that need one of the two roads."""
        given = sorted(self.model_fields_set)
        if not self.wanted and given:
            option = "--" + given[0].replace("_", "-")
            raise UsageError(f"{option} goes with --behaviours or --calibrate")

    def choice(self) -> TemplateChoice:
        """The form of the prompts. Raises UsageError, naming the option."""
        from ksteer_vllm.experiments.knob.prompts import TemplateChoice

        template, arguments = None, None
        if self.chat_template is not None:
            try:
                template = self.chat_template.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"--chat-template: {self.chat_template}: {error}") from None
        if self.chat_template_kwargs is not None:
            try:
                arguments = json.loads(self.chat_template_kwargs)
            except ValueError as error:
                raise UsageError(f"--chat-template-kwargs: not valid JSON: {error}") from None
            if not isinstance(arguments, dict):
                raise UsageError(
                    f"--chat-template-kwargs: expected a JSON object, got {self.chat_template_kwargs[:80]!r}"
                )
        return TemplateChoice(self.raw, template, arguments)


Knob = Annotated[KnobOptions, From(KnobOptions)]
OfKnob = Annotated[
    dict[str, Any],
    From(
        KnobPlan,
        only=("fit_questions", "held_out", "samples", "strengths", "max_broken"),
        prefix="With --behaviours or --calibrate: ",
    ),
]


def make_from_command_line(
    model: str,
    data: str | None,
    out: Path,
    knob: KnobOptions,
    options: Mapping[str, Any],
    source: DataOptions,
    engine_options: Mapping[str, Any],
    console: Console,
) -> None:
    """Make a knob.

    Args:
        model: The model.
        data: Labelled replies, for `--calibrate`.
        out: The probe folder to write.
        knob: Which road is taken.
        options: All other options that were on the command line, by name.
        source: How `data` is read.
        engine_options: Further arguments of `vllm.LLM`.
        console: Where it is told.

    Raises:
        UsageError: For options that do not go together.
        DataError: For behaviours or data that cannot be used.
    """
    from ksteer_vllm.experiments.knob.command import KnobRequest

    labels = tuple(options.get("labels", ()))
    taken = {name: value for name, value in options.items() if name in KnobPlan.model_fields}
    unknown = [name for name in options if name not in taken and (name != "labels" or knob.behaviours)]
    if unknown:
        road = "--behaviours" if knob.behaviours is not None else "--calibrate"
        named = listing("--" + name.replace("_", "-") for name in unknown)
        raise UsageError(f"{named} does not go with {road}, which fits mlp at several layers")

    def request(*given: Mapping[str, Any]) -> KnobRequest:
        plan = plan_of(*given, taken, quick=knob.quick)
        return KnobRequest(model, out, plan, knob.choice(), dict(engine_options))

    if knob.behaviours is not None:
        if data is not None or knob.calibrate:
            raise UsageError("--behaviours takes the place of DATA and --calibrate; leave those out")
        from ksteer_vllm.data.behaviours import read_behaviours
        from ksteer_vllm.experiments.knob.from_words import knob_from_words

        behaviours = read_behaviours(knob.behaviours)
        knob_from_words(request(behaviours.options), behaviours, console)
        return
    if data is None:
        raise UsageError("--calibrate needs DATA: labelled replies")
    from ksteer_vllm.experiments.knob.from_replies import knob_from_replies

    knob_from_replies(request(), source.open(data, labels), console)
