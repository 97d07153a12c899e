"""The openai library's tools and `.parse()`: python openai_tools_client.py BASE_URL MODEL"""

import json
import sys
from typing import Literal

import openai
from pydantic import BaseModel

BASE, MODEL = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0)


class Weather(BaseModel):
    """Look up the weather of a city."""

    city: str
    days: int
    units: Literal["metric", "imperial"] | None = None


class Verdict(BaseModel):
    mood: Literal["good", "bad"]
    score: int


def look_up(arguments: str) -> str:
    asked = Weather.model_validate_json(arguments)
    return f"{asked.city}: sunny for {asked.days} days"


ASK = "What is the weather in Paris for the next 3 days?"
TOOL = openai.pydantic_function_tool(Weather, name="weather")
NAMED = {"type": "function", "function": {"name": "weather"}}
options = {"model": MODEL, "temperature": 0, "max_tokens": 200}

# The loop: a call, its result, an answer.
for choice, reason in (("required", "tool_calls"), (NAMED, "stop")):
    messages = [{"role": "user", "content": ASK}]
    first = client.chat.completions.create(
        messages=messages, tools=[TOOL], tool_choice=choice, **options
    )
    message = first.choices[0].message
    assert first.choices[0].finish_reason == reason, first
    [call] = message.tool_calls
    assert call.function.name == "weather"
    messages += [
        message,
        {"role": "tool", "tool_call_id": call.id, "content": look_up(call.function.arguments)},
    ]
    last = client.chat.completions.create(
        messages=messages, tools=[TOOL], tool_choice="none", **options
    )
    assert last.choices[0].message.content
    assert last.choices[0].message.tool_calls is None

    # The same call, streamed: by hand, and by the library's own helper.
    pieces, names = [], []
    for chunk in client.chat.completions.create(
        messages=messages[:1], tools=[TOOL], tool_choice=choice, stream=True, **options
    ):
        for part in chunk.choices[0].delta.tool_calls or ():
            names += [part.function.name] if part.function.name else []
            pieces.append(part.function.arguments or "")
        finish = chunk.choices[0].finish_reason
    assert finish == reason
    assert names == ["weather"]
    assert "".join(pieces) == call.function.arguments
    assert len(pieces) > 2
    with client.chat.completions.stream(
        messages=messages[:1], tools=[TOOL], tool_choice=choice, **options
    ) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert "tool_calls.function.arguments.done" in kinds, kinds
    assert streamed.function.arguments == call.function.arguments
    assert isinstance(streamed.function.parsed_arguments, Weather)

parsed = client.chat.completions.parse(
    messages=[{"role": "user", "content": ASK}], tools=[TOOL], tool_choice="required", **options
)
assert isinstance(parsed.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)

# Answers of a Pydantic type.
review = [{"role": "user", "content": "Rate this film from 0 to 9: it was wonderful."}]
parsed = client.chat.completions.parse(messages=review, response_format=Verdict, **options)
assert isinstance(parsed.choices[0].message.parsed, Verdict)
with client.chat.completions.stream(messages=review, response_format=Verdict, **options) as stream:
    final = stream.get_final_completion()
assert final.choices[0].message.parsed == parsed.choices[0].message.parsed

# Responses.
FLAT = {"type": "function", "strict": True, **TOOL["function"]}
asking = {"model": MODEL, "temperature": 0, "max_output_tokens": 200}
for choice in ("required", {"type": "function", "name": "weather"}):
    talk = [{"role": "user", "content": ASK}]
    response = client.responses.create(input=talk, tools=[FLAT], tool_choice=choice, **asking)
    [item] = response.output
    assert item.type == "function_call"
    talk += response.output
    result = {"type": "function_call_output", "call_id": item.call_id}
    talk.append({**result, "output": look_up(item.arguments)})
    said = client.responses.create(input=talk, tools=[FLAT], tool_choice="none", **asking)
    assert said.output_text
    with client.responses.stream(
        input=talk[:1], tools=[FLAT], tool_choice=choice, **asking
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output[0].arguments == item.arguments
    told = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    assert told == item.arguments
    assert json.loads(told)
answer = client.responses.parse(input=review, text_format=Verdict, **asking)
assert isinstance(answer.output_parsed, Verdict)
print("openai: fine")
