"""Processes that outlive the command that started them: start, recognise, stop.

A process is known by its id, its start time and the machine's boot, so that an id which the
system has given to somebody else since is never taken for ours.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradledger.localnet.errors import StartError

PORT_TRIES_MAX = 200
POLL_SEC = 0.02


@dataclass(frozen=True)
class Process:
    """A process of the network as network.json describes it.

    Attributes
    ----------
    name : str
        `node1`, `kubo`, `validator1`, `logs`, ...
    pid, start_ticks, boot : int, int, str
        Who it is; `start_ticks` counts clock ticks since the boot `boot`.
    ports : mapping of str to int
        Loopback ports by what they serve.
    log : str
        Path of its log.
    """

    name: str
    pid: int
    start_ticks: int
    boot: str
    ports: Mapping[str, int] = field(default_factory=dict)
    log: str = ""

    @property
    def alive(self) -> bool:
        """Whether this very process runs."""
        _reap(self.pid)
        return self.boot == _boot() and _start_ticks(self.pid) == self.start_ticks

    def signal(self, number: int) -> None:
        """Send a signal, if it is still this process."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Process:
        """Return the process that `to_dict` described."""
        return cls(**document)


def start(
    name: str,
    command: Sequence[str],
    log: Path,
    *,
    ports: Mapping[str, int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start a process in a session of its own; its output is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    try:
        pid = os.posix_spawn(
            command[0],
            list(command),
            {**os.environ, **(environment or {})},
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP),
        )
    except OSError as exc:
        raise StartError(f"cannot start {name} ({command[0]}): {exc}") from exc
    # Until it is reaped the id is its own, so that its start time can be read even if it is gone.
    return Process(name, pid, _start_ticks(pid, zombies=True), _boot(), dict(ports or {}), str(log))


def stop(processes: Iterable[Process], *, wait_sec: float = 15.0) -> list[str]:
    """Send SIGTERM, wait, and kill what is still there.

    Returns
    -------
    list of str
        Names of the processes that had to be killed.
    """
    running = [process for process in processes if process.alive]
    for process in running:
        process.signal(signal.SIGTERM)
    left = _wait_gone(running, wait_sec)
    for process in left:
        process.signal(signal.SIGKILL)
    _wait_gone(left, 5.0)
    return [process.name for process in left]


def wait_until(
    process: Process, ready: Callable[[], bool], *, wait_sec: float, what: str = "answer"
) -> None:
    """Wait until `ready()`, as long as the process lives; stop it where that fails.

    Raises
    ------
    StartError
        The process ended, or was not ready in time; the end of its log is in the message.
    """
    until = time.monotonic() + wait_sec
    try:
        while not ready():
            if not process.alive:
                raise StartError(f"{process.name} ended at once: {log_tail(Path(process.log))}")
            if time.monotonic() > until:
                raise StartError(
                    f"{process.name} did not {what} within {wait_sec:g} s: see {process.log}"
                )
            time.sleep(POLL_SEC)
    except BaseException:  # an interrupt as well: the caller may not have written it down yet
        stop([process])
        raise


def listens(process: Process, port: int) -> bool:
    """Whether it is this process, and nobody else, that listens on a loopback port."""
    local = f"0100007F:{port:04X}"
    try:
        lines = Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]
        rows = [line.split() for line in lines]
        inodes = {f"socket:[{row[9]}]" for row in rows if row[1] == local and row[3] == "0A"}
        handles = list(os.scandir(f"/proc/{process.pid}/fd")) if inodes else []
    except OSError:
        return False
    return any(_link(handle.path) in inodes for handle in handles)


def log_tail(log: Path, *, chars: int = 400) -> str:
    """Return the end of a log on one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4 * chars))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "no log"
    return f"... {' '.join(text.split())[-chars:]} (see {log})"


def free_port(wanted: int, taken: Iterable[int] = (), *, wait_sec: float = 0.0) -> int:
    """Return the first port from `wanted` on that is free on loopback and not in `taken`.

    With `wait_sec`, a busy `wanted` is given that long: a killed process is gone before its
    threads have let go of their sockets.

    Raises
    ------
    StartError
        None of `PORT_TRIES_MAX` ports is free.
    """
    avoid = set(taken)
    until = time.monotonic() + wait_sec
    while wanted not in avoid and not port_is_free(wanted) and time.monotonic() < until:
        time.sleep(POLL_SEC)
    for port in range(wanted, min(wanted + PORT_TRIES_MAX, 65536)):
        if port not in avoid and port_is_free(port):
            return port
    raise StartError(f"no free port among {PORT_TRIES_MAX} from {wanted} on")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_gone(processes: list[Process], wait_sec: float) -> list[Process]:
    until = time.monotonic() + wait_sec
    while (left := [process for process in processes if process.alive]) and (
        time.monotonic() < until
    ):
        time.sleep(POLL_SEC)
    return left


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _reap(pid: int) -> None:
    """Collect the process when it is a child of ours that has ended."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except (ChildProcessError, OSError):
        pass


def _start_ticks(pid: int, *, zombies: bool = False) -> int:
    """Return when a process started, in ticks since boot; -1 when it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return -1
    fields = stat[stat.rindex(")") + 2 :].split()
    return -1 if fields[0] in "ZX" and not zombies else int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
