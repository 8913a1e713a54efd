"""Owners that hand out other points than the round's block drew; device and validator find out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from device_scene import PRICE, TOKEN, Scene, points

from device_sdk import Device, Paid
from device_sdk.training_sklearn import sklearn_fit
from gradledger.chain.contract import Member, Mode, Round, Task, VerdictCode
from gradledger.chain.keys import PrivateKey
from gradledger.chain.names import Asset
from gradledger.check_set import SetReport, check_set
from gradledger.cli import main
from gradledger.errors import (
    ConfigError,
    ModelError,
    NotAReaderError,
    RoundClosedError,
    ValidationSetError,
)
from gradledger.localnet.network import Network
from gradledger.models import dump_arrays, load_arrays
from gradledger.store import Store
from gradledger.validation import Draw, dump_issued_set, opening_id
from owner.validation_sets import CommittedPoints, ValidationData
from producer_validation import checks
from producer_validation.checks import MaterialError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MakeScene = Callable[..., Scene]
PER_CLASS = 3
CLASSES = 0b101
SECRET = b"of the owner"


class Stage:
    """A round that is open, with one device; the test is its owner."""

    def __init__(self, scene: MakeScene, store: Store) -> None:
        self.data = ValidationData(*points(100, 60))
        # The task's name is not known yet; salts from another one's are as good.
        self.points = self.data.committed(task="salted", classes=3, secret=SECRET)
        self.scene = scene(mode=Mode.SEALED, commitment=self.points.commitment(PER_CLASS))
        self.store = store
        self.device = self.scene.device()
        self.device.join(classes=[0, 2])
        self.task: Task = self.scene.contract.task(self.scene.task)
        self.open(1)

    def open(self, version: int) -> None:
        """Open a round, and wait until that cannot be undone."""
        self.scene.open(version)
        row = self.scene.contract.round(self.scene.task, version)
        assert row is not None
        self.row: Round = row
        found = self.scene.contract.client.wait_until(
            lambda: opening_id(self.scene.contract, self.scene.task, row),
            timeout_sec=20,
            what="the opening",
        )
        self.block_id = str(found)

    def draw(self, **changes: Any) -> Draw:
        """Return the draw of the device's set, or another one."""
        fields: dict[str, Any] = {
            "commitment": self.points.commitment(PER_CLASS),
            "block_id": self.block_id,
            "task": self.scene.task,
            "version": self.row.version,
            "device": self.device.account,
            "classes": CLASSES,
        }
        return Draw(**{**fields, **changes})

    @property
    def member(self) -> Member:
        """The device's row."""
        found = self.scene.contract.member(self.scene.task, self.device.account)
        assert found is not None
        return found

    def read_as_validator(self) -> Any:
        """Return what a validator reads."""
        name, key = next(iter(self.scene.validators.items()))
        blob = self.store.get(self.member.set_cid)
        secret = key.encryption_key()
        return checks.read_set(blob, self.task, self.member, name, secret, self.draw())

    def check(self, account: str = "", key: PrivateKey | None = None) -> SetReport:
        """Return what `check-set` finds, read by the device or somebody else."""
        return check_set(
            self.scene.contract,
            self.store,
            self.scene.task,
            device=self.device.account,
            version=self.row.version,
            account=account or self.device.account,
            key=key or self.device.key,
        )


def repeated(points: CommittedPoints, draw: Draw) -> bytes:
    """Return a set with one point in each place of its class."""
    arrays = dict(load_arrays(points.dump(draw.leaves))[0])
    for name in ("leaves", "x", "y", "salts"):
        arrays[name] = np.repeat(arrays[name][::PER_CLASS], PER_CLASS, axis=0)
    return dump_arrays(arrays, {})


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Stage], bytes]:
    """Return a cheat that changes one array of the right set."""

    def cheat(stage: Stage) -> bytes:
        arrays = dict(load_arrays(stage.points.dump(stage.draw().leaves))[0])
        arrays[name] = np.ascontiguousarray(change(arrays[name].copy()))
        return dump_arrays(arrays, {})

    return cheat


def other_points(stage: Stage) -> bytes:
    """Return points that were never committed, with proofs of their own tree."""
    forged = ValidationData(stage.data.x + 1, stage.data.y)
    made = forged.committed(task="salted", classes=3, secret=SECRET)
    return made.dump(stage.draw().leaves)


def easiest(stage: Stage) -> bytes:
    """Return the points of each class that lie next to its centre."""
    wanted = []
    for c in (0, 2):
        rows = np.flatnonzero(stage.data.classes == c)
        away = np.linalg.norm(stage.data.x[rows] - stage.data.x[rows].mean(axis=0), axis=1)
        wanted += sorted(rows[np.argsort(away)[:PER_CLASS]].tolist())
    assert wanted != stage.draw().leaves
    return stage.points.dump(wanted)


def of_another_class(stage: Stage) -> bytes:
    """Return points of class 1, under the numbers that were drawn."""
    leaves = stage.draw().leaves
    x, y = stage.data.x[leaves], stage.data.y[leaves]
    x[:PER_CLASS] = stage.data.x[20 : 20 + PER_CLASS]
    arrays = load_arrays(stage.points.dump(leaves))[0]
    salts, nodes = ([row.tobytes() for row in arrays[name]] for name in ("salts", "nodes"))
    return dump_issued_set(x, y, salts, leaves, nodes)


def drawn(**changes: Any) -> Callable[[Stage], bytes]:
    """Return a cheat that draws with something else."""
    return lambda stage: stage.points.dump(stage.draw(**changes).leaves)


