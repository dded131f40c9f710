"""Hostile acts, as data. Each is tried by a confined process, where it must fail, and by a bare one, as a control.

An act returns something true when it worked, and raises or returns nothing when it did not. `control` is empty where
the act must work unconfined, so that a failure under the sandbox shows something; else it says why it cannot work even
there (a kernel setting, a permission that users never have), and the act shows only that nothing got easier.
`needs` names a layer without which the act is known to work; `role` is who tries it. The file is long because it is one
list, that a reader wants whole.
"""

import contextlib
import ctypes
import encodings.idna  # noqa: F401 - else a look-up fails for want of a module, which shows nothing
import fcntl
import json
import mmap
import os
import pwd
import resource
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from coppermesh.exec import linux
from coppermesh.exec.sandbox.syscall_numbers import NUMBERS

SECRET = "the owner's secret"
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass
class Stage:
    """Bait that any user may take, so that what stops an act is the sandbox and not an ordinary permission."""

    directory: str
    """World-writable: `secret` (world-writable too), `spare`, `more`, and the sockets `stream` and `datagram`."""
    port: int
    port6: int
    abstract: str
    agent: int
    """The process that started the zygote."""
    sibling: int = 0
    """Another child of the zygote, unconfined, of the same user."""
    lent: int = -1
    """An empty memory file, as a worker gets them for its outputs."""
    input: int = -1
    """A sealed memory file of 4,096 letters x, as a worker gets them for inputs."""
    confined: bool = True
    """False in a control: acts that need a stage to succeed on (an unsealed file, say) make one."""

    @property
    def secret(self) -> str:
        return f"{self.directory}/secret"

    @property
    def parent(self) -> int:
        """The zygote."""
        return os.getppid()

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def decode_stage(data: bytes) -> Stage:
    return Stage(**json.loads(data))


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call by name. Raises OSError."""
    return raw_call(NUMBERS[name], *arguments)


def raw_call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def buffer(size: int, data: bytes = b"") -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, size)


def vectors(address: int, size: int) -> bytes:
    """One `struct iovec`."""
    return struct.pack("QQ", address, size)


def in_a_child() -> int:
    """Fork; the child ends at once with 0. The wait status as an exit code."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


AT_FDCWD = -100
_FIXED_PRIVATE = 0x32
"""MAP_FIXED, MAP_PRIVATE, MAP_ANONYMOUS."""
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Act:
    name: str
    what: str
    run: Callable[[Stage], object]
    control: str = ""
    needs: str = ""
    role: str = "worker"
    unread: bool = False
    """Nobody reads what it says until it has ended."""


ACTS: list[Act] = []
DUTIES: list[Act] = []
"""Not hostile: what a worker and a builder are for. Each must succeed in every configuration."""


def act(
    what: str, *, control: str = "", needs: str = "", role: str = "worker", unread: bool = False
) -> Callable[..., object]:
    """Register the decorated function as an act."""

    def register(function: Callable[[Stage], object]) -> Callable[[Stage], object]:
        ACTS.append(Act(function.__name__, what, function, control, needs, role, unread))
        return function

    return register


def duty(what: str, *, role: str = "worker") -> Callable[..., object]:
    """Register the decorated function as something that must work under the sandbox."""

    def register(function: Callable[[Stage], object]) -> Callable[[Stage], object]:
        DUTIES.append(Act(function.__name__, what, function, role=role))
        return function

    return register


NOT_BY_USERS = "needs a capability that ordinary users lack"


# --- files


@act("read a file of the owner")
def read_file(stage):
    return SECRET in open(stage.secret).read()


@act("read the list of users")
def read_users(stage):
    return open("/etc/passwd").read()


@act("list a directory")
def list_directory(stage):
    return os.listdir(stage.directory)


@act("list the root directory")
def list_root(stage):
    return os.listdir("/")


@act("write into a file of the owner")
def write_file(stage):
    with open(stage.secret, "r+") as file:
        return file.write(SECRET)


@act("make a file in a directory of the owner")
def make_file(stage):
    return os.close(os.open(f"{stage.directory}/made-{os.getpid()}", os.O_CREAT | os.O_WRONLY)) is None


@act("make a file in the temporary directory")
def make_temporary(stage):
    path = f"/tmp/coppermesh-battery-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    os.unlink(path)
    return True


@act("make a file in the working directory")
def make_local(stage):
    return os.close(os.open("made", os.O_CREAT | os.O_WRONLY)) is None


@act("make a file without a name")
def make_nameless(stage):
    return os.close(os.open(stage.directory, os.O_TMPFILE | os.O_WRONLY)) is None


@act("write into shared memory files")
def write_shm(stage):
    path = f"/dev/shm/coppermesh-battery-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    os.unlink(path)
    return True


@act("remove a file")
def remove_file(stage):
    return os.unlink(f"{stage.directory}/spare") is None


@act("rename a file")
def rename_file(stage):
    return os.rename(f"{stage.directory}/more", f"{stage.directory}/renamed") is None


