"""mkdocs hooks: the site shows files of the repository from where they are.

A page links to any file by its path in the repository, as a code host follows it: `../CONTRIBUTING.md`,
`../examples/presets.yaml`. In the site the Markdown files of `PAGES` are pages, and every other file that is
linked or shown lies under `files/`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "THREAT_MODEL.md": "threat-model.md",
    "benchmarks/PEERS.md": "peers.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results/amd-epyc-2-cores.md": "results/amd-epyc-2-cores.md",
    "benchmarks/results/demo_suite.md": "results/demo-suite.md",
    "benchmarks/results/load_test.md": "results/load-test.md",
    "benchmarks/results/load_test_30_minutes.md": "results/load-test-30-minutes.md",
    "benchmarks/results/steering_clear.md": "results/steering-clear.md",
    "examples/deployment/README.md": "deployment.md",
    "kernels/README.md": "kernels.md",
}
"""Path in the repository -> page of the site."""

LINK = re.compile(r"\]\((?![a-z]+:|#|/)([^)#\s]+)(#[^)\s]*)?\)")
"""A relative link or image: its target and its anchor."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and the files that lie outside `docs/`."""
    pages = {f"docs/{file.src_uri}": file.src_uri for file in files if file.src_uri.endswith(".md")}
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    for source in (*pages, *PAGES):
        for target, _ in LINK.findall((ROOT / source).read_text(encoding="utf-8")):
            path = repository_path(source, target)
            uri = site_uri(path)
            if (ROOT / path).is_file() and uri.startswith("files/") and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point relative links at where the site has their targets."""
    uri = page.file.src_uri
    source = next((path for path, name in PAGES.items() if name == uri), f"docs/{uri}")

    def replaced(match: re.Match[str]) -> str:
        path = repository_path(source, match[1])
        if not (ROOT / path).is_file():
            raise PluginError(f"{source}: {match[1]} is no file of the repository")
        return f"]({os.path.relpath(site_uri(path), os.path.dirname(uri) or '.')}{match[2] or ''})"

    return LINK.sub(replaced, markdown)


def repository_path(source: str, target: str) -> str:
    """The path in the repository of what a file of it links to."""
    return os.path.normpath(os.path.join(os.path.dirname(source), target))


def site_uri(path: str) -> str:
    """Where the site has a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}"
