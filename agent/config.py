"""An agent's settings: `config.toml` in its home, with overrides from the command line.

Every setting has a default, so an absent file is a whole configuration. What is wrong in a file is never guessed
at: an unknown key or a wrong value raises ConfigError with the file, the key and what is wanted.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Protocol

from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import PeerId, mesh_id, parse_peer

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
    listen: str = "/ip4/127.0.0.1/tcp/0"
    """Where to accept connections; port 0 takes a free one."""
    bootstrap: tuple[str, ...] = ()
    """Full addresses of first peers: `/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...`. Not given: `default_peers`."""
    allow: tuple[PeerId, ...] = ()
    """Peers whose kernels (CUDA source) this agent runs."""
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

    def rate_for(self, kind: str) -> int:
        """The price per hour of a device of `kind` (`cpu` or `cuda`)."""
        if self.rate is not None:
            return self.rate
        return CPU_RATE if kind == "cpu" else CUDA_RATE


def load_config(home: HasConfigPath, **overrides: Any) -> Config:
    """The home's settings, with each override that is not None in place of the file's. Raises ConfigError."""
    settings = _parse_all(_read(home.config_path), f"{home.config_path}: ")
    given = {key: value for key, value in overrides.items() if value is not None}
    settings.update(_parse_all(given, "argument "))
    if "bootstrap" not in settings:
        settings["bootstrap"] = default_peers(settings.get("mesh", DEFAULT_MESH))
    return Config(**settings)


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


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _parse_all(raw: Mapping[str, object], where: str) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for key, value in raw.items():
        setting = _SETTINGS.get(key)
        if setting is None:
            known = ", ".join(sorted(_SETTINGS))
            raise ConfigError(f"{where}{key!r}: no such setting; there are {known}")
        try:
            parsed[key] = setting.parse(value)
        except ValueError as error:
            detail = f" ({error})" if str(error) else ""
            raise ConfigError(f"{where}{key}: want {setting.want}, got {_short(value)}{detail}") from None
    return parsed


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


_SETTINGS: dict[str, _Setting] = {
    "mesh": _Setting("a name of 1 to 64 printable ASCII characters", _mesh),
    "listen": _Setting('an address like "/ip4/127.0.0.1/tcp/4001"', _listen),
    "bootstrap": _Setting(
        'a list of addresses like "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW..."',
        lambda value: tuple(dict.fromkeys(_address(item) for item in _many(value))),
        'an address like "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW..."',
    ),
    "allow": _Setting(
        'a list of peer ids like "12D3KooW..."',
        lambda value: tuple(dict.fromkeys(_peer(item) for item in _many(value))),
        'a peer id like "12D3KooW..."',
    ),
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
}
