"""The phases of a round: when each ends, and how one is pushed on.

The contract decides; this says beforehand what it will allow, the same for owner, validators and
onlookers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gradledger.chain.contract import FedLearning, Member, Round, RoundState, UploadState
from gradledger.chain.names import name_to_int
from gradledger.chain.transaction import Action
from gradledger.errors import (
    AlreadyDoneError,
    ContractError,
    NodeAnswerError,
    NodeBusyError,
    RoundClosedError,
    StaleVersionError,
)

__all__ = [
    "barred",
    "is_overdue",
    "lots_awaited",
    "phase_end",
    "push_on",
    "unopened",
    "unrevealed",
    "waits_for",
]

MEMBERS_PER_PUSH = 100

_MOVED_ON = (RoundClosedError, StaleVersionError, AlreadyDoneError)
_FAILED = (ContractError, NodeAnswerError, NodeBusyError)


def phase_end(found: Round) -> int:
    """Return when anyone may push a round on, in seconds since 1970; 0: it is settled.

    Drawing may end before: see `lots_awaited`.
    """
    if found.state is RoundState.SETTLED:
        return 0
    ends = {
        RoundState.OPEN: found.deadline,
        RoundState.VERIFYING: found.verdict_deadline,
        RoundState.DRAWING: found.audit_deadline,
        RoundState.AUDITING: found.audit_deadline,
    }
    return ends.get(found.state, found.sum_deadline)


def lots_awaited(found: Round) -> tuple[str, ...]:
    """Return the validators that have committed to a lot and not revealed it yet."""
    return tuple(
        validator
        for validator, lot in zip(found.validators, found.lots, strict=False)
        if any(lot.commitment) and not any(lot.value)
    )


def unrevealed(found: Round, members: Iterable[Member]) -> list[str]:
    """Return the devices whose upload of a round waits for its CID."""
    return [
        one.account
        for one in members
        if one.upload_version == found.version
        and one.upload_state is UploadState.PENDING
        and not one.upload_cid
    ]


def unopened(members: Iterable[Member]) -> list[str]:
    """Return the devices whose upload is under audit and not opened yet."""
    return [
        one.account
        for one in members
        if one.upload_state is UploadState.DRAWN and not one.opening_cid
    ]


def barred(version: int, members: Iterable[Member]) -> list[str]:
    """Return the devices that failed an audit and may not upload in a round."""
    return [one.account for one in members if one.barred_until >= max(version, 1)]


def waits_for(found: Round, members: Sequence[Member]) -> list[str]:
    """Say what a round waits for beside verdicts: CIDs, lots, opened uploads; and who is barred."""
    hidden, closed = unrevealed(found, members), unopened(members)
    out = barred(found.version, members)
    lots = lots_awaited(found) if found.state is RoundState.DRAWING else ()
    counts = [
        (len(hidden), "uploads without a CID yet"),
        (found.held, "uploads held for the lots"),
        (len(lots), "lots to be revealed"),
        (found.drawn, f"uploads under audit, {len(closed)} of them not opened yet"),
    ]
    told = [f"{count} {text}" for count, text in counts if count]
    return told + ([f"barred: {', '.join(out)}"] if out else [])


def is_overdue(found: Round, time_now: int) -> bool:
    """Whether the contract lets anyone push a closed round on at `time_now`, the chain's time."""
    is_drawable = found.state is RoundState.DRAWING and not lots_awaited(found)
    return is_drawable or time_now >= phase_end(found)


def push_on(
    contract: FedLearning,
    task: str,
    found: Round,
    time_now: int,
    actor: str,
    send: Callable[[Action], object],
) -> bool:
    """Push a closed round on, around devices that cannot be paid.

    A payment runs the device's own account's code. If that refuses the money, the transaction of
    all members with it is refused as well. So a portion that fails is halved, down to the one
    device, which is left out: its upload is refunded once the contract allows that.

    Parameters
    ----------
    contract : FedLearning
    task : str
    found : Round
        For which `is_overdue` holds.
    time_now : int
        The chain's time.
    actor : str
        Who signs.
    send : callable
        Signs and sends an action.

    Returns
    -------
    bool
        Whether a transaction went through; False: there is nothing to push now, but for who cannot
        be paid.

    Raises
    ------
    RoundClosedError, StaleVersionError, AlreadyDoneError
        Somebody else moved the round on.
    NodeError
        No node answers, or none takes a transaction of this actor, who may have no CPU or NET left.
    """
    version = found.version
    if found.state is RoundState.AUDITING and not _left(contract.members(task), found, time_now):
        return False
    try:
        send(contract.push(task, actor, version, MEMBERS_PER_PUSH))
        return True
    except _MOVED_ON:
        raise
    except _FAILED as error:
        if found.state is RoundState.SUMMING:
            raise
        faults = [error]
    rows = sorted(contract.members(task), key=lambda row: name_to_int(row.account))

    def push(places: Sequence[int]) -> bool:
        first, last = places[0], places[-1]
        if last - first < MEMBERS_PER_PUSH:
            limit, start = last - first + 1, rows[first].account
            try:
                send(contract.push(task, actor, version, limit, start=start))
                return True
            except _MOVED_ON:
                raise
            except _FAILED as error:
                if len(places) == 1:
                    faults.append(error)
                    return False
        half = len(places) // 2
        return push(places[:half]) + push(places[half:]) > 0

    places = _left(rows, found, time_now)
    if places and push(places):
        return True
    if not isinstance(faults[-1], ContractError):
        # The code of a device's account can make a node break off just as an actor without CPU or
        # NET does. A push that comes upon nobody to be paid tells: it fails for the actor alone.
        others = set(range(len(rows))).difference(places)
        if not others:
            raise faults[-1]
        send(contract.push(task, actor, version, 1, start=rows[min(others)].account))
    return False


def _left(rows: Sequence[Member], found: Round, time_now: int) -> list[int]:
    """Return the places of the members whose uploads `push` would move on now."""
    waiting = {
        RoundState.VERIFYING: UploadState.PENDING,
        RoundState.DRAWING: UploadState.ACCEPTED,
        RoundState.AUDITING: UploadState.DRAWN,
    }[found.state]
    # what was opened has time of its own for verdicts
    is_patient = found.state is RoundState.AUDITING and time_now < (
        found.audit_deadline + found.audit_sec
    )
    return [
        place
        for place, row in enumerate(rows)
        if row.upload_version == found.version
        and row.upload_state is waiting
        and not (is_patient and row.opening_cid)
    ]
