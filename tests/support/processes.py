"""Server processes of the tests: started on a port of their own, watched, and never left behind."""

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import psutil


@cache
def _guard() -> subprocess.Popen[str]:
    guard = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).with_name("guard.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # who reads our output need not wait for the guard
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    atexit.register(guard.communicate)
    return guard


def _tell_guard(line: str) -> None:
    stdin = _guard().stdin
    assert stdin is not None
    stdin.write(line + "\n")
    stdin.flush()


def wait_until(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    """Return as soon as `condition()` is true; TimeoutError that says `what` after `timeout` s."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.02)


class Port:
    """A TCP port of 127.0.0.1 that stays ours while nothing listens on it.

    It is held by a socket that is bound and never listens: Linux then hands the port to nobody who
    asks for a free one, refuses connections to it, and lets a server that names it listen there.
    Other systems do not; there the port is only probably free.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self._socket.close()

    def release(self) -> None:
        self._socket.close()


def drop_root() -> dict[str, Any]:
    """Arguments of Popen for programs that refuse to run as root; none when we are not root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")  # initdb wants a user with a name
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def reachable(path: Path) -> bool:
    """Whether any user may read or enter `path`."""
    return all(each.stat().st_mode & 0o005 == 0o005 for each in (path, *path.parents))


def scratch_directory(name: str, *, unprivileged: bool = False) -> Path:
    """A directory that is gone after the run; `unprivileged`: it belongs to `drop_root`'s user."""
    identity = drop_root() if unprivileged else {}
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    place = next((p for p in places if p.exists() and reachable(p)), None) if identity else None
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place))
    _tell_guard(f"+directory {directory}")
    if identity:
        os.chown(directory, identity["user"], identity["group"])
    return directory


class Daemon(ABC):
    """A server in a process group, a port and a scratch directory of its own.

    with Service(DATABASE_URL="...") as service: ...   # started here, ended and removed here

    The output of every start is collected in one file, see `log`.
    """

    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, name: str, *, unprivileged: bool = False) -> None:
        self._port = Port()
        self.port = self._port.number
        self._identity = drop_root() if unprivileged else {}
        self.directory = scratch_directory(name, unprivileged=unprivileged)
        self._process: subprocess.Popen[bytes] | None = None
        self._group: int | None = None

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _is_ready(self) -> bool: ...

    def _environment(self) -> Mapping[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.directory)}

    def _working_directory(self) -> Path:
        return self.directory

    @property
    def log(self) -> str:
        """All that it wrote to stdout and stderr."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pids(self) -> list[int]:
        """Its process and all descendants, its own first; empty when it does not run."""
        return [process.pid for process in self._tree()]

    def start(self, *, wait: bool = True, timeout: float = 60) -> Self:
        """Start, and with `wait` return when it answers. RuntimeError with the log if it ends."""
        if self.running:
            raise RuntimeError(f"{type(self).__name__} is already running")
        self._forget()
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._working_directory(),
                env=self._environment(),
                start_new_session=True,
                **self._identity,
            )
        self._group = self._process.pid
        _tell_guard(f"+group {self._group}")
        if wait:
            self.wait_ready(timeout)
        return self

    def wait_ready(self, timeout: float = 60) -> None:
        """Return when it answers; RuntimeError with the log when it ends first."""

        name = type(self).__name__
        try:
            wait_until(lambda: not self.running or self._is_ready(), f"{name} answers", timeout)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its log:\n{self.log}") from None
        if not self.running:
            raise RuntimeError(f"{name} did not start; its log:\n{self.log}")

    def wait_exit(self, timeout: float = 30) -> int:
        """Wait for it to end; returns its exit code (negative: the signal that ended it)."""
        assert self._process is not None, "never started"
        return self._process.wait(timeout)

    def stop(self, timeout: float = 30) -> int:
        """Ask it to end and wait; returns the exit code. If it does not: SIGKILL, TimeoutError."""
        assert self._process is not None, "never started"
        if self.running:
            self._process.send_signal(self.stop_signal)
            try:
                self.wait_exit(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise TimeoutError(f"did not stop in {timeout:g} s; its log:\n{self.log}") from None
        self._forget()
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL the process and all its descendants; returns when they are gone."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(signal.SIGSTOP)  # so that it starts no other child
        tree = self._tree()
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.wait()
        wait_until(lambda: all(map(_is_gone, tree)), "killed processes end", 10)
        self._forget()

    def restart(self) -> Self:
        """Stop and start again, on the same port and with the same data."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """End it and remove its directory and its hold on the port."""
        try:
            if self._process is not None:
                self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
            _tell_guard(f"-directory {self.directory}")
            self._port.release()

    def _tree(self) -> list[Any]:
        if not self.running or self._process is None:
            return []
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _forget(self) -> None:
        """It has ended: end what it left in its process group, once, for numbers are used again."""
        if self._group is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._group, signal.SIGKILL)
            _tell_guard(f"-group {self._group}")
            self._group = None

    def __enter__(self) -> Self:
        try:
            return self if self.running else self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_gone(process: Any) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
