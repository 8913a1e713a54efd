"""The same work in PostgreSQL: one upload's reads and writes, by pgbench, with the same hot row.

A cluster of its own under a temporary directory, on a Unix socket alone, run by an unprivileged
user, with PostgreSQL's defaults but for its buffers. What a `fedlearning` action reads and writes
is done in one transaction: task and member are read (twice, as by the two actions), the round's
state and deadline, whether anybody has the same hash (an index), the budget; the member's row is
written with a new entry in the hash's index (the verdicts, a row of their own on chain, are a
column of it), then the round's row, which all uploads share. Its lock is taken as late as can be.
``script`` sends the statements one by one, as pgbench does, prepared; ``function`` does all in one
call on the server. Nothing checks a signature here, and nothing replicates.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INSTALL = "apt-get install postgresql, or put initdb, postgres, psql and pgbench on PATH"
TOOLS = ("initdb", "postgres", "psql", "pgbench")
MEMBERS = 100_000  # more than can upload while one run lasts
COMMAND_SEC_MAX = 120
FORMS = ("script", "function")

_SCHEMA = f"""
CREATE TABLE task (
  id text PRIMARY KEY, owner text NOT NULL, version int NOT NULL, cost_max int NOT NULL,
  errors_max int NOT NULL, deposited bigint NOT NULL, paid bigint NOT NULL,
  withdrawn bigint NOT NULL);
CREATE TABLE member (
  task text, account int, role smallint NOT NULL, joined boolean NOT NULL, enc_key bytea NOT NULL,
  classes bigint NOT NULL, set_version int NOT NULL, set_cid bytea NOT NULL,
  set_hash bytea NOT NULL,
  upload_version int NOT NULL, upload_hash bytea NOT NULL, upload_cid bytea NOT NULL,
  upload_cost int NOT NULL, error_first int NOT NULL, error_last int NOT NULL,
  upload_state smallint NOT NULL, upload_reason smallint NOT NULL, verdicts bytea NOT NULL,
  PRIMARY KEY (task, account));
CREATE INDEX byhash ON member (task, upload_hash);
CREATE TABLE round (
  task text, version int, state smallint NOT NULL, deadline timestamptz NOT NULL,
  rule smallint NOT NULL, tau int NOT NULL, price bigint NOT NULL, uploads int NOT NULL,
  pending int NOT NULL, reserved bigint NOT NULL, paid bigint NOT NULL,
  PRIMARY KEY (task, version));
INSERT INTO task VALUES ('t', 'owner', 0, 10000, 16, 1000000000000, 0, 0);
INSERT INTO member SELECT 't', n, 1, true, h, 7, 0, h, h, 0, h, h, 0, 0, 0, 0, 0, h
  FROM (SELECT n, sha256(n::text::bytea) AS h FROM generate_series(0, {MEMBERS - 1}) AS n) AS made;
CREATE FUNCTION upload(
  who int, round_version int, hash bytea, cid bytea, cost int, first int, last int)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE about task; mine member; head round; done int;
BEGIN
  SELECT * INTO STRICT about FROM task WHERE id = 't';
  SELECT * INTO STRICT mine FROM member WHERE task = 't' AND account = who;
  IF mine.role <> 1 OR NOT mine.joined OR mine.upload_version = round_version
    OR about.version <> round_version OR cost > about.cost_max THEN RAISE 'refused'; END IF;
  SELECT * INTO STRICT head FROM round WHERE task = 't' AND version = round_version;
  IF head.state <> 1 OR head.deadline < now() THEN RAISE 'closed'; END IF;
  IF EXISTS (SELECT 1 FROM member WHERE task = 't' AND upload_hash = hash)
    THEN RAISE 'hash'; END IF;
  UPDATE member SET upload_version = round_version, upload_hash = hash, upload_cid = cid,
    upload_cost = cost, error_first = first, error_last = last, upload_state = 1, upload_reason = 0,
    verdicts = '\\x00' WHERE task = 't' AND account = who;
  UPDATE round SET uploads = uploads + 1, pending = pending + 1, reserved = reserved + cost * price
    WHERE task = 't' AND version = round_version AND about.deposited - about.paid - about.withdrawn
      - reserved - paid >= cost * price;
  GET DIAGNOSTICS done = ROW_COUNT;
  IF done <> 1 THEN RAISE 'budget'; END IF;
END $$;
VACUUM ANALYZE;
"""
_ROUND = """
UPDATE task SET version = {version};
INSERT INTO round
  VALUES ('t', {version}, 1, now() + interval '1 hour', 3, 100000, 1, 0, 0, 0, 0);
CHECKPOINT;
"""
_NUMBERS = """\
\\set i :i + 1
\\set n :client_id + :i * :clients
"""
_SCRIPT = (
    _NUMBERS
    + """\
BEGIN;
SELECT version, cost_max, errors_max, deposited, paid, withdrawn FROM task WHERE id = 't';
SELECT role, joined FROM member WHERE task = 't' AND account = :n;
SELECT state, deadline, rule, tau, price, reserved, paid FROM round
  WHERE task = 't' AND version = :v;
SELECT upload_version FROM member WHERE task = 't' AND account = :n;
SELECT account FROM member WHERE task = 't' AND upload_hash = sha256((:n || ' ' || :v)::bytea);
UPDATE member SET upload_version = :v, upload_hash = sha256((:n || ' ' || :v)::bytea),
  upload_cid = sha256((:v || ' ' || :n)::bytea), upload_cost = 600, error_first = 900000,
  error_last = 200000, upload_state = 1, upload_reason = 0, verdicts = '\\x00'
  WHERE task = 't' AND account = :n AND upload_version <> :v;