@act("make a directory")
def make_directory(stage):
    return os.mkdir(f"{stage.directory}/directory-{os.getpid()}") is None


@act("read a file through a symbolic link of one's own")
def symbolic_link(stage):
    path = f"{stage.directory}/link-{os.getpid()}"
    os.symlink(stage.secret, path)
    return open(path).read()


@act("read a file through a symbolic link that was there")
def symbolic_link_found(stage):
    return open(f"{stage.directory}/link").read()


@act("give a file another name")
def hard_link(stage):
    return os.link(f"{stage.directory}/keep", f"{stage.directory}/hard-{os.getpid()}") is None


@act("change a file's mode")
def change_mode(stage):
    return os.chmod(f"{stage.directory}/mine", 0o600) is None


@act("change a file's times")
def change_times(stage):
    return os.utime(f"{stage.directory}/keep") is None


@act("change a file's owner")
def change_owner(stage):
    return os.chown(f"{stage.directory}/mine", os.getuid(), os.getgid()) is None


@act("cut a file off")
def cut_off(stage):
    return os.truncate(f"{stage.directory}/cut", 0) is None


@act("put an extended attribute on a file")
def extended_attribute(stage):
    return os.setxattr(f"{stage.directory}/mine", "user.mark", b"1") is None


@act("make a named pipe")
def named_pipe(stage):
    return os.mkfifo(f"{stage.directory}/pipe-{os.getpid()}") is None


@act("learn a file's size and times")
def stat_file(stage):
    return os.stat(stage.secret).st_size


@act("learn a file's size with the flag that the C library uses for open files", needs="mountns")
def stat_with_flag(stage):
    room = buffer(256)
    call("newfstatat", AT_FDCWD, stage.secret.encode(), room, 0x1000)
    return struct.unpack_from("Q", room, 48)


@act("learn a file's size by opening its place only", needs="mountns")
def stat_by_path_descriptor(stage):
    return os.fstat(os.open(stage.secret, os.O_PATH)).st_size


@act("learn a file's size by statx")
def stat_extended(stage):
    return call("statx", AT_FDCWD, stage.secret.encode(), 0, 0x7FF, buffer(256)) == 0


@act("ask whether a file exists")
def ask_access(stage):
    return os.access(stage.secret, os.F_OK)


@act("read where a link points")
def read_link(stage):
    return os.readlink("/proc/self/exe")


@act("go to a directory")
def change_directory(stage):
    return os.chdir(stage.directory) is None


@act("ask for the working directory's path")
def ask_directory(stage):
    return os.getcwd()


@act("ask about the disk")
def ask_disk(stage):
    return os.statvfs(stage.directory).f_blocks


@act("read a file through one's own root")
def through_own_root(stage):
    return open(f"/proc/self/root{stage.secret}").read()


@act("read a file through the zygote's root")
def through_parents_root(stage):
    return open(f"/proc/{stage.parent}/root{stage.secret}").read()


@act("list the zygote's working directory")
def through_parents_directory(stage):
    return os.listdir(f"/proc/{stage.parent}/cwd")


@act("read the mounts")
def read_mounts(stage):
    return open("/proc/self/mountinfo").read()


@act("read one's own memory map")
def read_own_map(stage):
    return open("/proc/self/maps").read()


@act("write one's own memory through a file")
def write_own_memory(stage):
    room = buffer(8)
    with open("/proc/self/mem", "r+b", buffering=0) as file:
        file.seek(ctypes.addressof(room))
        return file.write(b"x")


@act("take a handle on a file")
def file_handle(stage):
    room = buffer(256, struct.pack("I", 128))
    return call("name_to_handle_at", AT_FDCWD, stage.secret.encode(), room, buffer(8), 0) == 0


@act("open a file by its handle", control=NOT_BY_USERS)
def open_handle(stage):
    room = buffer(256, struct.pack("I", 128))
    call("name_to_handle_at", AT_FDCWD, stage.secret.encode(), room, buffer(8), 0)
    return call("open_by_handle_at", os.open(stage.directory, os.O_RDONLY), room, 0)


@act("watch a directory")
def watch_directory(stage):
    watcher = call("inotify_init1", 0)
    return call("inotify_add_watch", watcher, stage.directory.encode(), 0x2)


@act("watch all of a file system", control=NOT_BY_USERS)
def watch_everything(stage):
    return call("fanotify_init", 0, 0)


@act("change the root directory", control=NOT_BY_USERS)
def change_root(stage):
    return os.chroot(stage.directory) is None


@act("open a raw device", control="no such device, or only root may")
def open_device(stage):
    return os.open("/dev/mem", os.O_RDONLY)


@act("read the kernel's messages", control="a kernel setting, or only root may")
def kernel_messages(stage):
    return call("syslog", 3, buffer(4096), 4096)


