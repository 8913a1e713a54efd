"""True Paillier blinding, made ahead: each mask is r^n mod n^2, and is gone before it is used.

A short exponent rests on an assumption of its own (`docs/caveats.md`); these masks rest on nothing
but Paillier's (Paillier 1999, section 4). They take an exponentiation each, so a device makes them
while it has nothing better to do. A mask that is used twice gives away the difference of two
updates, which is why `MaskStore.take` hands out only what it has already deleted for good: a
process may be killed at any point, and several may share a store, but no mask ever leaves it twice.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradledger.codec import Codec
from gradledger.errors import ConfigError, KeyMismatchError, MasksShortError
from gradledger.keepsafe import connect, make_private
from gradledger.paillier.encrypting import BLOCK, random_unit

if TYPE_CHECKING:
    from gradledger.paillier import PaillierPublicKey

MASKS_MAX = 1_000_000  # in a store: 0.8 GB at 3072 bits
WORKERS_MAX = 256
BUSY_SEC_MAX = 30

_FORMAT = 1
_TAKEN = 16 * BLOCK  # masks that leave in one transaction: some 3 MB
_BATCH = 32  # masks that a worker makes for one transaction
_TABLES = (
    "CREATE TABLE IF NOT EXISTS about (one INTEGER PRIMARY KEY CHECK (one = 1), "
    "format INTEGER NOT NULL, key_hash BLOB NOT NULL, inode BLOB NOT NULL)",
    # AUTOINCREMENT: a number is never given to a second mask.
    "CREATE TABLE IF NOT EXISTS masks (id INTEGER PRIMARY KEY AUTOINCREMENT, "
    "mask BLOB NOT NULL, checksum BLOB NOT NULL)",
)


class MaskStore:
    """The masks of one device for one key, in a file that only its account may read.

    Parameters
    ----------
    folder : path
        Where the file lies, on a local file system; made, with mode 0700, where it is missing. The
        file, mode 0600, is named after the key's hash.
    public : PaillierPublicKey
        The key that the masks are for.

    Raises
    ------
    ConfigError
        Other accounts may read the folder or the file, the file is damaged, or it is a copy.
    KeyMismatchError
        The file holds masks for another key.

    Notes
    -----
    May be used from threads and processes at once. Never copy, restore or share the file: a mask
    that two parties hold is used twice. A file that has become another one (another inode) is
    refused for that reason; the snapshot of a whole disk cannot be seen.
    """

    __slots__ = ("path", "public")

    def __init__(self, folder: str | os.PathLike[str], public: PaillierPublicKey) -> None:
        self.public = public
        self.path = Path(folder).absolute() / f"{public.key_hash.hex()}.masks"
        make_private(self.path, "masks")
        about = (_FORMAT, public.key_hash, b"%d" % os.lstat(self.path).st_ino)
        with self._transaction() as connection:
            for table in _TABLES:
                connection.execute(table)
            connection.execute("INSERT OR IGNORE INTO about VALUES (1, ?, ?, ?)", about)
            form, key_hash, inode = connection.execute(
                "SELECT format, key_hash, inode FROM about"
            ).fetchone()
        if form != _FORMAT:
            raise ConfigError(f"{self.path}: expected masks of format {_FORMAT}, got {form!r}")
        if key_hash != public.key_hash:
            raise KeyMismatchError(f"{self.path}: these masks are for another key")
        if inode != about[2]:
            raise ConfigError(
                f"{self.path}: this is a copy, and its masks may have been used already; delete "
                "it and make new ones"
            )

    def __len__(self) -> int:
        """Count the masks that are ready."""
        with self._transaction() as connection:
            return int(connection.execute("SELECT count(*) FROM masks").fetchone()[0])

    def fill(
        self,
        count: int,
        *,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Make masks until `count` are ready. May be interrupted, and called again, at any time.

        Parameters
        ----------
        count : int, 1..1,000,000
            An update takes `codec.plaintexts(public.bits)` of them.
        workers : int, 1..256
            Threads.
        progress : callable, optional
            `progress(ready, count)`, called at the start and after each batch.

        Raises
        ------
        ConfigError
            An argument is out of bounds, or the file cannot be written.
        """
        if not 1 <= count <= MASKS_MAX:
            raise ConfigError(f"expected 1..{MASKS_MAX} masks, got {count}")
        if not 1 <= workers <= WORKERS_MAX:
            raise ConfigError(f"expected 1..{WORKERS_MAX} workers, got {workers}")
        with ThreadPoolExecutor(workers) as pool:
            while True:
                ready = len(self)
                if progress is not None:
                    progress(ready, count)
                if ready >= count:
                    return
                wanted = min(count - ready, _BATCH * workers)
                shares = [
                    wanted // workers + (place < wanted % workers) for place in range(workers)
                ]
                made = pool.map(self._make, [share for share in shares if share])
                self._put([mask for share in made for mask in share])

    def blocks(
        self, public: PaillierPublicKey, codes: NDArray[np.uint16], codec: Codec
    ) -> Iterator[bytes]:
        """Encrypt codes with masks: `PaillierPublicKey.encrypt_stream` does it with this.

        Parameters
        ----------
        public : PaillierPublicKey
            The key to encrypt under.
        codes : ndarray of uint16, shape (parameters,)
            From `codec.quantise`.
        codec : Codec
            Of the task.

        Returns
        -------
        iterator of bytes
            256 ciphertexts each, fewer at the end: (1 + m n) r^n mod n^2.

        Raises
        ------
        KeyMismatchError
            The masks are for another key; none was taken.
        MasksShortError
            Fewer are ready than the update takes; none was taken.
        """
        if public != self.public:
            raise KeyMismatchError(
                f"expected masks for key {public.key_hash.hex()[:16]}..., these are for "
                f"{self.public.key_hash.hex()[:16]}..."
            )
        self._check_ready(len(self), codec.plaintexts(public.bits))
        return self._blocks(codes, codec)

    def _blocks(self, codes: NDArray[np.uint16], codec: Codec) -> Iterator[bytes]:
        import gmpy2

        n = gmpy2.mpz(self.public.n)
        width = self.public.ciphertext_bytes
        left = codec.plaintexts(self.public.bits)
        masks: Iterator[bytes] = iter(())
        block: list[bytes] = []
        for plaintext in codec.pack(codes, self.public.bits):
            mask = next(masks, None)
            if mask is None:
                masks = self._split(self.take(min(left, _TAKEN)))
                mask = next(masks)
            left -= 1
            high, low = gmpy2.f_divmod(gmpy2.mpz.from_bytes(mask, "big"), n)
            message = gmpy2.mpz.from_bytes(plaintext, "little")
            block.append((low + (high + message * low) % n * n).to_bytes(width, "big"))
            if len(block) == BLOCK or not left:
                yield b"".join(block)
                block.clear()

    def _split(self, masks: bytes) -> Iterator[bytes]:
        width = self.public.ciphertext_bytes
        return (masks[start : start + width] for start in range(0, len(masks), width))

    def take(self, count: int) -> bytes:
        """Delete `count` masks for good, then hand them out.

        Parameters
        ----------
        count : int, 1 or more
            All of them or none.

        Returns
        -------
        bytes
            count x `public.ciphertext_bytes`: the oldest masks, big endian. Secret: whoever has a
            ciphertext and its mask has the plaintext.

        Raises
        ------
        MasksShortError
            Fewer are ready; none was taken.
        ConfigError
            Masks were damaged, and have been removed; none was handed out.
        """
        if count < 1:
            raise ConfigError(f"expected 1 or more masks to take, got {count}")
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT id, mask, checksum FROM masks ORDER BY id LIMIT ?", (count,)
            ).fetchall()
            damaged = [(row[0],) for row in rows if not self._is_whole(*row)]
            if damaged:
                connection.executemany("DELETE FROM masks WHERE id = ?", damaged)
            elif len(rows) == count:
                deleted = connection.execute("DELETE FROM masks WHERE id <= ?", (rows[-1][0],))
                if deleted.rowcount != count:
                    raise sqlite3.DatabaseError("its numbers are damaged")
        # The transaction is over: what is handed out now is no longer in the file.
        if damaged:
            raise ConfigError(
                f"{self.path}: {len(damaged)} masks were damaged and have been removed; make new "
                "ones with MaskStore.fill"
            )
        self._check_ready(len(rows), count)
        return b"".join(row[1] for row in rows)

    def _check_ready(self, ready: int, count: int) -> None:
        if ready < count:
            raise MasksShortError(
                f"expected {count} masks, got {ready}: {count - ready} are missing; make them with "
                f"MaskStore.fill({count})",
                missing=count - ready,
            )

    def _make(self, count: int) -> list[bytes]:
        import gmpy2

        n = gmpy2.mpz(self.public.n)
        units = [gmpy2.mpz(random_unit(self.public.n)) for _ in range(count)]
        width = self.public.ciphertext_bytes
        return [mask.to_bytes(width, "big") for mask in gmpy2.powmod_base_list(units, n, n * n)]

    def _put(self, masks: list[bytes]) -> None:
        with self._transaction() as connection:
            last = connection.execute("SELECT seq FROM sqlite_sequence").fetchone() or (0,)
            connection.executemany(
                "INSERT INTO masks VALUES (?, ?, ?)",
                [
                    (place, mask, self._checksum(place, mask))
                    for place, mask in enumerate(masks, last[0] + 1)
                ],
            )

    def _checksum(self, place: int, mask: bytes) -> bytes:
        place_bytes = place.to_bytes(8, "big", signed=True)
        return hashlib.sha256(self.public.key_hash + place_bytes + mask).digest()

    def _is_whole(self, place: int, mask: object, checksum: object) -> bool:
        """Say whether a row is as it was written; a damaged one may not even hold bytes."""
        if not isinstance(mask, bytes) or len(mask) != self.public.ciphertext_bytes:
            return False
        return checksum == self._checksum(place, mask)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Alone with the file until the end; whatever raises undoes everything."""
        try:
            with closing(connect(self.path, timeout_sec=BUSY_SEC_MAX)) as connection:
                connection.text_factory = bytes  # or an error would show the text it cannot decode
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        except sqlite3.Error as exc:
            raise ConfigError(f"{self.path}: cannot use the masks: {exc}") from exc

    def __repr__(self) -> str:
        return f"MaskStore({str(self.path)!r})"
