"""The catalog: what a name refers to, what retires, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksteer_vllm.admission.catalog import Catalog
from testbed.probes import random_probe

PROBES = [random_probe(seed=seed).metadata.model_copy(update={"digest": f"{seed}" * 64}) for seed in range(4)]


def test_a_replaced_probe_retires_and_comes_back() -> None:
    first = Catalog(probes={"a": PROBES[0]})
    second = first.with_probe("a", PROBES[1])
    assert second.generation == 1
    assert second.probes == {"a": PROBES[1]}
    assert {digest: item.since for digest, item in second.retiring.items()} == {PROBES[0].digest: 1}
    third = second.with_probe("b", PROBES[0])
    assert third.retiring == {}
    assert set(third.probes) == {"a", "b"}


def test_a_probe_with_two_names_retires_with_the_second() -> None:
    both = Catalog(probes={"a": PROBES[0], "b": PROBES[0]})
    assert both.without_probe("a").retiring == {}
    assert set(both.without_probe("a").without_probe("b").retiring) == {PROBES[0].digest}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 3)), max_size=12))
def test_named_and_retiring_never_overlap_and_nothing_is_forgotten(
    changes: list[tuple[str, int]],
) -> None:
    """-2: the workers have dropped a probe; -1: a name is taken away; else: a name is given."""
    catalog = Catalog(probes={"a": PROBES[0]})
    resident = {PROBES[0].digest}
    for step, (name, what) in enumerate(changes, start=1):
        if what == -2 and catalog.retiring:
            gone = next(iter(catalog.retiring))
            catalog = catalog.without_retiring(gone)
            resident.discard(gone)
        elif what >= 0:
            catalog = catalog.with_probe(name, PROBES[what])
            resident.add(PROBES[what].digest)
        else:
            catalog = catalog.without_probe(name)
        named = {probe.digest for probe in catalog.probes.values()}
        assert named.isdisjoint(catalog.retiring)
        assert named | set(catalog.retiring) == resident
        assert all(item.since <= catalog.generation == step for item in catalog.retiring.values())


def test_the_json_form_is_the_same_catalog() -> None:
    catalog = Catalog(probes={"a": PROBES[0]}, presets={"warm": {"probe": "a", "target": ["warm"]}})
    catalog = catalog.with_probe("a", PROBES[1])
    assert Catalog.model_validate_json(catalog.model_dump_json()) == catalog


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="extra_forbidden"):
        Catalog.model_validate({"generation": 1, "path": "/"})