@act("type into the terminal", control="no terminal here, and new kernels refuse it")
def type_into_terminal(stage):
    return fcntl.ioctl(0, 0x5412, b"x")


# --- processes


@act("start a process")
def start_process(stage):
    return in_a_child() == 0


@act("start a process by clone3")
def start_by_clone3(stage):
    pid = call("clone3", struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0), 88)
    if pid == 0:
        os._exit(0)
    return pid


@act("start a process that shares memory")
def start_by_clone(stage):
    pid = call("clone", signal.SIGCHLD | 0x200, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return pid


@act("start a program")
def start_program(stage):
    return subprocess.run(["/bin/true"], check=True).returncode == 0


@act("become another program")
def become_program(stage):
    os.execv("/bin/true", ["true"])  # noqa: S606 - where it works, the process ends with 0 and no answer


@act("run a program from memory")
def program_from_memory(stage):
    descriptor = call("memfd_create", b"x\0", 0)
    with open("/bin/true", "rb") as file:
        os.write(descriptor, file.read())
    pid = os.fork()
    if pid == 0:
        try:
            os.execve(descriptor, ["x"], {})  # noqa: S606 - the act
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@act("run a set-uid program")
def set_uid_program(stage):
    program = next(
        path for path in ("/usr/bin/su", "/bin/su", "/usr/bin/passwd", "/bin/mount") if os.path.exists(path)
    )
    return subprocess.run([program, "--help"], capture_output=True, check=False).returncode is not None


@act("signal the zygote")
def signal_parent(stage):
    return os.kill(stage.parent, 0) is None


@act("signal another worker")
def signal_sibling(stage):
    return os.kill(stage.sibling, 0) is None


@act("signal a thread of another worker")
def signal_thread(stage):
    return call("tgkill", stage.sibling, stage.sibling, 0) == 0


@act("signal another worker by the old call")
def signal_thread_old(stage):
    return call("tkill", stage.sibling, 0) == 0


@act("queue a signal to another worker")
def queue_signal(stage):
    return call("rt_sigqueueinfo", stage.sibling, 18, buffer(128, struct.pack("iii", 18, 0, -1))) == 0


@act("signal everybody")
def signal_everybody(stage):
    return os.kill(-1, 0) is None


@act("signal the agent", control="the control may be another user than the agent")
def signal_agent(stage):
    return os.kill(stage.agent, 0) is None


@act("signal another worker through a descriptor of it")
def signal_by_descriptor(stage):
    return signal.pidfd_send_signal(os.pidfd_open(stage.sibling), 0) is None


@act("take a descriptor from another worker")
def take_descriptor(stage):
    return call("pidfd_getfd", os.pidfd_open(stage.sibling), 0, 0) >= 0


@act("have the kernel signal another worker when data arrives")
def signal_by_owner(stage):
    return fcntl.fcntl(3 if stage.confined else 200, fcntl.F_SETOWN, stage.sibling) == 0


@act("trace another worker")
def trace_sibling(stage):
    return call("ptrace", 0x4206, stage.sibling, 0, 0) == 0


@act("read another worker's memory")
def read_memory(stage):
    room = buffer(16)
    source = ctypes.addressof(_MARK)
    call("process_vm_readv", stage.sibling, vectors(ctypes.addressof(room), 16), 1, vectors(source, 16), 1, 0)
    return room.raw


@act("write another worker's memory")
def write_memory(stage):
    room = buffer(16, bytes(_MARK))
    place = ctypes.addressof(_MARK)
    return call(
        "process_vm_writev", stage.sibling, vectors(ctypes.addressof(room), 16), 1, vectors(place, 16), 1, 0
    )


@act("read another worker's memory through a file")
def read_memory_file(stage):
    with open(f"/proc/{stage.sibling}/mem", "rb", buffering=0) as file:
        file.seek(ctypes.addressof(_MARK))
        return file.read(16)


@act("read another worker's environment")
def read_environment(stage):
    return open(f"/proc/{stage.sibling}/environ", "rb").read()


@act("read another worker's memory map")
def read_map(stage):
    return open(f"/proc/{stage.sibling}/maps").read()


@act("list another worker's descriptors")
def list_descriptors(stage):
    return os.listdir(f"/proc/{stage.sibling}/fd")


@act("open another worker's descriptor")
def open_descriptor(stage):
    return os.open(f"/proc/{stage.sibling}/fd/0", os.O_RDONLY)


@act("read the zygote's command line")
def read_command(stage):
    return open(f"/proc/{stage.parent}/cmdline", "rb").read()


@act("list all processes")
def list_processes(stage):
    return [name for name in os.listdir("/proc") if name.isdigit()]


@act("see the agent at all")
def see_agent(stage):
    return open(f"/proc/{stage.agent}/stat").read()


@act("change another worker's priority")
def change_priority(stage):
    return os.setpriority(os.PRIO_PROCESS, stage.sibling, 19) is None


@act("change another worker's limits")
def change_limits(stage):
    return resource.prlimit(stage.sibling, resource.RLIMIT_CORE, (0, 0))


@act("move another worker to other processors")
def change_affinity(stage):
    return os.sched_setaffinity(stage.sibling, os.sched_getaffinity(0)) is None


@act("compare kernel objects with another worker")
def compare_objects(stage):
    return call("kcmp", stage.sibling, os.getpid(), 0, 0, 0) >= 0


@act("move another worker's pages")
def move_pages(stage):
    return call("move_pages", stage.sibling, 0, None, None, None, 0) == 0


@act("outlive the zygote")
def outlive(stage):
    return call("prctl", 1, 0, 0, 0, 0) == 0


@act("become traceable and leave core files")
def become_dumpable(stage):
    return call("prctl", 4, 1, 0, 0, 0) == 0


@act("leave a core file")
def core_file(stage):
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    return most if most != 0 else None


@act("let everybody trace it", control="only kernels with Yama have it")
def let_trace(stage):
    return call("prctl", 0x59616D61, -1, 0, 0, 0) == 0


# --- network


@act("connect to a service of this machine")
def connect_tcp(stage):
    with socket.create_connection(("127.0.0.1", stage.port), 2) as sock:
        return sock.recv(10)


@act("connect to a service of this machine by IPv6", control="this machine may have no IPv6")
def connect_tcp6(stage):
    with socket.create_connection(("::1", stage.port6), 2) as sock:
        return sock.recv(10)


@act("send a datagram")
def send_udp(stage):
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"out", ("127.0.0.1", stage.port))


