"""An agent's home: the one directory with everything it keeps, and the rules of who may touch it.

    <home>/                  0700, ours, never writable by others
      config.toml            settings (see `config`)
      reclaimed              names of devices that `coppermesh reclaim` took back, one a line
      paused                 there while `coppermesh pause` holds, over restarts too
      agent.lock             held with flock by the one agent of this home; contains its pid
      agent.sock             the local API, 0600
      agent.log
      scratch/               workers' temporary files; emptied at will
      meshes/<mesh id>/      per mesh: key, ledger.sqlite, store/, peers, port

Everything is per user and per machine: a home shared over a network would have two writers that cannot see
each other's lock. Three things here are harder than they look.

*The lock.* flock belongs to the open file, so it vanishes with the last process that has it open, however that
process died; a pid file alone would outlive a crash. The descriptor is close-on-exec, so that no program that the
agent starts keeps it alive; a child that is only forked must close it.

*A dead agent's socket.* Its file stays behind. `bind_unix` makes the new one under another name, puts its mode
right, starts listening, and only then renames it into place: whoever sees `agent.sock` can connect, and never sees
a mode other than 0600. Only the holder of the lock may do that.

*Long paths.* A unix socket's address holds 107 bytes, less than many home directories. Longer ones go through
/proc/self/fd/N/agent.sock, where N is the opened directory.
"""

import contextlib
import fcntl
import os
import secrets
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import MeshId

MAX_SOCKET_PATH_BYTES = 107
MAX_HOME_PATH_BYTES = 400
"""SQLite opens paths of up to 512 bytes; what lies in a home needs about 80 of them."""
SOCKET_BACKLOG = 64
CONNECT_SECONDS = 5
_UCRED = struct.Struct("3i")
_TIMEVAL = struct.Struct("ll")
_SEED = " seed"
"""Stands behind the pid in the lock file of a seed."""


class HomeError(MeshError):
    """The home cannot be used: not there, not ours, or open to others. The text says what to change."""


class HomeLocked(MeshError):
    """Another process runs this home's agent. Use that one, stop it, or name another home."""

    def __init__(self, path: Path, pid: int | None, *, seed: bool = False) -> None:
        self.holder = holder = "another process" if pid is None else f"process {pid}"
        if seed:
            text = (
                f"home {path} is that of a seed, which runs already ({holder}) and takes no jobs: "
                "choose another home with --home or COPPERMESH_HOME"
            )
        else:
            text = (
                f"home {path} is in use by {holder}: one agent per home. "
                f"Talk to that agent, stop it{'' if pid is None else f' (kill {pid})'}, "
                f"or choose another home with --home or COPPERMESH_HOME"
            )
        super().__init__(text)
        self.path = path
        self.pid = pid
        self.seed = seed


class HasSocketOptions(Protocol):
    """A connected socket of the standard library or of trio."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes:
        """The option's raw bytes."""


MAX_DEVICES = 64


def default_home() -> "Home":
    """The home that COPPERMESH_HOME names, else `coppermesh` in the XDG data directory (~/.local/share).

    Raises HomeError where COPPERMESH_HOME is set and empty: a script meant to name one.
    """
    named = os.environ.get("COPPERMESH_HOME")
    if named is not None:
        if not named:
            raise HomeError("COPPERMESH_HOME is set and empty: name a directory, or unset it")
        return Home(named)
    data = os.environ.get("XDG_DATA_HOME", "")
    base = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return Home(base / "coppermesh")


