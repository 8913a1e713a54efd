"""`gradledger owner ...`: the owner's steps and whole trainings on the command line."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradledger import logs
from gradledger.cli_parts import (
    account_name,
    account_names,
    positive_amount,
    readable,
    task_name,
    whole_number,
)
from gradledger.errors import ConfigError, StoreError
from gradledger.places import add_network, find_home

if TYPE_CHECKING:
    from gradledger.chain.contract import Round, Task
    from gradledger.chain.names import Symbol
    from gradledger.metrics import Metrics
    from gradledger.models import Model
    from gradledger.target import Target
    from owner.owner import Owner
    from owner.plan import Plan
    from owner.run import RoundReport
    from owner.state import StateDir

NETWORK_BYTES_MAX = 1 << 20
PATIENCE_SEC = 1800
TRY_AGAIN = 75  # EX_TEMPFAIL in sysexits.h

_EPILOG = """\
A training, step by step:
  gradledger owner key --out paillier.json
  gradledger owner create  --plan plan.json        the task card goes to IPFS, the task on chain
  gradledger owner admit   --devices phone1,phone2,phone3 --validators val1,val2,val3,val4
  gradledger owner deposit "100.0000 TOK"
  gradledger owner publish --version 1 --plan plan.json
  gradledger owner open    --version 1 --plan plan.json
  gradledger owner issue   --version 1 --validation points.npz
  gradledger owner close   --version 1
  gradledger owner aggregate --version 1
  gradledger owner settle  --version 1
or all of it, to be stopped and started again at any point:
  gradledger owner run --plan plan.json
Devices without CPU and NET, on a chain that counts them:
  gradledger owner payer --help

Every command works on the network of `gradledger up` here, on that of --home DIR, or on --chain URL
--store ADDR with --key-file FILE. What the chain does not hold lies in --state DIR.
"""

_PLAN_HELP = """\
The plan is JSON (or TOML with Python 3.11 and later):
  {"task": "digits", "rounds": 10,
   "architecture": {"kind": "mlp", "layers": [64, 32, 10], "activation": "relu"},
   "devices": ["phone1", "phone2", "phone3"], "validators": ["val1", "val2", "val3", "val4"],
   "deposit": "100.0000 TOK", "price": "0.0010 TOK", "budget": "5.0000 TOK",
   "data": {"validation": "validation.npz", "test": "test.npz"}}
A task that learns a number: "output": "identity" in the architecture, and "target":
  {"strata": 5, "scale": 2, "unit": "km"}; the points' y are numbers then.
With "clip": 20, "privacy": {"epsilon": 8, "delta": 1e-5, "clip_norm": 1} every device adds noise.
Paths count from the plan's directory; .npz files hold the arrays x [points, features] and y.
`python -c 'import owner; help(owner.Plan)'` describes every field and its default.

