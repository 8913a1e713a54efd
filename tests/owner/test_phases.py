"""When a round can be pushed on, and how that goes around who cannot be paid."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gradledger.chain.contract import Lot, RoundState, UploadState
from gradledger.chain.names import int_to_name
from gradledger.errors import ContractError, NodeAnswerError, RoundClosedError
from gradledger.phases import (
    MEMBERS_PER_PUSH,
    is_overdue,
    lots_awaited,
    phase_end,
    push_on,
    waits_for,
)

NONE, SET = bytes(32), b"\1" * 32


def make_round(state: RoundState, *lots: Lot) -> Any:
    return SimpleNamespace(
        state=state,
        deadline=10,
        verdict_deadline=20,
        audit_deadline=30,
        sum_deadline=40,
        validators=tuple(f"val{number}" for number in range(1, len(lots) + 1)),
        lots=lots,
    )


def test_every_phase_has_its_end():
    ends = {state: phase_end(make_round(state)) for state in RoundState}
    assert ends == {
        RoundState.OPEN: 10,
        RoundState.VERIFYING: 20,
        RoundState.DRAWING: 30,
        RoundState.AUDITING: 30,
        RoundState.SUMMING: 40,
        RoundState.SUMMED: 40,
        RoundState.SETTLED: 0,
    }


def test_drawing_waits_for_those_who_committed_alone():
    silent, hidden = Lot(commitment=NONE, value=NONE), Lot(commitment=SET, value=NONE)
    shown = Lot(commitment=SET, value=SET)
    waiting = make_round(RoundState.DRAWING, shown, silent, hidden)
    assert lots_awaited(waiting) == ("val3",)
    assert not is_overdue(waiting, 29) and is_overdue(waiting, 30)
    assert is_overdue(make_round(RoundState.DRAWING, shown, silent), 0)
    assert not is_overdue(make_round(RoundState.AUDITING, shown, silent), 29)


def test_what_a_round_waits_for_is_said():
    def row(account: str, state: UploadState, **changes: Any) -> Any:
        fields = {"upload_version": 3, "upload_cid": "c", "opening_cid": "", "barred_until": 0}
        return SimpleNamespace(account=account, upload_state=state, **{**fields, **changes})

    def told(state: RoundState, held: int, drawn: int, *rows: Any) -> list[str]:
        found = make_round(state, Lot(commitment=SET, value=NONE))
        found.version, found.held, found.drawn = 3, held, drawn
        return waits_for(found, rows)

    quiet = row("a", UploadState.PAID, upload_cid="")
    assert told(RoundState.VERIFYING, 0, 0, quiet) == []
    hidden = row("b", UploadState.PENDING, upload_cid="")
    older = row("c", UploadState.PENDING, upload_cid="", upload_version=2)
    assert told(RoundState.VERIFYING, 0, 0, hidden, older) == ["1 uploads without a CID yet"]
    assert told(RoundState.DRAWING, 2, 0) == [
        "2 uploads held for the lots",
        "1 lots to be revealed",
    ]
    drawn = [row("d", UploadState.DRAWN), row("e", UploadState.DRAWN, opening_cid="o")]
    out = [
        row("f", UploadState.REFUSED, barred_until=3),
        row("g", UploadState.NONE, barred_until=2),
    ]
    assert told(RoundState.AUDITING, 0, 2, *drawn, *out) == [
        "2 uploads under audit, 1 of them not opened yet",
        "barred: f",
    ]


class Chain:
    """Members in order, of which some make every transaction fail that would pay them."""

    def __init__(self, count: int, stuck: set[int]) -> None:
        self.names = [int_to_name((number + 1) << 30) for number in range(count)]
        self.stuck = {self.names[number] for number in stuck}
        self.waiting = set(self.names)
        self.cursor = 0
        self.sent = 0

    def members(self, task: str) -> list[Any]:
        states = (UploadState.PAID, UploadState.ACCEPTED)
        return [
            SimpleNamespace(
                account=name, upload_version=1, upload_state=states[name in self.waiting]
            )
            for name in reversed(self.names)
        ]

    def push(self, task: str, actor: str, version: int, limit: int, start: str = "") -> Any:
        assert (task, actor, version) == ("digits", "owner", 1)
        return limit, start

    def send(self, action: Any) -> None:
        limit, start = action
        self.sent += 1
        first = self.names.index(start) if start else self.cursor
        visited = self.names[first : first + limit]
        if self.stuck & self.waiting & set(visited):
            raise ContractError("no_thanks", "the device's own contract refuses the money")
        self.waiting -= set(visited)
        if not start:
            self.cursor = (first + limit) % len(self.names)


DRAWING = SimpleNamespace(state=RoundState.DRAWING, version=1)


def push(chain: Any) -> bool:
    return push_on(chain, "digits", DRAWING, 0, "owner", chain.send)  # type: ignore[arg-type]


def test_one_transaction_where_nobody_is_in_the_way():
    chain = Chain(MEMBERS_PER_PUSH, set())
    assert push(chain)
    assert (chain.waiting, chain.sent) == (set(), 1)


@pytest.mark.parametrize("stuck", [{0}, {249}, {0, 1, 130, 249}])
def test_everybody_else_is_reached_around_those_who_cannot_be_paid(stuck):
    chain = Chain(250, stuck)
    for _ in range(3):
        if chain.waiting != chain.stuck:
            assert push(chain)
    assert chain.waiting == chain.stuck
    assert chain.sent <= 4 + 15 * len(stuck)
    sent = chain.sent
    assert not push(chain)  # now there is nothing else left, and it costs little to see so
    assert chain.waiting == chain.stuck
    assert chain.sent <= sent + 2 * len(stuck) + 1


def test_what_was_opened_is_left_to_the_validators_for_a_while():
    sent: list[Any] = []

    class Audited:
        rows: tuple[Any, ...] = ()

        def members(self, task: str) -> Any:
            return self.rows

        def push(self, *_: Any) -> str:
            return "push"

    def row(opening: str, version: int = 1) -> Any:
        return SimpleNamespace(
            upload_version=version, upload_state=UploadState.DRAWN, opening_cid=opening
        )

    chain: Any = Audited()
    found: Any = SimpleNamespace(
        state=RoundState.AUDITING, version=1, audit_deadline=30, audit_sec=10
    )
    for rows, time_now, is_due in (
        ((row("o"), row("")), 30, True),
        ((row("o"), row("", version=2)), 39, False),
        ((row("o"),), 40, True),
        ((), 40, False),
    ):
        chain.rows = rows
        assert push_on(chain, "digits", found, time_now, "owner", sent.append) is is_due
    assert sent == ["push"] * 2


def test_nothing_moves_where_nobody_can_be_paid():
    chain = Chain(3, {0, 1, 2})
    assert not push(chain)
    assert chain.sent == 6


@pytest.mark.parametrize("is_actor", [False, True])
def test_an_actor_without_resources_is_told_from_a_device_that_uses_them_up(is_actor):
    chain = Chain(4, {0, 2})
    chain.waiting = set(chain.stuck)
    sent: list[Any] = []

    def send(action: Any) -> None:
        sent.append(action)
        limit, start = action
        if is_actor or limit > 1 or start in chain.stuck:
            raise NodeAnswerError("tx_cpu_usage_exceeded")

    def push() -> bool:
        return push_on(chain, "digits", DRAWING, 0, "owner", send)  # type: ignore[arg-type]

    if is_actor:
        with pytest.raises(NodeAnswerError, match="tx_cpu_usage_exceeded"):
            push()
    else:
        assert not push()
    assert sent[-1] == (1, chain.names[1])  # a push that pays nobody


def test_whoever_comes_second_is_told_so():
    chain = Chain(3, set())
    calls = []

    def send(action: Any) -> None:
        calls.append(action)
        raise NodeAnswerError("too long") if len(calls) == 1 else RoundClosedError("x", "y")

    with pytest.raises(RoundClosedError):
        push_on(chain, "digits", DRAWING, 0, "owner", send)  # type: ignore[arg-type]
    assert len(calls) == 2
