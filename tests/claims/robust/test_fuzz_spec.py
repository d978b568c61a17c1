"""Any spec at all is refused with a SpecError or can be run to the last table: nothing in between."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ksteer_kernels import RowTables
from ksteer_vllm import ModelIdentity, SpecError
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.resolve import resolve_config
from ksteer_vllm.admission.runnable import RunnableSpec
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.device.pool import ProbePool
from ksteer_vllm.device.row_writer import RowWriter
from ksteer_vllm.spec.admitted import AdmittedRequest
from ksteer_vllm.spec.spec import SteeringSpec
from testbed.families import write_probes
from testbed.models import HIDDEN_SIZE, NUM_LAYERS
from tests.claims.robust.hostile import admissible_specs, hostile_values, mutated_specs

MODEL = ModelIdentity(name="served", model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS)
PRESETS = {
    "warm": {"probe": "mlp", "target": ["warm"], "alpha": 2.0},
    "both": {"stack": [{"probe": "mlp", "target": ["warm"], "alpha": 2.0}]},
}
QUIET = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@dataclass(frozen=True)
class Engine:
    """Everything between a request's body and the device tables, without vLLM."""

    registry: Registry
    pool: ProbePool
    rows: RowTables
    writer: RowWriter

    def run(self, value: Any) -> RunnableSpec | None:
        """Admit a spec and write its rows, as a request would; SpecError where it is refused."""
        admitted = self.registry.admit(value)
        if admitted is None:
            return None
        sent = admitted.for_request(7, 5)
        received = AdmittedRequest.from_wire(msgspec.msgpack.decode(msgspec.msgpack.encode(sent.to_wire())))
        assert received == sent
        rows = self.pool.request_rows(received)
        assert rows.cells
        self.writer.set(0, rows)
        assert self.writer.write()
        for layer, stage in rows.cells:
            entry = layer * self.rows.num_stages + stage
            assert self.rows.slot[entry, 0] >= 0
        for name, table in vars(self.rows).items():
            if isinstance(table, torch.Tensor) and table.is_floating_point() and name != "cap":
                assert not torch.isnan(table).any(), name
        self.writer.clear(0)
        self.writer.write()
        return admitted


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folders = write_probes(tmp_path_factory.mktemp("probes"))
    options: dict[str, Any] = {
        "probes": {name: str(path) for name, path in folders.items()},
        "layers": "all", "max_probes": 16, "max_stages": 4, "max_steps": 64, "presets": PRESETS,
    }  # fmt: skip
    config = resolve_config(EngineConfig.parse(options), MODEL)
    device = torch.device("cpu")
    pool = ProbePool(config, hidden_size=HIDDEN_SIZE, weight_dtype=torch.float32, device=device)
    tables = pool.tables
    rows = RowTables.allocate(NUM_LAYERS, 2, tables.max_width, tables.max_labels, device, config.max_stages)
    writer = RowWriter(rows, {layer: layer for layer in range(NUM_LAYERS)}, device)
    return Engine(Registry.from_config(config), pool, rows, writer)


def outcome(engine: Engine, value: Any) -> RunnableSpec | SpecError | None:
    try:
        return engine.run(value)
    except SpecError as error:
        refusal = error
    assert refusal.field
    assert str(refusal).startswith("ksteer")
    assert len(str(refusal)) < 8000
    return refusal


def canonical(admitted: RunnableSpec) -> list[dict[str, Any]]:
    return [edit.canonical for edit in admitted.edits]


def assert_round_trip(engine: Engine, admitted: RunnableSpec) -> None:
    """The canonical form is JSON and is admitted as itself."""
    text = json.dumps({"stack": canonical(admitted)}, allow_nan=False)
    again = engine.registry.admit(text)
    assert again is not None
    assert canonical(again) == canonical(admitted)
    assert [edit.fingerprint for edit in again.edits] == [edit.fingerprint for edit in admitted.edits]


@given(value=admissible_specs())
@settings(QUIET, max_examples=200)
def test_valid_specs_run(engine: Engine, value: Any) -> None:
    found = outcome(engine, value)
    event("refused" if isinstance(found, SpecError) else "admitted")
    if isinstance(found, RunnableSpec) and "compat" not in str(canonical(found)):
        assert_round_trip(engine, found)


@given(value=mutated_specs(), as_text=st.booleans())
@settings(QUIET, max_examples=600)
def test_mutated_specs_run_or_are_refused(engine: Engine, value: Any, as_text: bool) -> None:
    found = outcome(engine, json.dumps(value) if as_text else value)
    event("refused" if isinstance(found, SpecError) else "admitted")
    if isinstance(found, RunnableSpec):
        assert_round_trip(engine, found)


@given(value=hostile_values, field=st.sampled_from([*SteeringSpec.model_fields, "preset"]))
@settings(QUIET, max_examples=400)
def test_any_value_in_any_field(engine: Engine, value: Any, field: str) -> None:
    outcome(engine, {"probe": "mlp", "target": ["warm"], "alpha": 1.0, field: value})
    outcome(engine, {"preset": "warm", field: value})
    outcome(engine, {"preset": "both", field: value})
    outcome(engine, value)


@given(value=hostile_values)
@settings(QUIET, max_examples=200)
def test_limits_hold_before_anything_is_done(engine: Engine, value: Any) -> None:
    """One edit too many, one layer too many, one byte too many."""
    spec = {"probe": "mlp", "target": ["warm"], "alpha": 1.0}
    config = engine.registry.config
    for many in ([spec] * (config.max_stack + 1), [spec] * config.max_stack + [value]):
        found = outcome(engine, {"stack": many})
        assert isinstance(found, SpecError)
        assert found.field.startswith(("stack", "ksteer"))
    padded = {**spec, "padding": "x" * config.max_spec_bytes, "other": value}
    found = outcome(engine, padded)
    assert isinstance(found, SpecError)
    assert found.field == "ksteer"


