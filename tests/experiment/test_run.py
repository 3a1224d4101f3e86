"""The run: who takes part, who is only judged, what a bad upload does, and what becomes of running statistics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.experiment.small import RUN, archive, bits, figures, source, weft
from torch import Tensor, nn

import weft as api
from weft.core.errors import SettingError
from weft.core.method import Phase
from weft.core.round import NotFinite
from weft.core.task import Data
from weft.data.federated import FederatedData
from weft.data.source import Source
from weft.executors import loop
from weft.experiment.cohort import able, cohort
from weft.experiment.run import Run
from weft.experiment.settings import RunSettings

OWNER = np.arange(180) % 6


def people(**given: Any) -> FederatedData:
    """Six natural clients of thirty examples."""
    return api.federate(source(owner=OWNER, **given), partition="natural")


def prepared(method: Any, data: FederatedData, model: Any = None, **settings: Any) -> Run:
    chosen = RunSettings(**{"model": "logistic", "rounds": 3, **settings})
    return Run.prepare(method if not isinstance(method, str) else getattr(api, method)(), data, chosen, model)


def cohorts(run: Run, rounds: int) -> list[list[int]]:
    return [cohort(run.method, able(run.data), run.settings, n).tolist() for n in range(1, rounds + 1)]


@pytest.mark.parametrize(("cohort", "size"), [(1.0, 6), (0.5, 3), (0.01, 1), (2, 2), (6, 6)])
def test_cohorts_have_their_size(cohort: float, size: int) -> None:
    for ids in cohorts(prepared("fedavg", people(), cohort=cohort), 20):
        assert len(ids) == len(set(ids)) == size and ids == sorted(ids)


def test_cohorts_are_uniform_and_follow_the_seed() -> None:
    drawn = cohorts(prepared("fedavg", people(), cohort=2), 600)
    counts = np.bincount(np.concatenate(drawn), minlength=6)
    assert counts.min() > 150 and counts.max() < 250
    assert drawn == cohorts(prepared("scaffold", people(), cohort=2, epochs=3), 600)
    assert drawn != cohorts(prepared("fedavg", people(), cohort=2, seed=1), 600)


def test_clients_outside_the_cohort_have_no_turn(tmp_path: Path) -> None:
    result = api.run("ditto", people(), model="logistic", rounds=4, cohort=2, out=tmp_path / "r")
    run = prepared("ditto", people(), rounds=4, cohort=2)
    turns = np.bincount(np.concatenate(cohorts(run, 4)), minlength=6)
    assert result.federation.turns.tolist() == turns.tolist()
    found = figures(tmp_path / "r")
    for number in range(1, 5):
        assert (number, "test", "personal", "absent", -1, "accuracy") in found
        assert (number, "test", "personal", "participating", -1, "accuracy") in found


@pytest.mark.parametrize("method", ["fedavg", "ditto", "local", "central"])
def test_new_clients_are_judged_and_never_train(method: str, tmp_path: Path) -> None:
    """Whatever their training examples are, all models stay the same."""
    data = api.federate(source(owner=OWNER), partition="natural", new_clients=0.4)
    assert len(data.unseen) == 2
    spoiled = data.source.x.copy()
    for k in data.unseen:
        spoiled[data.train.client(k)] = np.nan
    with np.errstate(all="ignore"):
        other = _with_x(data, spoiled)
    a, b = (api.run(method, d, model="logistic", rounds=2) for d in (data, other))
    for x, y in zip(_leaves(a), _leaves(b), strict=True):
        assert torch.equal(x, y)
    assert a.federation.turns[data.unseen].tolist() == [0, 0]
    rows = a.history.to_pylist()
    assert any(r["group"] == "new" and r["split"] == "test" for r in rows)
    judged = api.run(method, data, model="logistic", rounds=2, out=tmp_path / "r").history.to_pylist()
    assert {r["client"] for r in judged if r["group"] == "new"} == {-1, *data.unseen.tolist()}
    assert not {r["client"] for r in judged if r["group"] == "all"} & set(data.unseen.tolist())


def _with_x(data: FederatedData, x: Any) -> FederatedData:
    """The same partition of other examples, which may be none that a source would take."""
    changed = object.__new__(Source)
    for name, value in {**vars(data.source), "x": x}.items():
        object.__setattr__(changed, name, value)
    return FederatedData(changed, **data.splits(), protocol=data.protocol, manifest=data.manifest, unseen=data.unseen)


def _leaves(result: Any) -> list[Tensor]:
    federation = result.federation
    return torch.utils._pytree.tree_leaves((federation.server, [result.here.states(g.ids) for g in federation.groups]))


def drawn(run: Run, number: int, ids: Sequence[int]) -> Tensor:
    """Row numbers of the batches of some clients' first turn."""
    none = torch.zeros(len(ids), dtype=torch.int64)
    return run.here.draw(number, torch.tensor(ids), run.federation.method.phases, none).steps["local"]


