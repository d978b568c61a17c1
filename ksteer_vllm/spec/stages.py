"""Which stage of a layer each edit of a request runs in: stage 0 first, then stage 1, and so on.

A stage has one where-clause, one fade and one compat per request, and at each layer at most one edit. Edits
of different layers share a stage, so a plan with an edit for every layer needs one stage. A condition takes
the stage before its edit's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["assign_stages"]


def assign_stages(edits: Sequence[Mapping[str, Any]]) -> list[int]:
    """The stage of every canonical edit, in order; an edit's condition runs in the stage before it.

    Order is kept wherever two edits share a layer.
    """
    following: dict[int, int] = {}  # layer -> the first stage still free there
    profiles: list[str] = []
    chosen = []
    for edit in edits:
        profile = json.dumps([edit["where"], edit.get("fade"), edit.get("compat")], sort_keys=True)
        length = 2 if "condition" in edit else 1
        first = max(following.get(layer, 0) for layer in edit["layers"])
        while any(other != profile for other in profiles[first : first + length]):
            first += 1
        last = first + length - 1
        profiles.extend("" for _ in range(len(profiles), last + 1))
        for stage in range(first, last + 1):
            profiles[stage] = profile
        following.update(dict.fromkeys(edit["layers"], last + 1))
        chosen.append(last)
    return chosen
