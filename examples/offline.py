"""One batch, every request its own spec: `python examples/offline.py [MODEL] [PROBE]` after `make demo`."""

import sys

import ksteer_vllm
from ksteer_vllm import SteeringSpec


def main(model: str = "demo-out/model", probe: str = "demo-out/probe") -> None:
    from vllm import LLM, SamplingParams

    steering = ksteer_vllm.enable(probes={"voices": probe})
    llm = LLM(model, max_model_len=256, gpu_memory_utilization=0.3, additional_config=steering)
    specs = {
        "unsteered": None,
        "french": SteeringSpec.parse({"probe": "voices", "target": ["french"]}),
        "excited, not in the first person": SteeringSpec.parse(
            {"probe": "voices", "target": ["excited"], "avoid": ["first person"]}
        ),
        "mostly spanish, a little excited, and less of it": SteeringSpec.parse(
            {"probe": "voices", "target": {"spanish": 2, "excited": 1}, "strength": 0.8}
        ),
    }
    question = [{"role": "user", "content": "How do I clean my kettle?"}]
    sampling = [
        SamplingParams(temperature=0.7, max_tokens=96, extra_args=spec.extra_args() if spec else None)
        for spec in specs.values()
    ]
    for name, output in zip(specs, llm.chat([question] * len(specs), sampling), strict=True):
        print(f"{name}: {output.outputs[0].text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
