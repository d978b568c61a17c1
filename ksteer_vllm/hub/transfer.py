"""Probe folders and suites to and from the Hugging Face hub, or any server with its API.

Only these files are transferred, in both directions: `probe.json`, `probe.safetensors`, `suite.json`, and of
the write-ups `results.md`, `results.json` and figures. None of them is code or a pickle. Local paths are left
out when pushing. What is pulled is checked in a temporary folder first, and put in place only if the check
passes.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksteer_vllm.bench.suite import SUITE_FILE, Suite
from ksteer_vllm.errors import ProbeError, UsageError, listing
from ksteer_vllm.hub.card import model_card, public_results, published, suite_text
from ksteer_vllm.probes.metadata import METADATA_FILE, WEIGHTS_FILE
from ksteer_vllm.probes.probe import Probe

__all__ = ["Pulled", "pull", "push"]

CARD = "README.md"
_PROBE = (METADATA_FILE, WEIGHTS_FILE)
_WRITE_UP = ("results.md", "results.json", "report.md")
"""Files of a write-up; earlier versions wrote report.md instead of results.md."""
_NAME = re.compile(r"[\w][\w .-]*")


@dataclass(frozen=True)
class Pulled:
    """What a pull put in place. revision: the commit; digests: probe folder ('' for the only one) -> its
    digest."""

    folder: Path
    revision: str
    digests: dict[str, str]


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    base_model: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a probe folder or a suite in one commit, with a model card. Returns the commit's address.

    Args:
        folder: the probe folder or the suite.
        repo_id: owner/name.
        private: whether a repository that is created now is private; one that exists stays as it is.
        revision: a branch, created if need be; None: main.
        message: the commit message; None: the probes' names.
        base_model: the model's name on the hub, where the folder has a local path.
        token: the hub's access token; None: that of `hf auth login`, or HF_TOKEN.
        endpoint: address of the hub; None: the Hugging Face hub.

    Raises:
        ProbeError: for a probe that does not match its digest.
        UsageError: for a folder that holds neither, and for what the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    probes, suite = _checked(folder)
    public = published(probes, base_model)
    files: dict[str, bytes | str] = {
        CARD: model_card(repo_id, public, suite=suite is not None).encode(),
    }
    for name in _local(folder):
        written = name.rpartition("/")[2] in _WRITE_UP
        files[name] = public_results(folder / name, base_model) if written else str(folder / name)
    for name, probe in public.items():
        if probe.metadata != probes[name].metadata:
            files[_in(name, METADATA_FILE)] = _metadata_text(probe)
    if suite is not None:
        files[SUITE_FILE] = suite_text(suite, next(iter(public.values())).metadata.model.name)
    api = HfApi(endpoint=endpoint, token=token, library_name="ksteer-vllm")
    with _explained(repo_id, revision, api.endpoint):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()],
            commit_message=message or f"Add {listing(sorted(name or folder.name for name in probes))}",
            revision=revision,
        )
    return str(commit.commit_url)


def pull(
    repo_id: str,
    out: str | Path,
    *,
    revision: str | None = None,
    digest: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Pulled:
    """Download a probe folder or a suite into `out`, which must not hold anything yet.

    Args:
        repo_id: owner/name.
        out: the folder to write, new or empty.
        revision: a branch, a tag or a commit; None: main.
        digest: what the only probe's digest must be; None: any.
        token: the hub's access token; None: that of `hf auth login`, or HF_TOKEN.
        endpoint: address of the hub; None: the Hugging Face hub.

    Raises:
        ProbeError: if a probe does not match its digest; nothing is kept then.
        UsageError: for what the hub refuses, and for a repository that holds neither.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token, library_name="ksteer-vllm")
    with (
        _written_to(Path(out)) as place,
        tempfile.TemporaryDirectory(
            prefix=".ksteer-pull-", dir=place if place.exists() else place.parent
        ) as made,
    ):
        arrived, checked = Path(made) / "arrived", Path(made) / "checked"
        checked.mkdir()
        with _explained(repo_id, revision, api.endpoint):
            info = api.model_info(repo_id, revision=revision)
            commit, listed = str(info.sha), {sibling.rfilename for sibling in info.siblings or ()}
            names = [*({CARD} & listed), *_ours(listed)]
            for name in names:
                api.hf_hub_download(repo_id, name, revision=commit, local_dir=arrived)
        for name in names:
            (checked / name).parent.mkdir(exist_ok=True)
            shutil.move(arrived / name, checked / name)
        try:
            probes, _ = _checked(checked)
        except (ProbeError, UsageError) as error:
            text = str(error).replace(f"{checked}/", "").replace(str(checked), "it")
            raise type(error)(f"{repo_id} at {commit[:12]}: {text}; nothing was kept") from None
        found = {name: probe.metadata.digest for name, probe in probes.items()}
        if digest is not None and list(found.values()) != [digest]:
            raise ProbeError(
                f"{repo_id} at {commit[:12]}: expected the digest {digest}, found {listing(found.values())}; "
                "nothing was kept"
            )
        _put_in_place(checked, place)
    return Pulled(Path(out), commit, found)


