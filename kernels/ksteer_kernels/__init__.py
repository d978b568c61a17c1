"""The arithmetic of every steering method in torch and in Triton. Needs torch; Triton only when asked."""

from ksteer_kernels.reports import ReportBuffers
from ksteer_kernels.rows import token_rows_
from ksteer_kernels.settings import NO_ROW, Flag, Loss, Program, RowSettings, RowTables, check_metric
from ksteer_kernels.steer import EditRecord, PlannedGroup, plan_groups, steer_, steer_groups_
from ksteer_kernels.tables import NO_SLOT, ProbeTables
from ksteer_kernels.weights import Activation, SlotWeights
from ksteer_kernels.workspace import Workspace

__all__ = [
    "NO_ROW",
    "NO_SLOT",
    "Activation",
    "EditRecord",
    "Flag",
    "Loss",
    "PlannedGroup",
    "ProbeTables",
    "Program",
    "ReportBuffers",
    "RowSettings",
    "RowTables",
    "SlotWeights",
    "Workspace",
    "check_metric",
    "plan_groups",
    "steer_",
    "steer_groups_",
    "token_rows_",
]