@pytest.mark.parametrize("count", [2, 3, 1000])
def test_a_key_given_several_times_has_its_last_value(engine: Engine, count: int) -> None:
    """As in the bodies that vLLM reads."""
    text = '{"probe": "mlp", "target": ["warm"], ' + ", ".join(f'"alpha": {n}' for n in range(count)) + "}"
    admitted = engine.run(text)
    assert admitted is not None
    assert admitted.edits[0].canonical["alpha"] == count - 1


def _distinct_windows(count: int) -> dict[str, Any]:
    edit = {"probe": "vectors", "target": ["warm"], "alpha": 1.0, "layers": [0]}
    return {"stack": [{**edit, "layers": [i % 4], "where": {"prompt": [0, i + 1]}} for i in range(count)]}


WORST: dict[str, Any] = {
    "a hundred thousand lists": "[" * 60_000,
    "a million labels": {"probe": "mlp", "target": [f"l{i}" for i in range(10**6)], "alpha": 1},
    "a million steps": {"probe": "mlp", "target": ["warm"], "alpha": 1, "num_steps": 10**6},
    "labels that are alike": {"probe": "mlp", "target": ["warm"] * 8000, "alpha": 1},
    "layers without end": {"probe": "mlp", "target": ["warm"], "alpha": 1, "layers": list(range(10_000))},
    "as many windows as edits": _distinct_windows(64),
    "as many edits as fit": {"stack": [{"probe": "mlp"}] * 3000},
    "edits of nothing": {"stack": [{}] * 10_000},
    "deep edits": {"stack": [{"stack": [{"stack": [{}]}]}] * 2000},
    "a number of 60000 digits": '{"alpha": ' + "9" * 60_000 + "}",
    "escapes": '{"probe": "' + "\\u0000" * 10_000 + '"}',
    "field names": {f"f{i}": i for i in range(5000)},
    "conditions": {"stack": [{"probe": "mlp", "condition": {"x": i}} for i in range(1500)]},
}


@pytest.mark.parametrize("name", WORST)
@pytest.mark.timeout(30)
def test_the_worst_that_fits_is_refused_soon(engine: Engine, name: str) -> None:
    """In milliseconds, really; the time limit is only there to end what has gone wrong."""
    assert isinstance(outcome(engine, WORST[name]), SpecError)


LIMITS: dict[str, tuple[dict[str, int], Any, str, tuple[str, ...]]] = {
    "bytes": ({"max_spec_bytes": 64}, {"probe": "mlp", "target": ["warm" * 9]}, "ksteer", ("=64", "got 65")),
    "bytes of a string": ({"max_spec_bytes": 64}, '{"probe": "é"}' + " " * 50, "ksteer", ("=64", "got 65")),
    "a stack": (
        {"max_stack": 2},
        {"stack": [{"probe": "mlp", "target": ["warm"], "alpha": 1}] * 3},
        "stack",
        ("max_stack=2", "got 3"),
    ),
    "layers": (
        {"max_request_layers": 3},
        {"stack": [{"probe": "mlp", "target": ["warm"], "alpha": 1, "layers": [0, 1]}] * 2},
        "stack.1.layers",
        ("max_request_layers=3", "got 4"),
    ),
    "layers of the probe": (
        {"max_request_layers": 1},
        {"probe": "control", "target": ["warm"], "alpha": 1},
        "layers",
        ("max_request_layers=1", "got 2"),
    ),
    "steps": (
        {"max_steps": 3},
        {"probe": "mlp", "target": ["warm"], "alpha": 1, "num_steps": 4},
        "num_steps",
        ("at most max_steps=3", "got 4"),
    ),
    "stages": (
        {"max_stages": 1},
        {"stack": [{"probe": "mlp", "target": ["warm"], "alpha": 1}] * 2},
        "stack",
        ("max_stages=1", "needs 2"),
    ),
}


def refusal_of(registry: Registry, value: Any) -> str:
    """The message of a refusal, or nothing."""
    try:
        registry.admit(value)
    except SpecError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_configuration(engine: Engine, name: str) -> None:
    options, value, field, says = LIMITS[name]
    registry = engine.registry
    narrow = Registry(registry.probes, registry.config.model_copy(update={**options, "presets": {}}))
    with pytest.raises(SpecError) as error:
        narrow.admit(value)
    assert error.value.field == field
    assert all(words in str(error.value) for words in says), str(error.value)
    assert error.value.got is not None
    wide = registry.config.model_copy(update={**dict.fromkeys(options, 1024), "presets": {}})
    told = refusal_of(Registry(registry.probes, wide), value)
    assert not any(key in told for key in options)


def test_objects_of_an_offline_caller_count_as_their_json(engine: Engine, tmp_path: Path) -> None:
    spec = SteeringSpec(probe="mlp", target=["warm"], alpha=1.0, where="both")
    registry = engine.registry
    narrow = Registry(
        registry.probes, registry.config.model_copy(update={"max_spec_bytes": 64, "presets": {}})
    )
    for value in (spec, {"stack": [spec]}, {"probe": "mlp", "where": spec.where, "target": ["w" * 60]}):
        with pytest.raises(SpecError, match="max_spec_bytes=64"):
            narrow.admit(value)
    assert registry.admit(spec) is not None
