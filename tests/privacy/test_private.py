"""Differential privacy around a method: what is bounded, what is hidden, and that nothing else changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.laws.toys import CLIENTS, DEEPER, METHODS, SMALL, gap, groups, leaves, make, start, train
from torch import Tensor
from torch.func import vmap

from weft.core import Channel, Method, Model, Net, Reply, SettingError, Task, tune
from weft.core.channel import Sum
from weft.core.method import Round
from weft.core.round import play
from weft.core.tree import Tree, sq_norm
from weft.executors import Batched, loop
from weft.experiment import checkpoint
from weft.local.buffers import with_buffers
from weft.privacy.clipping import clipped
from weft.privacy.noise import drawn, noised
from weft.privacy.private import BIT, Privacy, private
from weft.server import Momentum, mean, median, plain, total
from weft.wire import TopK

NONE = Privacy("central", 4, math.inf, 0.0)


def host(name: str = "fedavg") -> Method:
    """A method whose running statistics stay at home."""
    return with_buffers(make(name), "local")


def sent(method: Method, **parts: Any) -> list[dict[str, Tree]]:
    """What each client sends in the first round."""
    found: list[dict[str, Tree]] = []

    def spy(turn: Method, net: Net, down: Any, mine: Any, examples: Any, drawn: Any, public: Any) -> Any:
        reply = loop(turn, net, down, mine, examples, drawn, public)
        for i in range(len(reply.weight)):
            found.append({n: {k: v[i] for k, v in t.items()} for n, t in reply.up._asdict().items()})
        assert torch.equal(reply.weight, torch.ones_like(reply.weight))
        return reply

    train(method, spy, 1, **parts)
    return found


def size(trees: dict[str, Tree]) -> float:
    return math.sqrt(sum(float(sq_norm(t)) for n, t in trees.items() if n != BIT and t))


def sums(name: str) -> bool:
    method: Method | None = make(name)
    while method is not None:
        if (
            not method.up
            or method.opening
            or any(not isinstance(c.reduce, Sum) or c.encode for c in method.up.values())
        ):
            return False
        method = method.next
    return True


# Neutral


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedadam", "ditto"])
def test_without_clip_and_noise_it_is_the_method_with_equal_weights(name: str) -> None:
    method = tune(host(name), "model", reduce=plain)
    base, protected = train(method), train(private(method, NONE))
    assert gap((base.server, dict(base.then)), (protected.server.inner, protected.server.then)) == 0
    assert gap(train(private(method, replace(NONE, where="local"))), base) == 0


@pytest.mark.parametrize("name", [n for n in METHODS if sums(n) and n != "central"])
def test_every_method_that_adds_up_runs_alike_under_both_executors(name: str) -> None:
    for privacy in (Privacy("central", 4, 0.7, 0.1, 0.5), Privacy("local", 4, 0.7, 0.1)):
        method, nets = make(name), groups(name, DEEPER)  # a network without running statistics
        if method.next is not None:
            privacy = replace(privacy, quantile=0.0)
        protected = private(method, privacy)
        batched, alone = train(protected, rounds=2, nets=nets), train(protected, loop, rounds=2, nets=nets)
        assert gap(batched, alone) <= 1e-9
        assert all(x.isfinite().all() for x in leaves(batched))


def test_server_optimisers_come_after_the_noise() -> None:
    """With momentum, the first step of two equal servers differs by (1 - dampening) * lr times the same noise."""
    privacy = Privacy("central", 4, 0.5, 0.3)
    plainly = train(private(host(), privacy), rounds=1).server.inner.model
    stepped = train(private(tune(host(), "model", then=Momentum(0.5, 0.9)), privacy), rounds=1).server.inner.model
    first = start(host()).server.model
    for k in first:
        assert torch.allclose(stepped[k] - first[k], 0.5 * (plainly[k] - first[k]), rtol=0, atol=1e-12)


# Clipping


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedproto", "mime"])
def test_all_that_a_client_sends_is_within_the_norm(name: str) -> None:
    norms = [size(trees) for trees in sent(private(host(name), Privacy("central", 4, 0.15, 0.0)))]
    assert all(norm <= 0.15 * (1 + 1e-6) for norm in norms)
    assert max(norms) > 0.145  # some were clipped


def test_an_upload_within_the_norm_stays_as_it_is() -> None:
    before, after = sent(private(host(), NONE)), sent(private(host(), Privacy("central", 4, 1e6, 0.0)))
    assert gap(before, after) == 0


def test_what_is_not_finite_counts_as_nothing() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        trees = {"a": {"x": torch.tensor([1.0, bad])}, "b": {"y": torch.ones(3)}}
        found, below = clipped(trees, 1.0)
        assert all((t == 0).all() for tree in found.values() for t in tree.values())
        assert float(below) == 0


def test_a_client_moves_the_sum_by_the_norm_at_most() -> None:
    """Whatever one client sends, even 1e30, the server's model moves by C / m at most."""
    privacy = Privacy("central", 4, 0.5, 0.0)

    def sending(scale: float) -> Tree:
        method = host()

        def work(net: Net, task: Task[Any, Any]) -> Reply[Any, Any]:
            reply = method.work(net, task)
            loud = task.data.count == 12  # client 1
            up = {k: torch.where(loud, scale * torch.ones_like(v), v) for k, v in reply.up.model.items()}
            return reply._replace(up=Model(up), weight=torch.where(loud, scale, reply.weight))

        return train(private(replace(method, work=work), privacy), rounds=1, size=6).server.inner.model

    quiet, loud = sending(0.0), sending(1e30)
    moved = math.sqrt(sum(float(((quiet[k] - loud[k]) ** 2).sum()) for k in quiet))
    assert moved == pytest.approx(0.5 / 4, rel=1e-6)


