"""A suite folder, and the variants that can be asked of it."""

from pathlib import Path

import pytest

from ksteer_vllm.bench.suite import Suite, SuiteFile
from ksteer_vllm.bench.variants import STANDARD, variants_of
from ksteer_vllm.errors import UsageError
from ksteer_vllm.spec.families import FAMILIES
from ksteer_vllm.spec.spec import SteeringSpec
from testbed.probes import random_probe

FILE = SuiteFile.model_validate(
    {
        "model": "m",
        "task": "demo",
        "data_digest": "d",
        "labels": ["a", "b"],
        "layers": [1],
        "prompts": {"calibration": ["Why?"], "evaluation": [[{"role": "user", "content": "How?"}]]},
    }
)


def test_a_suite_is_read_as_it_was_written(tmp_path: Path) -> None:
    Suite(tmp_path, FILE).write()
    suite = Suite.open(tmp_path)
    assert suite.file == FILE
    assert suite.paths == {}
    assert suite.evaluation is None


def test_probes_by_name_and_the_probe_that_reads_apart(tmp_path: Path) -> None:
    Suite(tmp_path, FILE).write()
    for name in ("mlp", "evaluation"):
        random_probe().save(tmp_path / name)
    suite = Suite.open(tmp_path)
    assert list(suite.probes) == ["mlp"]
    assert suite.evaluation is not None
    assert suite.evaluation.metadata.family == "mlp"


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "No such file.*ksteer fit --method all"), ("{}", "model: Field required"), ("{", "Invalid JSON")],
)
def test_what_is_no_suite_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "suite.json").write_text(text)
    with pytest.raises(UsageError, match=says):
        Suite.open(tmp_path)


def test_every_variant_is_a_valid_spec_of_its_family() -> None:
    assert len({variant.name for variant in STANDARD}) == len(STANDARD)
    for variant in STANDARD:
        assert variant.method in FAMILIES[variant.family].methods
        spec = variant.spec(["a"], ["b"], 0.5, layer=2)
        (edit,) = SteeringSpec.model_validate(spec).edits()
        edit.check_method(variant.method, FAMILIES[variant.family].methods[variant.method].takes)
        assert edit.layers == (2,)
        assert bool(edit.avoid) == ("avoid" in FAMILIES[variant.family].methods[variant.method].takes)


def test_variants_are_those_whose_probe_is_there() -> None:
    assert [variant.name for variant in variants_of(["caa", "ace"])] == ["CAA", "ACE", "random direction"]
    assert variants_of(STANDARD_PROBES) == list(STANDARD)


STANDARD_PROBES = {variant.probe for variant in STANDARD}


def test_whatever_is_fitted_can_be_calibrated_and_compared() -> None:
    """A fit without a variant would be left out of every comparison without a word."""
    fitted = {name for family in FAMILIES.values() for name in family.fits}
    assert {variant.probe for variant in STANDARD} | {"random"} >= fitted
