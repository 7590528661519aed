"""A PostgreSQL server for tests, in a temporary directory, started and stopped by them."""

import glob
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest


class Server:
    """A server that listens on a socket in its own directory, and on no port."""

    def __init__(self, binaries, directory, user):
        self._binaries = Path(binaries)
        self.directory = Path(directory)
        # The server refuses to run as root.
        account = pwd.getpwnam(user) if user else None
        self._as_user = {"user": account.pw_uid, "group": account.pw_gid} if account else {}
        if account:
            os.chown(directory, account.pw_uid, account.pw_gid)
        os.chmod(directory, 0o755)
        self._run("initdb", "-D", self.data, "-A", "trust", "-U", "jdss", "-N", "-E", "UTF8")

    @property
    def data(self):
        return str(self.directory / "data")

    def _run(self, program, *arguments):
        environment = {**os.environ, "LC_ALL": "C", "HOME": str(self.directory)}
        with open(self.directory / f"{program}.out", "ab") as output:
            # No pipe: the server inherits it, and keeps it open.
            subprocess.run(
                [self._binaries / program, *arguments],
                check=True,
                timeout=120,
                cwd=self.directory,
                env=environment,
                stdout=output,
                stderr=output,
                **self._as_user,
                **({"extra_groups": []} if self._as_user else {}),
            )

    def start(self):
        options = f"-k {self.directory} -c listen_addresses= -c fsync=off -c max_connections=200"
        log = str(self.directory / "server.log")
        self._run("pg_ctl", "start", "-w", "-t", "100", "-D", self.data, "-l", log, "-o", options)

    def stop(self, mode="fast"):
        self._run("pg_ctl", "stop", "-w", "-t", "100", "-D", self.data, "-m", mode)

    def url(self, database):
        return f"postgresql://jdss@/{database}?host={self.directory}"

    def new_database(self):
        """The URL of a database that nobody else uses."""
        import psycopg

        name = f"study_{uuid.uuid4().hex}"
        address = f"host={self.directory} user=jdss dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)


def _find_binaries():
    found = shutil.which("initdb")
    if found:
        return os.path.dirname(os.path.realpath(found))
    # The program and not its directory: a client's package has that, too.
    places = ("/usr/lib/postgresql/*/bin/initdb", "/usr/pgsql-*/bin/initdb")
    programs = sorted(path for place in places for path in glob.glob(place))
    return os.path.dirname(programs[-1]) if programs else None


@pytest.fixture(scope="session")
def postgresql():
    """A running server."""
    pytest.importorskip("psycopg", reason="the driver is not installed: pip install psycopg")
    binaries = _find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    user = None
    if os.getuid() == 0:
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in known), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no other user")
    # Short, and outside of pytest's own: a socket's path has at most 107 characters, and other
    # users may not look into pytest's directories.
    directory = tempfile.mkdtemp(prefix="jdss-pg-", dir="/tmp")
    try:
        try:
            server = Server(binaries, directory, user)
            server.start()
        except (OSError, KeyError, subprocess.SubprocessError) as error:
            # No right to be another user, in a container say, or a broken installation.
            pytest.skip(f"PostgreSQL cannot be started here: {error!r}")
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