def test_stragglers_make_fewer_epochs() -> None:
    """Their steps are whole epochs between 1 and the run's; who is late changes from round to round."""
    run = prepared("fedavg", people(), epochs=4, stragglers=0.5, batch_size=0)
    found = []
    for number in range(1, 60):
        found.append((drawn(run, number, range(6)) >= 0).any(2).sum(1).tolist())
    steps = np.array(found)
    assert set(steps.flatten().tolist()) == {1, 2, 3, 4}
    late = (steps < 4).mean(0)  # half of the clients, three quarters of whom lose an epoch or more
    assert (np.abs(late - 0.375) < 0.2).all() and len({tuple(s) for s in found}) > 20
    everyone = prepared("fedavg", people(), epochs=1, stragglers=1.0)
    assert (
        everyone.here.draw(1, torch.arange(6), everyone.federation.method.phases, torch.zeros(6).long()).steps["local"]
        >= 0
    ).any()


def test_stragglers_are_the_same_under_every_cohort() -> None:
    run = prepared("fedavg", people(), epochs=4, stragglers=0.5, batch_size=0)
    every, some = (
        run.here.draw(3, torch.tensor(ids), run.federation.method.phases, torch.zeros(len(ids)).long())
        for ids in (range(6), [1, 4])
    )
    counts = [(t.steps["local"] >= 0).any(2).sum(1) for t in (every, some)]
    assert counts[0][[1, 4]].tolist() == counts[1].tolist()


def poisoned() -> FederatedData:
    """Client 2 has one training example with an infinite feature."""
    plain = people()
    x = plain.source.x.copy()
    x[plain.train.client(2)[0]] = np.inf
    return _with_x(plain, x)


def test_a_bad_upload_stops_the_run_by_name() -> None:
    with pytest.raises(NotFinite, match="round 1: what client 2 sent on channel 'model' is not finite"):
        api.run("fedavg", poisoned(), model="logistic", rounds=2)


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "ditto"])
@pytest.mark.parametrize("executor", ["batched", "loop"])
def test_without_the_bad_upload_the_round_of_the_others_completes(method: str, executor: str) -> None:
    skipped = api.run(method, poisoned(), model="logistic", rounds=2, on_nan="skip", executor=executor)
    assert skipped.federation.turns.tolist() == [2, 2, 0, 2, 2, 2]
    data = people()
    absent = FederatedData(
        data.source, **data.splits(), protocol=data.protocol, manifest=data.manifest, unseen=np.array([2])
    )
    others = api.run(method, absent, model="logistic", rounds=2, executor=executor)
    for k in others.federation.server.model:
        if method != "scaffold":  # whose server divides by the whole population
            assert skipped.federation.server.model[k].allclose(others.federation.server.model[k], atol=1e-6)
        assert skipped.federation.server.model[k].isfinite().all()


