"""What may stand between node and coordinator: an HTTP CONNECT proxy, and a line that is slow and far."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

DELAY = 0.025
"""Seconds one way: 50 milliseconds of round trip."""
RATE = 20e6 / 8
"""Bytes a second: 20 Mbit/s."""


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, delay: float, rate: float | None) -> None:
    """Carry bytes over: each arrives ``delay`` later, no faster than ``rate``; what is under way is bounded."""
    line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

    async def arrive() -> None:
        while (piece := await line.get())[1]:
            await asyncio.sleep(max(0.0, piece[0] - time.monotonic()))
            target.write(piece[1])
            await target.drain()
        target.close()

    arriving = asyncio.create_task(arrive())
    free = time.monotonic()
    while data := await source.read(16384):
        free = max(free, time.monotonic()) + (len(data) / rate if rate else 0.0)
        await line.put((free + delay, data))
    await line.put((0.0, b""))
    await arriving


def proxy(port: int, coordinator: int, connect: bool, used: Path | None = None) -> None:
    """Be a proxy: one that is asked to CONNECT, or the slow line. A file tells that it was used."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connect:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            except asyncio.IncompleteReadError:  # somebody looked whether it listens
                writer.close()
                return
            assert head.startswith(f"CONNECT 127.0.0.1:{coordinator} HTTP/1.1\r\n"), head
        if used is not None:
            used.touch()
        try:
            there = await asyncio.open_connection("127.0.0.1", coordinator)
        except OSError:  # nobody listens there yet
            writer.close()
            return
        if connect:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        delay, rate = (0.0, None) if connect else (DELAY, RATE)
        await asyncio.gather(
            _carry(reader, there[1], delay, rate), _carry(there[0], writer, delay, rate), return_exceptions=True
        )

    async def listen() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", port) as server:
            await server.serve_forever()

    asyncio.run(listen())


def listens(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0