@contextmanager
def _written_to(out: Path) -> Iterator[Path]:
    """The folder meant by `out`, new or empty, its parent made. OSErrors leave as UsageError."""
    try:
        place = _resolved(out)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise UsageError(f"{out}: already there and not empty; give another folder")
        place.parent.mkdir(parents=True, exist_ok=True)
        yield place
    except OSError as error:
        raise UsageError(
            f"{out}: cannot be written: {error.strerror or error}; give another folder"
        ) from None


def _resolved(out: Path) -> Path:
    try:
        return out.resolve()
    except RuntimeError:  # what Python before 3.13 raises for a loop of links
        raise OSError(errno.ELOOP, "a loop of links") from None


def _put_in_place(checked: Path, place: Path) -> None:
    """Rename `checked` to `place`, or move its contents into an existing folder: all of them, or nothing."""
    if not place.exists():
        checked.rename(place)
        return
    paths = sorted(checked.iterdir())
    if any((place / path.name).exists() for path in paths):
        raise FileExistsError(errno.EEXIST, "somebody else wrote to it meanwhile")
    moved: list[tuple[Path, Path]] = []
    try:
        for path in paths:
            moved.append((path.rename(place / path.name), path))
    except OSError:
        for there, back in moved:
            there.rename(back)
        raise


def _checked(folder: Path) -> tuple[dict[str, Probe], Suite | None]:
    """Every probe by its folder ('' for `folder` itself), digests checked; the suite, if it is one."""
    if (folder / METADATA_FILE).is_file():
        return {"": Probe.load(folder)}, None
    if not (folder / SUITE_FILE).is_file():
        raise UsageError(f"{folder}: holds neither {METADATA_FILE} nor {SUITE_FILE}")
    suite = Suite.open(folder)
    probes = dict(suite.probes)
    if suite.evaluation is not None:
        probes["evaluation"] = suite.evaluation
    if not probes:
        raise UsageError(f"{folder}: a suite without probes")
    return probes, suite


def _ours(names: Iterable[str]) -> list[str]:
    """Which of these paths (with /, in a folder or repository) are transferred; the card is not."""
    found = set(names)
    if METADATA_FILE in found:
        return [name for name in _PROBE if name in found]
    return sorted(name for name in found if name == SUITE_FILE or _of_a_suite(name))


def _of_a_suite(name: str) -> bool:
    """Whether it is FOLDER/FILE, both plain names, and FILE one of ours."""
    parts = name.split("/")
    wanted = parts[-1] in (*_PROBE, *_WRITE_UP) or parts[-1].endswith(".png")
    return wanted and len(parts) == 2 and all(_NAME.fullmatch(part) for part in parts)


def _local(folder: Path) -> list[str]:
    """`_ours` of the files in a folder; links in its subfolders do not count."""
    top = [folder / name for name in (*_PROBE, SUITE_FILE)]
    below = [path for path in folder.glob("*/*") if not path.is_symlink()]
    return _ours(path.relative_to(folder).as_posix() for path in (*top, *below) if path.is_file())


def _metadata_text(probe: Probe) -> bytes:
    return (probe.metadata.model_dump_json(indent=2) + "\n").encode()


def _in(name: str, file: str) -> str:
    return f"{name}/{file}" if name else file


@contextmanager
def _explained(repo_id: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """Turn what the hub refuses into a UsageError that says what to do."""
    from huggingface_hub import errors

    at = f"{repo_id}{f' at {revision}' if revision else ''} on {endpoint}"
    transport = errors.HfHubHTTPError.__bases__[0]  # of the HTTP client huggingface_hub happens to use
    try:
        yield
    except errors.HFValidationError as error:
        raise UsageError(f"repository name {repo_id[:120]!r}: {error}") from None
    except errors.RevisionNotFoundError:
        raise UsageError(f"{at}: no such branch, tag or commit") from None
    except errors.GatedRepoError:
        raise UsageError(f"{at}: gated; ask for access on its page, then log in (`hf auth login`)") from None
    except errors.RepositoryNotFoundError:
        raise UsageError(
            f"{at}: not found, or private to somebody else; check the name and log in (`hf auth login`, or "
            "HF_TOKEN)"
        ) from None
    except (transport, OSError, ValueError) as error:
        raise UsageError(f"{at}: {_first_line(error)}") from None


def _first_line(error: Any) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
