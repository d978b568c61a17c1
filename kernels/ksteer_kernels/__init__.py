"""K-Steering's arithmetic as torch and Triton programs. Needs torch; Triton only when asked for."""

from ksteer_kernels.rows import token_rows_
from ksteer_kernels.steer import PlannedGroup, plan_groups, steer_
from ksteer_kernels.tables import NO_ROW, NO_SLOT, ProbeTables, Program, RowTables
from ksteer_kernels.workspace import Workspace

__all__ = [
    "NO_ROW",
    "NO_SLOT",
    "PlannedGroup",
    "ProbeTables",
    "Program",
    "RowTables",
    "Workspace",
    "plan_groups",
    "steer_",
    "token_rows_",
]
