"""The one place where an agent reads this machine's clock; the pure parts are told the time."""

import time


def now_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000
