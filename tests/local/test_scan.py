"""The step loop: plain, stacked and traced give the same; what could not be traced once is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from tests.laws.toys import EXAMPLES, ROWS, SMALL
from torch import Tensor, nn
from torch.func import vmap

from weft.core import Fit, Net
from weft.core.errors import SettingError
from weft.core.method import Phase
from weft.core.task import Batch, Data, Examples, Turn
from weft.local import SGD, Adam, descend
from weft.local import scan as scan_function
from weft.local.batches import draw_turns

looping = __import__("weft.local.stack", fromlist=["Stack"])


def turns(number: int = 1, phases: dict[str, Phase] | None = None, batch: int = 4, epochs: int = 2) -> Turn:
    return draw_turns(
        ROWS, range(len(ROWS)), phases or {"local": Phase()}, [0] * len(ROWS),
        seed=3, number=number, epochs=epochs, batch_size=batch, dtype=torch.float64,
    )  # fmt: skip


def one(turn: Turn, k: int) -> Data:
    return Data(EXAMPLES, torch.utils._pytree.tree_map(lambda x: x[k], turn))


class Seen(NamedTuple):
    rows: Tensor
    total: Tensor
    steps: Tensor


def count(carry: Seen, batch: Batch, weight: Tensor) -> Seen:
    return Seen(
        carry.rows + batch.live.sum(), carry.total + weight * (batch.x.sum(1) * batch.live).sum(), carry.steps + 1
    )


ZERO = Seen(*(torch.zeros((), dtype=torch.float64) for _ in range(3)))
WEIGHT = torch.tensor(2.0, dtype=torch.float64)


def test_a_fold_by_hand() -> None:
    turn = turns()
    for k, rows in enumerate(ROWS):
        end = scan_function(count, ZERO, one(turn, k), given=(WEIGHT,))
        assert int(end.rows) == 2 * len(rows) and int(end.steps) == 2 * -(-len(rows) // min(4, len(rows)))
        assert float(end.total) == pytest.approx(4 * float(EXAMPLES.x[torch.from_numpy(rows)].sum()))


def test_stacked_is_one_by_one() -> None:
    turn = turns()
    together = vmap(lambda t: scan_function(count, ZERO, Data(EXAMPLES, t), given=(WEIGHT,)))(turn)
    for k in range(len(ROWS)):
        alone = scan_function(count, ZERO, one(turn, k), given=(WEIGHT,))
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[k], b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "opt",
    [SGD(0.1), SGD(0.1, momentum=0.9, weight_decay=0.01), SGD(0.1, momentum=0.9, nesterov=True, clip=1.0), Adam(0.01)],
    ids=["sgd", "momentum", "nesterov", "adam"],
)
def test_traced_and_untraced_steps_agree(opt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SMALL.init(0)
    monkeypatch.setattr(looping, "_TRACES", {})

    def train(turn: Turn) -> Any:
        return descend(SMALL, params, Data(EXAMPLES, turn), SMALL.loss, opt).params

    for n in (1, 2):
        plain = vmap(train)(turns(n))
        assert not looping._TRACES or n > 1
        with looping.repeated(looping.WORTH):
            graph = vmap(train)(turns(n))
        assert looping._TRACES
        for k in plain:
            torch.testing.assert_close(graph[k], plain[k], rtol=0, atol=1e-12)


def test_whether_a_step_is_traced_follows_from_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from what ran before, or a resumed run would not have the bits of one that was never stopped."""
    monkeypatch.setattr(looping, "_TRACES", {})
    steps = max(len(own) for own in ROWS) // 2 + 1

    def train(turn: Turn) -> Any:
        return vmap(lambda t: scan_function(count, ZERO, Data(EXAMPLES, t), given=(WEIGHT,)))(turn)

    for _ in range(looping.WORTH):
        train(turns())
    assert not looping._TRACES
    with looping.repeated(looping.WORTH // steps + looping.WORTH):
        train(turns())
    assert looping._TRACES


def test_a_trace_is_of_one_step_and_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps that differ in a number that they close over, or in a given tensor, do not share a result."""
    monkeypatch.setattr(looping, "_TRACES", {})
    monkeypatch.setattr(looping, "WORTH", 0)

    def run(factor: float, given: float) -> Tensor:
        def step(carry: Tensor, batch: Batch, tensor: Tensor) -> Tensor:
            return carry + factor * tensor * batch.live.sum()

        value = torch.tensor(given, dtype=torch.float64)
        start = torch.zeros((), dtype=torch.float64)
        return vmap(lambda t: scan_function(step, start, Data(EXAMPLES, t), given=(value,)))(turns())

    base = run(1.0, 1.0)
    assert (
        torch.equal(run(2.0, 1.0), 2 * base) and torch.equal(run(1.0, 3.0), 3 * base) and torch.equal(run(1, 1), base)
    )


def test_a_trace_is_not_of_one_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples of the same shapes with other values, shift and scale go through the same trace."""
    monkeypatch.setattr(looping, "_TRACES", {})

    def run(examples: Examples) -> Tensor:
        def step(carry: Tensor, batch: Batch) -> Tensor:
            return carry + (batch.x.flatten(1).sum(1) * batch.live).sum()

        zero = torch.zeros((), dtype=torch.float64)
        with looping.repeated(looping.WORTH):
            return vmap(lambda t: scan_function(step, zero, Data(examples, t)))(turns())

    shift, scale = torch.tensor(1.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
    for n in (1.0, 2.0):
        examples = Examples(EXAMPLES.x * n, EXAMPLES.y, shift * n, scale + n, torch.float64)
        want = [((EXAMPLES.x[rows] * n - shift * n) * (scale + n)).sum() for rows in ROWS]
        torch.testing.assert_close(run(examples), 2 * torch.stack(want), rtol=0, atol=1e-9)  # two epochs
    assert len(looping._TRACES) <= 4


@pytest.mark.parametrize("rounds", [1, looping.WORTH], ids=["untraced", "traced"])
@pytest.mark.parametrize("equal", [True, False], ids=["full batches", "ragged"])
def test_slices_of_a_stack_side_by_side_change_nothing(rounds: int, equal: bool) -> None:
    params = SMALL.init(0)
    turn = turns()
    if equal:
        rows = torch.arange(8 * len(ROWS)).reshape(len(ROWS), 4, 2)
        turn = turn._replace(steps={"local": rows % len(EXAMPLES.y)})

    def train(turn: Turn) -> Any:
        return descend(SMALL, params, Data(EXAMPLES, turn), SMALL.loss, SGD(0.1, momentum=0.9)).params

    with looping.repeated(rounds):
        whole = vmap(train)(turn)
    for workers in (2, 3, 8):
        with looping.repeated(rounds, workers):
            parts = vmap(train)(turn)
        for k in whole:
            torch.testing.assert_close(parts[k], whole[k], rtol=0, atol=1e-12)
    alone = [train(one(turn, k).turn) for k in range(len(ROWS))]
    for k in whole:
        torch.testing.assert_close(whole[k], torch.stack([a[k] for a in alone]), rtol=0, atol=1e-12)


def refused(step: Any) -> None:
    with pytest.raises(SettingError, match="closes over a tensor.*pass the tensor through `given`"):
        scan_function(step, torch.zeros((), dtype=torch.float64), one(turns(), 0))


def test_a_step_that_closes_over_a_tensor_is_refused() -> None:
    anchor = torch.ones(1, dtype=torch.float64)
    inside = {"deep": [(anchor,)]}
    refused(lambda carry, batch: carry + anchor)
    refused(lambda carry, batch: carry + inside["deep"][0][0])
    refused(lambda carry, batch, a=anchor: carry + a)

    def through(carry: Tensor) -> Tensor:
        return carry + anchor

    refused(lambda carry, batch: through(carry))


@pytest.mark.parametrize("rounds", [1, looping.WORTH], ids=["untraced", "traced"])
def test_a_scalar_may_stand_where_a_number_may(rounds: int) -> None:
    """One trace serves all values, which may differ between clients."""
    start = torch.zeros((), dtype=torch.float64)
    turn = turns()

    def run(turn: Turn, factor: Any) -> Tensor:
        return scan_function(lambda carry, batch: carry + factor * batch.live.sum(), start, Data(EXAMPLES, turn))

    factors = torch.arange(1.0, len(ROWS) + 1, dtype=torch.float64)
    with looping.repeated(rounds):
        together = vmap(run)(turn, factors)
    for k, rows in enumerate(ROWS):
        assert float(together[k]) == pytest.approx((k + 1) * 2 * len(rows))
        assert float(run(one(turn, k).turn, factors[k])) == pytest.approx((k + 1) * 2 * len(rows))


def test_a_loss_that_closes_over_a_tensor_is_refused() -> None:
    anchor = SMALL.init(1)

    def loss(tree: dict[str, Tensor], batch: Batch) -> Fit:
        return Fit(SMALL.loss(tree, batch).value + anchor["head.bias"].sum(), {})

    with pytest.raises(SettingError, match="closes over a tensor"):
        descend(SMALL, SMALL.init(0), one(turns(), 0), loss, SGD(0.1))


def test_the_loop_may_end_early_and_changes_nothing_by_it() -> None:
    def step(carry: Tensor, batch: Batch) -> Tensor:
        return torch.minimum(carry + batch.live.sum(), torch.tensor(0.0).to(carry) + 9)

    start = torch.zeros((), dtype=torch.float64)
    turn = turns()
    for until in (None, lambda c: c >= 9):
        ends = vmap(lambda t, u=until: scan_function(step, start, Data(EXAMPLES, t), until=u))(turn)
        assert ends.tolist() == [min(9.0, 2.0 * len(r)) for r in ROWS]
        alone = [float(scan_function(step, start, one(turn, k), until=until)) for k in range(len(ROWS))]
        assert alone == ends.tolist()


def test_several_phases_side_by_side() -> None:
    phases = {"a": Phase(steps=3), "b": Phase(steps=3)}
    turn = turns(phases=phases)

    def step(carry: Tensor, batch: tuple[Batch, Batch]) -> Tensor:
        a, b = batch
        return carry + (a.x.sum(1) * a.live).sum() - 2 * (b.x.sum(1) * b.live).sum()

    start = torch.zeros((), dtype=torch.float64)
    together = vmap(lambda t: scan_function(step, start, Data(EXAMPLES, t), phase=("a", "b")))(turn)
    for k in range(len(ROWS)):
        data = one(turn, k)
        parts = [(w, data.batch(p, t)) for p, w in (("a", 1), ("b", -2)) for t in range(3)]
        want = sum(w * (part.x.sum(1) * part.live).sum() for w, part in parts)
        torch.testing.assert_close(together[k], torch.as_tensor(want), rtol=0, atol=1e-9)
    unequal = turns(phases={"a": Phase(steps=3), "b": Phase(steps=2)})
    with pytest.raises(SettingError, match="'a' has 3, 'b' has 2"):
        scan_function(step, start, one(unequal, 0), phase=("a", "b"))


def test_a_descent_counts_its_steps() -> None:
    turn = turns()
    for k in (0, 2):
        data = one(turn, k)
        got = descend(SMALL, SMALL.init(0), data, SMALL.loss, SGD(0.0))
        real = [t for t in range(len(data.turn.steps["local"])) if bool((data.turn.steps["local"][t] >= 0).any())]
        assert int(got.steps) == len(real)


def test_a_descent_is_the_plain_loop_of_torch() -> None:
    """Without dropout, so that autograd and torch.optim can play it again."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.body(x)))

    net = Net.from_module(Plain, dtype=torch.float64)
    data = one(turns(), 4)
    got = descend(net, net.init(0), data, net.loss, SGD(0.1, momentum=0.9, weight_decay=0.01)).params
    module = Plain().double()
    module.load_state_dict(net.init(0))
    opt = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for rows in data.turn.steps["local"]:
        rows = rows[rows >= 0]
        if len(rows):
            opt.zero_grad()
            nn.functional.cross_entropy(module(EXAMPLES.x[rows]), EXAMPLES.y[rows]).backward()
            opt.step()
    for k, v in module.state_dict().items():
        torch.testing.assert_close(got[k], v, rtol=0, atol=1e-12)
