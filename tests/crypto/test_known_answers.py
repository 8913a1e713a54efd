"""Every backend computes what the formulas say, and so does phe; `tests/vectors/`."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from phe import paillier as phe

from gradledger import paillier
from gradledger.codec import Codec
from gradledger.paillier import PaillierPublicKey
from gradledger.paillier import masks as masks_module
from gradledger.paillier.encrypting import Encryptor
from gradledger.paillier.masks import MaskStore
from gradledger.paillier.seeded import SeededRandomness
from owner.paillier_key import PaillierPrivateKey

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "paillier_known_answers.json").read_text()
)
MODES = ("short", "strict", "masks")


EMULATED = "ifma-emulated"  # the kernel of ifma where there is no such processor, and slow


def cases(*, slow):
    """Run with every size of key and every backend; without the emulated one unless slow."""
    every = [(vector, name) for vector in VECTORS for name in paillier.backends()]
    return pytest.mark.parametrize(
        ("vector", "backend"),
        [each for each in every if slow or each[1] != EMULATED],
        indirect=True,
        ids=lambda each: each if isinstance(each, str) else str(each["bits"]),
    )


sizes = pytest.mark.parametrize(
    "vector", VECTORS, indirect=True, ids=lambda vector: str(vector["bits"])
)


@pytest.fixture
def vector(request):
    return request.param


@pytest.fixture
def backend(request, monkeypatch):
    monkeypatch.setenv("GRADLEDGER_PAILLIER", request.param)
    assert paillier.backend() == request.param
    return request.param


@pytest.fixture
def key(vector):
    return key_of(vector["p"], vector["q"])


@lru_cache
def key_of(p, q):
    return PaillierPrivateKey(int(p, 16), int(q, 16))


@pytest.fixture
def codec(vector):
    return Codec(vector["clip_e6"], vector["slot_bits"], vector["parameters"])


@pytest.fixture
def codes(vector):
    return np.frombuffer(bytes.fromhex(vector["codes"]), dtype="<u2").astype(np.uint16)


def numbers_of(payload, width):
    return [
        int.from_bytes(payload[start : start + width], "big")
        for start in range(0, len(payload), width)
    ]


def payloads_of(vector):
    return [bytes.fromhex(vector[mode]["ciphertexts"]) for mode in MODES]


# ---- encrypting -------------------------------------------------------------------------------


@sizes
def test_key_hash(vector, key):
    assert key.public.key_hash.hex() == vector["key_hash"]
    assert PaillierPublicKey.from_hex(key.public.to_hex()).key_hash.hex() == vector["key_hash"]


@pytest.mark.parametrize("mode", ["short", "strict"])
@cases(slow=True)
def test_exponent(vector, key, codec, codes, backend, mode):
    _encrypt_as_known(vector, key, codec, codes, mode, fast=False)


@pytest.mark.parametrize("mode", ["short", "strict"])
@cases(slow=False)
def test_exponent_fast(vector, key, codec, codes, backend, mode):
    _encrypt_as_known(vector, key, codec, codes, mode, fast=True)


def _encrypt_as_known(vector, key, codec, codes, mode, fast):
    stream = bytes.fromhex(vector[mode]["exponents"])
    bits = key.public.bits
    exponent_bits = {"short": bits // 2, "strict": bits + 128}[mode]
    encryptor = Encryptor(key.public.n, int(vector["unit"], 16), exponent_bits, fast)

    def random_bytes(count):
        assert count == len(stream)
        return stream

    assert encryptor.encrypt(codes, codec, random_bytes).hex() == vector[mode]["ciphertexts"]


@sizes
def test_masks(vector, key, codec, codes, tmp_path, monkeypatch):
    units = [int(unit, 16) for unit in vector["masks"]["units"]]
    store = MaskStore(tmp_path, key.public)
    monkeypatch.setattr(masks_module, "random_unit", lambda n: units.pop(0))
    store.fill(len(units))
    assert not units
    payload = key.public.encrypt(codes, codec, masks=store)
    assert payload.hex() == vector["masks"]["ciphertexts"]
    assert len(store) == 0


@cases(slow=True)
def test_seed(vector, key, codec, codes, backend):
    known = vector["seeded"]
    seed = bytes.fromhex(known["seed"])
    randomness = SeededRandomness(key.public.n, key.public.key_hash, seed, codes)
    exponents = bytes.fromhex(known["exponents"])
    assert f"{randomness.unit():x}" == known["unit"]
    assert randomness.exponents(key.public.bits // 2)(len(exponents)) == exponents
    for fast in (False, True):
        payload = key.public.encrypt(codes, codec, seed=seed, fast=fast)
        assert payload.hex() == known["ciphertexts"]
    assert (key.decrypt_sums(payload, codec, 1) == codes).all()


# ---- adding and decrypting --------------------------------------------------------------------


@cases(slow=True)
def test_sum(vector, key, codec, backend):
    payloads = payloads_of(vector)
    assert key.public.add(payloads, codec).hex() == vector["sum"]
    assert key.public.add(reversed(payloads), codec).hex() == vector["sum"]


@cases(slow=True)
def test_decryption(vector, key, codec, codes, backend):
    for payload in payloads_of(vector):
        assert (key.decrypt_sums(payload, codec, 1) == codes).all()
    total = bytes.fromhex(vector["sum"])
    assert (key.decrypt_sums(total, codec, 3) == 3 * codes.astype(np.uint64)).all()


# ---- phe --------------------------------------------------------------------------------------


@sizes
def test_phe_computes_the_same(vector, key, codec, codes):
    private = key.to_phe()
    public = private.public_key
    width = key.public.ciphertext_bytes
    plaintexts = [int.from_bytes(each, "little") for each in codec.pack(codes, key.public.bits)]
    units = [int(unit, 16) for unit in vector["masks"]["units"]]
    theirs = [
        public.raw_encrypt(plaintext, r_value=unit)
        for plaintext, unit in zip(plaintexts, units, strict=True)
    ]
    modes = dict(zip(MODES, (numbers_of(each, width) for each in payloads_of(vector)), strict=True))
    assert modes["masks"] == theirs
    total = numbers_of(bytes.fromhex(vector["sum"]), width)
    for place, plaintext in enumerate(plaintexts):
        for mode in MODES:
            assert private.raw_decrypt(modes[mode][place]) == plaintext
        short, strict, masks = (phe.EncryptedNumber(public, modes[mode][place]) for mode in MODES)
        assert (short + strict + masks).ciphertext(be_secure=False) == total[place]
        assert private.raw_decrypt(total[place]) == 3 * plaintext


@pytest.mark.parametrize("mode", MODES)
@cases(slow=False)
def test_phe_decrypts_fresh_updates(vector, key, codec, codes, backend, mode, tmp_path):
    payload = key.public.encrypt(codes, codec, **_blinding(mode, key.public, codec, tmp_path))
    private = key.to_phe()
    for number, plaintext in zip(
        numbers_of(payload, key.public.ciphertext_bytes),
        codec.pack(codes, key.public.bits),
        strict=True,
    ):
        assert private.raw_decrypt(number) == int.from_bytes(plaintext, "little")


@cases(slow=False)
def test_we_decrypt_what_phe_encrypts(vector, key, codec, codes, backend):
    public = key.public.to_phe()
    payload = b"".join(
        public.raw_encrypt(int.from_bytes(plaintext, "little")).to_bytes(
            key.public.ciphertext_bytes, "big"
        )
        for plaintext in codec.pack(codes, key.public.bits)
    )
    key.public.check_ciphertexts(payload, codec)
    assert (key.decrypt_sums(payload, codec, 1) == codes).all()
    total = key.public.add([payload, bytes.fromhex(vector["sum"])], codec)
    assert (key.decrypt_sums(total, codec, 4) == 4 * codes.astype(np.uint64)).all()


# ---- randomness -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@sizes
def test_the_same_update_never_looks_the_same(vector, key, codec, codes, mode, tmp_path):
    blinding = _blinding(mode, key.public, codec, tmp_path, updates=2)
    one, two = (
        set(
            numbers_of(
                key.public.encrypt(codes, codec, **blinding),
                key.public.ciphertext_bytes,
            )
        )
        for _ in range(2)
    )
    assert len(one) == len(two) == codec.plaintexts(key.public.bits)
    assert not one & two


@cases(slow=False)
def test_randomness_is_the_systems(vector, key, codec, codes, backend, monkeypatch):
    """With the system's generator replaced, the ciphertexts are those of the replacement."""
    key.public.encrypt(codes, codec)  # the base is drawn now
    asked = []

    def token_bytes(count):
        asked.append(count)
        return hashlib.shake_128(b"not random").digest(count)

    monkeypatch.setattr("secrets.token_bytes", token_bytes)
    one, two = (key.public.encrypt(codes, codec) for _ in range(2))
    assert one == two
    size = key.public.bits // 16
    assert asked == 2 * [size * codec.plaintexts(key.public.bits)]


def _blinding(mode, public, codec, folder, updates=1):
    if mode != "masks":
        return {"strict": mode == "strict"}
    store = MaskStore(folder, public)
    store.fill(updates * codec.plaintexts(public.bits))
    return {"masks": store}
