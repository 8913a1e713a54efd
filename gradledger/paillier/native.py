"""The kernels in C (`csrc/`), by ctypes: every call releases the interpreter's lock.

`load` gives one `Native` for each kernel that this processor runs. The file is built with the
package where a C compiler is; without it `load` gives none, and `gmpy.Gmpy2` does the work.
"""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradledger.errors import CodecError, PaillierError

if TYPE_CHECKING:
    from gradledger.codec import Codec

API = 1

_MODULE = "gradledger.paillier._native"
_COMB_ONCE = (6, 8)  # teeth, blocks: quickly filled
_COMB_ONCE_GROUPS = 24  # groups of lanes up to which that table pays if it serves one update
_COMB_ONCE_GROUPS_FAST = 64  # and beside the large table of `fast`
_SHARE = 32  # ciphertexts that a thread decrypts at a time, a multiple of every kernel's lanes
_SIZE, _POINTER, _INT = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "gl_api": (_INT, ()),
    "gl_kernel_name": (ctypes.c_char_p, (_SIZE,)),
    "gl_kernel_available": (_INT, (_SIZE,)),
    "gl_kernel_lanes": (_SIZE, (_SIZE,)),
    "gl_quantise_float": (ctypes.c_int64, (_POINTER, _SIZE, ctypes.c_double, _POINTER)),
    "gl_quantise_double": (ctypes.c_int64, (_POINTER, _SIZE, ctypes.c_double, _POINTER)),
    "gl_pack": (None, (_POINTER, _SIZE, ctypes.c_uint, _SIZE, _POINTER, _SIZE)),
    "gl_comb_new": (
        _POINTER,
        (_SIZE, _POINTER, _SIZE, _POINTER, _SIZE, _INT, _SIZE, _SIZE),
    ),
    "gl_comb_free": (None, (_POINTER,)),
    "gl_comb_bytes": (_SIZE, (_POINTER,)),
    "gl_comb_encrypt": (
        _INT,
        (_POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE),
    ),
    "gl_private_new": (
        _POINTER,
        (_SIZE, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _SIZE, _SIZE),
    ),
    "gl_private_free": (None, (_POINTER,)),
    "gl_private_decrypt": (_INT, (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE)),
    "gl_factors_new": (_POINTER, (_SIZE, _POINTER, _SIZE)),
    "gl_factors_free": (None, (_POINTER,)),
    "gl_totals_new": (_POINTER, (_POINTER, _SIZE)),
    "gl_totals_free": (None, (_POINTER,)),
    "gl_totals_multiply": (_INT, (_POINTER, _POINTER, _SIZE, _POINTER, _SIZE, _SIZE)),
    "gl_totals_write": (_INT, (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE, _SIZE)),
    "gl_product": (_INT, (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER)),
    "gl_out_of_range": (ctypes.c_int64, (_POINTER, _SIZE, _SIZE, _POINTER)),
}


@lru_cache(maxsize=1)
def load() -> tuple[Native, ...]:
    """Return the kernels that this processor runs.

    Returns
    -------
    tuple of Native
        Fastest first; none if the extension was not built, or is of another version.
    """
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.origin:
        return ()
    try:
        library = ctypes.CDLL(spec.origin)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return ()
    if library.gl_api() != API:
        return ()
    kernels = []
    index = 0
    while (name := library.gl_kernel_name(index)) is not None:
        if library.gl_kernel_available(index):
            kernels.append(Native(library, index, name.decode("ascii")))
        index += 1
    return tuple(kernels)


