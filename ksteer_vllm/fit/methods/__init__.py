"""One fit per method: `fit(task: FitTask) -> Probe`; `ksteer_vllm.spec.families.FAMILIES` names them."""
