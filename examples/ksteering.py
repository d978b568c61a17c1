"""The three lines of k-steering, on this engine: `python examples/ksteering.py [MODEL]` after `make demo`."""

import sys

from ksteer_vllm import KSteering


def main(model: str = "demo-out/model", task: str = "demo") -> None:
    options = {"max_model_len": 256, "gpu_memory_utilization": 0.3}
    with KSteering(model, engine_options=options) as steering:
        steering.fit(task=task)
        replies = steering.get_steered_output(
            ["How do I clean my kettle?", "What is the best way to sell a lamp?"],
            target_labels=[["empathetic"], ["casual", "concise"]],
            unsteered=True,
            return_dict=True,
        )
    for name, values in replies.items():
        print(f"{name}: {values}")


if __name__ == "__main__":
    main(*sys.argv[1:])
