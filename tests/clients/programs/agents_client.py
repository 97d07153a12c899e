"""The OpenAI Agents SDK: python agents_client.py BASE_URL MODEL"""

import asyncio
import sys
from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

BASE, MODEL = sys.argv[1], sys.argv[2]
set_tracing_disabled(True)
ASK = "What is the weather in Paris for the next 3 days?"
asked: list[tuple[str, int]] = []


class Verdict(BaseModel):
    mood: Literal["good", "bad"]
    score: int


@function_tool
def weather(city: str, days: int) -> str:
    """The weather of a city for some days."""
    asked.append((city, days))
    return f"{city}: sunny for {days} days"


async def main() -> None:
    client = AsyncOpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0)
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        model = kind(model=MODEL, openai_client=client)
        settings = ModelSettings(temperature=0, max_tokens=200, tool_choice="required")
        caller = Agent(
            name="weather man",
            model=model,
            tools=[weather],
            model_settings=settings,
            tool_use_behavior="stop_on_first_tool",
        )
        result = await Runner.run(caller, ASK)
        assert "sunny for" in result.final_output
        run = Runner.run_streamed(caller, ASK)
        async for _ in run.stream_events():
            pass
        assert run.final_output == result.final_output
        plain = ModelSettings(temperature=0, max_tokens=200)
        critic = Agent(name="critic", model=model, output_type=Verdict, model_settings=plain)
        verdict = (await Runner.run(critic, "Rate this film from 0 to 9: wonderful.")).final_output
        assert isinstance(verdict, Verdict)
    assert len(asked) == 4
    assert len(set(asked)) == 1


asyncio.run(main())
print("openai-agents: fine")
