"""What changes while an engine serves: which probes and presets there are, the same in every front end.

Pure: no vLLM. `ksteer_vllm.host.lifecycle` brings changes to the workers and publishes them here.
"""

from ksteer_vllm.live.catalog import Catalog, Retiring
from ksteer_vllm.live.folders import find_folder
from ksteer_vllm.live.registry import LiveRegistry
from ksteer_vllm.live.store import CatalogStore

__all__ = ["Catalog", "CatalogStore", "LiveRegistry", "Retiring", "find_folder"]
