"""One fit per method: `fit(task: FitTask) -> Artifact`; `ksteer_vllm.methods.FAMILIES` names them."""
