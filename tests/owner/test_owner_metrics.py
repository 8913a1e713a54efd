"""What owner and validator count and log of a whole training, beside what the chain has of it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from played import Phone, Training, points
from scraping import fetch, scrape, url_in, value

from gradledger.chain.keys import PrivateKey, save_key_file
from gradledger.metrics import Metrics, served
from gradledger.store import Store
from owner.owner import Owner
from owner.run import run
from producer_validation.validator import Validator


@contextmanager
def command(validator: Validator, folder: Path, store: Store) -> Iterator[str]:
    """Run a validator as a process of its own; give the address of its metrics."""
    save_key_file(folder / "key.json", validator.account, validator._key)
    words = [
        *(sys.executable, "-m", "gradledger.cli", "validator", "run", "--all-tasks"),
        *("--account", validator.account, "--key-file", str(folder / "key.json")),
        *("--chain", ",".join(validator.chain.endpoints), "--store", store.address),
        *("--metrics", "0", "--log-format", "json"),
    ]
    with (
        open(folder / "validator.log", "w+") as log,
        subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            assert process.stderr is not None
            yield url_in([process.stderr.readline()])
            process.terminate()
            log.write(process.communicate(timeout=20)[1])
            assert process.returncode == 0
        finally:
            process.kill()


def spoil(phone: Phone, version: int) -> None:
    """Let a device send what is no envelope in one round."""
    seal = phone.seal

    def sealed(task: Any, found: Any, *rest: Any) -> bytes:
        return b"no envelope" if found.version == version else seal(task, found, *rest)

    phone.seal = sealed  # type: ignore[method-assign]


def test_counts_and_lines_are_those_of_the_chain(
    make_training: Callable[..., Training],
    store: Store,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    training = make_training(rounds=2)
    (validator,), training.validators = training.validators, []
    spoil(training.phones[0], 2)
    plain, task = training.make_owner(), training.plan.task

    with command(validator, tmp_path, store) as judged_at, served("0") as metrics:
        (line,) = [one for one in caplog.messages if one.startswith("event=metrics")]
        counted_at = line.partition("url=")[2]
        owner = metered(plain, metrics, training)
        with training.played(), caplog.at_level(logging.INFO, "gradledger.owner"):
            data = {"validation": points(100, 90), "test": points(200, 300)}
            reports = list(run(training.plan, owner=owner, state=tmp_path / "state", **data))
        shown = fetch(judged_at) + fetch(counted_at)
        judge, boss = scrape(judged_at), scrape(counted_at)

    rounds = plain.contract.rounds(task)
    assert [(each.accepted, each.refused) for each in rounds] == [(3, 0), (2, 1)]
    verdicts = {
        dict(labels)["verdict"]: number
        for (name, labels), number in judge.items()
        if name == "gradledger_validator_uploads_judged_total" and number
    }
    assert verdicts == {"accept": 5, "malformed": 1}
    assert value(judge, "validator_verdicts_attested_total") == 6
    assert 2 <= value(judge, "validator_attest_seconds_count") <= 6
    assert value(judge, "validator_sums_attested_total") == 1  # two updates are too few for a sum
    assert value(judge, "validator_round_version", task=task) == 2
    uploads = sum(len(store.get(m.upload_cid)) for m in plain.members() if m.upload_cid)
    assert value(judge, "ipfs_fetched_bytes_total") > uploads
    assert value(judge, "ipfs_stored_bytes_total") > 0
    assert value(judge, "chain_head_block") > value(judge, "chain_lag_blocks") > 0

    newest = rounds[-1]
    assert value(boss, "owner_round_version", task=task) == newest.version == 2
    assert value(boss, "owner_round_state", task=task, state="settled") == 1
    assert value(boss, "owner_round_paid_units", task=task) == newest.paid == reports[-1].paid
    for verdict in ("accepted", "refused", "pending"):
        shown_now = value(boss, "owner_round_uploads", task=task, verdict=verdict)
        assert shown_now == getattr(newest, verdict)
    escrow = plain.escrow()
    for part in ("deposited", "paid", "reserved", "withdrawn", "free"):
        units = value(boss, "owner_escrow_units", task=task, part=part)
        assert units == getattr(escrow, part), part
    assert escrow.paid == sum(each.paid for each in rounds) > 0
    assert value(boss, "owner_rounds_settled_total") == 2
    assert value(boss, "owner_step_seconds_count", step="open") == 2

    log = (tmp_path / "validator.log").read_text()
    events = [json.loads(line) for line in log.splitlines()]
    counts = Counter(each["event"] for each in events)
    assert (counts["joined"], counts["accepted"], counts["refused"]) == (1, 5, 1)
    (refused,) = (each for each in events if each["event"] == "refused")
    told = (refused["version"], refused["sender"], refused["code"], refused["level"])
    assert told == (2, training.phones[0].account, "malformed", "WARNING")
    facts = f"uploads=3 accepted=2 refused=1 paid={newest.paid} updates=0"
    assert f"event=settled task={task} version=2 {facts}" in caplog.messages

    # Devices have no label, and nothing that is secret is anywhere.
    keys: list[PrivateKey] = [validator._key, *(phone.key for phone in training.phones)]
    for phone in training.phones:
        assert phone.account not in shown
    for key in keys:
        assert key.to_string() not in shown + log + caplog.text


def metered(plain: Owner, metrics: Metrics, training: Training) -> Owner:
    """Return the same owner, which counts."""
    made = Owner(
        plain.account,
        task=plain.task,
        key=plain._key,
        chain=plain.chain,
        store=plain.store,
        paillier_key=training.paillier_key_file,
        metrics=metrics,
    )
    metrics.watch(made.chain, made.store)
    return made
