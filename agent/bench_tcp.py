"""The yardstick of `coppermesh bench`: an array there and back over bare trio TCP, with nothing else done to it.

Run as a module it is the other side: it prints its port, takes `SIZE` bytes into memory, sends them back, and repeats
until the connection ends.
"""

import subprocess
import sys
import time

import trio

SIZE = 64 * 1024 * 1024
_CHUNK = 1024 * 1024


async def _receive(stream: trio.SocketStream, into: memoryview) -> bool:
    received = 0
    while received < len(into):
        count = await stream.socket.recv_into(into[received : received + _CHUNK])
        if not count:
            return False
        received += count
    return True


async def _serve() -> None:
    buffer = memoryview(bytearray(SIZE))
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0] as listener:
        print(listener.socket.getsockname()[1], flush=True)
        stream = await listener.accept()
        async with stream:
            while await _receive(stream, buffer):
                await stream.send_all(buffer)


async def _measure(port: int, rounds: int) -> list[float]:
    """Seconds of each round trip."""
    buffer = memoryview(bytearray(SIZE))
    seconds = []
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for _ in range(rounds):
            started = time.perf_counter()
            await stream.send_all(buffer)
            await _receive(stream, buffer)
            seconds.append(time.perf_counter() - started)
    return seconds


def measure_raw_tcp(rounds: int) -> list[float]:
    """Seconds that `SIZE` bytes take to another process and back, each round; the first warm-up round is left out."""
    command = [sys.executable, "-m", "coppermesh.agent.bench_tcp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:  # noqa: S603 - our own interpreter and module
        try:
            assert other.stdout is not None
            port = int(other.stdout.readline())
            return trio.run(_measure, port, rounds + 1)[1:]
        finally:
            other.terminate()


if __name__ == "__main__":
    trio.run(_serve)
