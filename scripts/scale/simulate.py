"""Rounds among clients that come and go: availability by the hour, dropouts, stragglers, deadlines.

A client is available with a probability that follows its local hour, independently from round to round. It belongs to
a class of devices for good; a turn takes it a log-normal time, then it uploads. What is left of its session is
exponential: if the session ends first, it drops out. The server invites clients uniformly among the available ones. It
closes the round when it has the reports it wants, or at the deadline; below the quorum the round is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

HOUR, DAY = 3600.0, 86400.0
LEAST, MOST, PEAK = 0.06, 0.25, 2.0
"""Share of clients that are available at their quietest and at their busiest hour, and that hour."""
SESSION = 1200.0  # mean seconds for which a client stays available
BREAKS = 0.01  # share of turns that fail for other reasons
SPREAD = 0.5  # of the logarithms of a class's times
PAUSE = 5.0  # seconds between rounds
SHARE = np.array([0.25, 0.5, 0.2, 0.05])  # of clients in a class of devices
TURN = np.array([20.0, 60.0, 180.0, 600.0])  # median seconds of a turn
UPLOAD = np.array([4e6, 1e6, 4e5, 1e5])  # median bytes per second
SLOW = 2  # the first class that counts as slow
COUNTRY = {0: 1.0}
WORLD = {-8: 0.05, -5: 0.08, -3: 0.06, 0: 0.08, 1: 0.1, 3: 0.1, 5.5: 0.2, 8: 0.25, 9: 0.08}  # hours from UTC -> share


@dataclass(frozen=True)
class Rounds:
    """Who is asked, and when a round ends; sizes in bytes, times in seconds."""

    clients: int
    wanted: int  # reports of a round
    zones: tuple[tuple[float, float], ...]
    extra: float = 1.0  # invited for each report that is wanted
    deadline: float = float("inf")
    quorum: float = 0.7  # of the reports wanted
    upload: float = 4e6  # of one report
    days: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of them."""

    available: tuple[float, float]  # clients, at the quietest and the busiest moment of a round's start
    per_day: float  # rounds that counted
    lost: float  # share of rounds below the quorum
    median: float  # seconds of a round
    slowest: float  # the 95th percentile
    reported: float  # counted reports for each invitation
    wasted: float  # share of clients' seconds of work that counted for nothing
    slow: float  # slow classes' share of the counted reports
    reached: float  # share of clients that counted at least once
    most: int  # rounds in which the busiest client counted
    bytes_day: float  # that arrived in time


def likely(local_hour: np.ndarray) -> np.ndarray:
    """The probability that a client is available."""
    wave = (1 + np.cos(2 * np.pi * (local_hour - PEAK) / 24)) / 2
    return LEAST + (MOST - LEAST) * wave


def class_of(ids: np.ndarray) -> np.ndarray:
    """A client's class of devices, from its number alone."""
    mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.searchsorted(np.cumsum(SHARE)[:-1], (mixed >> np.uint64(11)) / 2.0**53, side="right")


def simulate(given: Rounds) -> Outcome:
    """Play the rounds of so many days."""
    rng = np.random.default_rng(given.seed)
    offsets, shares = (np.array(x) for x in zip(*given.zones, strict=True))
    edges = np.round(np.concatenate([[0], np.cumsum(shares / shares.sum())]) * given.clients).astype(int)
    sizes = np.diff(edges)
    now, available, lasted, counted = 0.0, [], [], []
    invited = lost = 0
    spent = useful = sent = 0.0
    while now < given.days * DAY:
        there = rng.binomial(sizes, likely((now / HOUR + offsets) % 24))
        available.append(int(there.sum()))
        asked = min(round(given.wanted * given.extra), available[-1])
        each = rng.multivariate_hypergeometric(there, asked) if len(there) > 1 else np.array([asked])
        ids = np.concatenate([e + rng.choice(n, k, replace=False) for e, n, k in zip(edges, sizes, each, strict=False)])
        kind = class_of(ids)
        turn = TURN[kind] * np.exp(SPREAD * rng.standard_normal(asked))
        turn += given.upload / (UPLOAD[kind] * np.exp(SPREAD * rng.standard_normal(asked)))
        session = rng.exponential(SESSION, asked)
        done = (session > turn) & (rng.random(asked) > BREAKS)
        ends = np.sort(turn[done])
        enough = ends[given.wanted - 1] if len(ends) >= given.wanted else np.inf
        over = np.maximum(turn[done].max(initial=0.0), session[~done].max(initial=0.0))  # nobody is left
        close = min(enough, given.deadline, over)
        good = done & (turn <= close)
        invited += asked
        spent += float(np.minimum(np.minimum(turn, session), close).sum())
        sent += given.upload * int((done & (turn <= close)).sum())
        if good.sum() >= given.quorum * given.wanted:
            counted.append(ids[good])
            useful += float(turn[good].sum())
            lasted.append(close)
        else:
            lost += 1
        now += close + PAUSE
    heard = np.concatenate(counted) if counted else np.zeros(0, np.int64)
    times = np.unique(heard, return_counts=True)[1]
    return Outcome(
        available=(float(min(available)), float(max(available))),
        per_day=len(lasted) / given.days,
        lost=lost / (lost + len(lasted)),
        median=float(np.median(lasted)) if lasted else float("nan"),
        slowest=float(np.quantile(lasted, 0.95)) if lasted else float("nan"),
        reported=len(heard) / invited,
        wasted=1 - useful / spent,
        slow=float((class_of(heard) >= SLOW).mean()) if len(heard) else float("nan"),
        reached=len(times) / given.clients,
        most=int(times.max(initial=0)),
        bytes_day=sent / given.days,
    )


def cases() -> dict[str, Rounds]:
    """The rounds of docs/scale.md."""
    country, world = tuple(COUNTRY.items()), tuple(WORLD.items())
    small = Rounds(10**4, 100, country)
    strict = {"extra": 1.3, "deadline": 300.0}
    return {
        "10⁴ clients, 100 wanted, waits for all": small,
        "10⁴ clients, 100 wanted": replace(small, **strict),
        "10⁴ clients, 1,000 wanted": replace(small, wanted=1000, **strict),
        "10⁶ clients, 1,000 wanted, waits for all": Rounds(10**6, 1000, country),
        "10⁶ clients, 1,000 wanted": Rounds(10**6, 1000, country, **strict),
        "10⁶ clients, 1,000 wanted, 60 s": Rounds(10**6, 1000, country, extra=2.0, deadline=60.0),
        "10⁸ clients, 10,000 wanted": Rounds(10**8, 10_000, world, **strict),
    }


if __name__ == "__main__":
    for name, given in cases().items():
        print(f"{name}: {simulate(given)}")
