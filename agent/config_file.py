"""The file `config.toml` itself: the commented one that a first start leaves, and the stamp that tells a change."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coppermesh.agent.config import ConfigError, Loaded, load_settings
from coppermesh.agent.reload import Wrong

Stamp = tuple[int, int, int, int]

_log = logging.getLogger(__name__)

TEMPLATE = """\
# Settings of this coppermesh agent. Everything here may be left out; each line that begins with "#name =" shows the
# default, or an example where there is none. Remove the # to change it. A running agent sees a change within two
# seconds; `coppermesh config` shows what holds, `coppermesh config check` what is wrong. Settings marked (restart) are
# read at the start only.

# The mesh to join: an open one, or a private one of this home; the agent is in no open mesh then. (restart)
#mesh = "open"
# An agent serves every private mesh that its home is in (`coppermesh mesh list`). Which comes first where they want the
# same device; not given: private ones, the oldest first, then the open one. (restart)
#priority = []
# Where to accept connections: 0.0.0.0 is every network this machine is on, 127.0.0.1 this machine only; port 0 is the
# one of the last run where that is free. (restart)
#listen = "/ip4/0.0.0.0/tcp/0"
# First peers, such as "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...". (restart)
#bootstrap = []

# Offer this machine's devices; false: only submit jobs. (restart)
#provide = true
# Price of an hour of a device in millionths of the unit: 400000 is 0.40 usd. Not given: 30000 a CPU, 400000 a GPU.
#rate = 400000
#unit = "usd"
# How many leases one device serves at once.
#slots = 1
# The most memory of this machine that a task on its CPU may use, and the most disk for others' data (restart).
#memory_bytes = 2147483648
#store_bytes = 4294967296
# Peers whose CUDA source runs here even where `coppermesh doctor sandbox` does not see the sandbox hold.
#trust = []
# End the agent after so many seconds without work; not given: never. (restart)
#idle_exit_seconds = 600

[network]
# How others are found, and how they reach this agent. (restart)

# Say on the local network that this agent is there, and hear who else is.
#mdns = true
# Be reachable through a relay: "auto" when nobody gets through otherwise, "always", or "never".
#relay = "auto"
# Full addresses of relays; none: those of the bootstrap peers that are relays.
#relays = []
# Carry connections for other members of this agent's meshes, within the limits of [seed]. Others must reach it.
#serve_relay = false
# Turn relayed connections into direct ones where the routers between let us.
#hole_punching = true

[seed]
# What `coppermesh bootstrap` in this home gives at most, and an agent with `serve_relay`. (restart)

# Peers connected at once; peers that may be reached through this relay (0: be none); connections it carries at once.
#connections = 1024
#reservations = 256
#circuits = 256
# The longest that one carried connection lasts, and the most that it carries each way; 0: no limit.
#circuit_seconds = 3600
#circuit_bytes = 8589934592
# The status page is at http://127.0.0.1:PORT/, for this machine only; 0: none.
#status_port = 4180

[sharing]
# When, to whom and under which conditions the devices are lent. You come first.

# true: no new work; what was accepted is finished. `coppermesh pause` does the same at once, and `pause --now` ends it.
#paused = false

# Peer ids. Not empty: only these may send work.
#allow = []
# These may not, whatever `allow` says.
#deny = []
# Of 1000: requesters whose history here is worth less get nothing (`coppermesh reputation`); a stranger has 500.
#min_reputation = 0
# Layers of the sandbox without which nobody but peers in `trust` gets anything: ["landlock", "seccomp"].
#need_isolation = []

# Windows of local time, days first where it is not every day: ["22:00-07:00", "sat,sun 00:00-24:00"]. One that ends
# before it begins ends on the next day. Empty: always.
#hours = []
# Empty: this machine's own zone, else a name such as "Europe/Paris".
#time_zone = ""

# "no-bids" while another program than the agent's is on the card; "ignore": lend it all the same.
#busy = "no-bids"
# A card that nobody is seen on is busy above this use (1 is all of it), as long as no lease is on it.
#busy_utilisation = 0.2
# A program that draws, such as a game, counts from so much device memory on.
#busy_graphics_bytes = 1073741824
# Programs that never count, by name.
#busy_ignore = [DESKTOP]
# Leases on the card when such a program appears: "stop" (their tasks run elsewhere), or "finish" what was accepted.
#on_busy = "stop"

# Above these no new work is taken: degrees Celsius (lent again 5 below), watts that the device draws (again at 90 %),
# and on a CPU the share of its cores that other programs use (again at 80 %). Not given: no limit.
#max_temperature = 80
#max_power = 250
#max_load = 0.5
# Leases on the device then: "stop", or "finish" what was accepted.
#on_limit = "finish"

# true: what is asked for above and the device does not tell (temperature, programs) stops new work too.
#strict = false

# The part of a device's memory that a task may use, above 0 and at most 1.
#memory_share = 1.0
# Bytes of it that stay free for your own programs (on a CPU: of the machine's memory); while less is free, no new work.
#keep_free_bytes = 0

[costs]
# What lending costs you: nothing is lent for less. `coppermesh price` shows the sum, `earnings` what was left.

# Electricity in millionths of the unit per kilowatt-hour: 300000 is 0.30 usd. Not given: it counts as free.
#tariff = 300000
# Windows with a price of their own: ["22:00-06:00 180000", "sat,sun 00:00-24:00 200000"]. The first that fits counts.
#tariffs = []
# The zone of these windows. Empty: this machine's own, else a name such as "Europe/Paris".
#time_zone = ""
# What a device draws idle and under load, in watts. Not given: by its meter, else a model, marked as one.
#idle_watts = 60
#loaded_watts = 350
# true: the machine is on for leases only, so what it draws idle counts too.
#count_idle = false
# For what wears out, in millionths of the unit per device-hour.
#wear = 0
# What you want on top of cost, as a share of it: 0.2 is 20 %.
#margin = 0.0
"""


def template() -> str:
    """The commented file."""
    from coppermesh.agent.sharing import DESKTOP

    return TEMPLATE.replace("[DESKTOP]", "[\n#  " + ", ".join(f'"{name}"' for name in DESKTOP) + ",\n#]")


def write_template(path: Path) -> bool:
    """Leave the commented file where there is none. False where there is one, or it cannot be written."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(path, flags, 0o600), "w") as file:
            file.write(template())
    except FileExistsError:
        return False
    except OSError as error:
        _log.warning("%s cannot be written: %s; the defaults hold", path, error.strerror)
        return False
    return True


class ConfigFile:
    """A home's `config.toml` and what the command line set in its place."""

    def __init__(self, path: Path, overrides: Mapping[str, Any]) -> None:
        self.path = path
        self._overrides = dict(overrides)
        self.taken: Stamp | None = None
        """What the stamp was before `load` read the file last: a change since then is seen."""

    def stamp(self) -> Stamp | None:
        """Differs whenever the file does; None where there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def load(self) -> Loaded:
        """At the start: no file is a whole configuration. Raises ConfigError."""
        self.taken = self.stamp()
        return load_settings(self.path, self._overrides)

    def load_again(self) -> Loaded | Wrong:
        """While an agent runs: a file that is gone or wrong changes nothing."""
        if self.stamp() is None:
            return Wrong(f"{self.path}: is gone; an agent that is started again has the defaults")
        try:
            return load_settings(self.path, self._overrides)
        except ConfigError as error:
            return Wrong(str(error))