While no node answers, or IPFS does not, it waits, and says so. Exit code 75: it waited in vain, or
too few members joined. 130: it was stopped. The same command goes on from there in both cases.
"""


def add_commands(subparsers: Any) -> None:
    """Register `owner` and its commands with the command line's sub-parsers."""
    from gradledger.metrics import add_option as add_metrics_option

    raw = argparse.RawDescriptionHelpFormatter
    group = subparsers.add_parser(
        "owner",
        help="create a task, publish models, open, close and settle rounds",
        description="Round control for the owner of a task.",
        epilog=_EPILOG,
        formatter_class=raw,
    )
    commands = group.add_subparsers(metavar="COMMAND", required=True)

    key = commands.add_parser("key", help="make a Paillier key, in a new file with mode 0600")
    key.add_argument("--out", type=Path, required=True, metavar="FILE")
    key.add_argument(
        "--bits", type=int, default=3072, metavar="N", help="default 3072; 2048 for demonstrations"
    )
    key.set_defaults(func=_key)

    create = _command(commands, "create", _create, "create the task that a plan describes")
    create.add_argument("--plan", type=Path, required=True, metavar="FILE")

    admit = _command(commands, "admit", _admit, "admit accounts as devices or validators")
    admit.add_argument("--devices", type=account_names, default=[], metavar="A,B,...")
    admit.add_argument("--validators", type=account_names, default=[], metavar="A,B,...")

    for name, action, text in (
        ("deposit", _deposit, "pay into the task's escrow"),
        ("withdraw", _withdraw, "take back what no open round may need"),
    ):
        money = _command(commands, name, action, text)
        money.add_argument(
            "quantity", type=positive_amount, metavar="AMOUNT", help='such as "100.0000 TOK"'
        )

    publish = _command(
        commands, "publish", _publish, "seal the model of a round and put it on IPFS"
    )
    _add_version(publish)
    publish.add_argument(
        "--model", type=readable, metavar="FILE", help="safetensors; default: the one in --state"
    )
    publish.add_argument("--plan", type=Path, metavar="FILE", help="draws T_0 where there is none")

    issue = _command(
        commands, "issue", _issue, "give each device its validation set, drawn by the open round"
    )
    _add_version(issue)
    issue.add_argument(
        "--validation",
        type=readable,
        required=True,
        metavar="FILE",
        help=".npz or safetensors, x and y",
    )
    issue.add_argument(
        "--per-class", type=int, metavar="M", help="where the task does not commit to its points"
    )

    opening = _command(commands, "open", _open, "open a round with the model published for it")
    _add_version(opening)
    opening.add_argument(
        "--plan", type=Path, required=True, metavar="FILE", help="price, budget, phases, recipe"
    )

    for name, action, text in (
        ("close", _close, "close a round to uploads, once its deadline or close_after allows it"),
        ("aggregate", _aggregate, "wait for the sum and make the next model"),
        ("settle", _settle, "record the round's Merkle root and take the RAM back"),
    ):
        _add_version(_command(commands, name, action, text))

    evaluate = _command(commands, "evaluate", _evaluate, "measure a model on test data")
    evaluate.add_argument(
        "--version", type=whole_number(0), required=True, metavar="K", help="of model T_K"
    )
    evaluate.add_argument("--test", type=readable, required=True, metavar="FILE", help="x and y")

    _command(commands, "status", _status, "show the task, its money, members and rounds")

    whole = _command(
        commands,
        "run",
        _run,
        "carry a whole training through; start it again after any interruption",
        epilog=_PLAN_HELP,
        formatter_class=raw,
    )
    whole.add_argument("--plan", type=Path, required=True, metavar="FILE")
    whole.add_argument(
        "--patience",
        type=int,
        default=PATIENCE_SEC,
        metavar="SEC",
        help="wait so long for nodes and IPFS that are away (default %(default)s)",
    )
    add_metrics_option(whole)

    from owner.payer.cli import add_commands as add_payer

    add_payer(commands)


def _command(
    commands: Any, name: str, action: Any, text: str, **options: Any
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", **options
    )
    parser.add_argument(
        "--task", type=task_name, metavar="NAME", help="default: the plan's, or the only one"
    )
    place = parser.add_argument_group("where")
    add_network(place)
    place.add_argument("--store", metavar="ADDR", help="IPFS, such as /ip4/127.0.0.1/tcp/5001")
    place.add_argument(
        "--account",
        type=account_name,
        metavar="NAME",
        help="an account of --home; default: its owner",
    )
    place.add_argument("--key-file", type=Path, metavar="FILE", help="the owner's Antelope key")
    place.add_argument(
        "--paillier-key", type=Path, metavar="FILE", help="default STATE/paillier.json"
    )
    place.add_argument(
        "--state", type=Path, metavar="DIR", help="default HOME/owner/TASK, or ./TASK.owner"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="log steps, and what is skipped and why"
    )
    logs.add_options(parser)
    parser.set_defaults(func=partial(_logged, action))
    return parser


def _logged(action: Any, args: argparse.Namespace) -> Any:
    """Run a command with its log."""
    level = logging.INFO if args.verbose else logging.ERROR
    logs.start(level, form=args.log_format, path=args.log_file)
    return action(args)


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--version", type=whole_number(1), required=True, metavar="K", help="round, from 1 on"
    )


# ---- where the parts are ----------------------------------------------------------------------


