"""A journal keeps what an interrupted experiment has got."""

from pathlib import Path

import pytest

from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.data.rows import Message
from ksteer_vllm.errors import UsageError

IDENTITY = {"model": "m", "probes": {"mlp": "abc"}, "temperature": 1.0}


def test_goes_on_where_it_was(tmp_path: Path) -> None:
    with Journal(tmp_path / "deep" / "journal.jsonl", IDENTITY) as journal:
        journal.add("a", {"text": "zwölf"})
        journal.add("b", [1, None])
    with Journal(tmp_path / "deep" / "journal.jsonl", IDENTITY) as again:
        assert len(again) == 2
        assert again["a"] == {"text": "zwölf"}
        assert "c" not in again
        again.add("a", 3)
    with Journal(tmp_path / "deep" / "journal.jsonl", IDENTITY) as last:
        assert last["a"] == 3
        assert sorted(last) == ["a", "b"]


def test_values_are_on_disk_before_it_is_closed(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", IDENTITY) as journal:
        journal.add("a", 1)
        assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("torn", ['{"key": "b", "va', '{"key": "b", "value": 2}', "[]\n", "\xff\n"])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, IDENTITY) as journal:
        journal.add("a", 1)
    with path.open("ab") as file:
        file.write(torn.encode("latin-1"))
    with Journal(path, IDENTITY) as journal:
        assert sorted(journal) == ["a"]
        journal.add("b", 3)
    with Journal(path, IDENTITY) as journal:
        assert (journal["a"], journal["b"]) == (1, 3)


def test_another_runs_journal_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.jsonl", IDENTITY).__exit__()
    with pytest.raises(UsageError, match="temperature differ"):
        Journal(tmp_path / "journal.jsonl", {**IDENTITY, "temperature": 0.0})


def test_key_names_everything_in_a_job() -> None:
    chat = (Message(role="user", content="Why?"),)
    jobs = [
        Job("Why?"),
        Job(chat),
        Job(chat, seed=1),
        Job(chat, {"probe": "mlp", "target": ["expert"]}),
        Job(chat, {"probe": "mlp", "target": ["casual"]}),
        Job(chat, tags={"variant": "CAA"}),
    ]
    assert len({job.key for job in jobs}) == len(jobs)
    assert Job(chat, {"a": 1, "b": 2}).key == Job(chat, {"b": 2, "a": 1}).key
    assert {job.question for job in jobs} == {"Why?"}
