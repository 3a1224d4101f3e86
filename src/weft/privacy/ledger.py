"""The ledger: what the rounds of a run have cost in privacy, in total.

Which statement holds depends on how clients are drawn:

- poisson: each client is in a round with the same chance, independently. What is protected is whether a client takes
  part in the run at all (add or remove one). Noise z C on a sum to which a client adds at most C.
- fixed: so many clients are drawn without replacement. What is protected is what a client holds, not that it takes
  part (replace one, among a known number). A sum can then move by 2 C, which makes the noise count for z / 2.
- local: each client adds its own noise, and the server knows who takes part, so drawing hides nothing. Replace one, and
  each turn of a client costs anew; the figure is that of the client with most turns.

All figures are from the package dp-accounting. Poisson, local and whole cohorts: the distribution of the privacy loss
(Koskela et al. 2020; Doroshenko et al. 2022), which is exact but for a grid that errs on the safe side. Fixed: the
smaller of that without drawing and of Renyi divergences with drawing (Wang, Balle, Kasiviswanathan 2019, Theorem 27),
for which no exact method is known; it is loose.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from weft.core.errors import SettingError

Drawing = Literal["poisson", "fixed", "local"]

ORDERS = np.unique(np.concatenate([np.arange(2, 65), np.geomspace(65, 256, 12), np.geomspace(257, 4096, 12)]).round())
"""Orders of Renyi divergences among which the best is taken; the bound of the theorem is for whole numbers."""


@dataclass(frozen=True)
class Ledger:
    """The cost of rounds that are all alike.

    Raises:
        SettingError: a number makes no sense, or no figure can be given.
    """

    drawing: Drawing
    noise_multiplier: float  # z: of everything that a round releases, together
    clients: int  # that can be drawn
    cohort: float  # that are drawn for a round, or their expected number
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise SettingError(
                f"delta = {self.delta} is no probability: use a number well below 1 / clients, such as 1e-5"
            )
        if not 0 < self.cohort <= self.clients:
            raise SettingError(f"cohort = {self.cohort} cannot be drawn from {self.clients} clients: use fewer")

    @property
    def chance(self) -> float:
        """Of a client to be in a round."""
        return self.cohort / self.clients

    def epsilon(self, rounds: int) -> float:
        """Epsilon after so many rounds; for local noise, after so many turns of one client."""
        if rounds == 0:
            return 0.0
        if self.noise_multiplier == 0:
            return math.inf
        if self.drawing == "poisson":
            return _by_loss(self.noise_multiplier, self.chance, rounds, self.delta)
        whole = _by_loss(self.noise_multiplier / 2, 1.0, rounds, self.delta)
        if self.drawing == "local" or self.cohort == self.clients:
            return whole
        from dp_accounting.rdp import rdp_privacy_accountant as rdp

        spent = rounds * _divergences(self.noise_multiplier / 2, self.clients, self.cohort)
        return min(whole, float(rdp.compute_epsilon(ORDERS, spent, self.delta)[0]))

    def fits(self, epsilon: float, most: int) -> int:
        """How many rounds, up to `most`, cost no more than `epsilon`."""
        low, high = 0, most
        if self.epsilon(most) <= epsilon:
            return most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.epsilon(middle) <= epsilon else (low, middle)
        return low

    def described(self) -> dict[str, Any]:
        """What any figure is about, as plain values."""
        hidden = "whether a client takes part" if self.drawing == "poisson" else "what a client holds"
        who = "the server" if self.drawing == "local" else "all who see the server's models"
        return {
            **asdict(self),
            "adjacency": "add or remove one client" if self.drawing == "poisson" else "replace one client",
            "protects": f"{hidden}, from {who}",
        }


def in_words(said: Mapping[str, Any]) -> str:
    """What a run says of its privacy, in a line: see `weft.experiment.protection`."""
    drawn = {"poisson": "Poisson sampling", "fixed": "fixed cohorts", "local": "noise at the clients"}[said["drawing"]]
    if said["epsilon"] is None:
        return "no privacy, since noise_multiplier = 0"
    text = f"epsilon = {said['epsilon']:.3g} at delta = {said['delta']:g} after {said['rounds']} rounds"
    if said["stopped_by_budget"]:
        text += f", and one more would pass the budget of {said['budget']:g}"
    seeded = "; noise from the seed, for experiments only" if said["noise"] == "stream" else ""
    return f"{text} ({said['adjacency']}; {drawn}{seeded}; figures on clients' data are not covered)"


def usual_delta(clients: int) -> float:
    """1 / clients^1.1, rounded down to two digits: below one in all clients."""
    exact = clients**-1.1
    digit = math.floor(math.log10(exact)) - 1
    return float(f"{math.floor(exact / 10.0**digit)}e{digit}")


def _needed() -> Any:
    try:
        import dp_accounting
    except ImportError:
        raise SettingError("a privacy ledger needs the package dp-accounting: pip install 'weft[privacy]'") from None
    return dp_accounting


@functools.lru_cache(maxsize=4096)
def _by_loss(z: float, chance: float, rounds: int, delta: float) -> float:
    """Epsilon of rounds of the Gaussian mechanism, each on a Poisson sample."""
    event = _needed().dp_event
    from dp_accounting.pld import PLDAccountant

    if chance == 1:  # rounds of plain noise are one round with less of it
        from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

        return float(get_epsilon_gaussian(z / math.sqrt(rounds), delta))
    one = event.PoissonSampledDpEvent(chance, event.GaussianDpEvent(z))
    spread = chance * math.sqrt(math.expm1(min(z**-2, 50.0)))  # of the loss of a round, roughly
    grid = min(1e-3, spread / 20)
    return float(PLDAccountant(value_discretization_interval=grid).compose(one, rounds).get_epsilon(delta))


@functools.lru_cache(maxsize=64)
def _divergences(z: float, clients: int, cohort: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Renyi divergences of one round on a sample without replacement."""
    made = _needed()
    event = made.dp_event.SampledWithoutReplacementDpEvent(clients, int(cohort), made.dp_event.GaussianDpEvent(z))
    with np.errstate(all="ignore"):
        found = made.rdp.RdpAccountant(ORDERS, made.NeighboringRelation.REPLACE_ONE).compose(event).rdp
    return np.nan_to_num(np.asarray(found, dtype=np.float64), nan=np.inf, posinf=np.inf)