def load_network(home: Path) -> dict[str, Any]:
    """Read what `gradledger up` wrote about its network."""
    path = home / "network.json"
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(NETWORK_BYTES_MAX))
    except OSError as exc:
        raise ConfigError(
            f"{path}: {exc.strerror}; is `gradledger up` done? Or give --home DIR or --chain URL"
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: expected JSON") from exc
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected an object")
    return value


def _plan_of(args: argparse.Namespace) -> Plan | None:
    from owner.plan import load_plan

    path = getattr(args, "plan", None)
    return load_plan(path)[0] if path is not None else None


def _connect(args: argparse.Namespace, metrics: Metrics | None = None) -> tuple[Owner, StateDir]:
    """Build the owner and its state directory from flags, network and plan."""
    from owner.state import StateDir

    owner, where = _find(args, metrics)
    return owner, StateDir(where)


def _find(args: argparse.Namespace, metrics: Metrics | None = None) -> tuple[Owner, Path]:
    """Build the owner, and tell where its state directory is or would be."""
    from gradledger.chain.keys import load_key_file
    from owner.owner import Owner

    home = find_home(args)
    network = load_network(home) if home is not None else {}
    chain = args.chain or network.get("chain")
    store = args.store or network.get("store")
    if not chain or not store:
        raise ConfigError("expected --home DIR, or --chain URL and --store ADDR")
    key_file = args.key_file
    if key_file is None:
        if home is None:
            raise ConfigError("expected --home DIR or --key-file FILE")
        name = args.account or network.get("owner", "")
        key_file = home / "keys" / f"{name}.json"
    account, key = load_key_file(key_file)
    contract = args.contract or network.get("contract") or "fedlearning"
    plan = _plan_of(args)
    task = args.task or (plan.task if plan is not None else _only_task(chain, contract, account))
    where = args.state
    if where is None:
        where = home / "owner" / task if home is not None else Path(f"{task}.owner")
    paillier = args.paillier_key or where / "paillier.json"
    owner = Owner(
        account,
        task=task,
        key=key,
        chain=chain,
        store=store,
        contract=contract,
        paillier_key=paillier if paillier.exists() or args.paillier_key else None,
        metrics=metrics,
    )
    return owner, where


def _found_state(where: Path) -> StateDir | None:
    """Return a state directory for reading; None where there is none."""
    from owner.state import StateDir

    return StateDir(where) if where.is_dir() else None


def _only_task(chain: Any, contract: str, account: str) -> str:
    from gradledger.chain.client import ChainClient
    from gradledger.chain.contract import FedLearning

    names = [t.id for t in FedLearning(ChainClient(chain), contract).tasks() if t.owner == account]
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise ConfigError(f"expected --task NAME; tasks of {account}: {listed}")
    return names[0]


def _say(args: argparse.Namespace, text: str, **facts: Any) -> None:
    print(json.dumps(facts) if args.json else text)


# ---- commands ---------------------------------------------------------------------------------


def _key(args: argparse.Namespace) -> None:
    from gradledger.files import make_folder
    from owner.paillier_key import PaillierPrivateKey

    make_folder(args.out.parent)
    key = PaillierPrivateKey.generate(args.bits)
    key.save(args.out)
    print(f"{args.out}: Paillier key of {key.public.bits} bits, {key.public.key_hash.hex()}")
    print("Keep it: without it no sum can be opened. Nobody else must see it.")


def _create(args: argparse.Namespace) -> None:
    from owner.plan import load_data, load_plan
    from owner.run import create_task
    from owner.validation_sets import ValidationData

    owner, state = _connect(args)
    plan, files = load_plan(args.plan)
    points = None
    if plan.committed_sets and "validation" in files:
        target = plan.target_terms()
        found = load_data(files["validation"], regression=target is not None)
        points = ValidationData.of(*found, target)
    with state.locked():
        task = create_task(owner, plan, validation=points)
    _say(args, f"task {task.id} is there; its card: {task.terms.card_cid}", task=task.id)


def _admit(args: argparse.Namespace) -> None:
    if not args.devices and not args.validators:
        raise ConfigError("expected --devices A,B,... or --validators A,B,...")
    owner, _ = _find(args)
    devices = owner.admit_devices(args.devices)
    validators = owner.admit_validators(args.validators)
    text = ", ".join([*devices, *validators]) or "nobody, all were members"
    _say(args, f"admitted: {text}", devices=devices, validators=validators)


def _deposit(args: argparse.Namespace) -> None:
    """Pay in, unless an earlier deposit of this amount was left on its way: then that is it."""
    from contextlib import closing

    from gradledger.chain.names import Asset
    from gradledger.outbox import State

    owner, state = _connect(args)
    amount = str(Asset.parse(args.quantity))
    trx, earlier = "", []
    with state.locked(), closing(owner.open_deposits(state.outbox_path)) as outbox:
        for entry in owner.finish_deposits(outbox):
            if entry.state is State.DONE:
                assert entry.signed is not None
                text = f"{entry.name}, begun before, has happened"
                if not trx and entry.details["amount"] == amount:
                    trx = entry.signed.trx_id
            else:
                text = f"{entry.name}, begun before, never happened: {entry.reason}"
            earlier.append(text)
            print(f"gradledger owner: {text}", file=sys.stderr)
        is_earlier = bool(trx)
        trx = trx or owner.deposit(amount, outbox=outbox)
    text = f"deposited {amount}, transaction {trx}"
    if is_earlier:
        text += ", begun before; nothing else was paid"
    _say(args, text, transaction=trx, earlier=earlier)


def _withdraw(args: argparse.Namespace) -> None:
    owner, _ = _find(args)
    trx = owner.withdraw(args.quantity)
    _say(args, f"withdrew {args.quantity}, transaction {trx}", transaction=trx)


def _publish(args: argparse.Namespace) -> None:
    from owner.run import first_model

    owner, state = _connect(args)
    plan = _plan_of(args)
    with state.locked():
        model = _read_model(args.model) if args.model else state.model(args.version - 1)
        if model is None and args.version == 1 and plan is not None:
            model = first_model(plan)
        if model is None:
            raise ConfigError(f"expected --model FILE: {state.path} has no T_{args.version - 1}")
        if args.model or state.model_record(args.version - 1) is None:
            state.save_model(args.version - 1, model, {"evidence": ""})
        published = owner.publish_model(model, args.version)
        state.save_published(args.version, published.to_record(""))
    readers = f"sealed to {len(published.readers)}" if published.readers else "public"
    _say(
        args,
        f"model of round {args.version}: {published.cid}, {readers}",
        cid=published.cid,
        hash=published.hash.hex(),
    )


def _read_model(path: Path) -> Model:
    from gradledger.models import Model

    try:
        return Model.from_bytes(path.read_bytes())
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc


def _issue(args: argparse.Namespace) -> None:
    from owner.plan import load_data
    from owner.validation_sets import ValidationData

    owner, state = _connect(args)
    target = owner.card().target
    found = load_data(args.validation, regression=target is not None)
    data = ValidationData.of(*found, target)
    with state.locked():
        issued = owner.issue_validation_sets(args.version, data, per_class=args.per_class)
    text = ", ".join(issued) or "nobody: all joined devices have theirs"
    _say(args, f"validation sets for round {args.version}: {text}", devices=issued)


def _open(args: argparse.Namespace) -> None:
    from owner.run import round_terms

    owner, state = _connect(args)
    plan = _plan_of(args)
    assert plan is not None
    record = state.published(args.version)
    if record is None:
        raise ConfigError(f"no model is published for round {args.version}: `owner publish` first")
    terms = round_terms(plan, args.version, record["cid"], bytes.fromhex(record["hash"]))
    found = owner.open_round(args.version, terms)
    _say(args, _describe(found), **_round_facts(found))


def _close(args: argparse.Namespace) -> None:
    owner, _ = _find(args)
    owner.close_round(args.version)
    found = owner.round(args.version)
    _say(args, _describe(found), **_round_facts(found))


def _aggregate(args: argparse.Namespace) -> None:
    owner, state = _connect(args)
    with state.locked():
        owner.wait_sum(args.version)
        result = owner.aggregate(args.version)
        state.save_model(args.version, result.model, result.to_record())
    text = f"T_{args.version}: mean of {result.updates} updates"
    if not result.changed:
        text = f"T_{args.version} is T_{args.version - 1}: {result.note}"
    facts = _sum_facts(result.to_record())
    text = "; ".join([text, *_named(facts)])
    _say(args, text, version=args.version, updates=result.updates, note=result.note, **facts)


def _settle(args: argparse.Namespace) -> None:
    owner, _ = _find(args)
    found = owner.settle(args.version)
    _say(
        args,
        f"round {args.version} is settled, Merkle root {bytes(found.root).hex()}",
        **_round_facts(found),
    )


def _evaluate(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from owner.evaluation import quality
    from owner.plan import load_data

    owner, where = _find(args)
    state = _found_state(where)
    model = state.model(args.version) if state is not None else None
    if model is None:
        model = owner.fetch_model(args.version + 1)
    target = owner.card().target
    test = load_data(args.test, regression=target is not None)
    found = quality(model, *test, target)
    facts = {name: value for name, value in asdict(found).items() if value is not None}
    _say(args, f"T_{args.version}: {found.told(target)}", version=args.version, **facts)


def _describe(found: Round) -> str:
    return (
        f"round {found.version} is {found.state.name.lower()}: {found.uploads} uploads, "
        f"{found.accepted} accepted, {found.refused} refused, {found.pending} pending"
    )


def _round_facts(found: Round) -> dict[str, Any]:
    counts = ("uploads", "pending", "held", "drawn", "accepted", "refused")
    names = ("version", *counts, "reserved", "paid")
    facts = {name: getattr(found, name) for name in names}
    return {**facts, "state": found.state.name.lower()}


def _sum_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says of the validators that do not stand by a round's sum."""
    return {
        "outvoted": record.get("outvoted"),
        "silent": record.get("silent"),
        "bad_copies": record.get("bad_copies", {}),
    }


def _named(facts: Mapping[str, Any]) -> list[str]:
    """Say which validators gave a wrong sum; who is silent may be slow alone, and is not told."""
    told = [f"{who} attested another sum and was outvoted" for who in facts["outvoted"] or ()]
    return told + [f"{who} gave no right sum: {why}" for who, why in facts["bad_copies"].items()]


def _votes_of(found: Round, task: Task, state: StateDir | None) -> dict[str, Any]:
    """Return who does not stand by a round's sum: from the chain, or as it was noted down."""
    from owner.aggregation import sum_votes

    record = state.model_record(found.version) if state is not None else None
    facts = _sum_facts(record or {})
    votes = sum_votes(found, task.terms)
    if votes is not None:
        facts |= {"outvoted": list(votes.outvoted), "silent": list(votes.silent)}
    return facts


def _privacy_facts(owner: Owner, task: Task) -> dict[str, Any] | None:
    """Return what the task's card says of privacy; without IPFS the rest is still to be shown."""
    try:
        privacy = owner.privacy(task)
        if privacy is None:
            return None
        spent = privacy.spent(task.version)
        return {
            "clip_norm": privacy.clip_norm,
            "sigma": privacy.sigma,
            "rounds": privacy.rounds,
            "epsilon": privacy.epsilon(),
            "delta": privacy.delta,
            "spent": {"rounds": spent.rounds, "epsilon": spent.epsilon, "delta": spent.delta},
        }
    except (StoreError, ConfigError) as exc:
        return {"error": str(exc)}


def _status(args: argparse.Namespace) -> None:
    from gradledger.chain.contract import Mode, Role, RoundState
    from gradledger.chain.names import Asset
    from gradledger.phases import waits_for

    owner, where = _find(args)
    state = _found_state(where)
    task = owner.contract.task(owner.task)
    escrow = owner.escrow()
    rounds = list(owner.contract.rounds(owner.task))
    votes = {each.version: _votes_of(each, task, state) for each in rounds}
    members = owner.members()
    symbol = task.terms.token_symbol
    privacy = _privacy_facts(owner, task)
    names = ("deposited", "paid", "reserved", "withdrawn", "free", "balance")
    money = {name: getattr(escrow, name) for name in names}
    if args.json:
        document = {
            "task": task.id,
            "owner": task.owner,
            "mode": Mode(task.terms.mode).name.lower(),
            "version": task.version,
            "escrow": money,
            "conserved": escrow.conserved,
            "members": [
                {
                    "account": m.account,
                    "role": Role(m.role).name.lower(),
                    "joined": bool(m.joined),
                    "barred_until": m.barred_until,
                }
                for m in members
            ],
            "rounds": [_round_facts(each) | votes[each.version] for each in rounds],
            "privacy": privacy,
        }
        print(json.dumps(document, indent=2))
        return
    print(f"task {task.id} of {task.owner}, {Mode(task.terms.mode).name.lower()} mode")
    for role in (Role.DEVICE, Role.VALIDATOR):
        of_role = [m for m in members if m.role == role]
        joined = sum(1 for m in of_role if m.joined)
        print(f"{role.name.lower()}s: {len(of_role)} admitted, {joined} joined")
    print(", ".join(f"{name} {Asset(amount, symbol)}" for name, amount in money.items()))
    print("the escrow equation holds" if escrow.conserved else "THE ESCROW EQUATION DOES NOT HOLD")
    if privacy is not None and "error" in privacy:
        print(f"whether the task has differential privacy is not known now: {privacy['error']}")
    elif privacy is not None:
        spent = privacy["spent"]
        print(
            f"epsilon {spent['epsilon']:.4g} of {privacy['epsilon']:.4g} given away, in "
            f"{spent['rounds']} of {privacy['rounds']} rounds, at delta {privacy['delta']:g}"
        )
    head = ("round", "state", "uploads", "accepted", "refused", "pending", "paid")
    rows = [
        (r.version, r.state.name.lower(), r.uploads, r.accepted, r.refused, r.pending, paid)
        for r, paid in ((each, Asset(each.paid, symbol)) for each in rounds)
    ]
    _print_table(head, rows)
    for each in rounds:
        told = _named(votes[each.version])
        if each.state is RoundState.SUMMING:
            told.append(f"no vote yet of {', '.join(votes[each.version]['silent'])}")
        if each.version == task.version:
            told += waits_for(each, members)
        if told:
            print(f"round {each.version}: {'; '.join(told)}")


def _print_table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    cells = [head, *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _run(args: argparse.Namespace) -> int:
    from gradledger.metrics import served

    with served(args.metrics) as metrics:
        return _train(args, metrics)


def _train(args: argparse.Namespace, metrics: Metrics) -> int:
    """Carry the plan's training through, or as far as a signal lets it."""
    import signal

    from owner.errors import WaitTimeoutError
    from owner.plan import load_data, load_plan
    from owner.run import run

    owner, state = _connect(args, metrics)
    metrics.watch(owner.chain, owner.store)
    plan, files = load_plan(args.plan)
    missing = sorted({"validation", "test"} - set(files))
    if missing:
        raise ConfigError(f"{args.plan}: data: expected {', '.join(missing)}")
    symbol, target = plan.amount("price").symbol, plan.target_terms()

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    reports = run(
        plan,
        owner=owner,
        state=state,
        validation=load_data(files["validation"], regression=target is not None),
        test=load_data(files["test"], regression=target is not None),
        initial=_read_model(files["model"]) if "model" in files else None,
        patience_sec=args.patience,
    )
    before = signal.signal(signal.SIGTERM, stop)
    try:
        for report in reports:
            _print_report(report, symbol, target, args.json)
    except KeyboardInterrupt:
        print("gradledger owner: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except WaitTimeoutError as exc:
        print(f"gradledger owner: {exc}; the same command goes on from here", file=sys.stderr)
        return TRY_AGAIN
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _print_report(
    report: RoundReport, symbol: Symbol, target: Target | None, as_json: bool
) -> None:
    from dataclasses import asdict, fields

    from gradledger.chain.names import Asset
    from owner.evaluation import Quality

    if as_json:
        print(json.dumps(asdict(report)), flush=True)
        return
    reasons = ", ".join(f"{name} {count}" for name, count in report.reasons.items())
    found = Quality(**{each.name: getattr(report, each.name) for each in fields(Quality)})
    print(
        f"round {report.version}: {found.told(target)}, {report.uploads} uploads, "
        f"{report.accepted} accepted, {report.refused} refused"
        f"{f' ({reasons})' if reasons else ''}, paid {Asset(report.paid, symbol)}"
        f"{f', {report.drawn} audited, {report.caught} caught' if report.drawn else ''}"
        f"{f', {report.unanswered} did not answer' if report.unanswered else ''}"
        f"{'; barred: ' + ', '.join(report.barred) if report.barred else ''}"
        f"{'' if report.epsilon is None else f', epsilon {report.epsilon:.4g} so far'}"
        f"{f'; {report.note}' if report.note else ''}"
        f"{''.join(f'; {told}' for told in _named(asdict(report)))}",
        flush=True,
    )
