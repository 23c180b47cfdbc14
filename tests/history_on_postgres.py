"""A PostgreSQL server for the tests of the store, and processes that write to a store, to be run beside each other."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import gpu_run

from gpuprof.history import open_store


@contextmanager
def server() -> Iterator[str]:
    """A server of our own behind a socket, gone afterwards: a URL that wants a database in the place of NAME."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    tools = installed[-1].parent if installed else None
    if tools is None and (found := shutil.which("initdb")):
        tools = Path(found).parent
    if tools is None:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    # it refuses to run as root, and a temporary folder of pytest is root's alone
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="gpuprof-pg-"))
    if user:
        shutil.chown(folder, "postgres", "postgres")

    def call(tool: str, *arguments: str) -> None:
        command = [str(tools / tool), "--pgdata", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)

    try:
        call("initdb", "--auth=trust", "--username=gpuprof", "--no-sync", "--no-locale", "--encoding=UTF8")
        call("pg_ctl", "start", "--wait", f"--log={folder / 'log'}", f"--options=-F -k {folder} -c listen_addresses=")
        try:
            yield f"postgresql+psycopg://gpuprof@/NAME?host={folder}"
        finally:
            call("pg_ctl", "stop", "--wait", "--mode=immediate")
    finally:
        shutil.rmtree(folder)


def numbered_run(writer: int, number: int):
    """A run like no other."""
    run = gpu_run()
    run.environment |= {"writer": writer, "number": number}
    return run


def write_runs(url: str, writer: int, count: int, log: str) -> None:
    """Store so many runs, and write the id of each to a log once it is committed."""
    with open_store(url) as store, Path(log).open("a", buffering=1) as committed:
        for number in range(count):
            committed.write(f"{store.add(numbered_run(writer, number))}\n")
