"""One fit per method: `fit(task: FitTask) -> Artifact`; `ksteer_vllm.spec.families.FAMILIES` names them."""
