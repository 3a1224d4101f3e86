"""Privacy as settings of a run: what is said, what is refused, and where a budget ends it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dp_accounting", reason="the ledger needs the package dp-accounting")
pytest.importorskip("cryptography", reason="secure aggregation needs the package cryptography")

from tests.experiment.small import RUN, archive, bits, snapshot, source, weft

from weft.data.federate import federate
from weft.experiment.api import reopen
from weft.experiment.cohort import able, cohort
from weft.experiment.settings import RunSettings
from weft.methods.fedavg import fedavg
from weft.privacy.ledger import Ledger

DP = ["--dp", "central", "--clip-norm", 0.5, "--noise-multiplier", 4, "--delta", 1e-3]
ADAPTIVE = [*DP, "--adaptive-clip", 0.5, "--noise-multiplier", 0.3]


@pytest.fixture
def words(tmp_path: Path) -> list[Any]:
    return ["run", "fedavg", "--data", archive(tmp_path / "small.npz"), *RUN, "--quiet"]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_the_ledger_is_told(words: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert weft(*words, *DP, "--cohort", 2, "--out", out) == 0
    said = summary(out)["privacy"]
    exact = Ledger("fixed", 4.0, 4, 2, 1e-3).epsilon(4)
    assert said["epsilon"] == pytest.approx(exact)
    assert (said["adjacency"], said["rounds"], said["clip_norm"]) == ("replace one client", 4, 0.5)
    text = f"epsilon = {exact:.3g} at delta = 0.001 after 4 rounds"
    assert text in " ".join(capsys.readouterr().out.split())
    assert text in (out / "report.html").read_text()
    note = json.loads((out / "checkpoint" / "round-000004" / "state.json").read_text())
    assert note["extra"]["privacy"] == {
        "drawing": "fixed", "noise_multiplier": 4.0, "clients": 4, "cohort": 2, "delta": 1e-3, "rounds": 4
    }  # fmt: skip


def test_a_run_ends_before_its_budget_is_passed(
    words: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, ledger = tmp_path / "run", Ledger("fixed", 4.0, 4, 4, 1e-3)
    budget = (ledger.epsilon(2) + ledger.epsilon(3)) / 2
    assert weft(*words, *DP, "--epsilon", budget, "--out", out) == 0
    found = summary(out)
    assert (found["rounds"], found["finished"], found["privacy"]["stopped_by_budget"]) == (2, True, True)
    assert found["privacy"]["epsilon"] == pytest.approx(ledger.epsilon(2)) and ledger.epsilon(2) <= budget
    assert "after 2 rounds, and one more would pass the budget" in " ".join(capsys.readouterr().out.split())
    assert [p.name for p in sorted((out / "checkpoint").iterdir())] == ["round-000001", "round-000002"]
    assert weft(*words, *DP, "--epsilon", budget, "--out", out, "--resume") == 0  # no round is left
    assert summary(out)["rounds"] == 2


def test_local_noise_is_counted_by_the_client_with_most_turns(words: list[Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [*words, *DP[2:], "--dp", "local", "--cohort", 0.25, "--seed", 3]
    assert weft(*options, "--out", out) == 0
    most = int(reopen(out).federation.turns.max())
    assert 1 <= most < 4
    ledger = Ledger("local", 4.0, 4, 1, 1e-3)
    assert summary(out)["privacy"]["epsilon"] == pytest.approx(ledger.epsilon(most))
    short = tmp_path / "short"
    assert weft(*options, "--epsilon", ledger.epsilon(1) * 1.01, "--out", short) == 0
    found = reopen(short)
    assert found.federation.turns.max() == 1 and summary(short)["rounds"] < 4


@pytest.mark.parametrize("more", [DP, ADAPTIVE, ["--secure-aggregation"]])
def test_killed_and_resumed_has_the_same_bits(words: list[Any], tmp_path: Path, more: list[Any]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert weft(*words, *more, "--out", whole) == 0
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoint" / "round-000004")  # as if killed in round 4
    assert weft(*words, *more, "--out", cut, "--resume") == 0
    assert bits(whole) == bits(cut)


def test_a_ledger_of_other_noise_is_refused(
    words: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert weft(*words, *DP, "--out", out) == 0
    path = out / "checkpoint" / "round-000004" / "state.json"
    note = json.loads(path.read_text())
    note["extra"]["privacy"]["noise_multiplier"] = 9.0
    path.write_text(json.dumps(note))
    assert weft(*words, *DP, "--out", out, "--resume") == 2
    assert "is of another noise or cohort" in capsys.readouterr().err


def test_secure_aggregation_gives_the_same_model(words: list[Any], tmp_path: Path) -> None:
    plain, secure = tmp_path / "plain", tmp_path / "secure"
    assert weft(*words, "--precision", "fp64", "--out", plain) == 0
    assert weft(*words, "--precision", "fp64", "--secure-aggregation", "--out", secure) == 0
    a, b = (reopen(p).federation.server.model for p in (plain, secure))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) <= 1e-9
    assert summary(secure)["secure_aggregation"] and not summary(plain)["secure_aggregation"]
    assert summary(secure)["cost"]["bytes_up"] > summary(plain)["cost"]["bytes_up"]


def test_poisson_cohorts_vary_and_are_fair(words: list[Any], tmp_path: Path) -> None:
    data = federate(source(), clients=20, alpha=5.0)
    settings = RunSettings(sampling="poisson", cohort=0.3)
    drawn = [cohort(fedavg(), able(data), settings, n).numpy() for n in range(1, 801)]
    sizes = np.array([len(d) for d in drawn])
    assert sizes.mean() == pytest.approx(6, abs=0.3) and sizes.var() == pytest.approx(20 * 0.3 * 0.7, rel=0.2)
    often = np.bincount(np.concatenate(drawn), minlength=20) / 800
    assert np.abs(often - 0.3).max() < 0.07


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--epsilon", 3], "epsilon = 3 is a setting of differential privacy: add --dp central or --dp local"),
        (["--adaptive-clip", 0.5], "adaptive_clip = 0.5 is a setting of differential privacy"),
        ([*DP, "--epsilon", 1e-6], "does not pay for a single round, which costs"),
        ([*DP, "--epsilon", -1], "epsilon = -1.0 is no budget"),
        ([*DP, "--noise-multiplier", 0, "--epsilon", 5], "does not pay for a single round, which costs inf"),
        ([*DP, "--delta", 2], "delta = 2.0 is no probability"),
        ([*DP, "--sampling", "poisson", "--cohort", 2], "may leave a round without clients"),
        ([*DP, "--compress", "topk:0.1"], "the codec on channel 'model'"),
        ([*DP, "--aggregate", "median"], "dp = central needs sums"),
        (["--secure-aggregation", "--aggregate", "median"], "needs every upload on channel 'model'"),
        (["--secure-aggregation", "--cohort", 0.25], "use a cohort of 2 or more"),
        (["--secure-aggregation", "--secure-threshold", 2], "secure_threshold = 2 is not more than half of a cohort"),
        (["--secure-aggregation", "--secure-range", 1e15], "secure_range = 1e+15 and 4 clients leave"),
        (["--secure-aggregation", "--secure-weight", 0], "secure_weight = 0 is no largest weight"),
        (["--secure-aggregation", "--sampling", "poisson"], "sampling = poisson may draw fewer"),
    ],
)
def test_refused(
    words: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[Any], says: str
) -> None:
    before = snapshot(tmp_path)
    assert weft(*words, *options, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_runs_of_several_seeds_are_one_program_and_the_same(words: list[Any], tmp_path: Path) -> None:
    models = []
    for policy in ("always", "never"):
        out = tmp_path / policy
        options = [*words[2:], *ADAPTIVE, "--precision", "fp64", "--seeds", 2, "--together", policy, "--out", out]
        assert weft("compare", "fedavg", *options) == 0
        found = sorted(p.parent for p in out.rglob("settings.yaml"))
        assert len(found) == 2
        models.append([reopen(p).federation.server for p in found])
    for together, alone in zip(*models, strict=True):
        assert max(float((together.inner.model[k] - v).abs().max()) for k, v in alone.inner.model.items()) <= 1e-9
        assert float(together.clip["norm"]) == pytest.approx(float(alone.clip["norm"]), abs=1e-12)