# Noise


def test_the_mean_has_the_noise_that_the_ledger_counts() -> None:
    """z C / m on a mean, z C on a sum, sqrt(2) as much in each of two exchanges."""
    like = {"x": torch.zeros(60_000, dtype=torch.float64)}

    def work(net: Net, task: Task[Any, Any]) -> Reply[Any, Any]:
        return Reply(Model({"x": torch.zeros(60_000, dtype=torch.float64)}), (), task.data.count)

    def stds(reduce: Any, two: bool, where: Any = "central") -> float:
        method = Method(
            "fedavg",
            server=lambda net, first: Model(like),
            client=lambda net, first: (),
            send=lambda state, r: state,
            work=work,
            advance=lambda state, up, r: up,
            views={},
            up={"model": Channel(reduce=reduce)},
        )
        method = replace(method, next=method) if two else method
        end = train(private(method, Privacy(where, 4, 2.0, 1.5)), rounds=1).server
        return float((end.inner if where == "central" else end).model["x"].std())

    assert stds(mean, False) == pytest.approx(1.5 * 2 / 4, rel=0.02)
    assert stds(total, False) == pytest.approx(1.5 * 2, rel=0.02)
    assert stds(mean, True) == pytest.approx(math.sqrt(2) * 1.5 * 2 / 4, rel=0.02)
    assert stds(total, False, "local") == pytest.approx(1.5 * 2 * math.sqrt(4), rel=0.02)


def test_who_is_missing_leaves_the_denominator_as_it_was() -> None:
    """Dividing by who came would show it: with two of four clients, the sum is still divided by four."""
    privacy = Privacy("central", 4, 0.5, 0.0)
    method = private(host(), privacy)
    ids = torch.tensor([1, 3])
    federation = play(start(method), 1, ids).federation
    uploads = []
    for k in ids:
        alone = play(start(private(host(), replace(privacy, cohort=1))), 1, k[None]).federation
        first = start(host()).server.model
        uploads.append({n: alone.server.inner.model[n] - first[n] for n in first})
    for n, x in federation.server.inner.model.items():
        assert torch.allclose(x - first[n], (uploads[0][n] + uploads[1][n]) / 4, rtol=0, atol=1e-12)


