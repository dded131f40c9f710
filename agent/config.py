"""An agent's settings: `config.toml` in its home, with overrides from the command line.

Every setting has a default, so an absent file is a whole configuration. What is wrong in a file is never guessed
at: an unknown key or a wrong value raises ConfigError with the file, the line, the key and what is wanted. The table
`[sharing]` is the owner's hand on his devices (`sharing.Sharing`); `reload` says what can change while an agent runs.
"""

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from coppermesh.agent.costs import Costs, parse_tariff_window
from coppermesh.agent.hours import parse_window
from coppermesh.agent.networking import Network
from coppermesh.agent.seeding import Seed
from coppermesh.agent.sharing import Sharing
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import PeerId, format_peer, mesh_id, parse_peer

DEFAULT_MESH = "open"
MAX_CONFIG_BYTES = 64 * 1024
MAX_LIST = 1024
MAX_COUNT = 1 << 62
CPU_RATE = 30_000
"""Default price of a CPU: 0.03 USD per device-hour, in 10^-6 of the unit."""
CUDA_RATE = 400_000
"""Default price of a GPU: 0.40 USD per device-hour, in 10^-6 of the unit."""

_HOST = r"(ip4/[0-9.]{7,15}|ip6/[0-9a-fA-F:.]{2,45}|dns[46]?/[A-Za-z0-9.-]{1,253})"
_LISTEN = re.compile(r"/(ip4/[0-9.]{7,15}|ip6/[0-9a-fA-F:.]{2,45})/tcp/([0-9]{1,5})")
_FULL_ADDRESS = re.compile(rf"/{_HOST}/tcp/([0-9]{{1,5}})/p2p/([A-Za-z0-9]{{1,64}})")
_CODE = re.compile(r"[a-z0-9-]{1,40}")
_TABLE_LINE = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]")
_KEY_LINE = re.compile(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*[.=]")
TABLES: dict[str, type] = {"sharing": Sharing, "costs": Costs, "network": Network, "seed": Seed}
"""The tables of the file: each is a field of Config by its name, and `_SETTINGS` has its keys as `table.key`."""
_MOVED = {
    "allow": "peers whose CUDA source runs whatever the sandbox holds are now `trust`; who may send work at all is "
    "`allow` below [sharing]",
}
"""Keys of earlier versions, and what to write instead."""


class ConfigError(MeshError):
    """A setting is wrong. The text names the file or argument, the key, and what is wanted."""


class HasConfigPath(Protocol):
    """The part of a home that this module needs."""

    @property
    def config_path(self) -> Path:
        """Where `config.toml` is, whether or not it exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one agent. Money is in 10^-6 of `unit`, sizes in bytes."""

    mesh: str = DEFAULT_MESH
    """Name of the mesh: 1 to 64 printable ASCII characters."""
    priority: tuple[str, ...] = ()
    """Names of meshes, the first comes first; others after these, private ones before the open one."""
    listen: str = "/ip4/0.0.0.0/tcp/0"
    """Where to accept connections, by default on every network; port 0: that of the last run where it is free."""
    bootstrap: tuple[str, ...] = ()
    """Full addresses of first peers: `/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...`. Not given: `default_peers`."""
    trust: tuple[PeerId, ...] = ()
    """Peers whose kernels (CUDA source) this agent runs even where its sandbox was not seen to hold."""
    provide: bool = True
    """False: never offer devices, only submit."""
    rate: int | None = None
    """Price per device-hour of every device; None: `CPU_RATE` or `CUDA_RATE` by its kind."""
    unit: str = "usd"
    """Code of the currency."""
    memory_bytes: int = 2 << 30
    """Most memory one task may use on a CPU."""
    store_bytes: int = 4 << 30
    """Most disk the blob store may use, per mesh."""
    slots: int = 1
    """Leases that one device serves at once, 1 to 64."""
    idle_exit_seconds: int | None = None
    """End the agent after so long without a client, a lease or an open receipt; None: never."""
    sharing: Sharing = field(default_factory=Sharing)
    """When, to whom and under which conditions the devices are lent."""
    costs: Costs = field(default_factory=Costs)
    """What lending costs their owner."""
    network: Network = field(default_factory=Network)
    """How others are found and reach this agent."""
    seed: Seed = field(default_factory=Seed)
    """What `coppermesh bootstrap` gives at most."""

    def rate_for(self, kind: str) -> int:
        """The price per hour of a device of `kind` (`cpu` or `cuda`)."""
        if self.rate is not None:
            return self.rate
        return CPU_RATE if kind == "cpu" else CUDA_RATE


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and where each that is not a default came from: `line 12`, `environment` or `command line`."""

    config: Config
    origins: Mapping[str, str]
    """By key; keys of tables begin with the table's name: `sharing.hours`."""


class FromEnvironment(str):
    """An override that an environment variable gave, not an argument."""

    __slots__ = ()


def environment() -> dict[str, Any]:
    """Overrides from the environment: COPPERMESH_LISTEN comes before the file and behind arguments."""
    listen = os.environ.get("COPPERMESH_LISTEN")
    return {"listen": FromEnvironment(listen)} if listen else {}


def _source(value: object) -> str:
    return "environment" if isinstance(value, FromEnvironment) else "command line"


def load_config(home: HasConfigPath, **overrides: Any) -> Config:
    """The home's settings, with each override that is not None in place of the file's. Raises ConfigError."""
    return load_settings(home.config_path, overrides).config


def load_settings(path: Path, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """As `load_config`, with the origins. Raises ConfigError."""
    text = _read(path)
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    settings = _parse_all(_tables(text, path), f"{path}: ", text)
    settings.update(_parse_all(given, "argument "))
    origins = {key: _at_line(text, key) for key in settings}
    origins.update({key: _source(given.get(key)) for key in _parse_all(given, "argument ")})
    if "bootstrap" not in settings:
        settings["bootstrap"] = default_peers(settings.get("mesh", DEFAULT_MESH))
    tables = {table: made(**_taken(settings, table)) for table, made in TABLES.items()}
    return Loaded(Config(**settings, **tables), origins)


def _taken(settings: dict[str, Any], table: str) -> dict[str, Any]:
    """The settings of one table by their short keys, taken out of `settings`."""
    prefix = f"{table}."
    return {key.removeprefix(prefix): settings.pop(key) for key in list(settings) if key.startswith(prefix)}


def values_of(config: Config) -> dict[str, Any]:
    """Every setting by its key (`sharing.hours`), with values as `config.toml` would have them."""
    return {key: _written(attrgetter(key)(config)) for key in _SETTINGS}


def described(origins: Mapping[str, str], values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Each setting's value and where it came from, for people and scripts."""
    return {key: {"value": value, "from": origins.get(key, "default")} for key, value in values.items()}


def _written(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_written(item) for item in value]
    if isinstance(value, bytes):
        return format_peer(PeerId(value))
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def wanted_for(key: str, value: object) -> str | None:
    """What the setting `key` wants, as words after "want", where `value` (one item of a list) is not that."""
    setting = _SETTINGS[key]
    try:
        setting.parse([value] if setting.item_want else value)
    except ValueError:
        return setting.item_want or setting.want
    return None


def default_peers(mesh: str, source: Traversable | None = None) -> tuple[str, ...]:
    """First peers of `mesh` that come with coppermesh (bootstrap/peers.toml): for who names none himself."""
    file = source or files("coppermesh.bootstrap").joinpath("peers.toml")
    peers = tomllib.loads(file.read_text(encoding="utf-8"))
    return tuple(_address(item) for item in peers.get(mesh, ()))


def _read(path: Path) -> str:
    try:
        # Not to wait for whoever writes to a pipe of that name, which may be nobody.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{path}: cannot be read: it is no ordinary file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_CONFIG_BYTES + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None


def _tables(text: str, path: Path) -> dict[str, Any]:
    """The file's values. A table may stand twice, as where somebody added lines at the end: its settings add up."""
    try:
        try:
            return tomllib.loads(text)
        except ValueError as error:
            if "twice" not in str(error):
                raise
            return tomllib.loads(_regrouped(text))
    except ValueError as error:  # TOMLDecodeError, and what Python says of a number of thousands of digits
        raise ConfigError(
            f"{path}: not TOML: {_twice(text, str(error)) or f'{error}{_quoted(text, str(error))}'}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path}: not TOML: nested too deeply") from None


def _regrouped(text: str) -> str:
    """The same lines, those of each table together below its first heading."""
    tables: dict[str, list[str]] = {"": []}
    lines = tables[""]
    for line in text.splitlines():
        header = _TABLE_LINE.match(line)
        if header is None:
            lines.append(line)
        else:
            lines = tables.setdefault(header[1], [f"[{header[1]}]"])
    return "\n".join(line for part in tables.values() for line in part)


def _twice(text: str, error: str) -> str:
    """Which key stands twice, and where, if that is the error; found as `_line_of` does."""
    if "twice" not in error and "overwrite" not in error:
        return ""
    table = ""
    seen: dict[tuple[str, str], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        header, found = _TABLE_LINE.match(line), _KEY_LINE.match(line)
        if header is not None:
            table = header[1]
        elif found is not None:
            if (table, found[1]) in seen:
                first = seen[table, found[1]]
                return f"the setting {found[1]} stands twice, in lines {first} and {number}: keep one of them"
            seen[table, found[1]] = number
    return ""


def _quoted(text: str, error: str) -> str:
    """The line that a TOML error names, for whoever has to mend it."""
    found = re.search(r"at line ([0-9]+)", error)
    lines = text.splitlines()
    if found is None or not 0 < int(found[1]) <= len(lines):
        return ""
    return f": {_short(lines[int(found[1]) - 1].strip())}"


def _parse_all(raw: Mapping[str, object], where: str, text: str = "") -> dict[str, Any]:
    """The parsed settings by key. `where` begins the errors; `text` is the file, to find lines in."""
    parsed: dict[str, Any] = {}
    for key, value in _flat(raw, where, text).items():
        place = where + _in_line(text, key)
        setting = _SETTINGS.get(key)
        if setting is None:
            raise ConfigError(f"{place}{_no_such(key)}")
        try:
            parsed[key] = setting.parse(value)
        except ValueError as error:
            detail = f" ({error})" if str(error) else ""
            raise ConfigError(f"{place}{key}: want {setting.want}, got {_short(value)}{detail}") from None
    return parsed


def _flat(raw: Mapping[str, object], where: str, text: str) -> dict[str, object]:
    """With the keys of tables among the others, as `sharing.hours`."""
    flat = {key: value for key, value in raw.items() if key not in TABLES}
    for name in TABLES:
        table = raw.get(name, {})
        if not isinstance(table, Mapping) or not all(isinstance(key, str) for key in table):
            raise ConfigError(f"{where}{_in_line(text, name)}{name}: want a table, got {_short(table)}")
        flat |= {f"{name}.{key}": value for key, value in table.items()}
    return flat


def _no_such(key: str) -> str:
    """What to write in place of a key that there is not."""
    if key in _MOVED:
        return f"{key!r}: {_MOVED[key]}"
    name = key.rpartition(".")[2]
    elsewhere = [known for known in _SETTINGS if known.rpartition(".")[2] == name]
    close = elsewhere or difflib.get_close_matches(key, _SETTINGS, 1)
    hint = ""
    if elsewhere:
        table = elsewhere[0].rpartition(".")[0]
        hint = "; it belongs " + (f"below [{table}]" if table else "above every [table]")
    elif close:
        hint = f"; did you mean {close[0]}?"
    hint = hint or f"; there are {', '.join(sorted(_SETTINGS))}"
    return f"{_short(key)}: no such setting{hint}"


def _in_line(text: str, key: str) -> str:
    at = _line_of(text, key)
    return f"line {at}: " if at is not None else ""


def _at_line(text: str, key: str) -> str:
    at = _line_of(text, key)
    return f"line {at}" if at is not None else "config.toml"


def _line_of(text: str, key: str) -> int | None:
    """The line that gives `key` its value, for a person: found by how people write, not by parsing again."""
    wanted_table, _, name = key.rpartition(".")
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = _TABLE_LINE.match(line)
        if header is not None:
            table = header[1]
            if table == key:
                return number
            continue
        found = _KEY_LINE.match(line)
        if found is not None and found[1] == name and table == wanted_table:
            return number
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - one exception for every wrong value; the caller words it
    return value


def _whole(value: object, low: int, high: int) -> int:
    # bool is an int to Python, never to a person writing a number.
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError
    return value


def _many(value: object) -> list[object] | tuple[object, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_LIST:
        raise ValueError
    return value


def _mesh(value: object) -> str:
    name = _text(value)
    mesh_id(name)
    return name


def _listen(value: object) -> str:
    found = _LISTEN.fullmatch(_text(value))
    if found is None or int(found[2]) > 65535:
        raise ValueError
    return found[0]


def _address(value: object) -> str:
    found = _FULL_ADDRESS.fullmatch(_text(value))
    if found is None or not 0 < int(found[2]) <= 65535:
        raise ValueError
    parse_peer(found[3])
    return found[0]


def _peer(value: object) -> PeerId:
    if isinstance(value, bytes) and len(value) == 32:
        return PeerId(value)
    return parse_peer(_text(value))


def _share(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError
    return float(value)


def _watts(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 100_000:
        raise ValueError
    return float(value)


def _margin(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 100:
        raise ValueError
    return float(value)


def _one_of(*words: str) -> Callable[[object], object]:
    def parse(value: object) -> str:
        word = _text(value)
        if word not in words:
            raise ValueError
        return word

    return parse


def _zone(value: object) -> str:
    name = _text(value)
    try:
        if name:
            ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("this machine knows no such zone") from None
    return name


def _name(value: object) -> str:
    name = _text(value)
    if not 0 < len(name) <= 64:
        raise ValueError
    return name


def _peers(value: object) -> tuple[PeerId, ...]:
    return tuple(dict.fromkeys(_peer(item) for item in _many(value)))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004 - as above
    return value


def _bytes(value: object) -> int:
    return _whole(value, 1 << 20, MAX_COUNT - 1)


def _code(value: object) -> str:
    found = _CODE.fullmatch(_text(value))
    if found is None:
        raise ValueError
    return found[0]


@dataclass(frozen=True, slots=True)
class _Setting:
    """How one key is read: `want` ends the sentence "want ...", `parse` raises ValueError on anything else."""

    want: str
    parse: Callable[[object], object] = field(repr=False)
    item_want: str = ""
    """Not empty for a list: what one item of it is."""


_PEERS = 'a list of peer ids like "12D3KooW..."'
_SHARE = "a number above 0 and at most 1"
_STOP = '"stop" or "finish"'
_ZONE = 'the name of a time zone like "Europe/Paris"'
_WATTS = "a number of watts, 0 or more"
_EXAMPLE = '"/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW..."'
_SETTINGS: dict[str, _Setting] = {
    "mesh": _Setting("a name of 1 to 64 printable ASCII characters", _mesh),
    "priority": _Setting(
        "a list of names of meshes, the first one first",
        lambda value: tuple(dict.fromkeys(_mesh(item) for item in _many(value))),
        "a name of 1 to 64 printable ASCII characters",
    ),
    "listen": _Setting('an address like "/ip4/127.0.0.1/tcp/4001"', _listen),
    "bootstrap": _Setting(
        f"a list of addresses like {_EXAMPLE}",
        lambda value: tuple(dict.fromkeys(_address(item) for item in _many(value))),
        f"an address like {_EXAMPLE}",
    ),
    "trust": _Setting(_PEERS, _peers, 'a peer id like "12D3KooW..."'),
    "provide": _Setting("true or false", _flag),
    "rate": _Setting(
        "a whole number of millionths of the unit per device-hour, 0 or more",
        lambda value: _whole(value, 0, MAX_COUNT - 1),
    ),
    "unit": _Setting('a code of small letters, digits and "-", like "usd"', _code),
    "memory_bytes": _Setting("a number of bytes, at least 1048576", _bytes),
    "store_bytes": _Setting("a number of bytes, at least 1048576", _bytes),
    "slots": _Setting("a number from 1 to 64", lambda value: _whole(value, 1, 64)),
    "idle_exit_seconds": _Setting("a number of seconds, 1 or more", lambda value: _whole(value, 1, 10**9)),
    "network.mdns": _Setting("true or false", _flag),
    "network.relay": _Setting('"auto", "always" or "never"', _one_of("auto", "always", "never")),
    "network.relays": _Setting(
        f"a list of addresses like {_EXAMPLE}",
        lambda value: tuple(dict.fromkeys(_address(item) for item in _many(value))),
        f"an address like {_EXAMPLE}",
    ),
    "network.serve_relay": _Setting("true or false", _flag),
    "network.hole_punching": _Setting("true or false", _flag),
    "seed.connections": _Setting("a number from 8 to 65536", lambda value: _whole(value, 8, 65536)),
    "seed.reservations": _Setting("a number from 0 to 65536", lambda value: _whole(value, 0, 65536)),
    "seed.circuits": _Setting("a number from 1 to 65536", lambda value: _whole(value, 1, 65536)),
    "seed.circuit_seconds": _Setting(
        "a number of seconds, or 0 for no limit", lambda value: _whole(value, 0, 10**8)
    ),
    "seed.circuit_bytes": _Setting(
        "a number of bytes, or 0 for no limit", lambda value: _whole(value, 0, MAX_COUNT - 1)
    ),
    "seed.status_port": _Setting(
        "a TCP port, or 0 for no status page", lambda value: _whole(value, 0, 65535)
    ),
    "sharing.paused": _Setting("true or false", _flag),
    "sharing.allow": _Setting(_PEERS, _peers, 'a peer id like "12D3KooW..."'),
    "sharing.deny": _Setting(_PEERS, _peers, 'a peer id like "12D3KooW..."'),
    "sharing.min_reputation": _Setting("a whole number from 0 to 1000", lambda value: _whole(value, 0, 1000)),
    "sharing.need_isolation": _Setting(
        'a list of layers like "landlock", "seccomp"',
        lambda value: tuple(dict.fromkeys(_code(item) for item in _many(value))),
        'a layer like "landlock"',
    ),
    "sharing.hours": _Setting(
        'a list of windows like "22:00-07:00" or "sat,sun 00:00-24:00"',
        lambda value: tuple(dict.fromkeys(parse_window(_text(item)) for item in _many(value))),
    ),
    "sharing.time_zone": _Setting(_ZONE, _zone),
    "sharing.busy": _Setting('"no-bids" or "ignore"', _one_of("no-bids", "ignore")),
    "sharing.busy_utilisation": _Setting(_SHARE, _share),
    "sharing.busy_graphics_bytes": _Setting(
        "a number of bytes, 0 or more", lambda value: _whole(value, 0, MAX_COUNT - 1)
    ),
    "sharing.busy_ignore": _Setting(
        "a list of names of programs",
        lambda value: tuple(dict.fromkeys(_name(item) for item in _many(value))),
    ),
    "sharing.on_busy": _Setting(_STOP, _one_of("stop", "finish")),
    "sharing.max_temperature": _Setting(
        "a whole number of degrees Celsius, 30 to 120", lambda value: _whole(value, 30, 120)
    ),
    "sharing.max_power": _Setting(
        "a whole number of watts, 1 to 10000", lambda value: _whole(value, 1, 10_000)
    ),
    "sharing.max_load": _Setting(_SHARE, _share),
    "sharing.on_limit": _Setting(_STOP, _one_of("stop", "finish")),
    "sharing.strict": _Setting("true or false", _flag),
    "sharing.memory_share": _Setting(_SHARE, _share),
    "sharing.keep_free_bytes": _Setting(
        "a number of bytes, 0 or more", lambda value: _whole(value, 0, MAX_COUNT - 1)
    ),
    "costs.tariff": _Setting(
        "a whole number of millionths of the unit per kilowatt-hour, 0 or more",
        lambda value: _whole(value, 0, MAX_COUNT - 1),
    ),
    "costs.tariffs": _Setting(
        'a list of windows with the price in each, like "22:00-06:00 180000"',
        lambda value: tuple(parse_tariff_window(_text(item)) for item in _many(value)),
        'a window with a price like "22:00-06:00 180000"',
    ),
    "costs.time_zone": _Setting(_ZONE, _zone),
    "costs.idle_watts": _Setting(_WATTS, _watts),
    "costs.loaded_watts": _Setting(_WATTS, _watts),
    "costs.count_idle": _Setting("true or false", _flag),
    "costs.wear": _Setting(
        "a whole number of millionths of the unit per device-hour, 0 or more",
        lambda value: _whole(value, 0, MAX_COUNT - 1),
    ),
    "costs.margin": _Setting("a share of the costs, 0 to 100 (0.2 is 20 %)", _margin),
}
