"""From settings to what protects the clients of a run: differential privacy with its ledger, and secure aggregation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from weft.core.clients import Clients
from weft.core.errors import SettingError
from weft.core.method import Method
from weft.data.federated import FederatedData
from weft.experiment.assemble import assembled
from weft.experiment.cohort import able, cohort, expected
from weft.experiment.settings import RunSettings
from weft.privacy.ledger import Ledger, usual_delta
from weft.privacy.private import Privacy


@dataclass(frozen=True)
class Protection:
    """The differential privacy of a run: its mechanism, its ledger, and the last round that the budget pays for."""

    privacy: Privacy
    ledger: Ledger
    budget: float  # 0: none
    last: int  # rounds that are played
    planned: int  # rounds that were asked for
    most: float  # epsilon after the last round

    def spent(self, done: int, turns: Tensor) -> int:
        """What the ledger counts after `done` rounds: rounds, or turns of the client with most."""
        return int(turns.max()) if self.privacy.where == "local" else done

    def statement(self, done: int, turns: Tensor) -> dict[str, Any]:
        """What may be said so far: before the end what may be said at the end, which is no less."""
        ended = done >= self.last
        epsilon = self.ledger.epsilon(self.spent(done, turns)) if ended else self.most
        return {
            "dp": self.privacy.where,
            "clip_norm": self.privacy.clip_norm,
            "adaptive_clip": self.privacy.quantile,
            "noise": self.privacy.source,
            **self.ledger.described(),
            "rounds": done if ended else self.last,
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "budget": self.budget or None,
            "stopped_by_budget": self.last < self.planned,
        }


def protection(method: Method, data: FederatedData, settings: RunSettings) -> Protection | None:
    """How a run's clients are protected, or None.

    Raises:
        SettingError: settings of privacy without any, numbers that make no sense, or a budget that pays for no round.
    """
    if settings.dp == "none":
        for name in ("epsilon", "delta", "adaptive_clip"):
            if getattr(settings, name):
                raise SettingError(
                    f"{name} = {getattr(settings, name):g} is a setting of differential privacy: add --dp central or "
                    f"--dp local; an option of the method with this name is written {method.name}:{name}=..."
                )
        return None
    there = len(able(data))
    size = expected(there, settings)
    privacy = Privacy(
        settings.dp,
        size,
        settings.clip_norm,
        settings.noise_multiplier,
        settings.adaptive_clip,
        source=settings.dp_noise,
    )
    if settings.epsilon < 0 or not math.isfinite(settings.epsilon):
        raise SettingError(f"epsilon = {settings.epsilon} is no budget: use a number above 0, or leave it out")
    drawing = "local" if privacy.where == "local" else settings.sampling
    ledger = Ledger(drawing, privacy.noise_multiplier, there, size, settings.delta or usual_delta(there))
    counts = _counts(method, data, settings) if drawing == "local" else np.arange(1, settings.rounds + 1)
    last = settings.rounds
    if settings.epsilon:
        pays = ledger.fits(settings.epsilon, int(counts[-1]))
        last = int(np.searchsorted(counts, pays, side="right"))
        if not last:
            raise SettingError(
                f"epsilon = {settings.epsilon:g} does not pay for a single round, which costs {ledger.epsilon(1):.3g}: "
                f"use a noise_multiplier above {privacy.noise_multiplier:g}, or a smaller cohort"
            )
    most = ledger.epsilon(int(counts[last - 1]))
    if drawing == "poisson" and size < there:
        never = last * (1 - ledger.chance) ** there
        if math.isfinite(most) and never * (1 + math.exp(min(most, 700.0))) > ledger.delta / 1000:
            raise SettingError(
                f"sampling = poisson with cohort = {settings.cohort:g} may leave a round without clients, which "
                f"delta = {ledger.delta:g} does not allow for: use a larger cohort, or --sampling fixed"
            )
    return Protection(privacy, ledger, settings.epsilon, last, settings.rounds, most)


def _counts(method: Method, data: FederatedData, settings: RunSettings) -> np.ndarray[Any, np.dtype[np.int64]]:
    """After each round, how many turns the client has had that has had most."""
    turns, most = np.zeros(data.clients(), dtype=np.int64), []
    for number in range(1, settings.rounds + 1):
        turns[cohort(method, able(data), settings, number).numpy()] += 1
        most.append(int(turns.max()))
    return np.array(most)


def secured(clients: Clients, method: Method, settings: RunSettings) -> Clients:
    """The clients behind secure sums, if the run asks for it; they must have begun with `as_sent`."""
    if not settings.secure_aggregation:
        return clients
    from weft.privacy.secure_clients import SecureClients

    session = f"seed {settings.seed}".encode()
    return SecureClients(
        clients, method, session, settings.secure_range, settings.secure_weight, settings.secure_threshold
    )


def with_parts(
    method: Method, data: FederatedData, settings: RunSettings, guard: Protection | None
) -> tuple[Method, Method]:
    """(the method with the run's codec, reduction, statistics and privacy on it, the same as clients have it).

    Raises:
        SettingError: they do not go together.
    """
    parts = assembled(method, settings, guard.privacy if guard else None)
    return parts, as_sent(parts, data, settings)


def as_sent(method: Method, data: FederatedData, settings: RunSettings) -> Method:
    """The method as clients have it: with secure aggregation their uploads are not reduced where they are.

    Raises:
        SettingError: the run cannot be aggregated securely.
    """
    if not settings.secure_aggregation:
        return method
    from weft.privacy.fixed_point import FixedPoint
    from weft.privacy.secure_clients import singly

    if settings.sampling == "poisson":
        raise SettingError(
            "secure_aggregation needs at least two clients in a round, and sampling = poisson may draw fewer"
        )
    size = int(expected(len(able(data)), settings)) if "pooled data" not in method.needs else 1
    if size < 2:
        raise SettingError("secure_aggregation of a single client hides nothing: use a cohort of 2 or more")
    if not settings.secure_weight > 0:
        raise SettingError(f"secure_weight = {settings.secure_weight:g} is no largest weight: use a number above 0")
    least = size // 2 + 1
    if settings.secure_threshold and not least <= settings.secure_threshold <= size:
        raise SettingError(
            f"secure_threshold = {settings.secure_threshold} is not more than half of a cohort of {size}, and "
            f"at most all: use from {least} to {size}, or 0"
        )
    FixedPoint(size, settings.secure_range)
    return singly(method)