ROOT = "expected points of the committed root"
PLACE = r"expected point \d+ \(class [02]\) in place \d, got point "
CHEATS: dict[str, tuple[Callable[[Stage], bytes], str]] = {
    "easy points": (easiest, PLACE),
    "points that were declared, and one more class": (
        drawn(classes=0b111),
        "expected 6 points, 3 of each of the classes 0, 2, got 9",
    ),
    "a class left out": (drawn(classes=0b001), "expected 6 points, .*, got 3"),
    "another class alone": (drawn(classes=0b110), PLACE),
    "another class's points under the right numbers": (of_another_class, ROOT),
    "points twice": (lambda stage: repeated(stage.points, stage.draw()), PLACE),
    "points outside the root": (other_points, ROOT),
    "one number changed": (changed("x", lambda x: np.nextafter(x, 2 * x)), ROOT),
    "wrong labels": (changed("y", lambda y: 2 - y), ROOT),
    "another block": (drawn(block_id="00000007" + "ab" * 28), PLACE),
    "another round": (drawn(version=2), PLACE),
    "another device's set": (drawn(device="somebodyelse"), PLACE),
    "wrong salts": (changed("salts", lambda salts: salts ^ 1), ROOT),
    "a hash too few": (changed("nodes", lambda nodes: nodes[:-1]), r"got \d+ hashes that lead to"),
    "a hash too many": (changed("nodes", lambda nodes: np.repeat(nodes, 2, 0)), "that lead to"),
    "fewer points": (
        lambda stage: stage.points.dump(stage.draw().leaves[:-1]),
        "expected 6 points, 3 of each of the classes 0, 2, got 5",
    ),
    "no proof at all": (
        lambda stage: stage.data.dump(stage.draw().leaves),
        "arrays x, y, salts and leaves, and nodes, expected",
    ),
}


def test_every_cheat_is_found_and_the_drawn_set_is_trained_on_and_paid(
    scene: MakeScene, store: Store, localnet: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stage(scene, store)
    s = stage.scene
    drawn_by = "3 points of each of yours, drawn by the block that opens the round"
    assert drawn_by in str(stage.device.terms())
    folder = localnet.home / "keys" / f"{stage.device.account}.json"
    command = ["check-set", s.task, "--device", stage.device.account, "--version", "1"]
    command += ["--key", str(folder), "--home", str(localnet.home)]
    for what, (cheat, message) in CHEATS.items():
        s.issue(1, cheat(stage))
        with pytest.raises((ValidationSetError, ModelError), match=message) as caught:
            stage.device.round(wait_sec=20)
        with pytest.raises(MaterialError, match=message):
            stage.read_as_validator()
        report = stage.check()
        assert not report.holds and str(caught.value) == report.reason, what
    assert main(command) == 1
    assert "THE SET IS NOT THE ONE DRAWN: arrays x, y, salts" in capsys.readouterr().out
    assert stage.member.upload_version == 0, "something was uploaded"

    s.issue(1, stage.points.dump(stage.draw().leaves))
    x, y = stage.read_as_validator()
    with stage.device.round(wait_sec=20) as round_:
        np.testing.assert_array_equal(round_.validation[0], x)
        np.testing.assert_array_equal(round_.validation[1], y)
        assert y.tolist() == [0] * PER_CLASS + [2] * PER_CLASS
        update = round_.train(sklearn_fit(*points(5, 60), round_.recipe), examples=60)
        receipt = round_.upload(update)
    s.attest(1, receipt.hash, [VerdictCode.ACCEPT] * 3)
    paid = receipt.wait(timeout_sec=20)
    assert isinstance(paid, Paid) and paid.amount == Asset(60 * PRICE, TOKEN)
    judge = next(iter(s.validators.items()))
    assert stage.check(*judge) == stage.check()
    with pytest.raises(NotAReaderError):
        stage.check(s.owner, s.owner_key)
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "the set was drawn by the round's block and is in the committed root" in shown
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is True and found["block"] == stage.row.opened_block
    assert found["classes"] == [0, 2] and found["root"] == stage.points.root.hex()


def test_a_set_is_not_read_before_the_opening_is_irreversible(
    scene: MakeScene, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(scene, store)
    stage.scene.issue(1, stage.points.dump(stage.draw().leaves))
    monkeypatch.setattr(Device, "_opening_id", lambda self, row: None)
    with pytest.raises(RoundClosedError, match="the block that opened round 1 can still be undone"):
        stage.device.round(wait_sec=1)


def test_a_task_without_a_commitment_has_nothing_to_check(
    scene: MakeScene, store: Store, localnet: Network
) -> None:
    s = scene()
    device = s.device()
    assert "on points that the owner picks for you" in str(device.terms())
    device.join(classes=[0])
    s.publish(1)
    options: dict[str, Any] = {
        "device": device.account,
        "account": device.account,
        "key": device.key,
    }
    with pytest.raises(ConfigError, match="commits to no validation points"):
        check_set(s.contract, store, s.task, version=1, **options)


def test_a_point_committed_to_under_another_label_is_refused(
    scene: MakeScene, store: Store
) -> None:
    """The root binds the owner to its lie; whoever gets the point sees it."""
    stage = Stage(scene, store)
    data = ValidationData(*points(100, 60))
    data.y[:] = 2 - data.y
    lying = data.committed(task="salted", classes=3, secret=SECRET)
    draw = stage.draw(commitment=lying.commitment(PER_CLASS))
    stage.points = lying
    stage.scene.issue(1, lying.dump(draw.leaves))
    with pytest.raises(MaterialError, match=r"point \d+: expected one of class 0, got 2"):
        stage.read_as_validator()
