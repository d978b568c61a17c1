"""Until a probability is reached, with proof: `python examples/report.py [MODEL] [PROBE] [LABEL]`."""

import sys

import ksteer_vllm
from ksteer_vllm import SteeringSpec


def main(model: str = "demo-out/model", probe: str = "demo-out/probe", label: str = "french") -> None:
    from vllm import LLM, SamplingParams

    steering = ksteer_vllm.enable(probes={"voices": probe})
    llm = LLM(model, max_model_len=256, gpu_memory_utilization=0.3, additional_config=steering)
    spec = SteeringSpec.parse(
        {"probe": "voices", "target": [label], "num_steps": 64, "until": {"target": 0.9}, "report": True}
    )
    question = [{"role": "user", "content": "How do I clean my kettle?"}]
    (output,) = llm.chat([question], SamplingParams(max_tokens=32, extra_args=spec.extra_args()))
    print(output.outputs[0].text)
    report = ksteer_vllm.report(output)
    assert report is not None
    first = report["edits"][0]["layers"][0]  # the probe steers at several layers, with a record of each
    for token in first["tokens"]:
        before, after = token["before"][label], token["after"][label]
        print(
            f"token {token['index']:2d}: P({label}) {before:.2f} -> {after:.2f} in {token['steps']} steps, "
            f"x moved by {token['shift']:.0%} of its length"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
