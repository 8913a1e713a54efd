"""Differential privacy of a device's updates: the terms in a task's card, the noise, the account.

The mechanism. A device clips its update to an L2 norm of at most C, adds Gaussian noise of standard
deviation z x 2 C to every parameter, and quantises; what it uploads, and what it says about it,
follows from the result alone.

What is protected is the device's whole data set, each time it uploads (device level). Neighbours
are any two data sets for which the device would declare the same classes and the same data cost:
its data replaced by any other. Two clipped updates lie at most 2 C apart, and that is the
sensitivity. The noise is complete on each device, so that the guarantee holds against everybody,
even where owner and validators collude and see the single update (local model).

The account. One round is a Gaussian mechanism with noise multiplier z; r rounds, each chosen in
view of those before, are one with z / sqrt(r) (Dong, Roth, Su 2022, corollary 3.3: r mechanisms
that are mu-GDP each compose to sqrt(r) mu). Epsilon follows from delta by the exact condition of
Balle and Wang 2018, theorem 8, which `dp-accounting` solves. Who sees nothing but the sum of k
updates, of which k - 1 come from honest devices, faces the noise of all: multiplier z sqrt(k). An
error of a single update on the chain would be more than the sum, so that a task which relies on the
second figure has its devices tell none (`update_error` of false) and goes without CSVES.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Any

from gradledger.errors import ConfigError, PrivacyError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["METADATA_KEY", "Privacy", "Spent", "gaussian"]

E6 = 1_000_000
E12 = 1_000_000_000_000
MECHANISM = "gaussian"
CLIP_NORM_E6_MAX = 2**32 - 1
NOISE_MULTIPLIER_E6_MAX = E12
DELTA_E12_MAX = E12 // 1_000  # 0.001: more is no small probability of losing everything
EPSILON_E6_MAX = 1_000 * E6  # more protects nothing
ROUNDS_MAX = 100_000
DEVICES_MAX = 65_535
MULTIPLIER_MIN = 0.01  # of all rounds together; epsilon is above 4,000 there
CUT_SIGMAS = 4.0  # the codec's bound, in standard deviations of the noise
METADATA_KEY = "privacy"  # of a model's file
SPENT_TEXT_MAX = 256

_BLOCK_VALUES = 1 << 18  # of noise in work at a time, so that memory stays small


@dataclass(frozen=True)
class Spent:
    """What a device has given away that took part in so many rounds.

    Attributes
    ----------
    rounds : int
    epsilon_e6 : int
        1e-6 units, rounded up.
    delta_e12 : int
        1e-12 units.
    """

    rounds: int
    epsilon_e6: int
    delta_e12: int

    def __post_init__(self) -> None:
        _check("rounds", self.rounds, 0, ROUNDS_MAX)
        _check("epsilon_e6", self.epsilon_e6, 0, EPSILON_E6_MAX)
        _check("delta_e12", self.delta_e12, 0, DELTA_E12_MAX)

    @property
    def epsilon(self) -> float:
        """Epsilon."""
        return self.epsilon_e6 / E6

    @property
    def delta(self) -> float:
        """Delta."""
        return self.delta_e12 / E12

    def to_text(self) -> str:
        """Return the JSON text that stands in a model's metadata."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Spent:
        """Read `to_text`. Raises PrivacyError, whatever the text."""
        try:
            if len(text) > SPENT_TEXT_MAX:
                raise ValueError(f"expected at most {SPENT_TEXT_MAX} characters")
            return cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as exc:
            raise PrivacyError(
                f"a model's metadata {METADATA_KEY}: expected rounds, epsilon_e6 and delta_e12: "
                f"{exc}"
            ) from None