UPDATE round SET uploads = uploads + 1, pending = pending + 1, reserved = reserved + 600 * price
  WHERE task = 't' AND version = :v AND state = 1 AND deadline >= now()
    AND (SELECT deposited - paid - withdrawn FROM task WHERE id = 't') - reserved - paid
      >= 600 * price;
COMMIT;
"""
)
_FUNCTION = (
    _NUMBERS
    + """\
SELECT upload(:n, :v, sha256((:n || ' ' || :v)::bytea), sha256((:v || ' ' || :n)::bytea),
  600, 900000, 200000);
"""
)


def tools() -> Path | None:
    """Return the folder of the server's programs, or None when there are none."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all((folder / name).is_file() for name in TOOLS):
            return folder
    return None


def measure(
    *, clients: Sequence[int], seconds: float, say: Callable[[str], None]
) -> list[dict[str, Any]] | str:
    """Return a row for each form, number of clients, and fsync on and off.

    Returns
    -------
    list of dict, or str
        A text says why there are none.
    """
    rows = []
    try:
        with cluster() as made:
            for fsync in (True, False):
                with made.running(fsync=fsync):
                    for form in FORMS:
                        for count in clients:
                            say(f"PostgreSQL, {form}, fsync {fsync}, {count} clients")
                            rows.append(made.bench(form, count, seconds))
    except PostgresError as error:
        return str(error)
    return rows


class PostgresError(Exception):
    """PostgreSQL is not there, or did not do what it should."""


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Make a cluster for the block, not running yet. Raises PostgresError, in the block as well."""
    folder = tools()
    if folder is None:
        raise PostgresError(f"not installed: {INSTALL}")
    with tempfile.TemporaryDirectory(prefix="gradledger-pg-") as name:
        try:
            yield Cluster(folder, Path(name))
        except (OSError, subprocess.SubprocessError) as error:
            raise PostgresError(f"did not run: {error}") from error


class Cluster:
    """A server with one task, whose rounds are loaded one after the other."""

    def __init__(self, tools_folder: Path, home: Path) -> None:
        self._tools, self._home = tools_folder, home
        self._data = home / "data"
        self._user = "postgres"
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            self._user = next(
                (n for n in ("postgres", "nobody") if _has_user(n)), pwd.getpwuid(0).pw_name
            )
            account = pwd.getpwnam(self._user)
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(home, account.pw_uid, account.pw_gid)
        self._server: subprocess.Popen[bytes] | None = None
        self._fsync = True
        self._version = 0  # of the round that was opened last
        self._run("initdb", "-D", str(self._data), "-U", "bench", "-A", "trust", "-E", "UTF8")

    @contextmanager
    def running(self, *, fsync: bool) -> Iterator[None]:
        """Run the server for the block."""
        self._fsync = fsync
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._home),
            "fsync": "on" if fsync else "off",
            "shared_buffers": "256MB",
            "max_connections": "100",
        }
        command = [str(self._tools / "postgres"), "-D", str(self._data)]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]
        with (self._home / "log").open("ab") as log:
            self._server = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._home, **self._as
            )
        try:
            for _ in range(200):
                if self._server.poll() is not None:
                    tail = (self._home / "log").read_text("utf-8", "replace")[-400:]
                    raise PostgresError(f"the server ended: {tail}")
                try:
                    self._sql("SELECT 1")
                    break
                except PostgresError:
                    self._server_wait(0.05)
            if not self._version:
                self._sql(_SCHEMA)
            yield
        finally:
            self._server.send_signal(2)  # SIGINT: fast shutdown
            self._server.wait(COMMAND_SEC_MAX)

    def _server_wait(self, seconds: float) -> None:
        assert self._server is not None
        try:
            self._server.wait(seconds)
        except subprocess.TimeoutExpired:
            pass

    def _sql(self, text: str) -> str:
        return self._run("psql", *self._address(), "-qAtX", "-v", "ON_ERROR_STOP=1", given=text)

    def bench(self, form: str, clients: int, seconds: float) -> dict[str, Any]:
        """Load one round with uploads; return the figures."""
        self._version += 1
        version = self._version
        self._sql(_ROUND.format(version=version))
        script = self._home / f"{form}.sql"
        script.write_text(_SCRIPT if form == "script" else _FUNCTION, encoding="ascii")
        script.chmod(0o644)
        told = self._run(
            "pgbench",
            *self._address(),
            *("-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2))),
            *("-T", str(max(1, round(seconds))), "-f", str(script)),
            *("-D", f"v={version}", "-D", "i=-1", "-D", f"clients={clients}"),
        )
        found = {
            name: float(match.group(1))
            for name, pattern in (
                ("per_s", r"tps = ([\d.]+)"),
                ("latency_ms", r"latency average = ([\d.]+) ms"),
                ("transactions", r"transactions actually processed: (\d+)"),
            )
            if (match := re.search(pattern, told))
        }
        counted = int(self._sql(f"SELECT uploads FROM round WHERE version = {version}"))
        if counted != int(found.get("transactions", -1)):
            raise PostgresError(f"expected {found.get('transactions')} uploads, found {counted}")
        return {
            "form": form,
            "fsync": self._fsync,
            "clients": clients,
            "transactions": counted,
            "per_s": round(found["per_s"], 1),
            "latency_ms": found["latency_ms"],
        }

    def _address(self) -> list[str]:
        return ["-h", str(self._home), "-U", "bench", "postgres"]

    def _run(self, tool: str, *arguments: str, given: str | None = None) -> str:
        done = subprocess.run(
            [str(self._tools / tool), *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=COMMAND_SEC_MAX,
            cwd=self._home,
            check=False,
            **self._as,
        )
        if done.returncode != 0:
            raise PostgresError(f"did not run: {tool}: {done.stderr.strip()[-400:]}")
        return done.stdout


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
