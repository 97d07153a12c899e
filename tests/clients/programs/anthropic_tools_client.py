"""The anthropic library's tools: python anthropic_tools_client.py BASE_URL MODEL"""

import asyncio
import sys

import anthropic

BASE, MODEL = sys.argv[1], sys.argv[2]
client = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOL = {"name": "weather", "description": "The weather of a city", "input_schema": SCHEMA}
TALK = [{"role": "user", "content": "What is the weather in Paris for the next 3 days?"}]
options = {"model": MODEL, "max_tokens": 200, "tools": [TOOL], "extra_body": {"temperature": 0}}

for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
    first = client.messages.create(messages=TALK, tool_choice=choice, **options)
    assert first.stop_reason == "tool_use", first
    [block] = first.content
    assert (block.type, block.name) == ("tool_use", "weather")
    assert block.input.keys() == {"city", "days"}
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "Sunny, 25 degrees."}
    talk = [
        *TALK,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    last = client.messages.create(messages=talk, tool_choice={"type": "none"}, **options)
    assert [one.type for one in last.content] == ["text"]
    assert last.content[0].text
    with client.messages.stream(messages=TALK, tool_choice=choice, **options) as stream:
        told = "".join(event.partial_json for event in stream if event.type == "input_json")
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    assert final.content[0].input == block.input
    assert told.startswith("{")
    counted = client.messages.count_tokens(model=MODEL, messages=talk, tools=[TOOL])
    assert counted.input_tokens == last.usage.input_tokens + last.usage.cache_read_input_tokens


async def later() -> None:
    async with anthropic.AsyncAnthropic(base_url=BASE, api_key="none") as lazy:
        message = await lazy.messages.create(messages=TALK, tool_choice={"type": "any"}, **options)
    assert message.content[0].input


asyncio.run(later())
print("anthropic: fine")
