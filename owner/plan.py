"""What a whole training is: the plan that `owner.run` carries out, and its file.

A plan file is JSON, or TOML where the interpreter reads it (Python 3.11 on). Its keys are the
fields of `Plan`; amounts are texts such as "100.0000 TOK", rates and bounds are plain numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from gradledger.chain.names import AMOUNT_MAX, Asset, check_account
from gradledger.codec import CODE_MAX, SLOT_BITS_MAX, SLOT_BITS_MIN
from gradledger.errors import ConfigError, GradledgerError
from gradledger.models import POINTS_MAX, architecture_from, load_validation_set
from gradledger.privacy import Privacy
from gradledger.target import Target, quantile_edges
from gradledger.text import check_text
from gradledger.validation import CLASSES_MAX

__all__ = ["Plan", "load_data", "load_plan", "scaled", "slot_bits_for"]

PLAN_BYTES_MAX = 1 << 20
DATA_BYTES_MAX = 1 << 30
ROUNDS_MAX = 100_000
E6 = 1_000_000
# Of the contract.
BAR_ROUNDS_MAX = 10_000
PHASE_SEC_MAX = 30 * 86_400
ERRORS_MAX = 64
VALIDATORS_MAX = 32
SUM_MIN = 3
UINT16_MAX = 2**16 - 1
UINT32_MAX = 2**32 - 1

MODES = ("paillier", "sealed")
RULES = ("trend", "threshold", "either", "both", "gain")
SILENCES = ("refund", "pay")
VALIDATOR_KINDS = ("named", "producers")
INITIALS = ("normal", "glorot")
PRIVACY_FIELDS = ("clip_norm", "delta", "rounds")
TOLERANCE_OF_SCALE = 4
PRIVACY_CHOICES = ("epsilon", "noise_multiplier", "update_error")


@dataclass(frozen=True)
class Plan:
    """A training of several rounds.

    Parameters
    ----------
    task : str
        Name of the task, at most 12 characters out of a-z and 1-5.
    rounds : int
    architecture : mapping
        For instance ``{"kind": "mlp", "layers": [64, 32, 10], "activation": "relu"}``.
    devices, validators : tuple of str
        Accounts to admit. Who is a member already stays one.
    deposit : str
        What the task's deposits shall amount to in all, such as ``"100.0000 TOK"``; fixes the
        token's symbol. What is missing is paid in when the training starts.
    price : str
        For one example.
    budget : str
        What a round keeps; the owner cannot withdraw it before the round is closed.
    class_names : tuple of str
        One for each class; by default "0", "1", ...; for strata by default what their edges are.
    target : mapping, optional
        Where the task learns a number, and the architecture has ``"output": "identity"``:
        ``edges``, ascending, which part the numbers into strata; ``scale``, the error that counts
        1; ``tolerance``, up to which a prediction counts as right in reports, by default a quarter
        of the scale; ``unit``. Strata are to devices what classes are elsewhere. A plan file may
        have ``strata``, a number, in place of the edges: then each has an equal share of the
        validation data. See `gradledger.target`.
    description : str
        On the public task card.
    token_contract : str
    mode : {"paillier", "sealed"}
    public : bool
        Whether the model lies on IPFS in the clear.
    silence : {"refund", "pay"}
        What becomes of an upload that nobody judged in time.
    validators_kind : {"named", "producers"}
    errors_max, cost_max, devices_max, sum_min : int
        As `task_terms` of the contract. `devices_max` of 0: as many as `devices`.
    clip : float
        Updates are clipped to +-clip.
    privacy : mapping, optional
        Differential privacy on the devices: ``epsilon``, over all rounds and against who sees
        single updates, or ``noise_multiplier`` in its place; ``delta``; ``clip_norm``, the largest
        L2 norm of an update; ``rounds``, for which the budget is computed, by default those of the
        plan; and ``update_error``, by default true. See `gradledger.privacy`. `clip` must leave
        room for the noise. The errors of CSVES are measured with the noise as well: where it swamps
        a single update, a ``tau`` of 1.000001 accepts all. Without ``update_error`` it must.
    lot : float
        In paillier mode: the share of the accepted uploads that the lot of each validator draws
        for an audit, so that of four about 1 - (1 - lot)**4 are audited. Who is drawn hands its
        update to the validators, sealed. 0.0: no audits.
    bar_rounds : int
        For how many rounds a device may not upload that failed an audit, or did not answer.
    norm_max : float
        Largest L2 norm of an update, which validators check where they see it: in sealed mode,
        and in audits. 0.0: none.
    open_sec, verdict_sec, sum_sec : int
        Lengths of the phases of a round.
    reveal_sec : int
        Where it is not 0, a device tells the CID of its upload only once the round is closed,
        within so many seconds: until then nobody can fetch it, and copy it.
    audit_sec : int
        Length of each of the two phases of an audit; not used without lots. Lots are revealed
        once the end of the uploads is irreversible: it should be longer than that takes.
    close_after : int
        Close early once so many uploads are in; 0: never.
    rule : {"trend", "threshold", "either", "both", "gain"}
        CSVES. Gain is for classes alone.
    tau : float
        Threshold of CSVES-Th; under gain, of the wrong answers, as a share of what guessing among
        a device's classes leaves (0.45 fits).
    eta : float
        Aggregation rate.
    epochs, batch_size, measures, seed : int
        Of the training recipe; the seed of round k is ``seed + k``, modulo 2**64.
    rate : float
        Learning rate.
    points_per_class : int
        m: validation points of each class, or stratum, that a device declared.
    committed_sets : bool
        Whether the task's card commits to the validation points, so that nobody picks those that a
        device gets: the block that opens a round draws them. Devices get their sets once that block
        is irreversible, which `open_sec` must leave time for.
    initial : {"normal", "glorot"}
        How T_0 is drawn where no file gives it: N(0, 1), or uniform by Glorot and Bengio.
    initial_seed : int
    devices_min : int
        Open no round before so many devices have joined.
    join_sec : int
        How long to wait for them.
    """

    task: str
    rounds: int
    architecture: Mapping[str, Any]
    devices: tuple[str, ...]
    validators: tuple[str, ...]
    deposit: str
    price: str
    budget: str
    class_names: tuple[str, ...] = ()
    description: str = ""
    token_contract: str = "eosio.token"
    mode: str = "paillier"
    public: bool = False
    silence: str = "refund"
    validators_kind: str = "named"
    errors_max: int = 64
    cost_max: int = 1_000_000
    devices_max: int = 0
    sum_min: int = 3
    clip: float = 1.0
    privacy: Mapping[str, Any] | None = None
    target: Mapping[str, Any] | None = None
    lot: float = 0.0
    bar_rounds: int = 10
    norm_max: float = 0.0
    open_sec: int = 60
    verdict_sec: int = 60
    sum_sec: int = 60
    reveal_sec: int = 0
    audit_sec: int = 60
    close_after: int = 0
    rule: str = "either"
    tau: float = 0.1
    eta: float = 1.0
    epochs: int = 1
    batch_size: int = 32
    rate: float = 0.05
    measures: int = 8
    seed: int = 0
    points_per_class: int = 10
    committed_sets: bool = True
    initial: str = "normal"
    initial_seed: int = 0
    devices_min: int = 1
    join_sec: int = 120

    def __post_init__(self) -> None:
        for name in ("devices", "validators", "class_names"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(item, str) for item in value):
                raise ConfigError(f"plan: {name}: expected a list of texts")
            object.__setattr__(self, name, tuple(value))
        check_text("plan: description", self.description)
        for text in self.class_names:
            check_text("plan: class_names", text)
        for name in (self.task, self.token_contract, *self.devices, *self.validators):
            check_account(name)
        network = architecture_from(self.architecture)
        object.__setattr__(self, "architecture", network.to_dict())
        if network.regresses() != (self.target is not None):
            raise ConfigError(
                "plan: expected a target and an architecture with output identity, or neither"
            )
        if self.target is not None:
            object.__setattr__(self, "target", _target_from(self.target).to_dict())
        target = self.target_terms()
        count = network.classes() if target is None else target.strata
        if not self.class_names:
            names = tuple(str(c) for c in range(count)) if target is None else target.names
            object.__setattr__(self, "class_names", names)
        if len(self.class_names) != count:
            what = "" if target is None else " strata"
            raise ConfigError(
                f"plan: class_names: expected {count}{what}, got {len(self.class_names)}"
            )
        if count > CLASSES_MAX:
            raise ConfigError(f"plan: expected at most {CLASSES_MAX} classes, got {count}")
        if len({*self.devices, *self.validators}) != len(self.devices) + len(self.validators):
            raise ConfigError("plan: an account is device or validator, and once")
        _check_choice("mode", self.mode, MODES)
        _check_choice("rule", self.rule, RULES)
        if target is not None and self.rule == "gain":
            raise ConfigError(
                "plan: rule: gain does not tell sound data from faulty where a number is learnt: "
                "expected trend, threshold, either or both"
            )
        _check_choice("silence", self.silence, SILENCES)
        _check_choice("validators_kind", self.validators_kind, VALIDATOR_KINDS)
        _check_choice("initial", self.initial, INITIALS)
        # A sealed task gives out no sum; what its `sum_min` says has no effect.
        is_summed = self.mode == "paillier"
        _check_int("sum_min", self.sum_min, SUM_MIN if is_summed else 0, UINT16_MAX)
        if self.devices_max == 0:
            object.__setattr__(self, "devices_max", max(len(self.devices), self.sum_min))
        _check_int("rounds", self.rounds, 1, ROUNDS_MAX)
        _check_int("devices_max", self.devices_max, 1, UINT16_MAX)
        if is_summed:
            _check_int("sum_min", self.sum_min, SUM_MIN, self.devices_max)
        for name, most in (("devices", self.devices_max), ("validators", VALIDATORS_MAX)):
            count = len(getattr(self, name))
            if count > most:
                raise ConfigError(f"plan: {name}: expected at most {most}, got {count}")
        _check_int("errors_max", self.errors_max, 2, ERRORS_MAX)
        _check_int("cost_max", self.cost_max, 1, UINT32_MAX)
        _check_int("close_after", self.close_after, 0, UINT16_MAX)
        _check_int("epochs", self.epochs, 1, UINT16_MAX)
        _check_int("batch_size", self.batch_size, 1, UINT16_MAX)
        is_gain = self.rule == "gain"  # two doubts at least, and one error more
        _check_int("measures", self.measures, 1 + is_gain, self.errors_max - is_gain)
        _check_int("points_per_class", self.points_per_class, 1, POINTS_MAX)
        _check_int("devices_min", self.devices_min, 0, self.devices_max)
        _check_int("join_sec", self.join_sec, 0, 30 * 86_400)
        _check_int("seed", self.seed, 0, 2**64 - 1)
        _check_int("initial_seed", self.initial_seed, 0, 2**64 - 1)
        _check_int("bar_rounds", self.bar_rounds, 0, BAR_ROUNDS_MAX)
        for name in ("open_sec", "verdict_sec", "sum_sec", "audit_sec"):
            _check_int(name, getattr(self, name), 1, PHASE_SEC_MAX)
        _check_int("reveal_sec", self.reveal_sec, 0, PHASE_SEC_MAX)
        for name in ("clip", "tau", "eta", "rate", "lot", "norm_max"):
            scaled(name, getattr(self, name))
        if not scaled("clip", self.clip):
            raise ConfigError(f"plan: clip: expected at least 0.000001, got {self.clip!r}")
        if scaled("tau", self.tau) > E6 + 1:
            raise ConfigError(f"plan: tau: expected at most 1.000001, got {self.tau!r}")
        if self.lot > 1:
            raise ConfigError(f"plan: lot: expected a share from 0 to 1, got {self.lot!r}")
        if self.lot and self.mode == "sealed":
            raise ConfigError(
                "plan: lot: expected 0 in sealed mode, whose validators see every update"
            )
        if len({self.symbol_of(name) for name in ("deposit", "price", "budget")}) != 1:
            raise ConfigError("plan: deposit, price and budget: expected one token symbol")
        for name, least in (("deposit", 0), ("price", 1), ("budget", 0)):
            amount = self.amount(name)
            if amount.amount < least:
                wanted = Asset(least, amount.symbol)
                raise ConfigError(f"plan: {name}: expected at least {wanted}, got {amount}")
        if self.cost_max * self.amount("price").amount > AMOUNT_MAX:
            raise ConfigError(
                f"plan: cost_max: {self.cost_max} x {self.price} is more than an asset can hold"
            )
        slot_bits_for(self.devices_max)
        if self.privacy is not None:
            self._check_privacy(self.privacy)

    def _check_privacy(self, given: Mapping[str, Any]) -> None:
        unknown = sorted(set(given) - {*PRIVACY_FIELDS, *PRIVACY_CHOICES})
        if unknown:
            raise ConfigError(f"plan: privacy: unknown field {', '.join(unknown)}")
        object.__setattr__(self, "privacy", {"rounds": self.rounds, **given})
        missing = [name for name in PRIVACY_FIELDS if name not in (self.privacy or {})]
        if missing:
            raise ConfigError(f"plan: privacy: expected the field {', '.join(missing)}")
        found = self.privacy_terms()
        assert found is not None
        if found.rounds < self.rounds:
            raise ConfigError(
                f"plan: privacy: rounds: expected at least the plan's {self.rounds}, "
                f"got {found.rounds}"
            )
        if found.delta * self.devices_max >= 1:
            raise ConfigError(
                f"plan: privacy: delta: expected less than 1 / {self.devices_max} devices, "
                f"got {found.delta:g}"
            )
        found.check_codec(scaled("clip", self.clip))
        accepts_all = self.rule in ("threshold", "either") and scaled("tau", self.tau) > E6
        if not found.update_error and (self.mode == "sealed" or not accepts_all):
            raise ConfigError(
                "plan: privacy: without update_error nothing can be judged: expected mode "
                "paillier, rule threshold or either, and tau 1.000001"
            )

    def privacy_terms(self) -> Privacy | None:
        """Return the terms of the task card, with the noise that the plan's epsilon asks for.

        Raises
        ------
        ConfigError
            They are nonsense, or the library that calibrates is not installed.
        PrivacyError
            So little noise protects nothing.
        """
        return None if self.privacy is None else Privacy.calibrate(**self.privacy)

    def target_terms(self) -> Target | None:
        """Return the number that the task learns, as its card says; None: it learns classes."""
        return None if self.target is None else Target.from_dict(self.target)

    def symbol_of(self, name: str) -> str:
        """Return the symbol, with its precision, of one of the plan's amounts."""
        return str(self.amount(name).symbol)

    def amount(self, name: str) -> Asset:
        """Return `deposit`, `price` or `budget` as an exact amount."""
        try:
            return Asset.parse(getattr(self, name))
        except GradledgerError as exc:
            raise ConfigError(f"plan: {name}: {exc}") from exc

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a JSON object, with every default filled in."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Plan:
        """Build a plan from a JSON object.

        Raises
        ------
        ConfigError
            A field is missing, unknown or wrong; the message names it.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise ConfigError(f"plan: unknown field {', '.join(unknown)}")
        missing = [
            name
            for name, f in known.items()
            if f.default is dataclasses.MISSING and name not in value
        ]
        if missing:
            raise ConfigError(f"plan: expected the field {', '.join(missing)}")
        for name, item in value.items():
            _check_type(name, str(known[name].type), item)
        return cls(**value)


def scaled(name: str, value: float) -> int:
    """Return a rate or a bound in 1e-6 units.

    Raises
    ------
    ConfigError
        Not a number, negative, or more than 32 bits hold.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 4294:
        raise ConfigError(f"{name}: expected a number from 0 to 4293, got {value!r}")
    return round(value * E6)


