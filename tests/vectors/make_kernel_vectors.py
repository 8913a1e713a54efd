"""Write paillier_kernels.txt: what the C program csrc/selftest.c checks each kernel with.

    python tests/vectors/make_kernel_vectors.py

By the formulas of the protocol in plain integers, nothing of the package. One line per record, the
fields are hexadecimal numbers:

    key N P Q BASE                 primes p < q; BASE = hs
    encrypt BITS EXPONENT M C      C = (1 + M n) BASE^(EXPONENT mod 2^BITS) mod n^2
    decrypt C M                    C in [1, n^2), prime to n
    sum C                          the product of all C under this key so far
    end
"""

from __future__ import annotations

import math
import random
from pathlib import Path

SEED = 2026
SIZES = {64: 9, 65: 3, 130: 9, 255: 5, 520: 9, 1030: 3, 2048: 9, 3072: 3}  # bits: ciphertexts


def is_prime(number: int, rng: random.Random) -> bool:
    """Test by Miller and Rabin, 20 times."""
    if number % 2 == 0 or any(number % small == 0 for small in range(3, 100, 2)):
        return False
    odd = number - 1
    while odd % 2 == 0:
        odd //= 2
    for _ in range(20):
        exponent, power = odd, pow(rng.randrange(2, number - 1), odd, number)
        while exponent != number - 1 and power not in (1, number - 1):
            exponent, power = 2 * exponent, power * power % number
        if power != number - 1 and exponent % 2 == 0:
            return False
    return True


def primes(bits: int, rng: random.Random) -> tuple[int, int]:
    """Return primes p < q whose product has `bits` bits."""
    while True:
        p, q = sorted(
            next(n for n in iter(lambda s=size: rng.getrandbits(s) | 1, 0) if is_prime(n, rng))
            for size in (bits // 2, bits - bits // 2)
        )
        n = p * q
        if p > 100 and p != q and n.bit_length() == bits and math.gcd(n, (p - 1) * (q - 1)) == 1:
            return p, q


def records(bits: int, count: int, rng: random.Random) -> list[str]:
    """Return the lines of one key."""
    p, q = primes(bits, rng)
    n = p * q
    square = n * n
    base = pow(-(rng.randrange(1, n) ** 2) % n, n, square)
    lines = [f"key {n:x} {p:x} {q:x} {base:x}"]
    exponent_bits = (bits + 1) // 2
    product = 1
    for place in range(count):
        width = 8 * ((exponent_bits + 7) // 8)
        exponent = (0, (1 << width) - 1)[place] if place < 2 else rng.getrandbits(width)
        message = (n - 1, 0)[place] if place < 2 else rng.randrange(n)
        power = pow(base, exponent % (1 << exponent_bits), square)
        number = (1 + message * n) * power % square
        product = product * number % square
        lines.append(f"encrypt {exponent_bits:x} {exponent:x} {message:x} {number:x}")
        lines.append(f"decrypt {number:x} {message:x}")
    carmichael = math.lcm(p - 1, q - 1)
    for number in (1, square - 1, rng.randrange(square), 1 << (2 * bits - 2)):
        if math.gcd(number, n) == 1:
            plain = (pow(number, carmichael, square) - 1) // n * pow(carmichael, -1, n) % n
            lines.append(f"decrypt {number:x} {plain:x}")
    lines.append(f"sum {product:x}")
    return [*lines, "end"]


def main() -> None:
    """Write the file beside this one."""
    rng = random.Random(SEED)
    lines = [line for bits, count in SIZES.items() for line in records(bits, count, rng)]
    Path(__file__).with_name("paillier_kernels.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
