"""Artifact folders and suites to and from the Hugging Face hub, or any server with its API.

Only files of ours travel, in both directions: `probe.json`, `probe.safetensors`, `suite.json`, and of the
report folders `report.md`, `results.json` and figures. None of them is code or a pickle. What is pulled is
checked in a folder of its own first; a folder that does not check is not put in place.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ksteer_vllm.artifact import METADATA_FILE, WEIGHTS_FILE, Artifact
from ksteer_vllm.errors import ConfigError, ProbeError, listing
from ksteer_vllm.hub_card import model_card
from ksteer_vllm.study.suite import SUITE_FILE, Suite

__all__ = ["Pulled", "pull", "push"]

CARD = "README.md"
_ARTIFACT = (METADATA_FILE, WEIGHTS_FILE)
_REPORT = ("report.md", "results.json")
_PATTERNS = [CARD, *_ARTIFACT, SUITE_FILE, *(f"*/{name}" for name in (*_ARTIFACT, *_REPORT, "*.png"))]
_NAME = re.compile(r"[\w][\w .-]*")


@dataclass(frozen=True)
class Pulled:
    """What a pull put in place. revision: the commit; digests: artifact folder ('' for the only one) -> its
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
    """Upload an artifact folder or a suite in one commit, with a model card. Returns the commit's address.

    private: of a repository that is made now; one that exists stays as it is. revision: a branch, made if it
    is not there; default: main. base_model: the model's name on the hub, where the folder has a local path.
    Raises ProbeError or ConfigError for a folder that does not check, ConfigError for what the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    artifacts, suite = _checked(folder)
    published = _published(artifacts, base_model)
    files: dict[str, bytes | str] = {
        CARD: model_card(repo_id, published, suite=suite is not None).encode(),
    }
    for name in sorted(_ours(folder)):
        files[name] = str(folder / name)
    for name, artifact in published.items():  # a machine's own path is nobody else's business
        if artifact.metadata.model != artifacts[name].metadata.model:
            files[_in(name, METADATA_FILE)] = _metadata_text(artifact)
    if suite is not None:
        named = next(iter(published.values())).metadata.model.name
        files[SUITE_FILE] = suite.file.model_copy(update={"model": named}).model_dump_json(indent=2).encode()
    api = HfApi(endpoint=endpoint, token=token, library_name="ksteer-vllm")
    with _explained(repo_id, revision, api.endpoint):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()],
            commit_message=message or f"Add {listing(sorted(name or folder.name for name in artifacts))}",
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
    """Download an artifact folder or a suite into `out`, which must not hold anything yet.

    revision: a branch, a tag or a commit. digest: what the only artifact's digest must be. Raises ProbeError
    if a file does not match its digest, ConfigError for what the hub refuses and for a repository of
    something else.
    """
    from huggingface_hub import HfApi

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: already there and not empty; give another folder")
    api = HfApi(endpoint=endpoint, token=token, library_name="ksteer-vllm")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as made:
        arrived, checked = Path(made) / "arrived", Path(made) / "checked"
        with _explained(repo_id, revision, api.endpoint):
            commit = str(api.model_info(repo_id, revision=revision).sha)
            api.snapshot_download(repo_id, revision=commit, local_dir=arrived, allow_patterns=_PATTERNS)
        for name in [CARD, *_ours(arrived)]:
            if (arrived / name).is_file():
                (checked / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(arrived / name, checked / name)
        try:
            artifacts, _ = _checked(checked)
        except (ProbeError, ConfigError) as error:
            text = str(error).replace(f"{checked}/", "").replace(str(checked), "it")
            raise type(error)(f"{repo_id} at {commit[:12]}: {text}; nothing was kept") from None
        found = {name: artifact.metadata.digest for name, artifact in artifacts.items()}
        if digest is not None and list(found.values()) != [digest]:
            raise ProbeError(
                f"{repo_id} at {commit[:12]}: expected the digest {digest}, found {listing(found.values())}; "
                "nothing was kept"
            )
        if out.exists():
            out.rmdir()
        checked.replace(out)
    return Pulled(out, commit, found)


def _checked(folder: Path) -> tuple[dict[str, Artifact], Suite | None]:
    """Every artifact by its folder ('' for `folder` itself), digests checked; the suite, if it is one."""
    if (folder / METADATA_FILE).is_file():
        return {"": Artifact.load(folder)}, None
    if not (folder / SUITE_FILE).is_file():
        raise ConfigError(f"{folder}: holds neither {METADATA_FILE} nor {SUITE_FILE}")
    suite = Suite.open(folder)
    artifacts = dict(suite.artifacts)
    if suite.evaluation is not None:
        artifacts["evaluation"] = suite.evaluation
    if not artifacts:
        raise ConfigError(f"{folder}: a suite without artifacts")
    return artifacts, suite


def _ours(folder: Path) -> Iterator[str]:
    """Paths in the folder, with /, of the files that travel."""
    if (folder / METADATA_FILE).is_file():
        yield from (name for name in _ARTIFACT if (folder / name).is_file())
        return
    if (folder / SUITE_FILE).is_file():
        yield SUITE_FILE
    for path in sorted(folder.glob("*/*")):
        wanted = path.name in (*_ARTIFACT, *_REPORT) or path.suffix == ".png"
        plain = path.is_file() and not path.is_symlink() and _NAME.fullmatch(path.parent.name)
        if wanted and plain and _NAME.fullmatch(path.name):
            yield str(PurePosixPath(path.parent.name, path.name))


def _published(artifacts: dict[str, Artifact], base_model: str | None) -> dict[str, Artifact]:
    """The artifacts with the model's name as others may use it; the name is in no digest."""
    found = {}
    for name, artifact in artifacts.items():
        model = artifact.metadata.model
        path = Path(model.name)
        public = base_model or (path.name if path.is_absolute() or path.exists() else model.name)
        found[name] = artifact.with_metadata(model=model.model_copy(update={"name": public}))
    return found


def _metadata_text(artifact: Artifact) -> bytes:
    return (artifact.metadata.model_dump_json(indent=2) + "\n").encode()


def _in(name: str, file: str) -> str:
    return f"{name}/{file}" if name else file


@contextmanager
def _explained(repo_id: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """What the hub answers, as a ConfigError that says what to do."""
    from huggingface_hub import errors

    at = f"{repo_id}{f' at {revision}' if revision else ''} on {endpoint}"
    transport = errors.HfHubHTTPError.__bases__[0]  # of the HTTP client huggingface_hub happens to use
    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigError(f"repository name {repo_id[:120]!r}: {error}") from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{at}: no such branch, tag or commit") from None
    except errors.GatedRepoError:
        raise ConfigError(f"{at}: gated; ask for access on its page, then log in (`hf auth login`)") from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"{at}: not found, or private to somebody else; check the name and log in (`hf auth login`, or "
            "HF_TOKEN)"
        ) from None
    except (transport, OSError) as error:
        raise ConfigError(f"{at}: {_first_line(error)}") from None


def _first_line(error: Any) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
