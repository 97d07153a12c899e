"""langchain-openai as its users use it: python langchain_client.py BASE_URL MODEL"""

import asyncio
import sys

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

BASE, MODEL = sys.argv[1], sys.argv[2]
to = {"base_url": f"{BASE}/v1", "api_key": "none", "model": MODEL, "temperature": 0}
chat = ChatOpenAI(**to, max_tokens=8, max_retries=0, stream_usage=True)

answer = chat.invoke("Say hello.")
assert isinstance(answer.content, str)
assert answer.content
assert answer.usage_metadata["output_tokens"] == 8, answer
assert answer.response_metadata["finish_reason"] == "length", answer
chunks = list(chat.stream("Say hello."))
assert "".join(c.content for c in chunks) == answer.content
assert sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata) == 8
answers = chat.batch(["Say hello."] * 6)
assert {a.content for a in answers} == {answer.content}
talk = [SystemMessage("Be brief."), HumanMessage("Hi"), AIMessage("Hello."), HumanMessage("Bye")]
assert chat.invoke(talk).content


async def later() -> None:
    assert (await chat.ainvoke("Say hello.")).content == answer.content
    text = "".join([c.content async for c in chat.astream("Say hello.")])
    assert text == answer.content
    assert len(await chat.abatch(["Say hello."] * 3)) == 3


asyncio.run(later())

chain = ChatPromptTemplate.from_template("Tell me about {it}.") | chat | StrOutputParser()
assert chain.invoke({"it": "Paris"})
with_logprobs = chat.bind(logprobs=True, top_logprobs=2).invoke("Say hello.")
assert len(with_logprobs.response_metadata["logprobs"]["content"]) == 8
own = ChatOpenAI(**to, extra_body={"min_tokens": 3, "top_k": 5}, max_tokens=8, stop=["q", "Q"])
assert own.invoke("Say hello.").content is not None
several = chat.generate([[HumanMessage("Say hello.")]], n=1)
assert several.generations[0][0].text == answer.content

responses = ChatOpenAI(**to, max_tokens=16, use_responses_api=True)
spoken = responses.invoke("Say hello.")
assert spoken.text, spoken
assert "".join(c.text for c in responses.stream("Say hello."))

plain = OpenAI(**to, max_tokens=8, max_retries=0)
text = plain.invoke("Once upon a time")
assert text
assert "".join(plain.stream("Once upon a time")) == text
assert plain.batch(["Once upon a time"] * 3) == [text] * 3

said = ""
try:
    chat.bind(temperature=-1).invoke("Say hello.")
except openai.BadRequestError as error:
    said = str(error)
assert "temperature" in said, said
print("langchain-openai: fine")
