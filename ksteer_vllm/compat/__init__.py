"""Other packages' behaviour, quirks included, so that what was published with them can be repeated here.

`pip-0.1.2` is k-steering 0.1.2, the package of withmartian/k-steering: README.md beside this file says what
it does, `ksteer_vllm.compat.pip` does it. Pure: no torch, no vLLM.
"""

from ksteer_vllm.compat.clause import PIP_0_1_2, Compat, CompatClause

__all__ = ["PIP_0_1_2", "Compat", "CompatClause"]
