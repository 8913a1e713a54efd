"""Content on IPFS through a Kubo RPC endpoint: every read verified, every call bounded.

`ipfshttpclient` is the one client path. It bounds a wait on a socket, not a call, and it would hold
any answer in memory; so each call runs in a worker that the caller leaves at the deadline, and
answers are read in blocks and given up at the first byte too many.
"""

from __future__ import annotations

import ipaddress
import json
import math
import queue
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, TypeVar

from gradledger.cid import cid_to_digest, cid_v0
from gradledger.errors import (
    BlobCorruptError,
    BlobMissingError,
    BlobTooLargeError,
    ConfigError,
    StoreError,
    StoreUnavailableError,
)

ADDRESS_DEFAULT = "/ip4/127.0.0.1/tcp/5001"
TIMEOUT_SEC_DEFAULT = 30.0
BYTES_MAX_DEFAULT = 2**28
PACE_BYTES_PER_SEC = 2**21  # of content that comes steadily
CALLS_MAX = 32  # calls of one store under way, those left at their deadline included

_BLOCK_BYTES = 65_536
_ANSWER_BYTES_MAX = 65_536  # of any answer but content
_VERSION_CHARS_MAX = 64
_SERVER_SHARE = 0.8  # of the time: the server gives up first, and says why
# The profile that `gradledger.cid` computes.
_ADD_OPTIONS = {
    "cid-version": "0",
    "hash": "sha2-256",
    "chunker": "size-262144",
    "raw-leaves": "false",
    "trickle": "false",
    "pin": "true",
    "progress": "false",
    "quieter": "true",
    "wrap-with-directory": "false",
}
# What Kubo says of content, whatever its version; any other error is about the node.
_CORRUPT_WORDS = ("different hash than requested",)
_MISSING_WORDS = (
    "not found",
    "could not find",
    "deadline exceeded",
    "not pinned",
)

_T = TypeVar("_T")


