"""The three seccomp filters, as data: what CPU workers, GPU workers and compilers may ask of the kernel.

A CPU worker computes on memory that it has and talks over one socket that it has, so its list says what is allowed
and the rest is refused. NVIDIA's driver library makes calls that nobody has listed for every version, and a refused
one shows as a nameless CUDA error; so a GPU worker's list says what is refused, with calls newer than the table
refused as on an older kernel. A compiler starts programs and writes files in one directory: Landlock says which.

What stays open on purpose in a CPU worker: `openat` and `newfstatat` with an open file (the loader uses both to load a
kernel's library from memory), `mmap` and `mprotect` with execution (that library is code), threads, and time.
"""

import errno
from collections.abc import Iterable

from coppermesh.exec.sandbox.seccomp import (
    ALLOW,
    OWN_GROUP,
    SELF,
    Action,
    Bits,
    Filter,
    In,
    NotIn,
    Null,
    When,
    refuse,
)
from coppermesh.exec.sandbox.syscall_numbers import NUMBERS

_CLONE_NAMESPACES = 0x7E020080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWTIME."""
_CLONE_THREAD = 0x10000
_CLONE_UNTRACED = 0x800000
_MAP_HUGETLB = 0x40000
_MFD_CLOEXEC, _MFD_SEALING, _MFD_NOEXEC = 0x1, 0x2, 0x8
_AT_EMPTY_PATH = 0x1000
_SIGKILL = 9
_O_CLOEXEC, _O_LARGEFILE = 0x80000, 0x8000
_AF_UNIX = 1
_STREAM, _SEQPACKET = 1, 5
_SOCKET_TYPE = 0xF

_MEMORY = """mmap munmap mremap madvise mincore msync brk mprotect pkey_alloc pkey_free pkey_mprotect
map_shadow_stack mseal"""
_OPEN_FILES = """read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range
dup dup2 dup3 lseek fstat ftruncate fallocate fsync fdatasync fadvise64 poll ppoll select pselect6"""
_THREADS = """futex futex_waitv futex_wake futex_wait futex_requeue set_robust_list get_robust_list
set_tid_address rseq membarrier arch_prctl sched_yield sched_getaffinity sched_getparam sched_getscheduler
sched_get_priority_max sched_get_priority_min sched_rr_get_interval getcpu getpriority"""
_SIGNALS = """rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend
sigaltstack restart_syscall pause"""
_WHO_AND_WHEN = """gettid getpid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getresuid
getresgid getgroups clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage
getrlimit sysinfo uname getrandom exit exit_group umask"""
_OWN_SOCKET = "recvmsg sendto recvfrom shutdown getsockname getpeername getsockopt"
"""Not `sendmsg`, which can carry descriptors: what nobody reads would count against all processes of this user."""

_CHANGING_FILES = """mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 truncate symlink
symlinkat link linkat chdir fchdir flock sendfile copy_file_range creat chmod fchmod fchmodat"""
_READING_FILES = """open openat stat lstat statx newfstatat access faccessat faccessat2 readlink readlinkat
getdents getdents64 getcwd statfs fstatfs"""
_PROCESSES = """execve fork vfork wait4 waitid pipe pipe2 eventfd2
epoll_create1 epoll_ctl epoll_wait epoll_pwait pidfd_open getitimer setitimer alarm sched_setaffinity"""
"""Not `setsid` and `setpgid`: by session and group a builder's whole tree of processes is known, whatever it does.