@act("connect with the first bytes")
def connect_fast(stage):
    with socket.socket() as sock:
        return sock.sendto(b"out", 0x20000000, ("127.0.0.1", stage.port))


@act("wait for connections")
def wait_for_connections(stage):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock.getsockname()[1]


@act("connect to a local socket by its path")
def connect_path(stage):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{stage.directory}/stream")
        return sock.recv(10)


@act("connect to a local socket without a path")
def connect_abstract(stage):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"\0{stage.abstract}")
        return sock.recv(10)


@act("send to a local socket from one of a pair")
def send_from_pair(stage):
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return pair[0].sendto(b"out", f"{stage.directory}/datagram")


@act("connect the socket it has to somebody else", control="a connected socket stays so for everybody")
def connect_own(stage):
    return (
        socket.socket(fileno=os.dup(3 if stage.confined else 200)).connect(f"{stage.directory}/stream")
        is None
    )


@act("send raw packets", control=NOT_BY_USERS)
def raw_packets(stage):
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)


@act("listen to the cable", control=NOT_BY_USERS)
def listen_to_cable(stage):
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)


@act("ask the kernel's network tables")
def ask_netlink(stage):
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


@act("talk to the host of a virtual machine", control="no such machine, or the module is missing")
def talk_to_host(stage):
    return socket.socket(40, socket.SOCK_STREAM)


@act("use the kernel's ciphers", control="the module may be missing")
def kernel_ciphers(stage):
    return socket.socket(38, socket.SOCK_SEQPACKET)


@act("look a name up")
def look_up_name(stage):
    return any(open(path).read() for path in ("/etc/hosts", "/etc/resolv.conf")) and socket.getaddrinfo(
        "127.0.0.1", 80
    )


@act("look a host up")
def look_up_host(stage):
    return socket.gethostbyname("localhost")


@act("look a user up")
def look_up_user(stage):
    return pwd.getpwuid(0).pw_dir


@act("make a pair of sockets")
def socket_pair(stage):
    return socket.socketpair()


# --- the kernel's other doors


@act("make a ring of asynchronous requests", control="a kernel setting may forbid it")
def io_uring(stage):
    return call("io_uring_setup", 1, buffer(120))


@act("make a queue of asynchronous requests")
def old_asynchronous(stage):
    return call("io_setup", 1, buffer(8)) == 0


@act("handle page faults", control="a kernel setting may forbid it")
def page_faults(stage):
    return call("userfaultfd", 1)


@act("load a program into the kernel", control=NOT_BY_USERS)
def load_bpf(stage):
    return call("bpf", 0, buffer(128, struct.pack("IIII", 2, 4, 4, 1)), 128)


@act("count the processor's events", control="a kernel setting may forbid it")
def count_events(stage):
    return call("perf_event_open", buffer(128, struct.pack("IIQ", 1, 128, 0)), 0, -1, -1, 0)


@act("read the kernel's keyring")
def read_keyring(stage):
    return call("keyctl", 0, -3, 1)


@act("put a key into the kernel")
def add_key(stage):
    return call("add_key", b"user\0", b"mark\0", b"x", 1, -3)


@act("ask for a key", control="there is none of that name")
def request_key(stage):
    return call("request_key", b"user\0", b"nothing\0", None, 0)


@act("make a user namespace")
def make_user_namespace(stage):
    return call("unshare", 0x10000000) == 0


@act("make a network namespace in a user namespace")
def make_namespaces(stage):
    return call("unshare", 0x50000000) == 0


