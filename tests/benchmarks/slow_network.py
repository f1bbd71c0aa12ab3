"""A way to a server that is as long as a real one: latency, bandwidth, outages.

Run it as a process of its own, or its work would slow down what is measured: with ``SlowNetwork(...)``, or

    python slow_network.py HOST:PORT --latency 0.1 --rate 50e6

which prints the port that it listens on, and then takes ``up``, ``refuse`` or ``hang`` from its input, a line
each. Bytes pass unchanged, so signed requests stay valid.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
from types import TracebackType
from typing import Final, Literal, Self, cast

Way = Literal["up", "refuse", "hang"]

_CHUNK: Final = 64 * 1024
_IN_FLIGHT: Final = 256  # chunks of a connection that are on their way


class SlowNetwork:
    """The proxy as a child process. ``port`` is its own, on the loopback interface."""

    def __init__(self, host: str, port: int, *, latency: float = 0.1, rate: float = 50e6) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, f"{host}:{port}", "--latency", str(latency), "--rate", str(rate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def turn(self, way: Way) -> None:
        """Let everything through, end and refuse all connections, or answer nobody any more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{way}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Proxy:
    def __init__(self, host: str, port: int, latency: float, rate: float) -> None:
        self._host, self._port = host, port
        self._latency, self._rate = latency, rate
        self._way: Way = "up"
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._open: set[asyncio.StreamWriter] = set()

    def turn(self, way: Way) -> None:
        self._way = way
        if way == "hang":
            self._flowing.clear()
        else:
            self._flowing.set()
        if way == "refuse":
            for writer in list(self._open):
                writer.transport.abort()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._way == "refuse":
            writer.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, to_server}
        # The whole round trip is in the answer's direction: that is what a client can tell.
        ways = [
            asyncio.create_task(self._carry(reader, to_server, 0.0)),
            asyncio.create_task(self._carry(from_server, writer, self._latency)),
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            self._open -= {writer, to_server}
            for end in (writer, to_server):
                end.close()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency: float
    ) -> None:
        """Every chunk arrives ``latency`` after it was sent, and no faster than the rate allows."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)
        loop = asyncio.get_running_loop()

        async def deliver() -> None:
            free = 0.0
            while True:
                due, chunk = await queue.get()
                if not chunk:
                    break
                free = max(free, due) + len(chunk) / self._rate
                await asyncio.sleep(max(0.0, free - loop.time()))
                await self._flowing.wait()
                writer.write(chunk)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

        delivery = asyncio.create_task(deliver())
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if delivery.done():
                    break
                await queue.put((loop.time() + latency, chunk))
        if not delivery.done():
            await queue.put((loop.time() + latency, b""))
        with contextlib.suppress(OSError):
            await delivery


async def _serve(host: str, port: int, latency: float, rate: float) -> None:
    proxy = _Proxy(host, port, latency, rate)
    server = await asyncio.start_server(proxy.connect, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        way = line.decode().strip()
        if way in ("up", "refuse", "hang"):
            proxy.turn(cast(Way, way))
        print(way, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument(
        "--latency", type=float, default=0.1, help="seconds until the first byte of an answer"
    )
    parser.add_argument("--rate", type=float, default=50e6, help="bytes a second and connection")
    given = parser.parse_args()
    target_host, _, target_port = given.target.rpartition(":")
    asyncio.run(_serve(target_host, int(target_port), given.latency, given.rate))
