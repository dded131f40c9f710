"""How many processor cores a worker uses, for its kernels and for NumPy's products.

The zygote has one thread, because a process with several must not be forked; a worker has no such worry. A team
keeps its threads, since starting one costs more than a small launch.
"""

import ctypes
import threading
from collections.abc import Callable
from queue import SimpleQueue


class ThreadTeam:
    """`size` threads, the caller's included, that run the same function at once. Threads start on first need."""

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self._helpers: list[SimpleQueue[tuple[Callable[[], None], SimpleQueue[BaseException | None]]]] = []

    def run(self, count: int, work: Callable[[], None]) -> None:
        """Run `work` on `count` threads at once (at most `size`) and return when all are through.

        Raises what one of them raised.
        """
        others = min(count, self.size) - 1
        while len(self._helpers) < others:
            self._start_helper()
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        for helper in self._helpers[:others]:
            helper.put((work, done))
        work()
        for _ in range(others):
            error = done.get()
            if error is not None:
                raise error

    def _start_helper(self) -> None:
        orders: SimpleQueue[tuple[Callable[[], None], SimpleQueue[BaseException | None]]] = SimpleQueue()
        threading.Thread(target=_serve, args=(orders,), daemon=True).start()
        self._helpers.append(orders)


def _serve(orders: "SimpleQueue[tuple[Callable[[], None], SimpleQueue[BaseException | None]]]") -> None:
    while True:
        work, done = orders.get()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, which raises it
            done.put(error)
        else:
            done.put(None)


_SETTERS = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads")


def find_blas_setter() -> Callable[[int], None] | None:
    """The function that sets how many threads NumPy's OpenBLAS uses; None where NumPy came with another library.

    Call after NumPy was imported, before the process may no longer open files.
    """
    for path in _loaded_libraries("openblas"):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for name in _SETTERS:
            setter = getattr(library, name, None)
            if setter is not None:
                setter.argtypes = [ctypes.c_int]
                setter.restype = None
                found: Callable[[int], None] = setter
                return found
    return None


def _loaded_libraries(part: str) -> list[str]:
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if part in line}
    except OSError:
        return []
    return sorted(path for path in paths if path.startswith("/"))
