"""`python -m bench`: see README.md."""

import argparse
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from bench import cases, postgres, servers
from bench.cases import Bench
from bench.heavy import heavy
from bench.pocketbase import sqlite

CASES = {**cases.CASES, "sqlite": sqlite, "heavy": heavy}
LARGE = ("growth", "heavy")  # these take minutes and gigabytes


def arguments() -> argparse.Namespace:
    """The command line; what is missing for a run is said at once."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the service.")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--seconds", type=int, default=4, help="of one measurement (default 4)")
    parser.add_argument(
        "--targets",
        type=lambda names: tuple(names.split(",")),
        default=tuple(servers.COMMANDS),
        help=f"comma list of {', '.join(servers.COMMANDS)} (default all)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=CASES,
        help="a case; repeat for more (default: all but growth and heavy, which take minutes)",
    )
    options = parser.parse_args()
    if unknown := set(options.targets) - servers.COMMANDS.keys():
        parser.error(f"unknown targets: {', '.join(unknown)}")
    options.only = options.only or [name for name in CASES if name not in LARGE]
    needed = ["wrk", *(servers.COMMANDS[name][0] for name in options.targets)]
    needed += ["npm"] if set(options.targets) & set(servers.PACKAGED) else []
    needed += servers.POCKETBASE[:1] if "sqlite" in options.only else []
    if missing := [name for name in needed if not shutil.which(name)]:
        parser.error(f"not installed: {', '.join(missing)}")
    return options


def main() -> None:
    """Run the chosen cases over a PostgreSQL of their own."""
    options = arguments()
    # A termination stops what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # 1000 connections are more than the usual limit of open files allows.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
    for name in servers.PACKAGED:
        if name in options.targets:
            servers.install(name)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, postgres.start() as database:
        bench = Bench(database, Path(scratch), options.targets, options.rounds, options.seconds)
        for name in options.only:
            CASES[name](bench)


if __name__ == "__main__":
    main()
