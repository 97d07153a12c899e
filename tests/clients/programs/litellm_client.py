"""litellm as its users use it: python litellm_client.py BASE_URL MODEL"""

import asyncio
import sys

import litellm

BASE, MODEL = sys.argv[1], sys.argv[2]
HI = [{"role": "user", "content": "Say hello."}]


def check(provider: str, **options: str) -> None:
    to = {"model": f"{provider}/{MODEL}", "api_base": f"{BASE}/v1", **options}
    answer = litellm.completion(messages=HI, max_tokens=8, temperature=0, **to)
    assert answer.choices[0].message.content, answer
    assert answer.usage.completion_tokens == 8, answer.usage

    chunks = list(
        litellm.completion(
            messages=HI,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            **to,
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == answer.choices[0].message.content, text
    assert chunks[-1].usage.completion_tokens == 8, chunks[-1]
    assert litellm.stream_chunk_builder(chunks, messages=HI).choices[0].message.content == text

    async def several() -> None:
        answers = await asyncio.gather(
            *(litellm.acompletion(messages=HI, max_tokens=8, temperature=0, **to) for _ in range(4))
        )
        assert {a.choices[0].message.content for a in answers} == {text}

    asyncio.run(several())

    plain = litellm.text_completion(prompt="Once upon a time", max_tokens=4, **to)
    assert plain.choices[0].text, plain

    said = ""
    try:
        litellm.completion(messages=HI, temperature=-1, **to)
    except litellm.BadRequestError as error:
        said = str(error)
    assert "temperature" in said, said
    try:
        litellm.completion(messages=HI, **{**to, "model": f"{provider}/nobody"})
    except litellm.NotFoundError as error:
        said = str(error)
    assert "nobody" in said, said


check("hosted_vllm")
check("openai", api_key="none")
answer = litellm.completion(
    model=f"anthropic/{MODEL}", api_base=BASE, api_key="none", messages=HI, max_tokens=8
)
assert answer.usage.completion_tokens == 8, answer
router = litellm.Router(
    model_list=[
        {
            "model_name": "mine",
            "litellm_params": {"model": f"hosted_vllm/{MODEL}", "api_base": f"{BASE}/v1"},
        }
    ]
)
assert router.completion(model="mine", messages=HI, max_tokens=4).choices[0].message.content
print("litellm: fine")
