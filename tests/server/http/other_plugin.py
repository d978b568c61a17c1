"""A second general plugin of vLLM, as a distribution in a folder on PYTHONPATH."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "other_plugin"

_MODULE = """
import os

def register():
    with open(os.environ["OTHER_PLUGIN_LOG"], "a") as log:
        log.write(f"{os.getpid()}\\n")
"""


def install_other_plugin(folder: Path) -> dict[str, str]:
    """Make the distribution; the environment under which it is found, and under which it logs its calls."""
    site = folder / "site"
    info = site / f"{NAME}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (site / f"{NAME}.py").write_text(_MODULE)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{NAME} = {NAME}:register\n")
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "OTHER_PLUGIN_LOG": str(folder / "other_plugin.log")}


def processes_it_ran_in(environment: dict[str, str]) -> set[str]:
    """Ids of the processes in which the plugin was registered."""
    log = Path(environment["OTHER_PLUGIN_LOG"])
    return set(log.read_text().split()) if log.exists() else set()
