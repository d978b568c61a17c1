"""Concurrent requests to AsyncLLM, each its own spec: `python examples/async_engine.py [MODEL] [PROBE]`."""

import asyncio
import sys

import ksteer_vllm
from ksteer_vllm import SteeringSpec


async def main(model: str = "demo-out/model", probe: str = "demo-out/probe") -> None:
    from transformers import AutoTokenizer
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    steering = ksteer_vllm.enable(probes={"voices": probe})
    options = AsyncEngineArgs(
        model=model,
        max_model_len=256,
        gpu_memory_utilization=0.3,
        enforce_eager=True,  # starts sooner; leave it out to serve faster
        additional_config=steering,
    )
    engine = AsyncLLM.from_engine_args(options)
    question = [{"role": "user", "content": "How do I clean my kettle?"}]
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)

    async def reply(target: list[str]) -> str:
        spec = SteeringSpec.parse({"probe": "voices", "target": target}) if target else None
        sampling = SamplingParams(max_tokens=96, extra_args=spec.extra_args() if spec else None)
        async for output in engine.generate(
            {"prompt_token_ids": prompt}, sampling, request_id=f"request {target}"
        ):
            text = output.outputs[0].text
        return f"{' + '.join(target) or 'unsteered'}: {text}"

    try:
        targets = [[], ["french"], ["excited"], ["french", "excited"]]
        print(*await asyncio.gather(*map(reply, targets)), sep="\n")
    finally:
        engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
