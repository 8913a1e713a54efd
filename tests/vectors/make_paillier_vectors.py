"""Write paillier_known_answers.json: what every backend must compute, to the last bit.

    python tests/vectors/make_paillier_vectors.py

Plain integers and the formulas of docs/protocol.md, section 2.2; nothing of gradledger is imported.
All that looks random is SHAKE-128 of a label that `bits` ends, for instance `strict 3072`. One
object for each size of key; numbers and bytes are hexadecimal texts:

p, q            the primes, 3 modulo 4
key_hash        SHA-256 of n, big endian
parameters, slot_bits, clip_e6   the codec
codes           uint16, little endian: the update
unit            x; h = -x^2 mod n, hs = h^n mod n^2
exponents       short and strict: one per ciphertext, little endian, bits(n)/2 and bits(n)+128 bits
units           masks: r of each ciphertext, big endian, as long as n
ciphertexts     short, strict and masks: (1 + m n) hs^a, and (1 + m n) r^n, mod n^2, big endian
seeded          seed, and what follows from it and the codes: unit, exponents, ciphertexts
sum             short, strict and masks added: the product, place by place
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BITS = (2048, 3072)
PARAMETERS = 200
SLOT_BITS = 26
CLIP_E6 = 500_000


def stream(label: str, size: int) -> bytes:
    """Return `size` bytes that nobody chose."""
    return hashlib.shake_128(label.encode()).digest(size)


def is_prime(number: int) -> bool:
    """Miller-Rabin with forty bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def prime(label: str, bits: int) -> int:
    """Return the first prime that is 3 modulo 4 from a labelled number on, two highest bits set."""
    number = int.from_bytes(stream(label, bits // 8), "big") | 3 << (bits - 2) | 3
    while any(number % small == 0 for small in range(3, 1000, 2)) or not is_prime(number):
        number += 4
    return number


def derived(prefix: bytes, n: int, count: int) -> tuple[int, list[int]]:
    """Return the unit and the first exponents that follow from a prefix with a seed."""

    def drawn(use: int, counter: int, bits: int) -> int:
        given = hashlib.shake_256(prefix + bytes([use]) + counter.to_bytes(8, "little"))
        return int.from_bytes(given.digest((bits + 7) // 8), "little") % (1 << bits)

    bits = n.bit_length()
    candidates = (drawn(1, counter, bits) for counter in range(256))
    unit = next(each for each in candidates if 0 < each < n and math.gcd(each, n) == 1)
    return unit, [drawn(2, place, (bits + 1) // 2) for place in range(count)]


def vector(bits: int) -> dict[str, Any]:
    """Return one object of the file."""
    p, q = (prime(f"{name} {bits}", bits // 2) for name in ("p", "q"))
    n = p * q
    square = n * n
    assert n.bit_length() == bits
    slots = (bits - 1) // SLOT_BITS
    width = bits // 4
    codes = stream(f"codes {bits}", 2 * PARAMETERS)
    numbers = [int.from_bytes(codes[at : at + 2], "little") for at in range(0, len(codes), 2)]
    plaintexts = [
        sum(code << (SLOT_BITS * slot) for slot, code in enumerate(numbers[start : start + slots]))
        for start in range(0, PARAMETERS, slots)
    ]
    count = len(plaintexts)
    unit = int.from_bytes(stream(f"unit {bits}", bits // 8), "big") % n
    hs = pow(-unit * unit % n, n, square)
    found: dict[str, Any] = {}
    blinded: dict[str, list[int]] = {}
    for mode, exponent_bits in (("short", bits // 2), ("strict", bits + 128)):
        size = exponent_bits // 8
        exponents = stream(f"{mode} {bits}", count * size)
        found[mode] = {"exponents": exponents.hex()}
        blinded[mode] = [
            pow(hs, int.from_bytes(exponents[at : at + size], "little"), square)
            for at in range(0, len(exponents), size)
        ]
    units = [
        int.from_bytes(stream(f"mask {place} {bits}", bits // 8 + 8), "big") % n
        for place in range(count)
    ]
    found["masks"] = {"units": [each.to_bytes(bits // 8, "big").hex() for each in units]}
    blinded["masks"] = [pow(each, n, square) for each in units]
    total = [1] * count
    for mode, blinds in blinded.items():
        ciphertexts = [
            (1 + plaintext * n) * blind % square
            for plaintext, blind in zip(plaintexts, blinds, strict=True)
        ]
        found[mode]["ciphertexts"] = b"".join(c.to_bytes(width, "big") for c in ciphertexts).hex()
        total = [left * right % square for left, right in zip(total, ciphertexts, strict=True)]
    seed = stream(f"seed {bits}", 32)
    key_hash = hashlib.sha256(n.to_bytes(bits // 8, "big")).digest()
    prefix = b"gradledger paillier" + key_hash + seed + hashlib.sha256(codes).digest()
    seeded_unit, exponents_of_seed = derived(prefix, n, count)
    seeded_hs = pow(-seeded_unit * seeded_unit % n, n, square)
    found["seeded"] = {
        "seed": seed.hex(),
        "unit": f"{seeded_unit:x}",
        "exponents": b"".join(a.to_bytes(bits // 16, "little") for a in exponents_of_seed).hex(),
        "ciphertexts": b"".join(
            ((1 + plaintext * n) * pow(seeded_hs, exponent, square) % square).to_bytes(width, "big")
            for plaintext, exponent in zip(plaintexts, exponents_of_seed, strict=True)
        ).hex(),
    }
    return {
        "bits": bits,
        "p": f"{p:x}",
        "q": f"{q:x}",
        "key_hash": key_hash.hex(),
        "parameters": PARAMETERS,
        "slot_bits": SLOT_BITS,
        "clip_e6": CLIP_E6,
        "codes": codes.hex(),
        "unit": f"{unit:x}",
        **found,
        "sum": b"".join(each.to_bytes(width, "big") for each in total).hex(),
    }


if __name__ == "__main__":
    document = json.dumps([vector(bits) for bits in BITS], indent=1)
    (HERE / "paillier_known_answers.json").write_text(document + "\n", encoding="utf-8")