class Home:
    """Names what an agent keeps under `path`. Making one touches nothing; `prepare` and `lock` make and check it."""

    def __init__(self, path: Path | str) -> None:
        """Raises HomeError for an empty name, which would be the current directory."""
        if path == "":
            raise HomeError("the home's name is empty: name a directory")
        self.path = Path(path).expanduser().absolute()

    def __repr__(self) -> str:
        return f"Home({str(self.path)!r})"

    @property
    def config_path(self) -> Path:
        """The settings a person writes."""
        return self.path / "config.toml"

    @property
    def paused_path(self) -> Path:
        """A mark, there while the owner has paused the agent."""
        return self.path / "paused"

    def keep_paused(self, paused: bool) -> bool:
        """Leave or remove the mark. False where the home does not let us."""
        try:
            if paused:
                os.close(_open_private(self.paused_path))
            else:
                self.paused_path.unlink(missing_ok=True)
        except (OSError, HomeError):
            return False
        return True

    def reclaimed(self) -> frozenset[str]:
        """Devices that their owner has taken back until `coppermesh resume`."""
        try:
            text = (self.path / "reclaimed").read_text(encoding="ascii", errors="replace")
        except OSError:
            return frozenset()
        return frozenset(text.split()[:MAX_DEVICES])

    def keep_reclaimed(self, devices: Iterable[str]) -> bool:
        """Remember them over restarts. False where the home does not let us."""
        path = self.path / "reclaimed"
        text = "".join(f"{device}\n" for device in sorted(devices))
        try:
            path.unlink(missing_ok=True)
            if text:
                with os.fdopen(_open_private(path), "w") as file:
                    file.write(text)
        except (OSError, HomeError):
            return False
        return True

    @property
    def tariffs_path(self) -> Path:
        """What electricity cost when (`tariff_history`)."""
        return self.path / "tariffs.jsonl"

    @property
    def lock_path(self) -> Path:
        """Locked by the running agent."""
        return self.path / "agent.lock"

    @property
    def socket_path(self) -> Path:
        """The local API of the running agent; open it with `bind_unix` and `connect_unix`, it may be long."""
        return self.path / "agent.sock"

    @property
    def log_path(self) -> Path:
        """Where an agent started in the background writes its log."""
        return self.path / "agent.log"

    @property
    def scratch_path(self) -> Path:
        """Temporary files of workers (the directory is made here)."""
        return _private_directory(self.path / "scratch")

    def mesh_path(self, mesh: MeshId) -> Path:
        """The directory of one mesh (made here), named by id since a mesh's name may hold a slash.

        Raises HomeError where it cannot be made, as where the home is missing.
        """
        return _private_directory(_private_directory(self.path / "meshes") / mesh.hex())

    def key_path(self, mesh: MeshId) -> Path:
        """This agent's Ed25519 key on that mesh."""
        return self.mesh_path(mesh) / "key"

    def ledger_path(self, mesh: MeshId) -> Path:
        """The ledger of that mesh, a SQLite file."""
        return self.mesh_path(mesh) / "ledger.sqlite"

    def store_path(self, mesh: MeshId) -> Path:
        """The blobs of that mesh (the directory is made here)."""
        return _private_directory(self.mesh_path(mesh) / "store")

    def peers_path(self, mesh: MeshId) -> Path:
        """Peers remembered from earlier runs."""
        return self.mesh_path(mesh) / "peers"

    def port_path(self, mesh: MeshId) -> Path:
        """The TCP port of the last run."""
        return self.mesh_path(mesh) / "port"

    def speeds_path(self, mesh: MeshId) -> Path:
        """How fast providers ran this agent's programs in earlier runs."""
        return self.mesh_path(mesh) / "speeds"

    def door_port_path(self, mesh: MeshId) -> Path:
        """The TCP port of a private mesh's door in the last run."""
        return self.mesh_path(mesh) / "door-port"

    @contextlib.contextmanager
    def lock(self, *, seed: bool = False) -> Iterator[None]:
        """Be this home's one writer for the length of the block; `seed`: no agent. Raises HomeLocked, HomeError."""
        self.prepare()
        descriptor = _open_private(self.lock_path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _locked(self.path, descriptor) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}{_SEED if seed else ''}\n".encode(), 0)
            try:
                yield
            finally:
                # The file itself stays: unlinking it would let two processes lock two files of one name.
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def lock_holder(self) -> HomeLocked | None:
        """Who runs this home's agent or seed, for a person to read: it may have ended by the time this returns."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _locked(self.path, descriptor)
        else:
            return None
        finally:
            os.close(descriptor)

    def prepare(self) -> None:
        """Make the directory (0700) where it is missing, and check it.

        Raises HomeError where it cannot be made, is not a directory, belongs to another user, or can be written by
        others.
        """
        length = len(os.fsencode(self.path))
        if length > MAX_HOME_PATH_BYTES:
            raise HomeError(
                f"home {self.path}: a path of {length} bytes; its ledger opens up to {MAX_HOME_PATH_BYTES}"
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise HomeError(f"home {self.path} is a file: name a directory") from None
        except OSError as error:
            raise HomeError(f"home {self.path} cannot be made: {error.strerror}") from error
        self.check()

    def check(self) -> None:
        """For readers: is the home there and safe to use? Makes nothing; raises HomeError as `prepare` does."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise HomeError(f"home {self.path}: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode):
            raise HomeError(f"home {self.path} is not a directory")
        if found.st_uid != os.geteuid():
            raise HomeError(f"home {self.path} belongs to user {found.st_uid}, not to you: name another home")
        if found.st_mode & 0o022:
            raise HomeError(f"home {self.path} can be written by others: run `chmod 700 {self.path}`")


def bind_unix(path: Path) -> socket.socket:
    """A listening unix socket at `path`, mode 0600, replacing a dead one. Hold the home's lock.

    Raises HomeError where the directory does not allow it.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with _socket_address(fresh) as address:
            listener.bind(address)
        fresh.chmod(0o600)
        listener.listen(SOCKET_BACKLOG)
        fresh.rename(path)
    except OSError as error:
        listener.close()
        fresh.unlink(missing_ok=True)
        raise HomeError(f"socket {path} cannot be made: {error.strerror}") from error
    return listener


def connect_unix(path: Path) -> socket.socket:
    """A blocking socket connected to the agent that listens at `path`, proven to run as this user.

    Raises OSError: FileNotFoundError or ConnectionRefusedError where nobody listens, TimeoutError where the agent
    does not accept within `CONNECT_SECONDS`, PermissionError where another user listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # With a full backlog a non-blocking unix connect fails at once; a blocking one waits, this long at most.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(CONNECT_SECONDS, 0))
        try:
            with _socket_address(path) as address:
                connection.connect(address)
        except BlockingIOError:
            raise TimeoutError(f"the agent at {path} accepts no connection: is it stopped?") from None
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(0, 0))
        listener_uid = peer_uid(connection)
        if listener_uid != os.geteuid():
            raise PermissionError(f"socket {path} is served by user {listener_uid}, not by you: refused")
    except BaseException:
        connection.close()
        raise
    return connection


def peer_uid(connection: HasSocketOptions) -> int:
    """The user id of the process at the other end, as the kernel saw it on connecting (SO_PEERCRED)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _pid, uid, _gid = _UCRED.unpack(raw)
    return int(uid)


@contextlib.contextmanager
def _socket_address(path: Path) -> Iterator[str]:
    """An address for `path` that fits a unix socket, valid within the block."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _private_directory(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HomeError(f"{path} cannot be made: {error.strerror}") from error
    return path


def _open_private(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise HomeError(f"{path} cannot be opened: {error.strerror}") from error


def _locked(path: Path, descriptor: int) -> HomeLocked:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    number = text.removesuffix(_SEED)
    return HomeLocked(path, int(number) if number.isdigit() else None, seed=number != text)
