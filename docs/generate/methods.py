"""Which fields of a spec each method takes, from the table of families."""

from __future__ import annotations

from docs.generate.tables import table
from ksteer_vllm.spec.families import FAMILIES

__all__ = ["methods"]

HEAD = ("family", "fitted by `--method`", "`method` in a spec", "takes", "`alpha` if none is given")


def methods() -> str:
    """One row a family and method; the fields every method takes are left out."""
    rows = []
    for family, entry in FAMILIES.items():
        fits = ", ".join(f"`{name}`" for name in entry.fits) or "`ksteer convert`"
        for method, use in entry.methods.items():
            takes = ", ".join(f"`{name}`" for name in sorted(use.takes))
            default = "" if "alpha" not in use.takes else f"{use.default_alpha or 'the probe’s'}"
            rows.append((f"`{family}`", fits, f"`{method}`", takes, default))
    return table(HEAD, rows)
