"""A network between processes of one machine: a delay and a rate for each direction of each pair, in user
space."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from keyhole.private.network import LOOPBACK, Network

_CHUNK = 1 << 16
_SPUN = 0.002  # seconds; timers of an event loop are no finer than a millisecond


class _Direction:
    """Bytes leave one after another by the rate, and arrive later by the delay."""

    def __init__(self, network: Network) -> None:
        self._network, self._free = network, 0.0

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[bytes, float]] = asyncio.Queue()
        delivery = asyncio.ensure_future(self._deliver(waiting, writer))
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                self._free = max(self._free, time.perf_counter()) + 8 * len(data) / self._network.rate
                waiting.put_nowait((data, self._free + self._network.delay))
        waiting.put_nowait((b"", 0.0))
        await delivery

    async def _deliver(
        self, waiting: asyncio.Queue[tuple[bytes, float]], writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                data, due = await waiting.get()
                if not data:
                    break
                while (left := due - time.perf_counter()) > 0:
                    await asyncio.sleep(max(left - _SPUN, 0))
                writer.write(data)
                await writer.drain()
        writer.close()


async def _serve(port: int, to: int, network: Network) -> asyncio.Server:
    there, back = _Direction(network), _Direction(network)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(there.pump(reader, far_writer), back.pump(far_reader, writer))

    return await asyncio.start_server(connected, "127.0.0.1", port)


@contextmanager
def between(pairs: dict[int, int], network: Network) -> Iterator[None]:
    """Forward each port to another one of this machine, as a network would, inside a with-block."""
    if network == LOOPBACK:
        yield
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        for port, to in pairs.items():
            asyncio.run_coroutine_threadsafe(_serve(port, to, network), loop).result(10)
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