def slot_bits_for(devices_max: int) -> int:
    """Return the narrowest slot in which `devices_max` updates add without carry."""
    for bits in range(SLOT_BITS_MIN, SLOT_BITS_MAX + 1):
        if devices_max * CODE_MAX < 1 << bits:
            return bits
    raise ConfigError(f"devices_max: expected fewer than 65537, got {devices_max}")


def load_plan(path: Path) -> tuple[Plan, dict[str, Path]]:
    """Read a plan file.

    Parameters
    ----------
    path : Path
        ``.toml``, otherwise JSON. Beside the plan's fields it may have ``data``, an object with the
        paths ``validation``, ``test`` and ``model``, which count from the file's directory.

    Returns
    -------
    plan : Plan
    data : dict of str to Path
    """
    try:
        with open(path, "rb") as file:
            text = file.read(PLAN_BYTES_MAX + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    if len(text) > PLAN_BYTES_MAX:
        raise ConfigError(f"{path}: expected at most {PLAN_BYTES_MAX} bytes")
    try:
        value = _parse_toml(path, text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected an object with the plan's fields")
    data = value.pop("data", {})
    if not isinstance(data, dict) or set(data) - {"validation", "test", "model"}:
        raise ConfigError(f"{path}: data: expected the paths validation, test, model")
    if not all(isinstance(each, str) for each in data.values()):
        raise ConfigError(f"{path}: data: expected paths")
    files = {k: path.parent / v for k, v in data.items()}
    target = value.get("target")
    if isinstance(target, dict) and "strata" in target:
        value["target"] = _by_quantiles(target, files.get("validation"))
    return Plan.from_dict(value), files


def _by_quantiles(given: Mapping[str, Any], validation: Path | None) -> dict[str, Any]:
    """Return a plan's target with edges in the place of a number of strata."""
    if "edges" in given:
        raise ConfigError("plan: target: expected edges or strata, got both")
    if validation is None:
        raise ConfigError("plan: target: strata: expected validation data, or edges")
    rest = {name: value for name, value in given.items() if name != "strata"}
    numbers = load_data(validation, regression=True)[1]
    return {**rest, "edges": list(quantile_edges(numbers, given["strata"]))}


def _target_from(given: Mapping[str, Any]) -> Target:
    """Return a plan's target, with what it may leave out."""
    if "strata" in given:
        raise ConfigError("plan: target: expected edges; strata are counted in plan files alone")
    if "edges" not in given or "scale" not in given:
        raise ConfigError("plan: target: expected edges and scale")
    usual: dict[str, Any] = {"kind": "regression", "unit": ""}
    if "tolerance" not in given:
        usual["tolerance"] = Target((), given["scale"], given["scale"]).scale / TOLERANCE_OF_SCALE
    try:
        return Target.from_dict({**usual, **given})
    except ConfigError as exc:
        raise ConfigError(f"plan: {exc}") from None


def _parse_toml(path: Path, text: bytes) -> Any:
    try:
        import tomllib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ConfigError(
            f"{path}: this Python reads no TOML (3.11 on does): write it as JSON"
        ) from None
    return tomllib.loads(text.decode())


def load_data(path: Path, *, regression: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Read labelled points: ``x`` [points, features] and ``y`` [points].

    Parameters
    ----------
    path : Path
        ``.npz`` with the arrays x and y, or the safetensors file of a validation set.
    regression : bool
        Whether `y` are numbers to be learnt, float32; otherwise they are classes.

    Raises
    ------
    ConfigError
        The file is missing, too large, or holds something else. Nothing is ever unpickled.
    """
    try:
        if path.stat().st_size > DATA_BYTES_MAX:
            raise ConfigError(f"{path}: expected at most {DATA_BYTES_MAX} bytes")
        if path.suffix != ".npz":
            return load_validation_set(path.read_bytes(), regression=regression)
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            given = arrays["y"]
            if given.dtype.kind not in "biuf":
                raise ConfigError(f"{path}: y: expected numbers, got {given.dtype}")
            with np.errstate(invalid="ignore", over="ignore"):
                y = given.astype(np.float32 if regression else np.int64)
            if regression and not np.isfinite(y).all():
                raise ConfigError(f"{path}: y: expected finite numbers")
            if not regression and (y != given).any():
                wrong = given[y != given].flat[0]
                raise ConfigError(f"{path}: y: expected whole numbers, the classes, got {wrong}")
            return np.asarray(arrays["x"], np.float32), y
    except ConfigError:
        raise
    # A truncated or damaged file: numpy lets the errors of its readers through.
    except (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile, ZlibError) as exc:
        raise ConfigError(f"{path}: expected arrays x and y: {exc}") from exc


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"plan: {name}: expected {' or '.join(choices)}, got {value!r}")


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"plan: {name}: expected {low}..{high}, got {value!r}")


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
    "tuple[str, ...]": (list, tuple),
    "Mapping[str, Any]": (Mapping,),
    "Mapping[str, Any] | None": (Mapping, type(None)),
}


def _check_type(name: str, annotation: str, value: object) -> None:
    wanted = _TYPES[annotation]
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise ConfigError(f"plan: {name}: expected {annotation}, got {type(value).__name__}")