Signals to that group only: other leases' workers and builders are of its user and in its process namespace, Landlock
would keep them from it from ABI 6 on only, and no filter knows the numbers of processes that start later. An abort
that may not signal itself ends by an illegal instruction.
"""

_NEVER = """ptrace process_vm_readv process_vm_writev process_madvise process_mrelease pidfd_open
pidfd_getfd pidfd_send_signal kcmp mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount
open_tree open_tree_attr mount_setattr statmount listmount setns unshare keyctl add_key request_key bpf
perf_event_open io_uring_setup io_uring_enter io_uring_register io_setup io_submit io_getevents
io_pgetevents io_destroy io_cancel userfaultfd init_module finit_module delete_module kexec_load
kexec_file_load open_by_handle_at name_to_handle_at personality acct quotactl quotactl_fd reboot swapon
swapoff syslog ioperm iopl modify_ldt memfd_secret remap_file_pages shmget shmat shmctl shmdt msgget msgsnd
msgrcv msgctl semget semop semctl semtimedop mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
mq_getsetattr fanotify_init fanotify_mark lookup_dcookie vhangup nfsservctl settimeofday clock_settime
clock_adjtime adjtimex sethostname setdomainname chown fchown lchown fchownat setxattr lsetxattr fsetxattr
removexattr lremovexattr fremovexattr setxattrat removexattrat file_setattr utime utimes utimensat futimesat
mknod mknodat move_pages migrate_pages execveat execve fork vfork setuid setgid setreuid setregid setresuid
setresgid setfsuid setfsgid setgroups capset landlock_create_ruleset landlock_add_rule
landlock_restrict_self seccomp lsm_set_self_attr uselib ustat sysfs vmsplice tee splice setpriority
ioprio_set sched_setscheduler sched_setattr sched_setparam setrlimit rt_sigqueueinfo rt_tgsigqueueinfo tkill
setsid setpgid inotify_init inotify_init1 inotify_add_watch sync syncfs"""

_NAMES = (15, 16, 0x53564D41)
"""prctl: PR_SET_NAME, PR_GET_NAME, PR_SET_VMA. Not the death signal, nor dumpable, nor more seccomp."""
_FCNTL = (0, 1, 2, 3, 4, 1030, 1033, 1034)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS.

Not F_SETOWN and F_SETSIG, with which the kernel sends signals to others."""
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""

_REACHES_OTHERS = (0x5412, 0x541C, 0x8901, 0x8902)
"""TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP: typing for somebody, and having the kernel signal somebody."""

_NO_STRUCT_FLAGS = refuse(errno.ENOSYS)
_THREADS_ONLY = When((Bits(0, _CLONE_NAMESPACES | _CLONE_UNTRACED), Bits(0, _CLONE_THREAD, _CLONE_THREAD)))
_ONLY_SELF = When((In(0, (SELF,)),))
_ITSELF_BUT_NOT_KILL = When((In(0, (SELF,)), NotIn(1, (_SIGKILL,))))
_ITS_THREADS_BUT_NOT_KILL = When((In(0, (SELF,)), NotIn(2, (_SIGKILL,))))
"""A SIGKILL that the agent did not send is the machine's doing (no memory), and nobody pays for that."""
_READS_LIMITS = When((In(0, (0, SELF)), Null(2)))
"""With a limit of its own making a worker could have the kernel send SIGKILL."""
_PLAIN_READING = When((Bits(2, 0xFFFFFFFF & ~(_O_CLOEXEC | _O_LARGEFILE)),), errno.EACCES)
"""Not O_PATH above all: such a descriptor keeps a file alive without being seen by a lease (`lent_files`)."""
_UNIX_STREAMS = When(
    (In(0, (_AF_UNIX,)), Bits(1, _SOCKET_TYPE & ~(_STREAM | _SEQPACKET)), Bits(1, 1, 1)), errno.EACCES
)
"""AF_UNIX, STREAM or SEQPACKET: a datagram socket, even one of a pair, can send to any named one. Kinds 1 and 5 are the
only ones that have bit 0 and neither bit 1 nor 3, so neither raw (3) nor datagram (2) nor RDM (4) passes."""
_OWN_LIMITS = When((In(0, (0, SELF)),))
_CALLER_ONLY = When((In(0, (0,)),))
"""Process 0 is the caller. A compiler's programs have numbers that no filter made before them can name."""


def _names(*groups: str) -> Iterable[str]:
    return (name for group in groups for name in group.split())


def _allowed(*groups: str) -> dict[str, Action]:
    return dict.fromkeys(_names(*groups), ALLOW)


_COMMON_CHECKS: dict[str, Action] = {
    "clone": _THREADS_ONLY,
    "clone3": _NO_STRUCT_FLAGS,
    "kill": _ONLY_SELF,
    "tgkill": _ONLY_SELF,
    "prlimit64": _OWN_LIMITS,
    "mmap": When((Bits(3, _MAP_HUGETLB),), errno.ENOMEM),
    "memfd_create": When((Bits(1, 0xFFFFFFFF & ~(_MFD_CLOEXEC | _MFD_SEALING | _MFD_NOEXEC)),)),
}

