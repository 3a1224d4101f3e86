"""What papers say about the order of methods, held against the leaderboard: every verdict is computed from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.methods.table import Row

SKEW = ("mnist-dirichlet", "fashion-dirichlet", "mnist-pathological", "cifar10-dirichlet")
DIRICHLET = ("mnist-dirichlet", "fashion-dirichlet", "cifar10-dirichlet")


class Side(NamedTuple):
    """A method and one of its views; without a view, the one it is made for."""

    method: str
    view: str = ""

    def __str__(self) -> str:
        return f"{self.method} ({self.view})" if self.view else self.method


class Claim(NamedTuple):
    """`better` is above `worse` in a figure; for bytes, below."""

    better: Side
    worse: Side
    settings: tuple[str, ...]
    source: str
    figure: str = "accuracy"

    def __str__(self) -> str:
        sign, what = ("<", " in bytes up") if self.figure == "bytes_up" else (">", "")
        return f"{self.better} {sign} {self.worse}{what}"


def _claim(text: str, settings: tuple[str, ...], source: str, figure: str = "accuracy") -> Claim:
    better, worse = (Side(*part.strip().split(":")) for part in text.split(">"))
    return Claim(better, worse, settings, source, figure)


FEDALA = "FedALA paper, tables 1 and 2 (practical: Dirichlet(0.1))"
PFLLIB = "PFLlib leaderboard, Dirichlet(0.1) and 2 labels"
CLAIMS = (
    _claim("fedala > fedavg", SKEW, FEDALA),
    _claim("fedavg-ft > fedavg", SKEW, FEDALA),
    _claim("fedavg-ft > per-fedavg", SKEW, FEDALA),
    _claim("fedala > fedavg-ft", SKEW, FEDALA),
    _claim("fedala > ditto", SKEW, FEDALA),
    _claim("fedala > fedrep", SKEW, FEDALA),
    _claim("fedala > fedfomo", SKEW, FEDALA),
    _claim("fedala > apple", SKEW, FEDALA),
    _claim("fedala > fedphp", SKEW, FEDALA),
    _claim("fedala > local", SKEW, "FedALA paper: what it personalises gains from others"),
    _claim("ditto > fedavg", SKEW, PFLLIB),
    _claim("apfl > fedavg", SKEW, PFLLIB),
    _claim("fedamp > fedavg", SKEW, PFLLIB),
    _claim("heurfedamp > fedavg", SKEW, "FedAMP paper: both forms above FedAvg under label skew"),
    _claim("fedfomo > fedavg", SKEW, PFLLIB),
    _claim("apple > fedavg", SKEW, PFLLIB),
    _claim("fedphp > fedavg", SKEW, FEDALA),
    _claim("pfedme > fedavg", SKEW, PFLLIB),
    _claim("pfedme > per-fedavg", SKEW, PFLLIB),
    _claim("per-fedavg > fedavg", SKEW, PFLLIB),
    _claim("fedper > fedavg", SKEW, PFLLIB),
    _claim("lg-fedavg > fedavg", SKEW, "LG-FedAvg paper, CIFAR-10 with 2 labels, local test"),
    _claim("fedrep > fedavg", SKEW, PFLLIB),
    _claim("fedrep > fedper", SKEW, PFLLIB),
    _claim("fedrod > fedavg", SKEW, PFLLIB),
    _claim("fedrod:global > fedavg", DIRICHLET, "FedRoD paper: balanced softmax helps the common model too"),
    _claim("fedbabu > fedavg", SKEW, PFLLIB),
    _claim("fedcp > fedper", SKEW, "FedCP paper, table 1"),
    _claim("fedcp > fedrep", SKEW, "FedCP paper, table 1"),
    _claim("fedcp > ditto", SKEW, "FedCP paper, table 1"),
    _claim("gpfl > fedrep", SKEW, "GPFL paper, table 1"),
    _claim("gpfl > fedproto", SKEW, "GPFL paper, table 1"),
    _claim("gpfl > fedavg", (*SKEW, "har-person"), "GPFL paper, table 1 and HAR"),
    _claim("feddbe > fedavg", SKEW, "FedDBE paper and PFLlib leaderboard"),
    _claim("feddbe > fedper", SKEW, PFLLIB),
    _claim("fedcac > fedavg", SKEW, "FedCAC paper: above FedAvg under label skew"),
    _claim("fedpac > fedavg", SKEW, "FedPAC paper: above FedAvg under label skew"),
    _claim("fedpac > fedrep", SKEW, "FedPAC paper: FedRep with alignment and mixed heads"),
    _claim("fedas > fedper", SKEW, "FedAS paper: alignment added to FedPer"),
    _claim("fedproto > local", SKEW, "FedProto paper: prototypes help clients that train alone"),
    _claim("feddistill > fedavg", SKEW, PFLLIB),
    _claim("fedproto > fedavg", SKEW, PFLLIB),
    _claim("fedbabu > fedper", SKEW, "PFLlib leaderboard, CIFAR-100 and AG News"),
    _claim("gpfl > fedavg", ("ag-news-dirichlet",), PFLLIB),
    _claim("fedbabu > fedala", ("ag-news-dirichlet",), "PFLlib leaderboard, AG News Dirichlet(1)"),
    _claim("feddbe > fedala", ("ag-news-dirichlet",), "PFLlib leaderboard, AG News Dirichlet(1)"),
    _claim(
        "scaffold > fedavg", SKEW, "SCAFFOLD paper; NIID-Bench finds it at 2 labels and small cohorts the other way"
    ),
    _claim("fedprox > fedavg", SKEW, "FedProx paper; later tables find them equal"),
    _claim("fednova > fedavg", DIRICHLET, "FedNova paper, CIFAR-10 Dirichlet(0.1)"),
    _claim("feddyn > fedavg", SKEW, "FedDyn paper; FL-Simulator, full tables"),
    _claim("moon > fedavg", SKEW, "MOON paper, table 1 (Dirichlet(0.5))"),
    _claim("fedgen > fedavg", ("mnist-dirichlet",), "FedGen paper, MNIST Dirichlet(0.1): 93.03 against 90.16"),
    _claim("fedntd > fedavg", SKEW, "FedNTD paper, 2 shards"),
    _claim("fedlc > fedavg", SKEW, "FedLC paper: label skew"),
    _claim("fedcross > fedavg", DIRICHLET, "FedCross paper, CIFAR-10 Dirichlet(0.1)"),
    _claim("mime > fedavg", ("shakespeare-role", *DIRICHLET), "Mime paper"),
    _claim("fedamd > fedavg", SKEW, "FedAMD paper"),
    _claim(
        "fedadam > fedavg", ("shakespeare-role", *DIRICHLET), "FedOpt paper; Flower's table of CIFAR-10 Dirichlet(0.1)"
    ),
    _claim(
        "fedyogi > fedavg", ("shakespeare-role", *DIRICHLET), "FedOpt paper; Flower's table of CIFAR-10 Dirichlet(0.1)"
    ),
    _claim(
        "fedavgm > fedavg", ("shakespeare-role", *DIRICHLET), "FedOpt paper; Flower's table of CIFAR-10 Dirichlet(0.1)"
    ),
    _claim("ifca > fedavg", SKEW, "IFCA paper: clients in groups"),
    _claim("pfa > fedavg", SKEW, "PFA paper: adapted in groups, above the common model"),
    _claim("distfl > fedavg", SKEW, "DistFL paper: one model for each distribution, above the common one"),
    _claim("btfl > fedavg", SKEW, "BTFL paper: on clients' own distribution above the common model"),
    _claim("btfl > btfl:global", SKEW, "BTFL paper: the mixture above its common head on own examples"),
    _claim("cfl > fedavg", ("mnist-pathological",), "CFL paper: groups with conflicting gradients"),
    _claim("central > fedavg", (), "pooled data bound what a common model can reach"),
    _claim("fedmtl > fedavg", ("har-person",), "MOCHA paper, human activity: related tasks above one common model"),
    _claim("local > fedavg", SKEW, "PFLlib and FedALA tables: under such skew every own model is above the common one"),
    _claim("marsit > fedavg", ("mnist-dirichlet",), "Marsit paper: one bit for each weight", "bytes_up"),
    _claim(
        "fedkd > fedavg", ("mnist-dirichlet",), "FedKD paper: less traffic than FedAvg on the large model", "bytes_up"
    ),
    _claim("fedproto > fedavg", ("mnist-dirichlet",), "FedProto paper: prototypes instead of models", "bytes_up"),
    _claim("feddistill > fedavg", ("mnist-dirichlet",), "FD paper: mean outputs instead of models", "bytes_up"),
    _claim("fedgh > fedavg", ("mnist-dirichlet",), "FedGH paper: class means instead of models", "bytes_up"),
)


class Verdict(NamedTuple):
    """A claim held against one setting, with the rows of both sides; without one, it has not been run."""

    claim: Claim
    setting: str
    word: str  # agrees, within noise, disagrees, or not run
    first: Row | None = None
    second: Row | None = None
    error: float = 0.0  # of the difference

    @property
    def better(self) -> float | None:
        """The figure of the method that is said to be better."""
        return self.first and self.first[self.claim.figure]

    @property
    def worse(self) -> float | None:
        """The figure of the other one."""
        return self.second and self.second[self.claim.figure]


def verdicts(rows: Sequence[Row], claims: Sequence[Claim] = CLAIMS) -> list[Verdict]:
    """Every claim on every setting that it is about; one without settings is about all that there are.

    A difference agrees or disagrees beyond two standard errors; in between it is within noise. Bytes have no noise.
    """
    found = []
    everywhere = tuple(dict.fromkeys(r["setting"] for r in rows))
    for claim in claims:
        for setting in claim.settings or everywhere:
            a, b = (_row(rows, setting, side) for side in (claim.better, claim.worse))
            if a is None or b is None or a.get(claim.figure) is None or b.get(claim.figure) is None:
                found.append(Verdict(claim, setting, "not run"))
                continue
            error = sum((r.get(f"{claim.figure}.se") or 0.0) ** 2 for r in (a, b)) ** 0.5
            gain = a[claim.figure] - b[claim.figure]
            gain = gain if claim.figure == "accuracy" else -gain
            word = "agrees" if gain > 2 * error else "disagrees" if gain < -2 * error else "within noise"
            found.append(Verdict(claim, setting, word, a, b, error))
    return found


def doubted(rows: Sequence[Row], claims: Sequence[Claim] = CLAIMS) -> list[tuple[str, str]]:
    """(setting, method) of all whose accuracy is in another order than papers say."""
    wrong = [v for v in verdicts(rows, claims) if v.word == "disagrees" and v.claim.figure == "accuracy"]
    return sorted({(v.setting, side.method) for v in wrong for side in (v.claim.better, v.claim.worse)})


def _row(rows: Sequence[Row], setting: str, side: Side) -> Row | None:
    for row in rows:
        wanted = row["view"] == side.view if side.view else row["headline"] == "yes"
        if wanted and (row["setting"], row["method"]) == (setting, side.method):
            return row
    return None
