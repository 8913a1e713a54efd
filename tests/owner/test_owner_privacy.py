"""Who can read a single device's update: the table of docs/caveats.md, on a real round.

Every coalition tries all that its members hold on all that lies on IPFS. What it then reads is
compared with what the devices sent, and with what the table says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from played import Training
from test_owner_run import carry

from gradledger import envelope
from gradledger.card import task_codec
from gradledger.codec import Codec
from gradledger.errors import EnvelopeError
from gradledger.paillier import split_sum_payload
from owner import PaillierPrivateKey

ROOT = Path(__file__).resolve().parents[2]
Codes = npt.NDArray[np.uint16]


@dataclass
class World:
    """A round that is over: what lies on IPFS, who holds which secret, and what was sent."""

    codec: Codec
    uploads: dict[str, envelope.Envelope]
    sum: envelope.Envelope
    secrets: dict[str, bytes]
    paillier: PaillierPrivateKey
    sent: dict[str, Codes]
    owner: str
    devices: list[str]
    validators: list[str]


@dataclass
class Coalition:
    """Some parties that share all they hold."""

    members: list[str] = field(default_factory=list)
    has_paillier_key: bool = False


def read_by(world: World, who: Coalition) -> set[str]:
    """Return the devices outside a coalition whose updates it reads."""
    secrets = [world.secrets[name] for name in who.members]
    key = world.paillier if who.has_paillier_key else None
    known = {name: codes for name, codes in world.sent.items() if name in who.members}
    opened = {device: open_any(blob, secrets) for device, blob in world.uploads.items()}
    if key is not None:
        for device, payload in opened.items():
            if payload is not None:
                known[device] = key.decrypt_sums(payload, world.codec, 1).astype(np.uint16)
        payload = open_any(world.sum, secrets)
        missing = sorted(set(world.sent) - set(known))
        if payload is not None and len(missing) == 1:
            _, count, ciphertexts = split_sum_payload(payload)
            rest = key.decrypt_sums(ciphertexts, world.codec, count)
            for codes in known.values():
                rest = rest - codes
            known[missing[0]] = rest.astype(np.uint16)
    found = {name for name, codes in known.items() if np.array_equal(codes, world.sent[name])}
    assert found == set(known), "something else than the update came out"
    return found - set(who.members)


def open_any(blob: envelope.Envelope, secrets: list[bytes]) -> bytes | None:
    """Try every secret under the name of every reader."""
    for reader in blob.readers:
        for secret in secrets:
            try:
                return blob.open(reader, secret)
            except EnvelopeError:
                continue
    return None


COALITIONS: Mapping[str, Callable[[World], Coalition]] = {
    "the owner": lambda world: Coalition([world.owner], True),
    "a device": lambda world: Coalition(world.devices[:1]),
    "the owner and a device": lambda world: Coalition([world.owner, world.devices[0]], True),
    "the owner and all devices but one": lambda world: Coalition(
        [world.owner, *world.devices[1:]], True
    ),
    "a validator, or f of them": lambda world: Coalition(world.validators[:1]),
    "a quorum of validators, or all": lambda world: Coalition(world.validators),
    "validators and devices": lambda world: Coalition([*world.validators, *world.devices[1:]]),
    "the owner and a validator": lambda world: Coalition([world.owner, world.validators[0]], True),
    "the owner and a quorum": lambda world: Coalition([world.owner, *world.validators[:3]], True),
    "the IPFS node, and who reads the chain": lambda world: Coalition(),
}


def table() -> dict[str, tuple[str, str]]:
    """Return the rows of the table: who, what it reads, which false sums it can have attested."""
    text = (ROOT / "docs" / "caveats.md").read_text(encoding="utf-8")
    part = text.partition("## Who together can read a single update")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    return {who.strip(): (reads.strip(), forges.strip()) for who, reads, forges in rows[2:]}


@pytest.fixture
def world(make_training: Callable[..., Training], tmp_path: Path) -> World:
    """Play a round of three devices and four validators."""
    training = make_training(mode="paillier", rounds=1, validators=4)
    with training.played():
        (report,) = carry(training, tmp_path / "state")
    assert report.updates == 3
    owner = training.make_owner()
    codec = task_codec(owner.contract.task(training.plan.task))
    members = {one.account: one for one in owner.members()}
    parties = {phone.account: phone.key for phone in training.phones}
    parties |= {one.account: one._key for one in training.validators}
    parties[owner.account] = owner._key
    return World(
        codec=codec,
        uploads={
            phone.account: envelope.parse(owner.store.get(members[phone.account].upload_cid))
            for phone in training.phones
        },
        sum=envelope.parse(owner.store.get(owner.round(1).sum_cid)),
        secrets={name: key.encryption_key() for name, key in parties.items()},
        paillier=PaillierPrivateKey.load(training.paillier_key_file),
        sent={phone.account: codec.quantise(phone.deltas[1]) for phone in training.phones},
        owner=owner.account,
        devices=[phone.account for phone in training.phones],
        validators=[one.account for one in training.validators],
    )


def test_the_table_of_the_caveats_is_what_coalitions_can_do(world: World) -> None:
    for upload in world.uploads.values():
        assert set(upload.readers) == set(world.validators)
        for validator in world.validators:  # each can open it, none needs another
            assert upload.open(validator, world.secrets[validator])
    assert list(world.sum.readers) == [world.owner]

    rows = table()
    assert list(rows) == list(COALITIONS)
    for name, make in COALITIONS.items():
        who = make(world)
        found = read_by(world, who)
        assert found in (set(), set(world.devices) - set(who.members)), name
        said, _ = rows[name]
        assert said.startswith("**yes**" if found else "no"), f"{name}: {said}, found {found}"


def test_the_caveats_name_tests_that_are_there() -> None:
    text = (ROOT / "docs" / "caveats.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) >= 5
    for path, test in named:
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), test


def test_ciphertexts_of_the_same_update_are_not_alike(paillier_key_file: Path) -> None:
    """Who opens the seal alone cannot compare an update with a guess, or with the last round's."""
    public = PaillierPrivateKey.load(paillier_key_file).public
    codec = Codec(clip_e6=1_000_000, slot_bits=18, parameters=300)
    codes = np.zeros(300, dtype=np.uint16)
    one, two = (public.encrypt(codes, codec) for _ in range(2))
    width = public.ciphertext_bytes
    parts = [
        {sent[start : start + width] for start in range(0, len(sent), width)} for sent in (one, two)
    ]
    assert len(parts[0]) == codec.plaintexts(public.bits) > 1
    assert parts[0].isdisjoint(parts[1])
