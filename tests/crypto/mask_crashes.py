"""Take masks in processes that are killed, or that share a store; say which masks they were given.

    python mask_crashes.py statements|random|together FOLDER N

Prints a list of lists of hexadecimal texts, one list per process: the masks that it was given.
Forks here and not in the tests, since pytest may have threads.
"""

import json
import os
import random
import signal
import sys
import time
from contextlib import contextmanager

from gradledger.errors import MasksShortError
from gradledger.paillier import PaillierPublicKey
from gradledger.paillier.masks import MaskStore

STATEMENTS = ("BEGIN", "SELECT", "DELETE", "COMMIT", "after")
KILLS = 30
PROCESSES = 3


class MaskStoreThatDies(MaskStore):
    """A store whose process is killed when it comes to a statement of `take`."""

    __slots__ = ("statement",)

    def __init__(self, folder, public, statement):
        self.statement = "nothing yet"
        super().__init__(folder, public)
        self.statement = statement

    def take(self, count):
        masks = super().take(count)
        if self.statement == "after":
            die()
        return masks

    @contextmanager
    def _transaction(self):
        with super()._transaction() as connection:
            connection.set_trace_callback(self._trace)
            self._trace("BEGIN")
            yield connection

    def _trace(self, statement):
        if statement.startswith(self.statement):
            die()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def take_until_empty(store, count, report, pause_sec=0):
    """Take again and again; report what was given in one write, which a kill cannot divide."""
    width = store.public.ciphertext_bytes
    while True:
        try:
            masks = store.take(count)
        except MasksShortError:
            return
        texts = [masks[at : at + width].hex() for at in range(0, len(masks), width)]
        os.write(report, ("\n".join(texts) + "\n").encode())
        time.sleep(pause_sec)


def in_process(work):
    """Run work(report) in a forked process; return its id and the end to read its report from."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    os.close(reader)
    try:
        work(writer)
    finally:
        os._exit(0)


def finish(process, reader):
    """Return the lines that a process wrote, and the signal that ended it or 0."""
    with os.fdopen(reader) as pipe:
        lines = pipe.read().split()
    return lines, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def statements(folder, public):
    given = []
    for statement in STATEMENTS:
        store = MaskStoreThatDies(folder, public, statement)
        lines, status = finish(*in_process(lambda report, s=store: take_until_empty(s, 2, report)))
        assert status == -signal.SIGKILL, (statement, status)
        given.append(lines)
        given.append([MaskStore(folder, public).take(1).hex()])
    return given


def randomly(folder, public):
    given = []
    rng = random.Random()
    for _ in range(KILLS):
        store = MaskStore(folder, public)
        process, reader = in_process(lambda report, s=store: take_until_empty(s, 3, report))
        time.sleep(rng.uniform(0.001, 0.04))
        os.kill(process, signal.SIGKILL)
        given.append(finish(process, reader)[0])
    return given


def together(folder, public):
    def work(report):
        # The pause lets the others in: SQLite gives its lock to whoever asks at the right moment.
        take_until_empty(MaskStore(folder, public), 2, report, pause_sec=0.005)

    started = [in_process(work) for _ in range(PROCESSES)]
    return [finish(*each)[0] for each in started]


if __name__ == "__main__":
    what, folder, n = sys.argv[1:]
    public = PaillierPublicKey(int(n), allow_insecure_size_for_tests=True)
    kinds = {"statements": statements, "random": randomly, "together": together}
    print(json.dumps(kinds[what](folder, public)))