@dataclass(frozen=True)
class Privacy:
    """What a task promises about every update; integers, so that all parties read the same.

    Parameters
    ----------
    clip_norm_e6 : int
        C, the largest L2 norm of an update, 1e-6 units.
    noise_multiplier_e6 : int
        z, the noise's standard deviation divided by the sensitivity 2 C, 1e-6 units.
    delta_e12 : int
        1e-12 units; at most 0.001.
    rounds : int
        For how many uploads of one device epsilon is computed; it makes no more.
    epsilon_e6 : int
        The claim: epsilon of so many uploads against who sees them singly, 1e-6 units, rounded up.
        Nobody believes it: see `check_claim`.
    update_error : bool
        Whether a device reports the error of the received model plus its noisy update, as CSVES
        needs it; otherwise that of the received model alone, which says nothing about the device.

    Raises
    ------
    ConfigError
        A field is outside its range.
    """

    clip_norm_e6: int
    noise_multiplier_e6: int
    delta_e12: int
    rounds: int
    epsilon_e6: int
    update_error: bool = True

    def __post_init__(self) -> None:
        if type(self.update_error) is not bool:
            raise ConfigError(
                f"privacy: update_error: expected true or false, got {self.update_error!r:.40}"
            )
        _check("clip_norm_e6", self.clip_norm_e6, 1, CLIP_NORM_E6_MAX)
        _check("noise_multiplier_e6", self.noise_multiplier_e6, 1, NOISE_MULTIPLIER_E6_MAX)
        _check("delta_e12", self.delta_e12, 1, DELTA_E12_MAX)
        _check("rounds", self.rounds, 1, ROUNDS_MAX)
        _check("epsilon_e6", self.epsilon_e6, 1, EPSILON_E6_MAX)

    # ---- making the terms ---------------------------------------------------------------------

    @classmethod
    def calibrate(
        cls,
        *,
        clip_norm: float,
        delta: float,
        rounds: int,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        update_error: bool = True,
    ) -> Privacy:
        """Return the terms with the least noise that keeps a bound, or with a given noise.

        Parameters
        ----------
        clip_norm : float
            C; rounded down to 1e-6.
        delta : float
            Above 0 and at most 0.001; rounded down to 1e-12.
        rounds : int
            Uploads of one device.
        epsilon : float, optional
            Bound over all `rounds`, above 0 and at most 1,000.
        noise_multiplier : float, optional
            z, in its place. Exactly one of the two; rounded up to 1e-6.
        update_error : bool
            As the attribute.

        Raises
        ------
        ConfigError
            An argument is nonsense, or the library is not installed.
        """
        if (epsilon is None) == (noise_multiplier is None):
            raise ConfigError("privacy: expected either epsilon or noise_multiplier")
        clip_norm_e6 = _scaled("clip_norm", clip_norm, E6, CLIP_NORM_E6_MAX, ROUND_FLOOR)
        delta_e12 = _scaled("delta", delta, E12, DELTA_E12_MAX, ROUND_FLOOR)
        _check("rounds", rounds, 1, ROUNDS_MAX)
        if noise_multiplier is not None:
            multiplier_e6 = _scaled(
                "noise_multiplier", noise_multiplier, E6, NOISE_MULTIPLIER_E6_MAX, ROUND_CEILING
            )
            reached = _epsilon(multiplier_e6 / E6, delta_e12, rounds)
        else:
            assert epsilon is not None
            bound_e6 = _scaled("epsilon", epsilon, E6, EPSILON_E6_MAX, ROUND_FLOOR)
            solve = _library().get_sigma_gaussian
            multiplier = float(solve(bound_e6 / E6, delta_e12 / E12)) * math.sqrt(rounds)
            multiplier_e6 = math.ceil(multiplier * E6)
            _check("noise_multiplier_e6", multiplier_e6, 1, NOISE_MULTIPLIER_E6_MAX)
            reached = _epsilon(multiplier_e6 / E6, delta_e12, rounds)
            if reached > bound_e6 / E6:  # the solver's tolerance
                multiplier_e6 += 1
                reached = _epsilon(multiplier_e6 / E6, delta_e12, rounds)
        claim_e6 = max(1, _up(reached))
        return cls(clip_norm_e6, multiplier_e6, delta_e12, rounds, claim_e6, update_error)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the task card."""
        return {"mechanism": MECHANISM, **asdict(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Privacy:
        """Read the JSON object of a task card. Raises ConfigError."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"privacy: expected an object, got {type(value).__name__}")
        fields = dict(value)
        if fields.pop("mechanism", None) != MECHANISM:
            raise ConfigError(f"privacy: expected the mechanism {MECHANISM}")
        try:
            return cls(**fields)
        except TypeError as exc:
            raise ConfigError(f"privacy: {exc}") from None

    # ---- what they mean -----------------------------------------------------------------------

    @property
    def clip_norm(self) -> float:
        """C, the largest L2 norm of an update."""
        return self.clip_norm_e6 / E6

    @property
    def noise_multiplier(self) -> float:
        """z, the noise's standard deviation divided by the sensitivity."""
        return self.noise_multiplier_e6 / E6

    @property
    def sensitivity(self) -> float:
        """2 C: how far apart the clipped updates of two data sets can lie, in L2."""
        return 2 * self.clip_norm

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise on each parameter."""
        return self.noise_multiplier * self.sensitivity

    @property
    def delta(self) -> float:
        """Delta, of all rounds together."""
        return self.delta_e12 / E12

    def epsilon(self, rounds: int | None = None, *, devices: int = 1) -> float:
        """Return epsilon at the task's delta.

        Parameters
        ----------
        rounds : int, optional
            Uploads of one device; by default as many as the budget is for.
        devices : int
            1: against who sees the device's updates singly. k: against who sees only sums of at
            least k updates, where k - 1 of the others are honest and add their noise, and no error
            of a single update (`update_error`). The second figure leaves aside that every device
            quantises its own update, and that the codec cuts (`check_codec`): take it as an
            estimate, the first as the guarantee.

        Raises
        ------
        PrivacyError
            So little noise that the statement is void.
        ConfigError
            The library is not installed.
        """
        count = self.rounds if rounds is None else rounds
        _check("rounds", count, 0, ROUNDS_MAX)
        _check("devices", devices, 1, DEVICES_MAX)
        if count == 0:
            return 0.0
        return _epsilon(self.noise_multiplier * math.sqrt(devices), self.delta_e12, count)

    def spent(self, rounds: int) -> Spent:
        """Return what a device has given away after so many uploads; never more than the budget."""
        count = min(rounds, self.rounds)
        return Spent(count, _up(self.epsilon(count)), self.delta_e12 if count else 0)

    def check_claim(self) -> None:
        """Compute epsilon from the noise and compare it with the claim.

        Raises
        ------
        PrivacyError
            The claim is another; it says what is right.
        ConfigError
            The library is not installed.
        """
        right = self.spent(self.rounds)
        if not _agree(right.epsilon_e6, self.epsilon_e6):
            raise PrivacyError(
                f"the card claims epsilon {self.epsilon_e6 / E6:g}; with its noise it is "
                f"{right.epsilon:g} (delta {self.delta:g}, {self.rounds} rounds)"
            )

    def check_spent(self, said: Spent, rounds: int) -> None:
        """Compare what a round's model says with what so many rounds cost. Raises PrivacyError."""
        right = self.spent(rounds)
        if (said.rounds, said.delta_e12) != (right.rounds, right.delta_e12) or not _agree(
            said.epsilon_e6, right.epsilon_e6
        ):
            raise PrivacyError(
                f"the model of round {rounds} says epsilon {said.epsilon:g} and delta "
                f"{said.delta:g} after {said.rounds} rounds; expected epsilon {right.epsilon:g} "
                f"and delta {right.delta:g} after {right.rounds}"
            )

    def check_codec(self, clip_e6: int) -> None:
        """Refuse a codec that would cut off much of the noise.

        The cut takes nothing from the guarantee, for it comes after the noise. But what is cut off
        is missing from the mean, which is drawn towards zero, and from the noise of the sum, so
        that the figure for the sum is void. A wider bound costs nothing: its steps of clip / 32768
        stay far below the noise.

        Parameters
        ----------
        clip_e6 : int
            The codec's bound on each parameter, 1e-6 units.

        Raises
        ------
        PrivacyError
            The bound is below 4 standard deviations of the noise.
        """
        clip = clip_e6 / E6
        if clip < CUT_SIGMAS * self.sigma:
            share = math.erfc(clip / (self.sigma * math.sqrt(2)))
            raise PrivacyError(
                f"privacy: the noise has standard deviation {self.sigma:.6g} on each parameter, "
                f"and clip {clip:g} would cut off {share:.2%} of the values and draw the mean "
                f"towards zero: expected clip of at least {CUT_SIGMAS * self.sigma:.6g}"
            )

    # ---- the mechanism ------------------------------------------------------------------------

    def clipped(self, update: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return an update with an L2 norm of at most C.

        Parameters
        ----------
        update : array of float, shape (parameters,)
            Finite. One of at most norm C is returned as it is.

        Returns
        -------
        ndarray of float64, shape (parameters,)
        """
        import numpy as np

        values = np.array(update, dtype=np.float64)
        if values.ndim != 1 or not np.isfinite(values).all():
            raise ConfigError("privacy: expected one row of finite values")
        # The largest value is taken out first, so that no square overflows or vanishes.
        largest = float(np.abs(values).max(initial=0.0))
        if largest == 0.0:
            return values
        norm = largest * float(np.linalg.norm(values / largest))
        if norm > self.clip_norm:
            # A little less than C / norm, so that no rounding leads back over C.
            values *= self.clip_norm / norm * (1 - 2.0**-40)
        return values

    def protect(self, update: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return an update clipped and with fresh noise; each call is a release of its own.

        Parameters
        ----------
        update : array of float, shape (parameters,)
            Finite.

        Returns
        -------
        ndarray of float64, shape (parameters,)
            Still to be quantised. Floating-point noise has patterns in its last bits (Mironov
            2012), which a step of the codec, some 10^11 times as wide, does not show.
        """
        values = self.clipped(update)
        for start in range(0, len(values), _BLOCK_VALUES):
            block = values[start : start + _BLOCK_VALUES]
            block += self.sigma * gaussian(len(block))
        return values


def gaussian(count: int) -> npt.NDArray[np.float64]:
    """Draw from N(0, 1) with the operating system's CSPRNG.

    Parameters
    ----------
    count : int

    Returns
    -------
    ndarray of float64, shape (count,)
        Box and Muller 1958. The radius takes 64 random bits and ends at 9.4, beyond which lies
        less than 10^-20 of the distribution; the angle takes 53.
    """
    import numpy as np

    pairs = -(-count // 2)
    bits = np.frombuffer(os.urandom(16 * pairs), dtype="<u8").reshape(2, pairs)
    radius = np.sqrt(-2.0 * np.log((bits[0].astype(np.float64) + 1.0) * 2.0**-64))
    angle = (bits[1] >> np.uint64(11)).astype(np.float64) * (2.0 * np.pi * 2.0**-53)
    drawn: npt.NDArray[np.float64] = np.concatenate(
        [radius * np.cos(angle), radius * np.sin(angle)]
    )
    return drawn[:count]


def _library() -> Any:
    """Load the accountant when it is first needed: it takes a second and is not always there."""
    try:
        import dp_accounting
    except ImportError as exc:
        raise ConfigError(
            "privacy: expected the package dp-accounting: pip install 'gradledger[privacy]'"
        ) from exc
    return dp_accounting


def _epsilon(multiplier: float, delta_e12: int, rounds: int) -> float:
    import numpy as np

    solve = _library().get_epsilon_gaussian
    together = multiplier / math.sqrt(rounds)
    if together < MULTIPLIER_MIN:
        raise PrivacyError(
            f"a noise multiplier of {multiplier:g} over {rounds} rounds protects nothing: expected "
            f"at least {MULTIPLIER_MIN * math.sqrt(rounds):g}"
        )
    with np.errstate(all="ignore"):  # the solver takes logarithms of zero on its way
        return float(solve(together, delta_e12 / E12))


def _up(epsilon: float) -> int:
    """Return epsilon in 1e-6 units, rounded up; refuse what protects nothing."""
    if not epsilon <= EPSILON_E6_MAX / E6:
        raise PrivacyError(
            f"expected noise for an epsilon of at most {EPSILON_E6_MAX // E6}, got {epsilon:g}"
        )
    return math.ceil(epsilon * E6)


def _agree(one_e6: int, other_e6: int) -> bool:
    """Whether two figures are one up to the rounding of different machines."""
    return abs(one_e6 - other_e6) <= 2


def _scaled(name: str, value: float, scale: int, most: int, rounding: str) -> int:
    """Return a positive number in units of 1 / scale, rounded to the safe side."""
    shown = f"expected a number above 0 and at most {most / scale:g}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"privacy: {name}: {shown}")
    if not math.isfinite(value) or not 0 < value <= most / scale:
        raise ConfigError(f"privacy: {name}: {shown}")
    units = int((Decimal(repr(value)) * scale).to_integral_value(rounding))
    if not units:
        raise ConfigError(f"privacy: {name}: expected at least {1 / scale:g}, got {value!r}")
    return units


def _check(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"privacy: {name}: expected {low}..{high}, got {value!r}")
