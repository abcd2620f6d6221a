"""Connections that nobody can hold for ever, and whose faults are typed like all others."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from interfuse.serve.faults import Fault
from interfuse.serve.limits import ServiceLimits


class Connection(H11Protocol):
    """HTTP/1.1 by uvicorn, with an end to everything: to a head that does not come, and to a whole request.

    The state of the application's lifespan has ``limits``. A request's state has also ``certificate``, what the other
    side showed in DER or None, and ``crowded``: whether there are too many connections to answer this one.
    """

    _timer: asyncio.TimerHandle | None = None
    _timed: object = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        limits = self._limits
        if len(self.connections) > 2 * limits.connections:
            transport.abort()
            return
        # asyncio does so for sockets alone that were made with TCP's number; without it the body of an answer waits
        # 40 ms until its head was received
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        secured = transport.get_extra_info("ssl_object")
        shown = secured.getpeercert(binary_form=True) if isinstance(secured, ssl.SSLObject) else None
        crowded = len(self.connections) > limits.connections
        self.app_state = {**self.app_state, "certificate": shown, "crowded": crowded}
        self._end_in(limits.head)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            if self._timer is None:
                self._end_in(self._limits.head)
        else:
            self._time_request()

    def on_response_complete(self) -> None:
        self._stop()
        super().on_response_complete()
        if not self.cycle.response_complete:  # one that came before this was answered
            self._time_request()
        elif self.transport.get_write_buffer_size():  # whoever does not read keeps no answer here for ever
            self._end_in(self._limits.request)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; nothing where an answer has begun."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = Fault(code="malformed", message="that is no HTTP/1.1").model_dump_json().encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body)):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _limits(self) -> ServiceLimits:
        found: Any = self.app_state["limits"]
        assert isinstance(found, ServiceLimits)
        return found

    def _end_in(self, seconds: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _time_request(self) -> None:
        if self._timed is not self.cycle:
            self._timed = self.cycle
            self._end_in(self._limits.request)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
