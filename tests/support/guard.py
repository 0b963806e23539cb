"""The last one out: ends what a test run left running and removes what it left on disk.

`processes.py` starts one guard for a test run and tells it, a line each, which process groups and
directories the run holds (`+group 123`, `-group 123`, `+directory /tmp/x`). The end of that input
means that the run is over, however it ended, SIGKILL included. What is still held then goes.
"""

import os
import shutil
import signal
import sys
import time


def send(groups: set[int], number: int) -> set[int]:
    """Signal the process groups; returns those that exist."""
    alive = set()
    for group in groups:
        try:
            os.killpg(group, number)
            alive.add(group)
        except OSError:
            pass
    return alive


def main() -> None:
    held: set[str] = set()
    for line in sys.stdin:
        (held.add if line[0] == "+" else held.discard)(line[1:].rstrip("\n"))

    groups = {int(entry.split()[1]) for entry in held if entry.startswith("group ")}
    alive = send(groups, signal.SIGINT)
    deadline = time.monotonic() + 3
    while alive and time.monotonic() < deadline:
        time.sleep(0.05)
        alive = send(alive, 0)
    send(alive, signal.SIGKILL)
    for entry in held:
        if entry.startswith("directory "):
            shutil.rmtree(entry.split(maxsplit=1)[1], ignore_errors=True)


if __name__ == "__main__":
    main()
