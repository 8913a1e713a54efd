"""A round with revealed CIDs and audits by lot, played by hand in a few transactions."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from audit_scene import COSTS, Played
from device_scene import Scene

from gradledger.chain.contract import Mode, Round, RoundState, Verdict, VerdictCode
from gradledger.chain.transaction import Action
from gradledger.cid import digest_to_cid
from gradledger.lots import is_drawn, lot_commitment

LOT_E6, BAR_ROUNDS = 300_000, 2
SERIES = (900_000, 400_000, 100_000)
A, MIXED = VerdictCode.ACCEPT, VerdictCode.ERROR_MISMATCH
SAID = {  # before the audit, by device; the last one's CID is never revealed
    0: [A, A, A],
    1: [A, A, A],
    2: [A, A, A],
    3: [A, A, VerdictCode.MALFORMED, A],
    4: [VerdictCode.COPIED_SERIES, VerdictCode.REPLAYED_SERIES, MIXED],
    5: [VerdictCode.UNREVEALED] * 3,
}
SAID_AFTER = {  # in the audit: the first is not drawn, the fourth does not answer
    1: [A, A, A],
    2: [VerdictCode.OPENING_MISMATCH, MIXED, VerdictCode.OPENING_MISMATCH],
}


def digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


@dataclass
class AuditedRound(Played):
    """Round 1 is settled, round 2 is open and has an upload; irreversibly."""

    values: list[bytes] = field(default_factory=list)

    @property
    def judges(self) -> list[str]:
        return sorted(self.scene.validators)

    def round(self, version: int) -> Round:
        row = self.scene.contract.round(self.task, version)
        assert row is not None
        return row

    def hash(self, version: int, number: int) -> bytes:
        return digest(self.task, version, number)

    def cid(self, what: str, number: int) -> str:
        return digest_to_cid(digest(what, number))

    def fedlearning(self, version: int, number: int, cid: str) -> Action:
        device, digest_ = self.devices[number], self.hash(version, number)
        return self.scene.contract.fedlearning(
            self.task, device, version, digest_, cid, COSTS[number % 3], SERIES
        )

    def verdict(self, number: int, code: VerdictCode) -> Verdict:
        """Return one on an upload of round 1: they come in the order of the devices."""
        return Verdict(slot=number, hash=self.hash(1, number), code=code)

    def verdicts(self, kind: str, number: int, codes: Sequence[VerdictCode]) -> list[Action]:
        act = getattr(self.scene.contract, kind)
        return [
            act(self.task, 1, judge, [self.verdict(number, code)])
            for judge, code in zip(self.judges, codes, strict=False)
        ]

    def commitments(self, version: int, count: int) -> list[Action]:
        act = self.scene.contract.commitlot
        return [
            act(self.task, version, judge, lot_commitment(self.task, version, judge, value))
            for judge, value in zip(self.judges[:count], self.values, strict=False)
        ]

    def choose_values(self) -> None:
        """Find lots that draw uploads 1, 2 and 3, and not 0."""
        for number in itertools.count():
            self.values = [digest("lot", number, place) for place in range(4)]
            drawn = [
                any(is_drawn(value, self.hash(1, device), LOT_E6) for value in self.values)
                for device in range(4)
            ]
            if drawn == [False, True, True, True]:
                return

    def send(self, *actions: Action) -> None:
        """Send actions in one transaction, signed by all whom they need."""
        scene = self.scene
        keys = {scene.owner: scene.owner_key, **scene.validators, **scene.devices}
        actors = dict.fromkeys(actor for one in actions for actor, _ in one.authorization)
        self.client.push(list(actions), [keys[actor] for actor in actors])

    def wait_for(self, deadline: int) -> None:
        self.client.wait_until(
            lambda: self.client.get_info().head_time > deadline, timeout_sec=20, poll_sec=0.1
        )


def play_audited(scene: Scene) -> AuditedRound:
    """Play the round through, and begin the next."""
    scene.create(
        mode=Mode.PAILLIER, key_hash=b"\1" * 32, lot_e6=LOT_E6, bar_rounds=BAR_ROUNDS, sum_min=3
    )
    played = AuditedRound(scene, {}, {})
    played.choose_values()
    act, task, owner = scene.contract, played.task, scene.owner
    played.send(
        *(act.join(task, name, scene.public(key), 7) for name, key in scene.devices.items())
    )
    timing: dict[str, Any] = {"reveal_sec": 1, "audit_sec": 1, "norm_max_e6": 5}
    scene.open(1, **timing)
    played.send(*played.commitments(1, 4))
    played.send(*(played.fedlearning(1, number, "") for number in range(6)))
    played.send(
        act.closeround(task, owner, 1),
        *(act.reveal(task, played.devices[n], 1, played.cid("upload", n)) for n in range(5)),
        *(one for n in range(5) for one in played.verdicts("attest", n, SAID[n])),
    )
    played.wait_for(played.round(1).reveal_deadline)
    played.send(
        *played.verdicts("attest", 5, SAID[5]),
        *(
            act.reveallot(task, 1, judge, value)
            for judge, value in zip(played.judges, played.values, strict=True)
        ),
        act.push(task, owner, 1, 3),
        act.push(task, owner, 1, 100),
        # a verdict that comes after the draw is none
        act.attest(task, 1, played.judges[3], [played.verdict(1, MIXED)]),
        *(act.openupload(task, played.devices[n], 1, played.cid("opening", n)) for n in (1, 2)),
        *(one for n in (1, 2) for one in played.verdicts("attestaudit", n, SAID_AFTER[n])),
    )
    assert played.round(1).state is RoundState.AUDITING
    played.wait_for(played.round(1).audit_deadline)
    played.send(
        act.push(task, owner, 1),
        # nor is one on an upload that was refused since its device did not answer
        act.attest(task, 1, played.judges[3], [played.verdict(3, MIXED)]),
        act.settle(task, owner, 1),
    )
    scene.open(2, audit_sec=1)
    played.send(*played.commitments(2, 3))
    last = played.fedlearning(2, 0, played.cid("upload", 9))
    played.client.transact([last], [scene.devices[played.devices[0]]])
    return played