def test_divergence_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "fedavg", "--lr", "1e39", *RUN, "--quiet", "--data", archive(tmp_path / "data.npz")]
    assert weft(*words, "--out", tmp_path / "a") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "round 1: what client 0, 1, 2, 3 sent" in said and "--on-nan skip" in said
    assert weft(*words, "--on-nan", "skip", "--out", tmp_path / "b") == 0
    found = figures(tmp_path / "b")
    still = {found[n, "test", "global", "all", -1, "accuracy"] for n in range(1, 5)}
    assert len(still) == 1  # nobody's upload counts, so the model stands still


def test_a_run_that_diverged_late_goes_on_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third round fails once; the folder is whole, and resuming repeats that round."""
    from weft.experiment import run as running

    words = ["run", "ditto", *RUN, "--quiet", "--data", archive(tmp_path / "data.npz"), "--out"]
    assert weft(*words, tmp_path / "whole") == 0
    play = running.play

    def failing(federation: Any, number: int, *rest: Any, **more: Any) -> Any:
        if number == 3:
            raise NotFinite(3, [1], "model")
        return play(federation, number, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(running, "play", failing)
        assert weft(*words, tmp_path / "run") == 1
    assert weft(*words, tmp_path / "run", "--resume") == 0
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def test_mixed_architectures_where_they_are_allowed() -> None:
    result = api.run("local", people(), model=["logistic", "mlp"], rounds=2)
    assert [g.ids.tolist() for g in result.federation.groups] == [[0, 2, 4], [1, 3, 5]]
    assert [len(g.net.init(0)) for g in result.federation.groups] == [2, 4]
    for k in range(6):
        assert result.predictor(client=k)(people().source.x[:3]).shape == (3, 3)
    same = api.run("fedproto", people(), model="mlp,mlp", rounds=2)
    assert len(same.federation.groups) == 2
    with pytest.raises(SettingError, match="fedavg needs one architecture for all clients, and model names 2"):
        api.run("fedavg", people(), model="logistic,mlp", rounds=2)
    with pytest.raises(SettingError, match="fedproto averages prototypes.* widths 4 and 100"):
        api.run("fedproto", people(), model="logistic,mlp", rounds=2)


class Residual(nn.Module):
    """A convolution, batch norm, one residual block, pooling, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.block, self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.second(self.block(x)))
        return self.head(x.mean((2, 3)))


STATISTICS = {f"{n}.running_{s}" for n in ("norm", "second") for s in ("mean", "var")}


def pictures() -> FederatedData:
    """Four clients whose pictures differ in brightness."""
    rng = np.random.default_rng(0)
    owner = np.arange(120) % 4
    x = rng.integers(0, 60, (120, 1, 5, 5)) + 60 * owner[:, None, None, None]
    made = Source(
        "pictures", "image", x.astype(np.uint8), np.arange(120) % 3, 3, np.arange(120) >= 80, owner, None,
        np.zeros(1, np.float32), np.full(1, 1 / 255, np.float32),
    )  # fmt: skip
    return api.federate(made, partition="natural", validation=0.0)


def judged(method: str, buffers: str, **settings: Any) -> Any:
    return api.run(
        method, pictures(), model=Residual, buffers=buffers, **{"rounds": 2, "precision": "fp64", **settings}
    )


def test_averaged_statistics_travel_and_are_the_weighted_mean() -> None:
    run = prepared("fedavg", pictures(), Residual, buffers="average", precision="fp64", rounds=1)
    start = run.federation.server.model
    sizes = torch.tensor(run.data.train.counts, dtype=torch.float64)
    turn = run.here.draw(1, torch.arange(4), run.federation.method.phases, torch.zeros(4).long())
    reply = loop(run.federation.method, run.federation.net, run.federation.server, run.here.states(torch.arange(4)),
                 run.here.examples, turn, None)  # fmt: skip
    ends = {k: start[k] + torch.tensordot(sizes / sizes.sum(), reply.up.model[k], 1) for k in STATISTICS}
    model = run.go().federation.server.model
    assert set(model) >= STATISTICS
    for k in STATISTICS:
        assert model[k].allclose(ends[k], atol=1e-12) and not torch.equal(model[k], start[k])