CPU_WORKER = Filter(
    "cpu-worker",
    refuse(errno.EPERM),
    _allowed(_MEMORY, _OPEN_FILES, _THREADS, _SIGNALS, _WHO_AND_WHEN, _OWN_SOCKET)
    | _COMMON_CHECKS
    | {
        "kill": _ITSELF_BUT_NOT_KILL,
        "tgkill": _ITS_THREADS_BUT_NOT_KILL,
        "prlimit64": _READS_LIMITS,
        "memfd_create": refuse(errno.EPERM),  # it is lent memory files: what it holds can be counted
        "openat": _PLAIN_READING,
        "newfstatat": When((Bits(3, 0xFFFFFFFF, _AT_EMPTY_PATH),)),
        "prctl": When((In(0, _NAMES),)),
        "fcntl": When((In(1, _FCNTL),)),
        "ioctl": When((In(1, _IOCTL),), errno.ENOTTY),
        "socket": refuse(errno.EACCES),
        "socketpair": refuse(errno.EACCES),
    },
)
"""No processes, programs, sockets, signals to others, or names of files, beside `openat` which Landlock refuses."""

GPU_WORKER = Filter(
    "gpu-worker",
    ALLOW,
    dict.fromkeys(_names(_NEVER), refuse(errno.EPERM))
    | dict.fromkeys(_names("accept accept4 connect chmod fchmod fchmodat fchmodat2"), refuse(errno.EPERM))
    | _COMMON_CHECKS
    | {
        "mmap": ALLOW,
        "ioctl": When((NotIn(1, _REACHES_OTHERS),)),
        "sched_setaffinity": _OWN_LIMITS,
        "socket": _UNIX_STREAMS,
        "socketpair": _UNIX_STREAMS,
        # Not the death signal (1), dumpable (4), capabilities (8, 24, 28, 47), seccomp (22), mm (35), tracers.
        "prctl": When((In(0, (2, 3, 15, 16, 21, 39, 0x53564D41)),)),
        # Not signals on descriptors (8, 10, 15), leases, directory notices or larger pipes (1024, 1026, 1031).
        "fcntl": When((In(1, (*_FCNTL, 5, 6, 7, 9, 11, 16, 36, 37, 38, 1032)),)),
    },
)
"""The driver's library binds an abstract socket and never connects it; everything else that leaves is refused."""

COMPILER = Filter(
    "compiler",
    refuse(errno.EPERM),
    _allowed(
        _MEMORY,
        _OPEN_FILES,
        _THREADS,
        _SIGNALS,
        _WHO_AND_WHEN,
        _OWN_SOCKET,
        _CHANGING_FILES,
        _READING_FILES,
        _PROCESSES,
    )
    | {
        "clone": When((Bits(0, _CLONE_NAMESPACES | _CLONE_UNTRACED),)),
        "clone3": _NO_STRUCT_FLAGS,
        "mmap": _COMMON_CHECKS["mmap"],
        "kill": When((In(0, (OWN_GROUP,)),)),
        # Not another process's: the kernel asks only for the same user, and neither Landlock nor a scope is asked.
        "prlimit64": _CALLER_ONLY,
        "sched_setaffinity": _CALLER_ONLY,
        "fcntl": When((In(1, (*_FCNTL, 5, 6, 7, 36, 37, 38, 1031, 1032)),)),
        "prctl": When((In(0, (2, 3, 15, 16, 21, 0x53564D41)),)),
        "ioctl": When((In(1, _IOCTL),), errno.ENOTTY),
        "socket": refuse(errno.EACCES),
        "socketpair": refuse(errno.EACCES),
    },
)
"""Programs and files, no sockets, no signals to others than its builder's group."""

_UNKNOWN = {name for filter_ in (CPU_WORKER, GPU_WORKER, COMPILER) for name in filter_.actions} - set(NUMBERS)
if _UNKNOWN:
    raise ValueError(f"not system calls of x86-64: {sorted(_UNKNOWN)}")