@act("mount a file system in a namespace of its own")
def mount_tmpfs(stage):
    call("unshare", 0x10020000)
    return call("mount", b"x\0", b"/tmp\0", b"tmpfs\0", 0, None) == 0


@act("open a file system", control=NOT_BY_USERS)
def open_file_system(stage):
    return call("fsopen", b"tmpfs\0", 0)


@act("enter the zygote's namespace", control=NOT_BY_USERS)
def enter_namespace(stage):
    return call("setns", os.open(f"/proc/{stage.parent}/ns/uts", os.O_RDONLY), 0) == 0


@act("decide over other processes' system calls")
def notify_listener(stage):
    call("prctl", 38, 1, 0, 0, 0)
    code = buffer(8, struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    program = buffer(16, struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))
    return call("seccomp", 1, 8, program)


@act("switch address randomisation off")
def personality(stage):
    return call("personality", 0x0040000) >= 0


@act("put segments into the processor's table", control="a kernel setting may forbid it")
def local_descriptor_table(stage):
    return call("modify_ldt", 1, buffer(16, struct.pack("IIII", 0, 0, 0xFFF, 0x51)), 16) == 0


@act("set a timer of the kernel")
def kernel_timer(stage):
    return call("timer_create", 1, None, buffer(8)) == 0


@act("set a timer with a descriptor")
def timer_descriptor(stage):
    return call("timerfd_create", 1, 0)


@act("set an interval timer")
def interval_timer(stage):
    return signal.setitimer(signal.ITIMER_REAL, 100) is not None


@act("make shared memory that outlives the process")
def shared_memory(stage):
    made = call("shmget", 0, 4096, 0o1600)
    call("shmctl", made, 0, None)
    return True


@act("make a message queue that outlives the process")
def message_queue(stage):
    made = call("msgget", 0, 0o1600)
    call("msgctl", made, 0, None)
    return True


@act("make semaphores that outlive the process")
def semaphores(stage):
    made = call("semget", 0, 1, 0o1600)
    call("semctl", made, 0, 0, None)
    return True


@act("make a queue in the kernel's file system")
def posix_queue(stage):
    descriptor = call("mq_open", b"coppermesh-battery\0", os.O_CREAT | os.O_RDWR, 0o600, None)
    call("mq_unlink", b"coppermesh-battery\0")
    return descriptor


@act("hide memory from the kernel", control="a kernel setting may forbid it")
def secret_memory(stage):
    return call("memfd_secret", 0)


@act("map huge pages", control="none are set aside here")
def huge_pages(stage):
    return mmap.mmap(-1, 2 * MEBIBYTE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)


@act("make a file of huge pages")
def huge_file(stage):
    return call("memfd_create", b"x\0", 4)


@act("lock memory", control="users' limit may be nought")
def lock_memory(stage):
    room = mmap.mmap(-1, 4 * MEBIBYTE)
    return call("mlock", ctypes.addressof(ctypes.c_char.from_buffer(room)), 4 * MEBIBYTE) == 0


@act("call the kernel by its x32 numbers", control="the kernel may be built without them")
def x32_call(stage):
    return raw_call(39 | 0x40000000)