class Store:
    """Content by CID on a Kubo node.

    Parameters
    ----------
    address : str
        A multiaddr (`/ip4/127.0.0.1/tcp/5001`) or a URL (`http://127.0.0.1:5001`).
    timeout_sec : float
        Bound on each call, from its start to its end.
    bytes_max : int
        Bound on each content, written or read.

    Raises
    ------
    ConfigError
        The address cannot be read, or a bound is not positive.

    Notes
    -----
    Threads may share a store. Nothing is connected before the first call.
    """

    def __init__(
        self,
        address: str = ADDRESS_DEFAULT,
        *,
        timeout_sec: float = TIMEOUT_SEC_DEFAULT,
        bytes_max: int = BYTES_MAX_DEFAULT,
    ) -> None:
        if not timeout_sec > 0:
            raise ConfigError(f"timeout_sec: expected more than 0, got {timeout_sec}")
        if bytes_max < 1:
            raise ConfigError(f"bytes_max: expected at least 1, got {bytes_max}")
        self.address = _multiaddr_of(address)
        self.timeout_sec = float(timeout_sec)
        self.bytes_max = bytes_max
        self.bytes_fetched = self.bytes_stored = 0  # by calls that succeeded
        self._counting = threading.Lock()
        self._slots = threading.BoundedSemaphore(CALLS_MAX)

    def put(self, data: bytes) -> str:
        """Add and pin content.

        Parameters
        ----------
        data : bytes
            At most `bytes_max`.

        Returns
        -------
        str
            Its CIDv0, computed here and equal to the node's answer.

        Raises
        ------
        BlobTooLargeError
            It is longer than `bytes_max`.
        BlobCorruptError
            The node answers with another CID.
        StoreUnavailableError
            The node does not answer, or not in time.
        """
        if len(data) > self.bytes_max:
            raise BlobTooLargeError(
                f"expected at most {self.bytes_max} bytes to store, got {len(data)}"
            )
        cid = cid_v0(data)
        answer = self._call("add", None, self._add, data)
        if answer != cid:
            raise BlobCorruptError(f"expected the node to store {cid}, it stored {answer!r:.64}")
        with self._counting:
            self.bytes_stored += len(data)
        return cid

    def get(
        self, cid: str, *, bytes_max: int | None = None, patience_sec: float = math.inf
    ) -> bytes:
        """Return content, verified against its CID.

        Parameters
        ----------
        cid : str
            A CIDv0 of this project's profile.
        bytes_max : int, optional
            A tighter bound than the store's.
        patience_sec : float
            Give up earlier than after `timeout_sec`: when nothing comes for so long, or content is
            so far behind a pace of `PACE_BYTES_PER_SEC`.

        Returns
        -------
        bytes
            The content.

        Raises
        ------
        BlobMissingError
            The node says that it has no such content, or finds none in time.
        BlobTooLargeError
            It is longer than the bound; reading stopped there.
        BlobCorruptError
            What came is not what the CID names.
        StoreUnavailableError
            The node does not answer, or not in time.
        ConfigError
            The text is not a CIDv0.
        """
        cid_to_digest(cid)
        bound = self.bytes_max if bytes_max is None else min(bytes_max, self.bytes_max)
        request = partial(self._request, patience_sec=patience_sec)
        data = self._call("cat", cid, request, "/cat", cid, bound, patience_sec=patience_sec)
        if cid_v0(data) != cid:
            raise BlobCorruptError(f"{cid}: the {len(data)} bytes that came are not its content")
        with self._counting:
            self.bytes_fetched += len(data)
        return data

    def pin(self, cid: str) -> None:
        """Keep content on the node.

        Parameters
        ----------
        cid : str
            A CIDv0.

        Raises
        ------
        BlobMissingError
            The node has no such content and finds none in time.
        StoreUnavailableError
            The node does not answer, or not in time.
        ConfigError
            The text is not a CIDv0.
        """
        self._pin("pin/add", cid)

    def unpin(self, cid: str) -> None:
        """Let the node drop content.

        Parameters
        ----------
        cid : str
            A CIDv0.

        Raises
        ------
        BlobMissingError
            It is not pinned.
        StoreUnavailableError
            The node does not answer, or not in time.
        ConfigError
            The text is not a CIDv0.
        """
        self._pin("pin/rm", cid)

    def version(self) -> str:
        """Return the node's version; a cheap sign of life.

        Returns
        -------
        str
            For instance `0.22.0`.

        Raises
        ------
        StoreUnavailableError
            The node does not answer, or not in time.
        """
        answer = self._call("version", None, self._request, "/version", None, _ANSWER_BYTES_MAX)
        version = _field(answer, "Version")
        if not isinstance(version, str):
            raise StoreUnavailableError(f"expected a version as text, got {answer[:64]!r}")
        return version[:_VERSION_CHARS_MAX]

    def _pin(self, name: str, cid: str) -> None:
        """Add or remove a pin; the answer must name it."""
        cid_to_digest(cid)
        answer = self._call(name, cid, self._request, f"/{name}", cid, _ANSWER_BYTES_MAX)
        if _field(answer, "Pins") != [cid]:
            raise StoreUnavailableError(f"{name} {cid}: the answer names {answer[:64]!r}")

    def _call(
        self,
        name: str,
        cid: str | None,
        work: Callable[..., _T],
        *args: Any,
        patience_sec: float = math.inf,
    ) -> _T:
        """Run `work(*args, deadline)` in a worker; leave it at the deadline."""
        deadline = time.monotonic() + self.timeout_sec
        subject = f"{name} {cid}" if cid else name
        if not self._slots.acquire(timeout=self.timeout_sec):
            raise StoreUnavailableError(
                f"{subject}: {CALLS_MAX} calls to {self.address} are under way already"
            )
        results: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                with self._mapped_errors(subject, cid, patience_sec):
                    outcome = work(*args, deadline), None
            except BaseException as exc:
                results.put((None, exc))
            else:
                results.put(outcome)
            finally:
                self._slots.release()

        threading.Thread(target=run, name="gradledger-store", daemon=True).start()
        try:
            value, error = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise self._late(subject) from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def _client(self, deadline: float, patience_sec: float) -> Any:
        wait = min(patience_sec, max(0.001, deadline - time.monotonic()))
        return _client_class()(self.address, "api/v0", timeout=wait)

    def _add(self, data: bytes, deadline: float) -> Any:
        from ipfshttpclient import multipart

        body, headers = multipart.stream_bytes(_blocks(data), chunk_size=_BLOCK_BYTES)
        answer = self._read("/add", None, _ADD_OPTIONS, _ANSWER_BYTES_MAX, deadline, body, headers)
        return _field(answer, "Hash")

    def _request(
        self,
        path: str,
        cid: str | None,
        bound: int,
        deadline: float,
        *,
        patience_sec: float = math.inf,
    ) -> bytes:
        seconds = max(0.001, (deadline - time.monotonic()) * _SERVER_SHARE)
        options = {"timeout": f"{seconds:.3f}s"}
        return self._read(path, cid, options, bound, deadline, patience_sec=patience_sec)

    def _read(
        self,
        path: str,
        cid: str | None,
        options: dict[str, str],
        bound: int,
        deadline: float,
        body: Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        *,
        patience_sec: float = math.inf,
    ) -> bytes:
        """Send a request and read its answer in blocks."""
        begun = time.monotonic()
        params = [*options.items(), *([("arg", cid)] if cid else [])]
        closables, blocks = self._client(deadline, patience_sec)._request(
            "POST",
            path,
            params,
            auth=None,
            data=body,
            headers=headers,
            timeout=None,
            chunk_size=_BLOCK_BYTES,
        )
        try:
            parts: list[bytes] = []
            length = 0
            for block in blocks:
                length += len(block)
                if length > bound:
                    error = BlobTooLargeError if path == "/cat" else StoreUnavailableError
                    raise error(f"{path} {cid or ''}: expected at most {bound} bytes, more came")
                if time.monotonic() > deadline:
                    raise self._late(f"{path} {cid or ''}")
                if time.monotonic() > begun + patience_sec + length / PACE_BYTES_PER_SEC:
                    raise StoreUnavailableError(
                        f"{path} {cid or ''}: more than {patience_sec:g} s behind "
                        f"{PACE_BYTES_PER_SEC} bytes a second"
                    )
                parts.append(block)
            return b"".join(parts)
        finally:
            for closable in closables:
                closable.close()

    @contextmanager
    def _mapped_errors(self, subject: str, cid: str | None, patience_sec: float) -> Iterator[None]:
        """Turn the client library's errors into the store's."""
        import requests
        import urllib3
        from ipfshttpclient import exceptions

        try:
            yield
        except StoreError:
            raise
        except exceptions.AddressError:
            raise ConfigError(f"no store address: {self.address!r}") from None
        except exceptions.TimeoutError as exc:
            raise self._late(subject, patience_sec) from exc
        except exceptions.ErrorResponse as exc:
            text = str(exc)[:200]
            raise _error_of(text, cid)(f"{subject}: {self.address} answers {text!r}") from exc
        except (
            exceptions.Error,
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as exc:
            raise StoreUnavailableError(
                f"{subject}: no proper answer from {self.address} ({type(exc).__name__})"
            ) from exc

    def _late(self, subject: str, patience_sec: float = math.inf) -> StoreUnavailableError:
        within_sec = min(self.timeout_sec, patience_sec)
        return StoreUnavailableError(
            f"{subject}: no answer from {self.address} within {within_sec:g} s"
        )

    def __repr__(self) -> str:
        return f"Store({self.address!r})"


@lru_cache(maxsize=1)
def _client_class() -> Any:
    """Return ipfshttpclient's HTTP client with a bound on what an error may say.

    Its public methods read an answer whole, whatever its length; the request method beneath them
    takes a block size. So the store uses that one, of exactly the pinned version.
    """
    import requests
    from ipfshttpclient import exceptions, http_requests

    class BoundedClient(http_requests.ClientSync):
        __slots__ = ()

        def _make_session(self) -> Any:
            session = super()._make_session()
            session.trust_env = False  # no proxy between a party and its own node
            session.max_redirects = 0
            for adapter in session.adapters.values():
                # An argument of old that urllib3 2 warns its users of.
                adapter.poolmanager.connection_pool_kw.pop("strict", None)
            return session

        def _do_raise_for_status(self, response: Any) -> None:
            if response.status_code < 400:
                return
            error = requests.HTTPError(f"HTTP status {response.status_code}")
            text = b""
            for block in response.iter_content(chunk_size=4096):
                text += block
                if len(text) > _ANSWER_BYTES_MAX:
                    raise exceptions.StatusError(error)
            try:
                message = json.loads(text)["Message"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise exceptions.StatusError(error) from None
            raise exceptions.ErrorResponse(str(message), error)

    return BoundedClient


def _blocks(data: bytes) -> Iterator[bytes]:
    """Yield content block by block, so that no second copy of it is made."""
    view = memoryview(data)
    for start in range(0, len(view), _BLOCK_BYTES):
        yield bytes(view[start : start + _BLOCK_BYTES])


def _error_of(text: str, cid: str | None) -> type[StoreError]:
    """Return the error that a node's words about a CID stand for."""
    words = text.lower()
    if cid and any(word in words for word in _CORRUPT_WORDS):
        return BlobCorruptError
    if cid and any(word in words for word in _MISSING_WORDS):
        return BlobMissingError
    return StoreUnavailableError


def _field(answer: bytes, name: str) -> Any:
    """Return a field of a JSON answer."""
    try:
        return json.loads(answer)[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StoreUnavailableError(
            f"expected a JSON answer with {name}, got {answer[:64]!r}"
        ) from None


def _multiaddr_of(address: str) -> str:
    """Return the multiaddr of an address given as multiaddr or URL."""
    if not isinstance(address, str):
        raise ConfigError(f"expected a store address as text, got {type(address).__name__}")
    if address.startswith("/"):
        return address
    try:
        url = urllib.parse.urlsplit(address)
        port = url.port
    except ValueError as exc:
        raise ConfigError(f"store address {address!r}: {exc}") from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(
            f"store address: expected /ip4/HOST/tcp/PORT or http://HOST:PORT, got {address!r}"
        )
    if url.path not in ("", "/") or url.query or url.username:
        raise ConfigError(f"store address: expected no path and no user in {address!r}")
    if port is None:
        port = 443 if url.scheme == "https" else 80
    try:
        family = f"ip{ipaddress.ip_address(url.hostname).version}"
    except ValueError:
        family = "dns"
    return f"/{family}/{url.hostname}/tcp/{port}/{url.scheme}"