def test_noise_is_fresh_in_every_round_entry_and_exchange() -> None:
    tree = {"a": torch.zeros(50), "b": torch.zeros(50)}
    draws = [noised(tree, 1.0, "stream", 0, number, exchange, 5) for number in (1, 2) for exchange in (0, 1)]
    values = [t for d in draws for t in d.values()]
    assert all(not torch.equal(x, y) for i, x in enumerate(values) for y in values[:i])
    assert gap(draws[0], noised(tree, 1.0, "stream", 0, 1, 0, 5)) == 0
    assert gap(draws[0], noised(tree, 1.0, "system", 0, 1, 0, 5)) > 0
    assert gap(noised(tree, 1.0, "system", 0), noised(tree, 1.0, "system", 0)) > 0


def test_noise_at_clients_is_the_same_alone_and_together() -> None:
    keys, x = torch.tensor([3, 4, 5]), torch.zeros(3, 7, 2, dtype=torch.float64)
    together: Tensor = vmap(lambda k, v: drawn(k, v, "p", "stream"))(keys, x)
    alone = torch.stack([drawn(k, v, "p", "stream") for k, v in zip(keys, x, strict=True)])
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(drawn(keys[0], x[0], "q", "stream"), together[0])
    assert not torch.equal(drawn(keys[0], x[0], "p", "system"), drawn(keys[0], x[0], "p", "system"))


# Adaptive clipping


def constant(norms: Tensor) -> Method:
    """Every client sends a vector of its own norm: that of the client with the k-th fewest examples."""

    def work(net: Net, task: Task[Any, Any]) -> Reply[Any, Any]:
        rank = (task.data.count > torch.tensor([3.0, 5, 6, 9, 12], dtype=task.data.count.dtype)).sum()
        vector = norms.index_select(0, rank[None])
        return Reply(Model({"x": vector}), (), task.data.count)

    return replace(
        host(),
        server=lambda net, first: Model({"x": torch.zeros(1)}),
        client=lambda net, first: (),
        work=work,
        views={},
    )


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
def test_the_clip_norm_goes_to_the_quantile(quantile: float) -> None:
    norms = torch.tensor([10.0, 20, 30, 40, 50, 60], dtype=torch.float64)
    end = train(private(constant(norms), Privacy("central", CLIENTS, 0.1, 0.0, quantile)), rounds=80, size=CLIENTS)
    found = float(end.server.clip["norm"])
    below = [float((norms <= found * f).double().mean()) for f in (0.9, 1.1)]
    assert below[0] <= quantile + 1e-9 <= below[1] + 0.2


def test_the_clip_norm_grows_when_much_is_clipped() -> None:
    """One public version has the bit the wrong way round, and then it shrinks."""
    norms = torch.full((6,), 50.0, dtype=torch.float64)
    privacy = Privacy("central", CLIENTS, 0.1, 0.0, 0.5)
    assert float(train(private(constant(norms), privacy), rounds=1, size=6).server.clip["norm"]) == pytest.approx(
        0.1 * math.exp(0.2 * 0.5)
    )
    privacy = replace(privacy, clip_norm=1000.0)
    assert float(train(private(constant(norms), privacy), rounds=1, size=6).server.clip["norm"]) == pytest.approx(
        1000 * math.exp(-0.2 * 0.5)
    )


def test_the_pair_of_bit_and_upload_costs_one_z() -> None:
    privacy = Privacy("central", 100, 1.0, 1.0, 0.5)
    assert privacy.bit_noise == 5
    assert privacy.upload_noise > 1
    assert privacy.upload_noise**-2 + (2 * privacy.bit_noise) ** -2 == pytest.approx(1.0)
    with pytest.raises(SettingError, match="noise_multiplier = 1 is spent by the noise on the bits of 10 clients"):
        Privacy("central", 10, 1.0, 1.0, 0.5)