@act("call the kernel by its 32-bit numbers")
def int80_call(stage):
    # mov eax, 20 (getpid of i386); int 0x80; ret
    return _machine_code(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")


@act("become root", control="users cannot")
def become_root(stage):
    os.setresuid(0, 0, 0)
    return os.getuid() == 0 and open(stage.secret).read()


@act("take other groups", control=NOT_BY_USERS)
def take_groups(stage):
    return os.setgroups([0, 4, 27]) is None


@act("take a capability back", control="users have none")
def take_capability(stage):
    words = buffer(24, struct.pack("6I", 1 << 21, 1 << 21, 0, 0, 0, 0))
    return call("capset", buffer(8, struct.pack("Ii", 0x20080522, 0)), words) == 0


@act("give itself a name for other people's tables", control="the host's name is root's")
def host_name(stage):
    return socket.sethostname("x") is None


@act("set the clock", control=NOT_BY_USERS)
def set_clock(stage):
    return time.clock_settime(time.CLOCK_REALTIME, time.time()) is None


# --- using too much


@act("take more memory than granted")
def much_memory(stage):
    return len(mmap.mmap(-1, 1 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


@act("grow the heap beyond what is granted")
def much_heap(stage):
    return len(bytearray(1 << 30))


@act("write a larger memory file than granted")
def much_file(stage):
    return os.pwrite(stage.lent, b"x", 1 << 30)


@act("open more files than granted")
def many_files(stage):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return [os.dup(1) for _ in range(2000)]


@act("raise its limits")
def raise_limits(stage):
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@act("hide from the out-of-memory killer")
def hide_from_killer(stage):
    with open("/proc/self/oom_score_adj", "r+") as file:
        score = int(file.read())
        file.seek(0)
        file.write(str(score))
    return score < 1000


@act("make pipes of the largest size")
def large_pipes(stage):
    return [os.pipe() for _ in range(50)]


@act("make a memory file that nobody counts")
def own_memory_file(stage):
    return call("memfd_create", b"x\0", 1)


@act("keep a memory file where no lease sees it")
def path_descriptor(stage):
    return os.open(f"/proc/self/fd/{stage.lent}", os.O_PATH)


@act("open a lent file a second time for writing")
def second_writer(stage):
    return os.open(f"/proc/self/fd/{stage.lent}", os.O_RDWR)


@act("send the agent descriptors that nobody reads")
def descriptors_in_flight(stage):
    sock = socket.socket(fileno=os.dup(3 if stage.confined else 200))
    return socket.send_fds(sock, [b"unasked"], [1] * 250)


@act("die as if the machine had run out of memory")
def kill_itself(stage):
    child = 0 if stage.confined else os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@act("the same, by one thread of its own")
def kill_own_thread(stage):
    child = 0 if stage.confined else os.fork()
    if child == 0:
        call("tgkill", os.getpid(), threading.get_native_id(), signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@act("lower a limit of its own through a pointer whose lower half is zero")
def lower_a_limit(stage):
    place = 1 << 32
    call("mmap", place, 4096, mmap.PROT_READ | mmap.PROT_WRITE, _FIXED_PRIVATE, -1, 0)
    ctypes.memmove(place, struct.pack("QQ", 0, 0), 16)
    return call("prlimit64", 0, resource.RLIMIT_CORE, place, 0) == 0


@act("take less processor time than granted, so that the kernel kills it")
def lower_own_limit(stage):
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (5, hard if hard != resource.RLIM_INFINITY else 1000))
    return resource.getrlimit(resource.RLIMIT_CPU)[0] == 5


@act("fill the pipe to the agent", control="its length is bounded by the kernel for everybody", unread=True)
def fill_result_pipe(stage):
    sock = socket.socket(fileno=os.dup(3 if stage.confined else 200))
    sock.setblocking(False)
    return [sock.send(bytes(100_000)) for _ in range(1000)]


@act("print without end", control="the black box is sealed for everybody")
def fill_black_box(stage):
    return sum(os.write(1, bytes(65536)) for _ in range(100))


@act("make the black box grow", control="it is sealed for everybody")
def grow_black_box(stage):
    return os.ftruncate(1, 1 << 30) is None


# --- memory, before and after it is handed over


def _input(stage: Stage) -> int:
    """What a job gets; in a control, without its seals."""
    return stage.input if stage.confined else linux.memory_file("input", 4096)


@act("write into a sealed input")
def write_sealed(stage):
    return os.pwrite(_input(stage), b"x", 0)


@act("map a sealed input for writing")
def map_sealed(stage):
    return mmap.mmap(_input(stage), 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


@act("open a sealed input anew and write")
def reopen_sealed(stage):
    return os.write(os.open(f"/proc/self/fd/{_input(stage)}", os.O_WRONLY), b"x")


@act("make a sealed input shorter under its reader")
def shorten_sealed(stage):
    return os.ftruncate(_input(stage), 0) is None


@act("punch a hole into a sealed input")
def punch_sealed(stage):
    return call("fallocate", _input(stage), 3, 0, 4096) == 0


@act("make a read-only mapping of a sealed input writable")
def unprotect_sealed(stage):
    protection = mmap.PROT_READ if stage.confined else mmap.PROT_READ | mmap.PROT_WRITE
    room = mmap.mmap(_input(stage), 4096, mmap.MAP_SHARED, protection)
    address = ctypes.c_void_p.from_buffer_copy(struct.pack("Q", _address_of(room))).value
    return call("mprotect", address, 4096, 3) == 0


@act("change an output after its seals, through a mapping from before")
def change_after_sealing(stage):
    descriptor = stage.lent
    os.ftruncate(descriptor, 4096)
    room = mmap.mmap(descriptor, 4096)
    if stage.confined:
        linux.seal(descriptor, linux.SEAL_CONTENT | linux.SEAL_SEAL)
    room[0] = 1
    return os.pread(descriptor, 1, 0) == b"\1"


@act("find what an earlier job left in memory", control="the kernel clears pages for everybody")
def memory_of_another(stage):
    return any(SECRET.encode() in mmap.mmap(-1, 8 * MEBIBYTE).read() for _ in range(4))


@act("find a descriptor of the agent")
def inherited_descriptor(stage):
    for number in range(3, 1024):
        try:
            data = os.pread(number, 200, 0)
        except OSError:
            continue
        if SECRET.encode() in data:
            return number
    return None


@act("find a secret in the environment")
def environment(stage):
    return os.environ["BATTERY_SECRET"]


# --- while compiling: the source got past the gate


def _compile(stage: Stage, source: str, *options: str, name: str = "a.cpp") -> str:
    compiler = next(path for path in map(shutil.which, ("g++", "clang++", "c++")) if path)
    with open(name, "w") as file:
        file.write(source)
    command = [compiler, "-nostdinc", "-nostdinc++", *options, "-c", name, "-o", "a.o"]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": ".", "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout + done.stderr


@act("include a file of the owner", role="builder")
def include_file(stage):
    return "owner" in _compile(stage, f'#include "{stage.secret}"\n')


@act("include the list of users", role="builder")
def include_users(stage):
    return "root:" in _compile(stage, '#include "/etc/passwd"\n') or "root" in _compile(
        stage, '#include "/etc/group"\n'
    )


@act("include a file through a link in the scratch directory", role="builder")
def include_link(stage):
    os.symlink(stage.secret, "linked.h")
    return "owner" in _compile(stage, '#include "linked.h"\n')


@act("include the environment of the builder", role="builder")
def include_environment(stage):
    return "PATH" in _compile(stage, '#include "/proc/self/environ"\n', "-E") or os.path.getsize("a.o")


@act("put a file of the owner into the library", role="builder")
def include_bytes(stage):
    _compile(stage, f'asm(".incbin \\"{stage.secret}\\"");')
    return SECRET.encode() in open("a.o", "rb").read()


@act("ask the compiler whether a file exists", role="builder")
def has_include(stage):
    return "yes-it-is" in _compile(stage, f'#if __has_include("{stage.secret}")\n#error yes-it-is\n#endif\n')


@act("have the compiler write elsewhere", role="builder")
def compile_elsewhere(stage):
    _compile(stage, "int a;", "-MD", "-MF", f"{stage.directory}/written-{os.getpid()}")
    return os.path.exists(f"{stage.directory}/written-{os.getpid()}")


@act("have the compiler read its options from a file", role="builder")
def options_from_file(stage):
    return "owner" in _compile(stage, "int a;", f"@{stage.secret}")


@act("start a shell beside the compiler", role="builder")
def start_shell(stage):
    return subprocess.run(["/bin/sh", "-c", "exit 0"], check=True).returncode == 0


@act("start another program beside the compiler", role="builder")
def start_other(stage):
    return subprocess.run(["/bin/cat", "/dev/null"], check=True).returncode == 0


@act("run a program that was put into the scratch directory", role="builder")
def start_own_program(stage):
    shutil.copy("/bin/true", "own")
    os.chmod("own", 0o700)
    return subprocess.run(["./own"], check=True).returncode == 0


@act("run what was just compiled", role="builder")
def start_compiled(stage):
    _compile(stage, "int main() {}")
    compiler = next(path for path in map(shutil.which, ("g++", "clang++", "c++")) if path)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": "."}
    subprocess.run([compiler, "a.o", "-o", "program"], env=environment, check=True, capture_output=True)
    return subprocess.run(["./program"], check=True).returncode == 0


@act("fill the disk with one object file", role="builder")
def large_object(stage):
    _compile(stage, "char a[1 << 30] = {1};")
    return os.path.getsize("a.o") >= 1 << 30


@act("fill the disk with many files", needs="mountns", role="builder")
def many_objects(stage):
    for number in range(5):
        with open(f"part-{number}", "wb") as file:
            file.write(bytes(20 * MEBIBYTE))
    return sum(os.path.getsize(f"part-{number}") for number in range(5)) >= 100 * MEBIBYTE


@act("fill the disk with files that have no name any more", needs="mountns", role="builder")
def unlinked_objects(stage):
    held = []
    for _ in range(5):
        held.append(open("unnamed", "wb"))  # noqa: SIM115 - they stay open, which is the act
        os.unlink("unnamed")
        held[-1].write(bytes(20 * MEBIBYTE))
        held[-1].flush()
    return len(held) == 5


@act("read what another build has in its directory", role="builder")
def sibling_build(stage):
    return "owner" in open("../builder-0/kernel.cu").read()


@act("list the builds beside this one", role="builder")
def sibling_builds(stage):
    return os.listdir("..")


@act("leave something for the next build in what builds share", role="builder")
def poison_shared(stage):
    with open("../compiler/left.h", "w") as file:
        return file.write("left")


@act("change what builds share", role="builder")
def change_shared(stage):
    with open("../compiler/header.h", "a") as file:
        return file.write("left")


@act("put another directory in the place of what builds share", role="builder")
def replace_shared(stage):
    os.rename("../compiler", "../compiler-away")
    os.rename("../compiler-away", "../compiler")
    return True


@act("take more memory than a compiler may", role="builder")
def compiler_memory(stage):
    return len(mmap.mmap(-1, 4 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000))


@act("make a memory file beside the compiler", role="builder")
def compiler_memory_file(stage):
    return call("memfd_create", b"x\0", 1)


@act("leave the builder's session, by which its processes are known", role="builder")
def compiler_session(stage):
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            os.setsid()
        os._exit(os.getsid(0) == os.getpid())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


@act("send descriptors from beside the compiler", role="builder")
def compiler_descriptors(stage):
    sock = socket.socket(fileno=os.dup(3 if stage.confined else 200))
    return socket.send_fds(sock, [b"unasked"], [1] * 250)


@act("fill its directory with many small files", needs="mountns", role="builder")
def many_small_files(stage):
    for number in range(20_000):
        os.close(os.open(f"small-{number}", os.O_CREAT | os.O_WRONLY, 0o600))
    return True


@act("connect from beside the compiler", role="builder")
def compiler_connects(stage):
    return socket.create_connection(("127.0.0.1", stage.port), 2).recv(10)


@act("change another worker's limits from beside the compiler", role="builder")
def compiler_limits(stage):
    return resource.prlimit(stage.sibling, resource.RLIMIT_CORE, (0, 0))


@act("move another worker to other processors from beside the compiler", role="builder")
def compiler_affinity(stage):
    return os.sched_setaffinity(stage.sibling, os.sched_getaffinity(0)) is None


@act("signal the zygote from beside the compiler", role="builder")
def compiler_signals(stage):
    return os.kill(stage.parent, 0) is None


@act("signal another lease's worker from beside the compiler", role="builder")
def compiler_signals_sibling(stage):
    return os.kill(stage.sibling, 0) is None


@act("signal a thread of another lease's worker from beside the compiler", role="builder")
def compiler_signals_thread(stage):
    return call("tkill", stage.sibling, 0) == 0


@act("signal another lease's worker by a descriptor of it from beside the compiler", role="builder")
def compiler_signals_by_descriptor(stage):
    return call("pidfd_send_signal", os.pidfd_open(stage.sibling), 0, 0, 0) == 0


@act("signal all processes from beside the compiler", role="builder")
def compiler_signals_all(stage):
    return os.kill(-1, 0) is None


@act("leave the builder's process group, to outlive it", role="builder")
def compiler_leaves_group(stage):
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@act("read another worker's environment from beside the compiler", role="builder")
def compiler_reads_environment(stage):
    return open(f"/proc/{stage.sibling}/environ", "rb").read()


@act("trace another worker from beside the compiler", role="builder")
def compiler_traces(stage):
    return call("ptrace", 0x4206, stage.sibling, 0, 0) == 0


@act("remove a file of the owner from beside the compiler", role="builder")
def compiler_removes(stage):
    return os.unlink(f"{stage.directory}/spare") is None


@act("make a user namespace beside the compiler", role="builder")
def compiler_namespace(stage):
    return call("unshare", 0x10000000) == 0


# --- what must work all the same


@duty("start threads and multiply matrices on them")
def threads(stage):
    team = [threading.Thread(target=lambda: np.ones((300, 300)) @ np.ones((300, 300))) for _ in range(4)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    return True


@duty("write into a lent memory file and seal it")
def hand_over(stage):
    return linux.fill_and_seal(stage.lent, bytes(1 << 20)) is None


@duty("map a sealed input and read it")
def map_input(stage):
    return mmap.mmap(stage.input, 4096, mmap.MAP_SHARED, mmap.PROT_READ)[0] == ord("x")


@duty("handle its own faults on a stack of its own, around guard pages")
def guard_pages(stage):
    room = buffer(1 << 16)
    stack = struct.pack("QiiQ", ctypes.addressof(room), 0, 0, 1 << 16)
    return (
        call("sigaltstack", stack, None) == 0 and signal.signal(signal.SIGSEGV, lambda *_: None) is not None
    )


@duty("abort itself")
def signal_itself(stage):
    return os.kill(os.getpid(), 0) is None and call("tgkill", os.getpid(), threading.get_native_id(), 0) == 0


@duty("sleep, tell the time, draw random bytes")
def time_and_chance(stage):
    return time.sleep(0.001) is None and time.time() and os.urandom(16)


@duty("compile and link", role="builder")
def compile_and_link(stage):
    said = _compile(
        stage,
        'extern "C" double sqrt(double); extern "C" double twice(double x) { return sqrt(x); }',
        "-fPIC",
    )
    compiler = next(path for path in map(shutil.which, ("g++", "clang++", "c++")) if path)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": "."}
    done = subprocess.run(
        [compiler, "-shared", "a.o", "-o", "a.so", "-lm"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or said:
        raise OSError(said + done.stdout + done.stderr)
    return os.path.getsize("a.so")


_MARK = buffer(16, b"mark of battery")
"""At the same address in every child of the zygote."""


def _address_of(room: mmap.mmap) -> int:
    """Where a mapping lies, also a read-only one."""
    return int(np.frombuffer(room, np.uint8).ctypes.data)


def _machine_code(code: bytes) -> int:
    room = mmap.mmap(
        -1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    )
    room.write(code)
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(_address_of(room))())


BY_NAME = {entry.name: entry for entry in (*ACTS, *DUTIES)}
assert len(BY_NAME) == len(ACTS) + len(DUTIES)