def test_local_statistics_are_on_no_channel_and_differ() -> None:
    data = pictures()
    run = prepared("fedavg", data, Residual, buffers="local", precision="fp64")
    whole = prepared("fedavg", data, Residual, buffers="average", precision="fp64")
    assert not set(run.federation.server.model) & STATISTICS
    statistics = sum(v.nbytes for k, v in whole.federation.server.model.items() if k in STATISTICS)
    assert [r["tensors"] for r in run.probe.wire] == [8, 8] and [r["tensors"] for r in whole.probe.wire] == [12, 12]
    for there, here in zip(whole.probe.wire, run.probe.wire, strict=True):  # and the names take some bytes
        assert there["bytes"] - here["bytes"] > statistics
    result = run.go()
    assert not set(result.federation.server.model) & STATISTICS
    own = result.here.states(torch.arange(4)).method.buffers
    assert set(own) == STATISTICS
    brightness = own["norm.running_mean"].norm(dim=1)
    assert len(set(brightness.tolist())) == 4


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "ditto", "fedprox", "fedbn", "local"])
@pytest.mark.parametrize("buffers", ["average", "local"])
def test_both_executors_agree_under_every_policy(method: str, buffers: str) -> None:
    a, b = (judged(method, buffers, executor=e) for e in ("batched", "loop"))
    for x, y in zip(_leaves(a), _leaves(b), strict=True):
        assert x.allclose(y, atol=1e-9)
    assert a.accuracy == b.accuracy and a.summary["buffers"] == buffers


def test_recalibrated_statistics_are_estimated_under_the_new_model() -> None:
    """By hand: from the averaged statistics on, one pass of the new model over every client's batches."""
    same: dict[str, Any] = {"precision": "fp64", "rounds": 1, "epochs": 2}
    run = prepared("fedavg", pictures(), Residual, buffers="recalibrate", **same)
    plain = prepared("fedavg", pictures(), Residual, buffers="average", **same)
    averaged = plain.go().federation.server.model
    turn = run.here.draw(1, torch.arange(4), {"local": Phase(epochs=1)}, torch.zeros(4).long())
    ends = []
    for k in range(4):
        data = Data(run.here.examples, torch.utils._pytree.tree_map(lambda x, k=k: x[k], turn))
        model = dict(averaged)
        for t in range(len(data.turn.steps["local"])):
            if bool((data.turn.steps["local"][t] >= 0).any()):
                model |= run.federation.net.train(model, data.batch("local", t))[1]
        ends.append(model)
    share = torch.tensor(run.data.train.counts, dtype=torch.float64)
    share = share / share.sum()
    got = run.go().federation.server.model
    for k in averaged:
        want = sum(w * e[k] for w, e in zip(share, ends, strict=True))
        assert got[k].allclose(want, atol=1e-12)
        assert (k in STATISTICS) != torch.equal(got[k], averaged[k])


def test_a_bad_answer_does_not_hide_behind_an_average() -> None:
    """Figures stay readable when a client's loss is infinite."""
    result = api.run("fedavg", poisoned(), model="logistic", rounds=1, on_nan="skip")
    assert np.isfinite(result.accuracy)


def test_draws_depend_on_nothing_that_ran_before() -> None:
    run = prepared("fedavg", people(), epochs=2)
    draw = partial(run.here.draw, 2, torch.arange(6), run.federation.method.phases, torch.zeros(6).long())
    first = draw()
    run.here.draw(1, torch.arange(3), run.federation.method.phases, torch.zeros(3).long())
    again = draw()
    assert torch.equal(first.steps["local"], again.steps["local"]) and torch.equal(first.key, again.key)
