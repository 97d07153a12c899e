"""instructor's typed answers: python instructor_client.py BASE_URL MODEL"""

import sys
from typing import Literal

import instructor
import openai
from pydantic import BaseModel

BASE, MODEL = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0)
TALK = [{"role": "user", "content": "Rate this film from 0 to 9: it was wonderful."}]
options = {"model": MODEL, "messages": TALK, "temperature": 0, "max_tokens": 200, "max_retries": 0}


class Verdict(BaseModel, extra="forbid"):
    mood: Literal["good", "bad"]
    score: int


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    typed = instructor.from_openai(client, mode=mode)
    verdict = typed.chat.completions.create(response_model=Verdict, **options)
    assert isinstance(verdict, Verdict)
    *_, streamed = typed.chat.completions.create_partial(response_model=Verdict, **options)
    assert streamed.model_dump() == verdict.model_dump(), mode
print("instructor: fine")
