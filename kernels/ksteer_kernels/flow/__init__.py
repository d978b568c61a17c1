"""Flow: the limit of ever more and ever smaller gradient steps at equal budget, integrated exactly."""

from ksteer_kernels.flow.oracle import FlowResult, flow

__all__ = ["FlowResult", "flow"]
