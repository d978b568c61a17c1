"""The three lines of k-steering, on this engine: `python examples/ksteering.py [MODEL]`.

The model is what `ksteer demo --model shipped --out tones-out` leaves; the task `demo` is text in its words.
"""

import sys

from ksteer_vllm import KSteering, SteeringConfig


def main(model: str = "tones-out/model", task: str = "demo") -> None:
    config = SteeringConfig(train_layer=2)  # where `ksteer layers` says this model is steered best
    options = {"max_model_len": 256, "gpu_memory_utilization": 0.3, "enforce_eager": True}
    with KSteering(model, config, engine_options=options) as steering:
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