class Native:
    """One kernel of the extension. What its methods do: `gmpy.Gmpy2`, which has the same ones.

    Parameters
    ----------
    library : ctypes.CDLL
        The extension.
    index : int
        Of the kernel.
    name : str
        Of the kernel.
    """

    def __init__(self, library: ctypes.CDLL, index: int, name: str) -> None:
        self.library = library
        self.index = index
        self.name = name
        self.lanes: int = library.gl_kernel_lanes(index)

    def quantise(self, values: NDArray[np.floating], codec: Codec) -> NDArray[np.uint16]:
        """Return the codes of an update, as `codec.quantise` does."""
        functions = {
            np.dtype(np.float32): self.library.gl_quantise_float,
            np.dtype(np.float64): self.library.gl_quantise_double,
        }
        if values.shape != (codec.parameters,) or values.dtype not in functions:
            return codec.quantise(values)
        values = np.ascontiguousarray(values)
        codes = np.empty(codec.parameters, dtype=np.uint16)
        place = functions[values.dtype](
            values.ctypes.data, len(values), codec.clip, codes.ctypes.data
        )
        if place >= 0:
            raise CodecError(f"value {place} is not finite: {values[place]!r}")
        return codes

    def comb_size(self, fast: bool, ciphertexts: int, *, once: bool = False) -> tuple[int, int]:
        """Return a small table for a short update; otherwise (0, 0), the kernel's own choice."""
        groups = _COMB_ONCE_GROUPS_FAST if fast else _COMB_ONCE_GROUPS
        return _COMB_ONCE if once and ciphertexts <= groups * self.lanes else (0, 0)

    def comb(
        self, n: int, hs: int, exponent_bits: int, fast: bool, size: tuple[int, int]
    ) -> NativeComb:
        """Return a table of powers of hs modulo n^2."""
        return NativeComb(self, n, hs, exponent_bits, fast, size)

    def sums(self, n: int, width: int, count: int) -> NativeSums:
        """Return `count` products modulo n^2, still empty."""
        return NativeSums(self, n, width, count)

    def out_of_range(self, payload: bytes, width: int, n_squared: int) -> int | None:
        """Return the place of the first ciphertext outside [1, n^2)."""
        numbers = np.frombuffer(payload, dtype=np.uint8)
        bound = np.frombuffer(int(n_squared).to_bytes(width, "big"), dtype=np.uint8)
        place = self.library.gl_out_of_range(
            numbers.ctypes.data, width, len(numbers) // width, bound.ctypes.data
        )
        return None if place < 0 else place

    def product(self, payload: bytes, width: int, n: int, threads: int) -> int:
        """Return a number that shares a factor with n exactly if a ciphertext does."""
        import gmpy2

        factors = _Factors(self, n)
        numbers = np.frombuffer(payload, dtype=np.uint8)
        words = -(-n.bit_length() // 64)

        def share(first: int, count: int) -> int:
            out = np.zeros((self.lanes, words), dtype="<u8")
            _check(
                self.library.gl_product(
                    factors.pointer,
                    numbers[first * width :].ctypes.data,
                    width,
                    count,
                    out.ctypes.data,
                )
            )
            product = gmpy2.mpz(1)
            for row in out:
                product = product * gmpy2.mpz.from_bytes(row.tobytes(), "little") % n
            return int(product)

        total = 1
        for part in in_shares(len(numbers) // width, self.lanes, threads, share):
            total = total * part % n
        return total

    def decryptor(self, p: int, q: int, width: int) -> NativeDecryptor:
        """Return what decrypts under the primes p < q."""
        return NativeDecryptor(self, p, q, width)


class NativeComb:
    """A table of powers of one base under one key, in C.

    Parameters
    ----------
    native : Native
        The kernel.
    n, hs, exponent_bits, fast, size
        As `Native.comb` takes them.
    """

    def __init__(
        self,
        native: Native,
        n: int,
        hs: int,
        exponent_bits: int,
        fast: bool,
        size: tuple[int, int],
    ) -> None:
        self.lanes = native.lanes
        self._library = native.library
        self._bits = n.bit_length()
        self._words = -(-self._bits // 64)
        self._exponent_bytes = -(-exponent_bits // 8)
        high, low = divmod(hs, n)
        base = np.concatenate([_words(low, self._words), _words(high, self._words)])
        number = _words(n, self._words)
        self._pointer = self._library.gl_comb_new(
            native.index,
            number.ctypes.data,
            self._words,
            base.ctypes.data,
            exponent_bits,
            fast,
            *size,
        )
        if not self._pointer:
            raise MemoryError("no memory for the comb table, or a size that it cannot have")
        weakref.finalize(self, self._library.gl_comb_free, self._pointer)

    @property
    def table_bytes(self) -> int:
        """Size of the table."""
        return int(self._library.gl_comb_bytes(self._pointer))

    def encrypt(self, codes: NDArray[np.uint16], codec: Codec, exponents: bytes) -> bytes:
        """Encrypt codes of whole plaintexts (the last one may be short), an exponent for each."""
        slots = codec.slots(self._bits)
        count = -(-len(codes) // slots)
        width = (2 * self._bits + 7) // 8
        codes = np.ascontiguousarray(codes)
        messages = np.empty((count, self._words), dtype=np.uint64)
        self._library.gl_pack(
            codes.ctypes.data,
            len(codes),
            codec.slot_bits,
            slots,
            messages.ctypes.data,
            self._words,
        )
        numbers = np.frombuffer(exponents, dtype=np.uint8)
        if len(numbers) != count * self._exponent_bytes:
            raise PaillierError(
                f"expected {count * self._exponent_bytes} random bytes, got {len(numbers)}"
            )
        out = np.empty(count * width, dtype=np.uint8)
        _check(
            self._library.gl_comb_encrypt(
                self._pointer,
                numbers.ctypes.data,
                messages.ctypes.data,
                self._words,
                count,
                out.ctypes.data,
                width,
            )
        )
        return out.tobytes()


class NativeSums:
    """Products of ciphertexts, place by place, in Montgomery form all along.

    Parameters
    ----------
    native : Native
        The kernel.
    n, width, count
        As `Native.sums` takes them.
    """

    def __init__(self, native: Native, n: int, width: int, count: int) -> None:
        self._library = native.library
        self._lanes = native.lanes
        self._factors = _Factors(native, n)
        self._width, self._count = width, count
        self._totals = self._library.gl_totals_new(self._factors.pointer, count)
        if not self._totals:
            raise MemoryError("no memory for the sums")
        weakref.finalize(self, self._library.gl_totals_free, self._totals)
        self._taken = 0

    def multiply(self, payload: bytes, threads: int) -> None:
        """Multiply each product by the payload's ciphertext at its place."""
        numbers = np.frombuffer(payload, dtype=np.uint8)

        def share(first: int, count: int) -> None:
            _check(
                self._library.gl_totals_multiply(
                    self._factors.pointer,
                    self._totals,
                    first,
                    numbers[first * self._width :].ctypes.data,
                    self._width,
                    count,
                )
            )

        in_shares(self._count, self._lanes, threads, share)
        self._taken += 1

    def write(self, threads: int) -> bytes:
        """Return the products."""
        out = np.empty(self._count * self._width, dtype=np.uint8)

        def share(first: int, count: int) -> None:
            _check(
                self._library.gl_totals_write(
                    self._factors.pointer,
                    self._totals,
                    first,
                    self._taken,
                    out[first * self._width :].ctypes.data,
                    self._width,
                    count,
                )
            )

        in_shares(self._count, self._lanes, threads, share)
        return out.tobytes()


class NativeDecryptor:
    """The primes of a key, in C memory that is wiped when this is no longer used.

    Parameters
    ----------
    native : Native
        The kernel.
    p, q, width
        As `Native.decryptor` takes them.
    """

    def __init__(self, native: Native, p: int, q: int, width: int) -> None:
        import gmpy2

        self._library = native.library
        self._width = width
        self._plain_bytes = ((p * q).bit_length() + 7) // 8
        words = -(-int(q).bit_length() // 64)
        numbers = [
            _words(number, words)
            for number in (
                p,
                q,
                gmpy2.invert(-q, p),
                gmpy2.invert(-p, q),
                gmpy2.invert(p, q),
            )
        ]
        self._pointer = self._library.gl_private_new(
            native.index, *(number.ctypes.data for number in numbers), words, 8 * width
        )
        for number in numbers:
            number.fill(0)
        if not self._pointer:
            raise MemoryError("no memory for the private key")
        weakref.finalize(self, self._library.gl_private_free, self._pointer)

    def decrypt(self, ciphertexts: bytes, threads: int) -> list[bytes]:
        """Return the plaintexts, each as a little-endian integer."""
        numbers = np.frombuffer(ciphertexts, dtype=np.uint8)
        total = len(numbers) // self._width

        def share(first: int) -> list[bytes]:
            count = min(_SHARE, total - first)
            out = np.empty((count, self._plain_bytes), dtype=np.uint8)
            _check(
                self._library.gl_private_decrypt(
                    self._pointer,
                    numbers[first * self._width :].ctypes.data,
                    self._width,
                    count,
                    out.ctypes.data,
                    self._plain_bytes,
                )
            )
            return [row.tobytes() for row in out]

        firsts = range(0, total, _SHARE)
        if threads == 1:
            parts = list(map(share, firsts))
        else:
            with ThreadPoolExecutor(threads) as pool:
                parts = list(pool.map(share, firsts))
        return [plaintext for part in parts for plaintext in part]


class _Factors:
    """A key's modulus, in C."""

    def __init__(self, native: Native, n: int) -> None:
        words = -(-n.bit_length() // 64)
        number = _words(n, words)
        self.pointer = native.library.gl_factors_new(native.index, number.ctypes.data, words)
        if not self.pointer:
            raise MemoryError("no memory for a modulus")
        weakref.finalize(self, native.library.gl_factors_free, self.pointer)


def in_shares(total: int, lanes: int, threads: int, share: Callable[[int, int], Any]) -> list[Any]:
    """Call share(first, count) for `threads` parts of `total` things, whole groups of lanes each.

    Parameters
    ----------
    total : int
        How many things.
    lanes : int
        Each part but the last is a multiple of it.
    threads : int
        How many parts are in work at once.
    share : callable
        What is done to a part.

    Returns
    -------
    list
        What the calls returned, in order.
    """
    groups = -(-total // lanes)
    size = -(-groups // threads) * lanes
    parts = [(first, min(size, total - first)) for first in range(0, total, size)]
    if len(parts) == 1:
        return [share(*parts[0])]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(lambda part: share(*part), parts))


def _words(number: int, words: int) -> NDArray[np.uint64]:
    """Return a number as 64-bit words, least first, in memory that can be wiped."""
    return np.frombuffer(bytearray(int(number).to_bytes(8 * words, "little")), dtype=np.uint64)


def _check(status: int) -> None:
    if status < 0:
        raise MemoryError("no memory for Paillier arithmetic")
    if status > 0:
        raise PaillierError("a ciphertext shares a factor with n")