def test_the_bit_is_noised() -> None:
    norms = torch.full((6,), 50.0, dtype=torch.float64)
    privacy = Privacy("central", CLIENTS, 0.1, 0.3, 0.5)
    found = []
    for number in range(1, 200):
        end = play(start(private(constant(norms), privacy)), number, torch.arange(6)).federation
        found.append(float(end.server.clip["norm"]))
    shares = torch.tensor([0.5 - math.log(c / 0.1) / 0.2 for c in found])
    assert float(shares.mean()) == pytest.approx(0.0, abs=0.02)  # nobody is below
    assert float(shares.std()) == pytest.approx(1 / 20, rel=0.15)  # s_b / m


def test_noise_uses_the_clip_norm_that_clipped() -> None:
    """Not the one for the next round."""
    norms = torch.zeros(6, dtype=torch.float64)
    privacy = Privacy("central", CLIENTS, 1e-3, 0.1, 0.5, rate=20.0)
    end = train(private(constant(norms), privacy), rounds=1, size=6)
    assert float(end.server.clip["norm"]) < 1e-6
    assert 1e-7 < abs(float(end.server.inner.model["x"])) < 1e-3


# What is refused


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (lambda: make("fedavg"), "running statistics, such as 'norm.running_mean' on channel 'model'"),
        (lambda: host("fedamp"), "dp = central needs sums, and the server of fedamp sees every upload"),
        (lambda: tune(host(), "model", reduce=median), "dp = central needs sums"),
        (lambda: tune(host(), "model", encode=TopK(0.1)), "the codec on channel 'model' of fedavg"),
        (lambda: host("local"), "local sends nothing"),
        (lambda: make("central"), "central has all data in one place"),
        (lambda: host("feddbe"), "feddbe begins with an exchange with every client"),
    ],
)
def test_refused(method: Any, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        train(private(method(), Privacy("central", 4)), rounds=1)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"clip_norm": 0.0}, "clip_norm = 0"),
        ({"clip_norm": math.inf}, "clip_norm = inf bounds nothing"),
        ({"noise_multiplier": -1.0}, "noise_multiplier = -1"),
        ({"quantile": 1.5}, "adaptive_clip = 1.5"),
        ({"quantile": 0.5, "where": "local"}, "adaptive_clip needs a server"),
    ],
)
def test_bad_numbers(numbers: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Privacy(**{"where": "central", "cohort": 4, **numbers})


def test_a_round_of_two_exchanges_has_no_single_clip_norm_to_adapt() -> None:
    with pytest.raises(SettingError, match="mime has 2 exchanges"):
        private(host("mime"), Privacy("central", 100, 1.0, 0.5, 0.5))


# Resuming


def test_a_checkpoint_goes_on_with_the_same_bits(tmp_path: Any) -> None:
    method = private(host("fedadam"), Privacy("central", 4, 0.5, 0.1, 0.5))
    whole = train(method, Batched(), 3)
    checkpoint.write(tmp_path, 2, train(method, Batched(), 2), {})
    place = checkpoint.latest(tmp_path)
    assert place
    _, restored, _ = checkpoint.restore(place, start(method))
    assert gap(whole, train(method, Batched(), 3, federation=restored, first=3)) == 0


def test_views_see_the_model_without_the_clip_norm() -> None:
    method = private(host(), Privacy("central", 4, 0.5, 0.1, 0.5))
    end = train(method, rounds=1)
    down = method.send(end.server, Round(1, torch.arange(4), CLIENTS, SMALL))
    assert down._fields == ("model", BIT)
    data: Any = None
    from weft.local.buffers import Own

    buffers = {k: v for k, v in SMALL.init(0).items() if k in SMALL.buffers}
    task: Task[Any, Any] = Task(down, Own((), buffers), data)
    assert method.views["global"].predict(SMALL, task)(torch.zeros(2, 5, dtype=torch.float64)).shape == (2, 3)
