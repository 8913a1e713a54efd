"""One audit: prove the blocks, do the books again, compare them with what the chain says."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import resources
from typing import Any

from gradledger.audit.blobs import AcceptedUploads, check_blobs
from gradledger.audit.blocks import ProofError, read_block
from gradledger.audit.reader import BlockReader, Step, Stretch, Subject, has_traces
from gradledger.audit.replay import Payment, RoundBook, TaskReplay, UnexplainedError
from gradledger.audit.report import AuditReport, RoundSummary
from gradledger.audit.rows import differences, owed, read_tables
from gradledger.audit.signers import Signers, StrangerError
from gradledger.chain.client import ChainClient, ChainInfo
from gradledger.chain.contract import CONTRACT_DEFAULT, FedLearning, RoundState
from gradledger.errors import (
    ConfigError,
    IrreversibilityTimeout,
    NodeAnswerError,
    NodeError,
    NodeUnavailableError,
)
from gradledger.store import Store

TABLE_READS_MAX = 12  # until nothing moves while they are read
MISMATCHES_TO_BELIEVE = 2  # a fork may show a row that never became irreversible
HOLDINGS_READS_MAX = 12
IRREVERSIBLE_SEC_MAX = 180.0
WITNESS_SEC_MAX = 10.0
STANDSTILL_SEC = 10.0  # without a new block
POLL_SEC = 0.2
MISSING_NAMED_MAX = 5

_HIDDEN = (
    "; raw blocks do not show actions inside other contracts' actions: a node with "
    "eosio::trace_api_plugin does"
)


class _StandstillError(IrreversibilityTimeout):
    """No block has come for a while."""


class Audit:
    """An audit of one task.

    Parameters
    ----------
    client : ChainClient
    task : str
    contract : str
        Account of the contract.
    store : Store, optional
        Where blobs are looked at; without it none is.
    from_block : int
        Read no block before this one.
    keep_payments : bool
        Put every payment into the report.
    tell : callable, optional
        Is told (what, done so far, of how many) while it goes on.
    """

    def __init__(
        self,
        client: ChainClient,
        task: str,
        *,
        contract: str = CONTRACT_DEFAULT,
        store: Store | None = None,
        from_block: int = 1,
        keep_payments: bool = False,
        tell: Callable[[str, int, int], None] | None = None,
    ) -> None:
        if from_block < 1:
            raise ConfigError(f"expected a block number from 1 on, got {from_block}")
        self.client = client
        self.contract = FedLearning(client, contract)
        self.store = store
        self.from_block = from_block
        self.report = AuditReport(task=task, contract=self.contract.account)
        self._keep_payments = keep_payments
        self._tell = tell or (lambda what, done, total: None)
        self._accepted = AcceptedUploads()
        self._reader: BlockReader | None = None
        self._on_settled: Callable[[TaskReplay, RoundBook], None] = lambda books, book: None

    def run(self) -> AuditReport:
        """Do the audit.

        Returns
        -------
        AuditReport
            With the first thing that is not explained, if there is one.

        Raises
        ------
        NodeError
            A node did not give what is needed.
        ConfigError
            There is no such task, or it was made before `from_block`.
        """
        report = self.report
        try:
            books = self._books()
        except (ProofError, UnexplainedError) as error:
            report.finding = str(error)
            return report
        if report.untraced:
            report.unreached.append(
                f"traces: the node has none of {report.untraced} blocks that have transactions"
            )
        self._ask_witnesses()
        if not report.finding:
            self._check_holdings(books)
        if not report.finding:
            self._check_blobs(books)
        return report

    def settled_round(self, version: int) -> list[bytes]:
        """Return the records of a settled round's tree, from the blocks.

        Raises
        ------
        ProofError, UnexplainedError
            The blocks do not explain the task.
        NodeError, ConfigError
            As for `run`; ConfigError also when the round is not settled irreversibly.
        """
        found: list[list[bytes]] = []

        def keep(books: TaskReplay, book: RoundBook) -> None:
            if book.version == version and book.state is RoundState.SETTLED:
                found.append(book.records)

        self.walk(keep)
        if not found:
            raise ConfigError(f"round {version} of task {self.report.task} is not settled yet")
        return found[0]

    def walk(self, on_round: Callable[[TaskReplay, RoundBook], None]) -> None:
        """Do the books alone, from proven blocks, and show each round when it is settled.

        Parameters
        ----------
        on_round : callable
            Is given the books, as they are when a round has just been settled, and the round; in
            the end the round that is not settled yet, if there is one.

        Raises
        ------
        ProofError, UnexplainedError
            The blocks do not explain the task; what was shown before may be part of that.
        NodeError, ConfigError
            As for `run`.
        """
        self._on_settled = on_round
        subject, info = self._subject()
        books, _, _ = self._replay(subject, info)
        if books.live is not None:
            on_round(books, books.live)

    # ---- blocks -----------------------------------------------------------------------------

    def _subject(self) -> tuple[Subject, ChainInfo]:
        report, info = self.report, self.client.get_info()
        terms = self.contract.task(report.task).terms
        report.chain_id, report.symbol = info.chain_id, terms.token_symbol
        subject = Subject(report.task, self.contract.account, terms.token_contract, report.chain_id)
        return subject, info

    def _books(self) -> TaskReplay:
        """Read, replay and compare with the tables."""
        subject, info = self._subject()
        books, signers, reader = self._replay(subject, info)
        self._check_code()
        self._compare_tables(books, signers, reader)
        self._sum_up(books, signers)
        return books

    def _replay(self, subject: Subject, info: ChainInfo) -> tuple[TaskReplay, Signers, BlockReader]:
        """Do the books up to what is irreversible now."""
        report, last = self.report, info.irreversible_block
        report.traces = has_traces(self.client, last)
        total = max(0, last - self.from_block + 1)
        reader = BlockReader(
            self.client,
            subject,
            traces=report.traces,
            tell=lambda count: self._tell("reading back", self._count(count), total),
        )
        self._reader = reader
        with closing(reader.read(self.from_block, last, info.irreversible_id)) as stretch:
            report.first_block, report.last_block = stretch.first, last
            report.last_id = info.irreversible_id
            self._note_stretch(stretch)
            if not stretch.begins:
                self._no_beginning(stretch)
            books = TaskReplay(
                report.task,
                self.contract.account,
                self.contract.abi,
                schedules=self._schedules(stretch),
                keep_uploads=self._accepted.add,
                keep_records=lambda book: self._on_settled(books, book),
            )
            signers = Signers(self.client, stretch.rekeyed)
            for number, step in enumerate(stretch.steps()):
                self._tell("doing the books", number, len(stretch))
                self._enter(books, signers, step)
        return books, signers, reader

    def _count(self, count: int) -> int:
        self.report.blocks += count
        return self.report.blocks

    def _note_stretch(self, stretch: Stretch) -> None:
        report = self.report
        report.transactions += stretch.transactions
        report.untraced += stretch.untraced
        if stretch.genesis and stretch.genesis != report.chain_id:
            raise ProofError(
                f"block 1 is of the chain {stretch.genesis}, the node says {report.chain_id}"
            )
        if stretch.deferred:
            report.unreached.append(
                f"{stretch.deferred} transactions that the node calls deferred: blocks do not hold "
                "their content"
            )

    @property
    def _hidden(self) -> str:
        """What is to be said of a fault that traces might explain, where there are not all."""
        return _HIDDEN if self.report.untraced or not self.report.traces else ""

    def _no_beginning(self, stretch: Stretch) -> None:
        task = self.report.task
        if stretch.first > 1:
            raise ConfigError(
                f"task {task} was made before block {stretch.first}: give an earlier --from-block"
            )
        raise UnexplainedError(f"task {task} has a row, but no block makes it{self._hidden}")

    def _schedules(self, stretch: Stretch) -> dict[int, tuple[str, ...]]:
        """Return the producers by schedule: those that blocks announce, and those of now."""
        answer = self.client.call("/v1/chain/get_producer_schedule", {})
        try:
            active = answer["active"]
            names = tuple(str(row["producer_name"]) for row in active["producers"])
            return {int(active["version"]): names, **stretch.schedules}
        except (KeyError, TypeError, ValueError) as error:
            raise NodeAnswerError(f"expected a producer schedule, it lacks {error}") from None

    def _enter(self, books: TaskReplay, signers: Signers, step: Step) -> None:
        try:
            signers.check(step)
        except StrangerError as error:
            if not self._was_rekeyed(signers, error.account):
                raise
            signers.unchecked += 1
        try:
            payments = books.apply(step)
        except UnexplainedError as error:
            raise UnexplainedError(f"{error}{self._hidden}") from None
        if step.code:
            self.report.notes.append(f"block {step.block} sets the contract's code {step.code}")
        if self._keep_payments:
            self.report.payment_list += payments

    # ---- what the chain says now ------------------------------------------------------------

    def _check_code(self) -> None:
        query = {"account_name": self.contract.account}
        answer = self.client.call("/v1/chain/get_code_hash", query)
        try:
            found = str(answer["code_hash"])
        except (KeyError, TypeError):
            raise NodeAnswerError("expected the hash of the contract's code") from None
        wasm = resources.files("gradledger.artifacts").joinpath("fedlearning.wasm").read_bytes()
        self.report.code = "known" if hashlib.sha256(wasm).hexdigest() == found else found
        if self.report.code != "known":
            self.report.notes.append(
                f"the contract's code, {found}, is not that of this release: its rules may differ"
            )

    def _compare_tables(self, books: TaskReplay, signers: Signers, reader: BlockReader) -> None:
        """Compare the rows with the books at a moment when nothing moves.

        Rows are those of the node's head, books are of irreversible blocks: so the rows are read
        first, and compared once the blocks of that moment are irreversible and read.
        """
        mismatches = 0
        for attempt in range(TABLE_READS_MAX):
            self._tell("comparing tables", attempt, TABLE_READS_MAX)
            before = self.client.get_info().head_block
            tables = read_tables(self.contract, self.report.task)
            # A node's tables may be one block ahead of its head.
            after = self.client.get_info().head_block + 1
            is_quiet, fault = True, ""
            try:
                following = self._read_on(reader, after)
            except _StandstillError:
                self._compare_standing(books, reader)
                return
            with closing(following) as stretch:
                signers.expect_changes(stretch.rekeyed)
                books.schedules.update(stretch.schedules)
                compared = False
                for step in stretch.steps():
                    if step.block > before and not compared:
                        fault, compared = next(differences(books, tables), ""), True
                    is_quiet &= not (before < step.block <= after and bool(step.inputs))
                    self._enter(books, signers, step)
                if not compared:
                    fault = next(differences(books, tables), "")
            if not is_quiet:
                continue
            if not fault:
                return
            mismatches += 1
            if mismatches == MISMATCHES_TO_BELIEVE:
                raise UnexplainedError(f"{fault}{self._hidden}")
        self.report.unreached.append(
            "the tables: the task moves faster than they are read; audit again in a quiet moment"
        )

    def _compare_standing(self, books: TaskReplay, reader: BlockReader) -> None:
        """Compare the rows of a chain whose head stands still, as in an archive.

        Its last blocks may never become irreversible. They are read to see that they do not concern
        the task; then the rows are those of the last irreversible block as well.
        """
        report = self.report
        answer = self.client.call("/v1/chain/get_info", {})
        try:
            head, head_id = int(answer["head_block_num"]), str(answer["head_block_id"])
        except (KeyError, TypeError, ValueError) as error:
            raise NodeAnswerError(f"expected a get_info document, it lacks {error}") from None
        report.notes.append(f"the chain stands still at block {head}")
        if head > report.last_block:
            with closing(reader.read(report.last_block + 1, head, head_id)) as stretch:
                self._check_follows(stretch)
                report.untraced += stretch.untraced
                if any(step.inputs for step in stretch.steps()):
                    report.unreached.append(
                        f"the tables: blocks {report.last_block + 1} to {head} concern the task "
                        "and are not irreversible"
                    )
                    return
        fault = next(differences(books, read_tables(self.contract, report.task)), "")
        if fault:
            raise UnexplainedError(f"{fault}{self._hidden}")

    def _was_rekeyed(self, signers: Signers, account: str) -> bool:
        """Whether an account got other keys after the blocks that the books have so far.

        A node tells the keys of its head, which may be newer than the blocks.
        """
        assert self._reader is not None
        stretch, _ = self._read_after(self._reader, self.client.get_info().head_block + 1)
        stretch.close()
        signers.expect_changes(stretch.rekeyed)
        return account in stretch.rekeyed

    def _read_on(self, reader: BlockReader, block: int) -> Stretch:
        """Read from where the books end up to `block` or on, for the books to go on."""
        report = self.report
        stretch, info = self._read_after(reader, block)
        report.last_block, report.last_id = info.irreversible_block, info.irreversible_id
        self._note_stretch(stretch)
        return stretch

    def _read_after(self, reader: BlockReader, block: int) -> tuple[Stretch, ChainInfo]:
        """Wait until `block` is irreversible; read from where the books end up to there or on."""
        end = time.monotonic() + IRREVERSIBLE_SEC_MAX
        head, moved_at = 0, time.monotonic()
        while (info := self.client.get_info()).irreversible_block < block:
            if info.head_block != head:
                head, moved_at = info.head_block, time.monotonic()
            if time.monotonic() >= moved_at + STANDSTILL_SEC:
                raise _StandstillError(f"the chain stands still at block {head}")
            if time.monotonic() >= end:
                raise IrreversibilityTimeout(
                    f"block {block} is not irreversible after {IRREVERSIBLE_SEC_MAX:g} s; "
                    f"irreversible up to block {info.irreversible_block}"
                )
            time.sleep(POLL_SEC)
        report = self.report
        stretch = reader.read(report.last_block + 1, info.irreversible_block, info.irreversible_id)
        try:
            self._check_follows(stretch)
        except ProofError:
            stretch.close()
            raise
        return stretch, info

    def _check_follows(self, stretch: Stretch) -> None:
        """Refuse blocks that do not follow on those read so far."""
        report = self.report
        if stretch.first_previous != report.last_id:
            raise ProofError(
                f"block {stretch.first} names {stretch.first_previous} as the one before, but "
                f"block {report.last_block} was irreversible as {report.last_id}"
            )

    def _ask_witnesses(self) -> None:
        """Ask every node for the last block: all of them must have it with the same id."""
        report = self.report
        query = {"block_num_or_id": str(report.last_block)}
        for endpoint in self.client.endpoints:
            witness, end = ChainClient(endpoint), time.monotonic() + WITNESS_SEC_MAX
            found = ""
            while not found:
                try:
                    answer = witness.call("/v1/chain/get_raw_block", query)
                    found = read_block(report.last_block, answer).id
                except (NodeUnavailableError, ProofError) as error:
                    report.unreached.append(f"{endpoint}, as a witness: {error}")
                    break
                except NodeError as error:  # it may be a little behind
                    if time.monotonic() >= end:
                        report.unreached.append(f"{endpoint}, as a witness: {error}")
                        break
                    time.sleep(POLL_SEC)
            if found and found != report.last_id:
                report.finding = report.finding or (
                    f"{endpoint} has block {report.last_block} as {found}, the node that was read "
                    f"as {report.last_id}"
                )
            report.witnesses += found == report.last_id

    def _check_holdings(self, books: TaskReplay) -> None:
        """Compare the contract's token balance with what all tasks of that token are owed."""
        terms = self.contract.task(self.report.task).terms
        token, symbol = terms.token_contract, terms.token_symbol

        def held() -> int:
            found = self.client.balance(token, self.contract.account, symbol.code)
            return found.amount if found else 0

        for attempt in range(HOLDINGS_READS_MAX):
            self._tell("comparing balances", attempt, HOLDINGS_READS_MAX)
            holdings, due = held(), owed(self.contract, token, symbol)
            if holdings == due == held():
                return
            time.sleep(POLL_SEC)
        self.report.finding = (
            f"the contract holds {books.money(holdings)} for all its tasks, their rows say it "
            f"owes {books.money(due)}"
        )

    def _check_blobs(self, books: TaskReplay) -> None:
        report = self.report
        if self.store is None:
            return
        total, done = len(self._accepted), 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            self._tell("fetching blobs", done, total)

        found = check_blobs(
            self.store, self._accepted, task=report.task, terms=books.terms, tell=tell
        )
        report.blobs, report.finding = found.good, found.wrong
        if found.away:
            report.unreached.append(
                f"blobs: {total - found.good} of {total} not looked at: {found.away}"
            )
        elif found.missing:
            named = ", ".join(str(one) for one in found.missing[:MISSING_NAMED_MAX])
            more = " and more" if len(found.missing) > MISSING_NAMED_MAX else ""
            report.unreached.append(
                f"blobs: {len(found.missing)} of {total} are not on IPFS any more: {named}{more}"
            )

    # ---- the report -------------------------------------------------------------------------

    def _sum_up(self, books: TaskReplay, signers: Signers) -> None:
        report = self.report
        report.task_transactions = books.transactions
        report.uploads, report.verdicts = books.uploads, books.verdicts
        report.payments, report.paid = books.payments, books.paid_so_far
        report.deposited, report.withdrawn = books.deposited, books.withdrawn
        report.reserved, report.free = books.reserved, books.free
        report.signed, report.unsigned = signers.checked, signers.unchecked
        report.rounds = list(_summaries(books))


def _summaries(books: TaskReplay) -> Iterator[RoundSummary]:
    for book in books.rounds.values():
        is_settled = any(book.root)
        yield RoundSummary(
            version=book.version,
            state=book.state.name.lower(),
            uploads=book.uploads,
            accepted=book.accepted,
            refused=book.refused,
            silent=book.silent,
            audited=book.audited,
            caught=book.caught,
            pending=book.pending + book.held + book.drawn,
            paid=book.paid,
            root=book.root.hex() if is_settled else "",
        )


def audit(client: ChainClient, task: str, **options: Any) -> AuditReport:
    """Audit a task; see `Audit` for the options and `Audit.run` for what it raises."""
    return Audit(client, task, **options).run()


__all__ = ["Audit", "Payment", "audit"]
