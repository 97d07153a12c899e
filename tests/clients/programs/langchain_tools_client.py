"""langchain-openai: tools, typed answers: python langchain_tools_client.py BASE_URL MODEL"""

import sys
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

BASE, MODEL = sys.argv[1], sys.argv[2]
to = {"base_url": f"{BASE}/v1", "api_key": "none", "model": MODEL, "temperature": 0}


class Verdict(BaseModel):
    """A verdict on a film."""

    mood: Literal["good", "bad"]
    score: int


@tool
def weather(city: str, days: int) -> str:
    """The weather of a city for some days."""
    return f"{city}: sunny for {days} days"


REVIEW = "Rate this film from 0 to 9: it was wonderful."
for api in (False, True):
    chat = ChatOpenAI(**to, max_tokens=200, max_retries=0, use_responses_api=api)
    for method in ("function_calling", "json_schema"):
        typed = chat.with_structured_output(Verdict, method=method)
        verdict = typed.invoke(REVIEW)
        assert isinstance(verdict, Verdict), (api, method, verdict)
        *_, streamed = typed.stream(REVIEW)
        assert streamed == verdict, (api, method, streamed)
    able = chat.bind_tools([weather], tool_choice="required")
    talk = [HumanMessage("What is the weather in Paris for the next 3 days?")]
    answer = able.invoke(talk)
    [call] = answer.tool_calls
    assert call["name"] == "weather"
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    last = chat.bind_tools([weather], tool_choice="none").invoke([*talk, answer, result])
    assert last.text
    whole = None
    for chunk in able.stream(talk):
        whole = chunk if whole is None else whole + chunk
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [("weather", call["args"])]
print("langchain-openai: fine")
