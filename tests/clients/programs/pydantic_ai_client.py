"""PydanticAI's agents: python pydantic_ai_client.py BASE_URL MODEL"""

import asyncio
import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

BASE, MODEL = sys.argv[1], sys.argv[2]
provider = OpenAIProvider(base_url=f"{BASE}/v1", api_key="none")
SETTINGS = {"temperature": 0, "max_tokens": 200}
ASK = "Rate this film from 0 to 9: it was wonderful."


class Verdict(BaseModel):
    """A verdict on a film."""

    mood: Literal["good", "bad"]
    score: int


for model in (
    OpenAIChatModel(MODEL, provider=provider),
    OpenAIResponsesModel(MODEL, provider=provider),
):
    for output in (ToolOutput(Verdict), NativeOutput(Verdict)):
        agent = Agent(model, output_type=output, model_settings=SETTINGS)
        verdict = agent.run_sync(ASK).output
        assert isinstance(verdict, Verdict)

        async def streamed(agent: Agent = agent) -> Verdict:
            async with agent.run_stream(ASK) as run:
                return await run.get_output()

        assert asyncio.run(streamed()) == verdict
print("pydantic-ai: fine")
