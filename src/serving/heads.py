"""Connections that do not come to the point: uvicorn waits for the head of a request for ever, this for some seconds.

An unfinished head holds no thread and none of the memory for requests, but a file descriptor, of which there are few.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 20.0


class TimedHeads(H11Protocol):
    """uvicorn's protocol (``uvicorn.Config(http=TimedHeads)``), which closes a connection that has sent no whole head
    ``SECONDS`` after it was made or has got its last answer."""

    seconds = SECONDS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def on_response_complete(self) -> None:
        self._expect_head()  # first, as the next request may be there already
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self._asking():
            self._forget()

    def _asking(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        self._forget()
        self._deadline = self.loop.call_later(self.seconds, self._close)

    def _close(self, *_: Any) -> None:
        if not self._asking():
            self.transport.close()

    def _forget(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
