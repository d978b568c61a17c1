"""Timers around the plugin's functions, and what cProfile says of them."""

from __future__ import annotations

import cProfile
import functools
import pstats
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.record import Table


@dataclass
class Section:
    """Work that is timed: a function, `module:name` or `module:Class.name`. inside: part of the one above."""

    label: str
    target: str
    per: str
    inside: bool = False
    nanoseconds: list[int] = field(default_factory=list)
    undo: Callable[[], None] = lambda: None

    def install(self) -> bool:
        """Put a timer around the function, which `undo` removes; False if no function has that name."""
        module, _, path = self.target.partition(":")
        *owners, name = path.split(".")
        try:
            owner = functools.reduce(getattr, owners, import_module(module))
            function = getattr(owner, name)
        except (ImportError, AttributeError):
            return False
        setattr(owner, name, self.timed(function))
        self.undo = functools.partial(setattr, owner, name, function)
        return True

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter_ns()
            try:
                return function(*args, **kwargs)
            finally:
                self.nanoseconds.append(time.perf_counter_ns() - started)

        return wrapper


def sections() -> list[Section]:
    return [
        Section("admission: parse and check", "ksteer_vllm.host.requests:Admission.check", "request"),
        Section("fingerprint", "ksteer_vllm.admission.registry:fingerprint", "request", inside=True),
        Section("admission: windows, parameters", "ksteer_vllm.host.requests:admit_into", "request"),
        Section("prefix-cache keys", "ksteer_vllm.host.prefix_cache:block_key", "request"),
        Section("set_row: readouts", "ksteer_vllm.device.state:SteeringState.set_row", "request"),
        Section("begin_step", "ksteer_vllm.device.state:SteeringState.begin_step", "step"),
        Section("row writes", "ksteer_vllm.device.row_writer:RowWriter.write", "step", inside=True),
        Section("token rows", "ksteer_vllm.device.state:token_rows_", "step", inside=True),
        Section("plans", "ksteer_vllm.device.cpu_backend:plan_groups", "step"),
        Section("the edit itself (CPU)", "ksteer_vllm.device.cpu_backend:steer_groups_", "step"),
        Section("the edit's launches (GPU)", "ksteer_vllm.device.gpu_backend:steer_", "step"),
    ]


HOST = (
    "Admission.check",
    "admit_into",
    "block_key",
    "SteeringState.set_row",
    "SteeringState.begin_step",
    "plan_groups",
)
"""Sections that together are the plugin's host work; none of them is inside another."""


WRAPPERS = ("seams.", "layer.", "runner_v1._", "runner_v2.prepare_inputs")
"""Functions of the plugin that call the vLLM function they replace: its time would count as theirs."""


def profile_table(profile: cProfile.Profile, rows: int = 20) -> Table:
    """The plugin's functions by the time in them and in what they call of torch and the standard library."""
    stats: Any = pstats.Stats(profile)

    def name_of(function: tuple[str, int, str]) -> str:
        text, _, name = function
        path = Path(text)
        module = path.parent.name if path.stem == "__init__" else path.stem
        return f"{module}.{name}" if "ksteer_vllm" in text or "ksteer_kernels" in text else ""

    calls: dict[str, int] = {}
    own: dict[str, float] = {}
    for function, (_, count, seconds, _, callers) in stats.stats.items():
        if name := name_of(function):
            calls[name] = calls.get(name, 0) + count
            own[name] = own.get(name, 0.0) + seconds
            continue
        for caller, (*_, cumulative) in callers.items():
            if name := name_of(caller):
                own[name] = own.get(name, 0.0) + cumulative
    table = Table(
        "cProfile: the plugin's functions, with what they call outside it",
        ("function", "calls", "ms", "share"),
    )
    for name in sorted(own, key=lambda name: -own[name]):
        if not name.startswith(WRAPPERS) and len(table.rows) < rows:
            share = f"{100 * own[name] / stats.total_tt:.2f} %"
            table.rows.append((name, str(calls.get(name, 0)), f"{1e3 * own[name]:.1f}", share))
    return table
