"""Steering over HTTP with the openai client, also streamed: `python examples/openai_client.py [BASE_URL]`.

The server: `vllm serve demo-out/model --plugin ksteer --ksteer-probe voices=demo-out/probe
--gpu-memory-utilization 0.3`.
"""

import sys

from openai import BadRequestError, OpenAI


def main(base_url: str = "http://localhost:8000/v1") -> None:
    client = OpenAI(base_url=base_url, api_key="none")
    model = client.models.list().data[0].id
    question = [{"role": "user", "content": "How do I clean my kettle?"}]

    for target in (["french"], ["french", "excited"]):
        reply = client.chat.completions.create(
            model=model,
            messages=question,
            max_tokens=96,
            extra_body={"ksteer": {"probe": "voices", "target": target}},
        )
        print(f"{' + '.join(target)}: {reply.choices[0].message.content}")

    print("spanish, streamed: ", end="")
    for chunk in client.chat.completions.create(
        model=model,
        messages=question,
        max_tokens=96,
        stream=True,
        extra_body={"ksteer": {"probe": "voices", "target": ["spanish"]}},
    ):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    try:
        client.chat.completions.create(
            model=model, messages=question, extra_body={"ksteer": {"probe": "voices", "target": ["grumpy"]}}
        )
    except BadRequestError as error:
        print(f"refused: {error.message}")


if __name__ == "__main__":
    main(*sys.argv[1:])
