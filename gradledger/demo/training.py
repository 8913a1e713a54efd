"""Carries the demo: network, accounts, devices, rounds, and the report of what happened."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradledger.audit.rows import owed
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import FedLearning, Round
from gradledger.chain.names import Asset, Symbol, check_account
from gradledger.demo import audit
from gradledger.demo.data import Dataset, Samples, load, shares
from gradledger.demo.options import (
    FORGER,
    KEY_BITS,
    SHUFFLED,
    DemoOptions,
    account_names,
    is_late,
    roles,
)
from gradledger.demo.report import money
from gradledger.demo.view import View
from gradledger.demo.workers import WorkerError, WorkerPool
from gradledger.errors import ConfigError, GradledgerError
from gradledger.localnet.network import Network, NetworkInfo
from gradledger.logs import LineFormatter
from owner.owner import Owner
from owner.paillier_key import PaillierPrivateKey
from owner.plan import Plan
from owner.run import Progress, RoundReport, first_model, run
from owner.state import StateDir

JOIN_SEC = 180.0
LATE_SEC = 60.0
CENTRALISED_SEC = 900.0
PATIENCE_SEC = 120.0  # whose network is its own has nobody to wait for
PRICE_PER_EXAMPLE = 10
"""Smallest units: 0.0010 of a token of four decimals, so that 600 examples earn 0.6000."""


@dataclass(frozen=True)
class Setting:
    """What the two data sets ask for: a network and a recipe that reaches centralised training.

    Parameters
    ----------
    layers : tuple of int
        Of the multilayer perceptron.
    epochs, batch_size, rate
        Training recipe of every round.
    clip : float
        Bound of one parameter's change in one round.
    points_per_class : int
        Validation points of each class that a device gets in a round.
    open_sec : int
        Longest a round takes uploads; it is closed as soon as every punctual device has reported.
    """

    layers: tuple[int, ...]
    epochs: int
    batch_size: int
    rate: float
    clip: float
    points_per_class: int
    open_sec: int


SETTINGS = {
    "digits": Setting(
        layers=(64, 32, 10),
        epochs=3,
        batch_size=16,
        rate=0.02,
        clip=0.5,
        points_per_class=15,
        open_sec=120,
    ),
    "mnist": Setting(
        layers=(784, 128, 10),
        epochs=1,
        batch_size=32,
        rate=0.05,
        clip=0.5,
        points_per_class=20,
        open_sec=600,
    ),
}
MEASURES = 8
TAU = 0.1
VALIDATORS = 4
PHASE_SEC = 60
BAR_ROUNDS = 3

_DOING = {
    "publish": "model to IPFS",
    "issue": "validation sets",
    "open": "opening",
    "close": "devices train and upload",
    "verdicts": "verdicts",
    "draw": "lots",
    "audit": "audits",
    "sum": "validators add up",
    "aggregate": "owner opens the sum",
    "settle": "settling",
    "report": "done",
}


@dataclass
class Phone:
    """One device of the demo.

    Parameters
    ----------
    account : str
    role : str
        How it behaves, see `gradledger.demo.options`.
    rows : array of int64
        Its share: rows of the training set.
    """

    account: str
    role: str
    rows: np.ndarray


@dataclass
class Hearing:
    """What the workers have reported so far.

    Parameters
    ----------
    joined : set of str
    done : dict of int to set of str
        Devices that are through with a round, by version.
    refusals : dict of int to list of (account, code)
        Uploads that the contract itself refused, by the round in which they were offered.
    centralised : list of float
        Accuracy after each version.
    """

    joined: set[str] = field(default_factory=set)
    done: dict[int, set[str]] = field(default_factory=dict)
    refusals: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    centralised: list[float] = field(default_factory=list)

    def take(self, event: dict[str, Any]) -> None:
        """Note one event of a worker."""
        kind = event["event"]
        if kind == "joined":
            self.joined.add(event["account"])
        elif kind == "refused":
            refusals = self.refusals.setdefault(event["version"], [])
            refusals.append((event["account"], event["code"]))
        elif kind == "done":
            self.done.setdefault(event["version"], set()).add(event["account"])
        elif kind == "centralised":
            self.centralised.append(event["accuracy"])


def run_demo(options: DemoOptions, view: View) -> dict[str, Any]:
    """Run the whole demo and return its report.

    Parameters
    ----------
    options : DemoOptions
    view : View
        Is shown what happens.

    Returns
    -------
    dict
        The document of `--json`: ``rounds`` (version, accuracy, uploads, accepted, refused,
        audited, caught, paid), ``initial_accuracy``, ``final_accuracy``, ``centralised``
        (accuracy by version), ``centralised_accuracy``, ``escrow``, ``conserved``, ``checks``,
        ``seconds``, ``chain``, ``reasons``, ``devices``, ``token``, ``options``. Amounts are
        integers in the token's smallest units.

    Raises
    ------
    GradledgerError
        Something could not be done; network and workers are down again.
    """
    started = time.monotonic()
    dataset = load(options.data, options.seed)
    with ExitStack() as stack:
        home = stack.enter_context(_home(options, view))
        stack.enter_context(_log_to(home / "logs" / "demo.log"))
        count = min(options.devices, os.cpu_count() or 1)
        # One more trains in one place, to compare; it gives way to the others.
        pool = stack.enter_context(WorkerPool(count + 1, home / "logs"))
        network = Network(home, say=view.say)
        if network.status()["state"] != "up":
            stack.callback(network.down)
        info = network.up(validators=VALIDATORS)
        report = _Demo(options, view, dataset, network, info, pool).run()
    report["seconds"] = round(time.monotonic() - started, 2)
    return report


@contextmanager
def _home(options: DemoOptions, view: View) -> Iterator[Path]:
    """Give the network a folder; a temporary one is removed, but for its logs after a failure."""
    if options.home is not None:
        yield options.home.expanduser().resolve()
        return
    home = Path(tempfile.mkdtemp(prefix="gradledger-demo-"))
    try:
        yield home
    except GradledgerError:
        for path in home.iterdir():
            if path.name != "logs":
                shutil.rmtree(path, ignore_errors=True)
        view.say(f"the logs are kept in {home / 'logs'}")
        raise
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send the parties' log to a file, so that the progress bars stay whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(LineFormatter())
    logger = logging.getLogger("gradledger")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class _Demo:
    def __init__(
        self,
        options: DemoOptions,
        view: View,
        dataset: Dataset,
        network: Network,
        info: NetworkInfo,
        pool: WorkerPool,
    ) -> None:
        self._options, self._view, self._dataset = options, view, dataset
        self._network, self._info, self._pool = network, info, pool
        self._setting = SETTINGS[dataset.name]
        self._symbol = Symbol.parse(info.token_symbol)
        self._token = {
            "symbol": self._symbol.code,
            "precision": self._symbol.precision,
            "contract": info.token_contract,
        }
        self._chain = ChainClient(info.chain_urls)
        self._contract = FedLearning(self._chain, info.contract)
        self._hearing = Hearing()
        self._version = 0
        tag = self._free_tag()
        self._task = check_account(dataset.name + tag)
        drawn = shares(dataset.train, options.devices, options.seed)
        names = account_names("phone" + tag, options.devices)
        self._phones = [
            Phone(*each)
            for each in zip(
                names, roles(options.devices, audits=options.lot > 0), drawn, strict=True
            )
        ]
        self._folder = info.home / "demo" / self._task
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _free_tag(self) -> str:
        """Return what keeps this run's names apart from those of earlier ones on this chain."""
        taken = {task.id for task in self._contract.tasks()}
        digits = "12345"
        for tag in ["", *digits[1:], *(a + b for a in digits for b in digits)]:
            if (
                self._dataset.name + tag not in taken
                and not (self._info.home / "demo" / (self._dataset.name + tag)).exists()
            ):
                return tag
        raise ConfigError(f"{self._info.home} has seen too many demos: take another --home")

    def run(self) -> dict[str, Any]:
        """Set up, carry the rounds, settle the accounts; return the report."""
        options, view = self._options, self._view
        self._network.create_accounts(phone.account for phone in self._phones)
        plan = self._plan()
        owner = self._owner()
        state = StateDir(self._folder / "owner")
        initial = first_model(plan)
        test = (self._dataset.test.x, self._dataset.test.y)
        before = owner.evaluate(initial, *test)
        view.say(
            f"{self._dataset.name}: {len(self._phones)} devices, {options.rounds} rounds, "
            f"{initial.parameters} parameters, {options.mode} mode"
            + (f", {options.key_bits}-bit key" if options.mode == "paillier" else "")
        )
        if options.mode == "paillier" and options.key_bits < KEY_BITS:
            view.say(f"WARNING: a {options.key_bits}-bit key is for a quick look only.")
        view.rounds(0, options.rounds)
        rows: list[dict[str, Any]] = []
        ledgers: list[audit.RoundLedger] = []
        training = run(
            plan,
            owner=owner,
            state=state,
            validation=(self._dataset.validation.x, self._dataset.validation.y),
            test=test,
            initial=initial,
            progress=self._progress,
            may_close=self._may_close,
            patience_sec=PATIENCE_SEC,
        )
        for report in training:
            self._await_phones(report.version)
            ledgers.append(audit.read_round(self._contract, self._task, report.version))
            rows.append(self._row(report, ledgers[-1]))
            self._say_round(rows[-1], ledgers[-1], report.note)
            view.rounds(len(rows), options.rounds)
        self._await_centralised()
        withdrawable = owner.escrow().withdrawable
        if withdrawable:
            owner.withdraw(Asset(withdrawable, self._symbol))
        return self._report(plan, before, rows, ledgers)

    # ---- setting up ---------------------------------------------------------------

    def _plan(self) -> Plan:
        options, setting = self._options, self._setting
        sizes = [len(phone.rows) for phone in self._phones]
        budget = sum(sizes) * PRICE_PER_EXAMPLE
        return Plan(
            task=self._task,
            rounds=options.rounds,
            architecture={"kind": "mlp", "layers": list(setting.layers), "activation": "relu"},
            devices=tuple(phone.account for phone in self._phones),
            validators=self._info.validators,
            deposit=self._amount(budget * options.rounds),
            price=self._amount(PRICE_PER_EXAMPLE),
            budget=self._amount(budget),
            description=f"gradledger demo: {self._dataset.name}",
            token_contract=self._info.token_contract,
            mode=options.mode,
            cost_max=max(sizes),
            clip=setting.clip,
            open_sec=setting.open_sec,
            verdict_sec=PHASE_SEC,
            sum_sec=PHASE_SEC,
            reveal_sec=PHASE_SEC if options.reveal else 0,
            audit_sec=PHASE_SEC,
            lot=options.lot,
            bar_rounds=BAR_ROUNDS,
            close_after=1,
            rule="either",
            tau=TAU,
            epochs=setting.epochs,
            batch_size=setting.batch_size,
            rate=setting.rate,
            measures=MEASURES,
            seed=options.seed,
            points_per_class=min(setting.points_per_class, self._dataset.validation.least()),
            initial="glorot",
            initial_seed=options.seed,
            devices_min=len(self._phones),
            errors_max=MEASURES,
        )

    def _owner(self) -> Owner:
        key = None
        if self._options.mode == "paillier":
            self._view.say(f"making the owner's {self._options.key_bits}-bit Paillier key")
            key = PaillierPrivateKey.generate(self._options.key_bits)
            key.save(self._folder / "paillier.json")
        return Owner(
            self._info.owner,
            task=self._task,
            key=Path(self._info.accounts[self._info.owner]),
            chain=self._chain,
            store=self._info.store_addr,
            contract=self._info.contract,
            paillier_key=key,
        )

    def _start_phones(self) -> None:
        """Give the workers their devices, the largest shares spread first, and await the joins."""
        accounts = self._network.info().accounts
        count = self._pool.count - 1
        jobs: list[dict[str, Any]] = [{**self._job(), "devices": []} for _ in range(count)]
        loads = [0] * count
        for phone in sorted(self._phones, key=lambda phone: -len(phone.rows)):
            worker = loads.index(min(loads))
            loads[worker] += len(phone.rows)
            jobs[worker]["devices"].append(
                {
                    "account": phone.account,
                    "key_file": accounts[phone.account],
                    "share_file": self._save(phone.account, self._dataset.train.take(phone.rows)),
                    "role": phone.role,
                    "seed": self._options.seed,
                }
            )
        honest = [phone.rows for phone in self._phones if phone.role not in (SHUFFLED, FORGER)]
        union = self._dataset.train.take(np.unique(np.concatenate(honest)))
        central = {
            "train_file": self._save("centralised", union),
            "test_file": self._save("test", self._dataset.test),
            "layers": list(self._setting.layers),
            "initial_seed": self._options.seed,
            "epochs": self._setting.epochs,
            "batch_size": self._setting.batch_size,
            "rate_e6": round(self._setting.rate * 1e6),
            "seed": self._options.seed,
            "rounds": self._options.rounds,
        }
        self._pool.assign([*jobs, {**self._job(), "centralised": central}])
        until = time.monotonic() + JOIN_SEC
        while len(self._hearing.joined) < len(self._phones):
            if time.monotonic() > until:
                raise WorkerError(f"not every device has joined within {JOIN_SEC:g} s")
            self._listen(0.2)

    def _job(self) -> dict[str, Any]:
        return {
            "task": self._task,
            "chain": list(self._info.chain_urls),
            "store": self._info.store_addr,
            "contract": self._info.contract,
            "framework": self._options.framework,
            "rounds": self._options.rounds,
        }

    def _save(self, name: str, samples: Samples) -> str:
        path = self._folder / f"{name}.npz"
        np.savez(path, x=samples.x, y=samples.y)
        return str(path)

    def _amount(self, units: int) -> str:
        return str(Asset(units, self._symbol))

    # ---- while it runs ---------------------------------------------------------------

    def _listen(self, timeout_sec: float) -> None:
        """Take every event that is there; wait for a first one."""
        event = self._pool.event(timeout_sec)
        while event is not None:
            self._hearing.take(event)
            event = self._pool.event(0.0)
        self._view.centralised(len(self._hearing.centralised), self._options.rounds)

    def _progress(self, progress: Progress) -> None:
        if progress.step == "join" and not progress.done:
            self._view.say("devices and validators are joining")
            self._start_phones()
        self._listen(0.0)
        if progress.version:
            done = len(self._hearing.done.get(progress.version, ()))
            doing = _DOING.get(progress.step, progress.step)
            self._view.uploads(progress.version, done, len(self._phones), doing)

    def _may_close(self, found: Round) -> bool:
        """Close once every punctual device is through; the contract alone enforces deadlines."""
        self._listen(0.0)
        done = self._hearing.done.get(found.version, set())
        return all(
            phone.account in done or is_late(phone.role, found.version) for phone in self._phones
        )

    def _await_phones(self, version: int) -> None:
        """Let the late device find out before the next round opens; not for ever."""
        until = time.monotonic() + LATE_SEC
        while len(self._hearing.done.get(version, ())) < len(self._phones):
            if time.monotonic() > until:
                return
            self._listen(0.1)

    def _await_centralised(self) -> None:
        until = time.monotonic() + CENTRALISED_SEC
        while len(self._hearing.centralised) < self._options.rounds:
            if time.monotonic() > until:
                raise WorkerError(f"centralised training took over {CENTRALISED_SEC:g} s")
            self._listen(0.2)

    def _say_round(self, row: dict[str, Any], ledger: audit.RoundLedger, note: str) -> None:
        reasons = [code for _, code in self._hearing.refusals.get(row["version"], [])]
        reasons += ledger.refusals.values()
        text = (
            f"round {row['version']:>2}: accuracy {row['accuracy']:.2%}, {row['accepted']} of "
            f"{row['uploads']} uploads accepted, {money(row['paid'], self._token)} paid"
        )
        if row["audited"]:
            text += f"; {row['audited']} audited, {row['caught']} caught"
        if reasons:
            counted = Counter(reasons).items()
            text += "; refused: " + ", ".join(f"{k} {v}" if v > 1 else k for k, v in counted)
        self._view.say(text + (f" ({note})" if note else ""))

    # ---- the report ---------------------------------------------------------------

    def _row(self, report: RoundReport, ledger: audit.RoundLedger) -> dict[str, Any]:
        """Return a row of the table; an upload is one that a device offered, recorded or not."""
        assert report.accuracy is not None  # the demo learns classes
        offered = ledger.uploads + len(self._hearing.refusals.get(report.version, []))
        return {
            "version": report.version,
            "accuracy": round(report.accuracy, 6),
            "uploads": offered,
            "accepted": ledger.accepted,
            "refused": offered - ledger.accepted,
            "audited": report.drawn,
            "caught": report.caught + report.unanswered,
            "paid": ledger.paid,
        }

    def _report(
        self,
        plan: Plan,
        initial_accuracy: float,
        rows: list[dict[str, Any]],
        ledgers: list[audit.RoundLedger],
    ) -> dict[str, Any]:
        options, contract, token = self._options, self._contract, self._info.token_contract
        accounts = [phone.account for phone in self._phones]
        escrow = contract.escrow(self._task)
        held = audit.balances(contract, token, self._symbol, accounts)
        due = owed(contract, token, self._symbol)
        checks = audit.check(ledgers, escrow, due, held)
        checks |= audit.check_blocks(self._chain, self._task, ledgers)
        refusals = [pair for each in self._hearing.refusals.values() for pair in each]
        refusals += [pair for ledger in ledgers for pair in ledger.refusals.items()]
        return {
            "rounds": rows,
            "initial_accuracy": round(initial_accuracy, 6),
            "final_accuracy": rows[-1]["accuracy"],
            "centralised": [round(value, 6) for value in self._hearing.centralised],
            "centralised_accuracy": round(self._hearing.centralised[-1], 6),
            "escrow": {
                "deposited": escrow.deposited,
                "paid": escrow.paid,
                "reserved": escrow.reserved,
                "withdrawn": escrow.withdrawn,
                "balance": escrow.free,
            },
            "conserved": all(checks.values()),
            "checks": checks,
            "seconds": 0.0,
            "chain": {
                "server_version": self._chain.get_info().server_version,
                "chain_id": self._info.chain_id,
            },
            "reasons": dict(sorted(Counter(code for _, code in refusals).items())),
            "token": self._token,
            "seed": options.seed,
            "devices": [
                {
                    "account": phone.account,
                    "role": phone.role,
                    "examples": len(phone.rows),
                    "accepted": sum(phone.account in ledger.payments for ledger in ledgers),
                    "refused": sum(phone.account == account for account, _ in refusals),
                    "paid": held[phone.account],
                }
                for phone in self._phones
            ],
            "options": {
                "dataset": self._dataset.name,
                "devices": options.devices,
                "rounds": options.rounds,
                "mode": options.mode,
                "framework": options.framework,
                "key_bits": options.key_bits if options.mode == "paillier" else None,
                "lot": options.lot,
                "reveal": options.reveal,
                "seed": options.seed,
                "validators": len(self._info.validators),
                "layers": list(self._setting.layers),
                "rule": plan.rule,
                "tau": plan.tau,
                "epochs": plan.epochs,
                "batch_size": plan.batch_size,
                "rate": plan.rate,
                "clip": plan.clip,
                "price_per_example": PRICE_PER_EXAMPLE,
            },
        }
