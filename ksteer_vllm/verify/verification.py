"""What was found, as a table for people and JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["EFFECT", "Finding", "Verification"]

EFFECT = "steering has an effect"
"""The name of the check without which the others prove nothing."""

Status = Literal["passed", "failed", "skipped"]
_STYLE = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        name: What is true if it passes.
        status: Skipped if the check could not be made.
        says: What was seen, or why it was skipped.
        cause: The likely cause of a failure.
        figures: The numbers behind it, in plain JSON types.
    """

    name: str
    status: Status
    says: str
    cause: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """Everything one verification found.

    Attributes:
        subject: The engine, as shown to people.
        versions: Package -> version.
        layers: The layers checked.
        probes: The names of the probes checked.
        tolerance: In nats; two answers whose log-probabilities differ by more count as different.
        noise_floor: In nats; how far apart the answers to one plain request were.
        requests: How many requests were sent.
        prompt_tokens: Prompt tokens, over all requests.
        generated_tokens: Generated tokens, over all requests.
        seconds: How long it took.
        findings: One for each check.
        not_checked: What no check here can see.
    """

    subject: str
    versions: Mapping[str, str]
    layers: Sequence[int]
    probes: Sequence[str]
    tolerance: float
    noise_floor: float
    requests: int
    prompt_tokens: int
    generated_tokens: int
    seconds: float
    findings: Sequence[Finding]
    not_checked: Sequence[str]

    @property
    def ok(self) -> bool:
        """Whether no check failed, and steering was seen to have an effect."""
        seen = any(finding.name == EFFECT and finding.status == "passed" for finding in self.findings)
        return seen and not self.failures

    @property
    def failures(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.status == "failed"]

    def count(self, status: Status) -> int:
        return sum(finding.status == status for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"verdict": "passed" if self.ok else "failed", **asdict(self)}

    def write(self, path: Path) -> None:
        finite = json.loads(json.dumps(self.as_json(), default=str), parse_constant=lambda _: None)
        text = json.dumps(finite, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    def show(self, console: Console) -> None:
        """The table, the causes of what failed, what was not checked, and one line to sum up."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        console.print(Text(f"{self.subject} ({versions})"))
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("check", no_wrap=True)
        table.add_column("")
        table.add_column("what was seen", overflow="fold")
        for finding in self.findings:
            status = Text(finding.status, style=_STYLE[finding.status])
            table.add_row(finding.name, status, Text(finding.says))
        console.print(table)
        for cause in dict.fromkeys(finding.cause for finding in self.failures):
            console.print(Text(f"cause: {cause}", style="red"))
        for gap in self.not_checked:
            console.print(Text(f"not checked: {gap}"))
        console.print(
            Text(
                f"{'PASSED' if self.ok else 'FAILED'}: {self.count('passed')} passed, "
                f"{self.count('failed')} failed, {self.count('skipped')} skipped; {self.requests} requests, "
                f"{self.prompt_tokens} prompt and {self.generated_tokens} generated tokens, "
                f"{self.seconds:.1f} s",
                style="green" if self.ok else "bold red",
            )
        )
