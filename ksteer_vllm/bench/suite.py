"""A suite: probes of several methods fitted to the same data, and what is needed to compare them.

SUITE/suite.json            what was fitted to what, and the held-out prompts
SUITE/mlp/, SUITE/caa/ ...  probe folders, by the name of their fit method
SUITE/evaluation/           the probe that reads: fitted to the half of the conversations no method saw
SUITE/layers/ SUITE/calibration/ SUITE/results/    write-ups of `ksteer layers`, `calibrate` and `eval`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ksteer_vllm.data.rows import LabelledRow, Prompt
from ksteer_vllm.errors import UsageError, first_problem
from ksteer_vllm.probes.metadata import METADATA_FILE
from ksteer_vllm.probes.probe import Probe

__all__ = ["EVALUATION", "SUITE_FILE", "Suite", "SuiteFile"]

SUITE_FILE = "suite.json"
EVALUATION = "evaluation"


class SuiteFile(BaseModel):
    """The contents of `suite.json`.

    Attributes:
        model: As it was given to the fit.
        task: A predefined task's name, or the data's file name.
        judge: The judge that suits the data, see `ksteer_vllm.bench.judges`.
        seed: Seed of the split into halves.
        prompts: `calibration` and `evaluation` prompts, from conversations that no probe was fitted to,
            without the instructions that asked for labels.
        labelled: Some labelled replies of the data, for the limit on perplexity (`CoherenceRule`).
        instructions: Label -> what asks a model for it, in one or several wordings; labels may be missing.
        invisible: Labels that the replies do not show and that were fitted all the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    task: str
    data_digest: str
    labels: tuple[str, ...]
    layers: tuple[int, ...]
    judge: str = "probe"
    seed: int = 0
    engine_options: dict[str, bool | int | float | str | None] = {}
    prompts: dict[str, tuple[Prompt, ...]]
    labelled: tuple[LabelledRow, ...] = ()
    instructions: dict[str, tuple[str, ...]] = {}
    invisible: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """A suite folder that has been read."""

    folder: Path
    file: SuiteFile

    @classmethod
    def open(cls, folder: str | Path) -> Suite:
        """Read a suite folder.

        Args:
            folder: The folder that holds suite.json.

        Raises:
            UsageError: If there is no readable suite.json.
        """
        path = Path(folder) / SUITE_FILE
        try:
            return cls(Path(folder), SuiteFile.model_validate_json(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{path}: {reason}; a suite is what `ksteer fit --method all` writes") from None
        except ValidationError as error:
            raise UsageError(f"{path}: {first_problem(error)}") from None

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = self.file.model_dump_json(indent=2) + "\n"
        (self.folder / SUITE_FILE).write_text(text, encoding="utf-8")

    @property
    def paths(self) -> dict[str, Path]:
        """Name -> folder of every probe except the evaluation probe."""
        found = sorted(path.parent for path in self.folder.glob(f"*/{METADATA_FILE}"))
        return {path.name: path for path in found if path.name != EVALUATION}

    @cached_property
    def probes(self) -> Mapping[str, Probe]:
        """Name -> probe, read and checked once. Raises ProbeError."""
        return {name: Probe.load(path) for name, path in self.paths.items()}

    @cached_property
    def evaluation(self) -> Probe | None:
        """The probe that reads replies; None if there is none."""
        folder = self.folder / EVALUATION
        return Probe.load(folder) if (folder / METADATA_FILE).exists() else None
