"""Stored responses: for retrieval, for a next turn, and while they run in the background.

They are in this process's memory and bounded: the oldest ones that have ended are evicted first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from galley.errors import InvalidRequest, NotFound, Overloaded
from galley.server.protocol.responses import ResponseObject, add_item

CAPACITY = 1000


@dataclass
class Record:
    """One response.

    Attributes:
        messages: the conversation that it answers, without instructions.
        events: of a streamed background response, each with its number in the list.
        task: produces the response in the background.
    """

    response: ResponseObject
    messages: list[dict[str, Any]]
    events: list[bytes] | None = None
    task: asyncio.Task[None] | None = None
    _updates: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        return self.task is not None and not self.task.done()

    def add(self, events: list[bytes]) -> None:
        assert self.events is not None
        self.events += events
        self.wake()

    def wake(self) -> None:
        """Wake the followers."""
        self._updates.set()
        self._updates = asyncio.Event()

    async def follow(self, after: int = -1) -> AsyncGenerator[bytes, None]:
        """Events with numbers above `after`, until the last has come."""
        assert self.events is not None
        index = after + 1
        while True:
            updates = self._updates
            while index < len(self.events):
                yield self.events[index]
                index += 1
            if not self.running:
                return
            await updates.wait()

    def next_messages(self) -> list[dict[str, Any]]:
        """The conversation with this answer at its end."""
        answer: list[dict[str, Any]] = []
        for i, item in enumerate(self.response.output):
            add_item(answer, msgspec.to_builtins(item), f"output[{i}]")
        return [*self.messages, *answer]


class ResponseStore:
    """Records by response id."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._records: dict[str, Record] = {}

    def add(self, record: Record) -> None:
        """Keep a record.

        Raises:
            InvalidRequest: its id is in use.
            Overloaded: the store is full of running responses.
        """
        if record.response.id in self._records:
            raise InvalidRequest(
                f"There is a response {record.response.id:.100} already.", field="request_id"
            )
        if len(self._records) >= self._capacity:
            ended = next((i for i, r in self._records.items() if not r.running), None)
            if ended is None:
                raise Overloaded(f"{self._capacity} responses are running in the background.")
            del self._records[ended]
        self._records[record.response.id] = record

    def get(self, response_id: str) -> Record:
        """Raises NotFound."""
        record = self._records.get(response_id)
        if record is None:
            raise NotFound(f"Response with id `{response_id:.100}` not found.", field="response_id")
        return record

    def discard(self, response_id: str) -> None:
        self._records.pop(response_id, None)
