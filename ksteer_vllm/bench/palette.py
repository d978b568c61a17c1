"""Colours of figures."""

from __future__ import annotations

__all__ = ["OKABE_ITO"]

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's palette, which colour-blind readers can tell apart, with grey for its pale yellow."""
