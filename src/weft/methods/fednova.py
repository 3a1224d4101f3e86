"""FedNova: each change is divided by how much its local solver accumulates, so that busy clients do not dominate.

Paper
    Wang, Liu, Liang, Joshi, Poor: "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
    Optimization", NeurIPS 2020, arXiv 2007.07481.
What it changes
    The server averages normalised changes and scales the mean by a common effective number of steps.
Algorithm
    Delta_i = -eta sum_k a_i[k] g_i(x_i^k) over the tau_i steps; a_i depends on the local solver only. x <- x +
    tau_eff sum_i p_i Delta_i / ||a_i||_1 with p_i = n_i / n over the clients of the round and tau_eff = sum_i p_i
    ||a_i||_1, or sum_i p_i tau_i with the proximal solver (mu > 0).
Defaults
    No local momentum, mu = 0, no server momentum, as in the authors' code (the paper also runs 0.9; mu in {5e-4 ..
    1e-2}).
Deviations
    ||a_i||_1 comes from running the local optimiser on one number that gets a unit gradient in its first step, which
    is exact for momentum and the proximal term together, where the paper's closed forms are not. Weight decay and
    clipping are no part of it, as in the authors' code. Server momentum accumulates the mean normalised change, which
    tau_eff of the present round then scales; the authors' buffer holds the scaled one, which is the same while
    tau_eff stays. Running statistics take the plain weighted mean. Clients without a step are left out.
Neutral
    With equal numbers of steps (and mu = 0) it is FedAvg.
Promise
    It reaches the optimum of quadratics only as the learning rate goes to zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from weft.core import Batch, Channel, Data, Fit, Method, Model, Net, Reply, Round, Task, Tree, method
from weft.core.errors import SettingError
from weft.core.tree import delta
from weft.local import SGD, descend, prox
from weft.methods.fedavg import fedavg
from weft.server import Momentum


class Normalised(NamedTuple):
    """Upload."""

    model: Tree  # Delta_i / ||a_i||_1; running statistics: their change
    steps: Tree  # the client's term of tau_eff


@method(
    "FedNova",
    "optimisation",
    reaches_optimum=False,
    exempt={"blend": "what FedNova sends is divided by what its solver accumulates"},
)
def fednova(opt: SGD = SGD(0.05), mu: float = 0.0, gmf: float = 0.0) -> Method:
    """FedNova. opt: SGD, also with momentum; mu: weight of a proximal term; gmf: server momentum."""
    if not isinstance(opt, SGD) or opt.dampening:
        raise SettingError("fednova needs a solver that accumulates all gradients alike: use SGD with dampening=0")

    def work(net: Net, task: Task[Model, tuple[()]]) -> Reply[Normalised, tuple[()]]:
        got, data = task.down.model, task.data

        def loss(w: Tree, batch: Batch, anchor: Tree) -> Fit:
            value, buffers = net.loss(w, batch)
            return Fit(value + prox(net, w, anchor, mu), buffers)

        local, steps = descend(net, got, data, loss, opt, given=(got,))
        change, norm = delta(local, got), accumulated(opt, mu, data, steps)
        unit = {k: v / norm.clamp(min=1) for k, v in net.learnable(change).items()}
        effective = {"effective": steps if mu else norm}
        return Reply(Normalised({**change, **unit}, effective), (), data.count * (steps > 0))

    def advance(state: Model, up: Normalised, r: Round) -> Model:
        tau, buffers = up.steps["effective"], r.net.buffers
        return Model({k: v + up.model[k] * (1 if k in buffers else tau) for k, v in state.model.items()})

    return replace(
        fedavg(opt),
        work=work,
        advance=advance,
        up={"model": Channel(then=Momentum(1.0, gmf) if gmf else None), "steps": Channel()},
    )


def accumulated(opt: SGD, mu: float, data: Data, steps: Tensor) -> Tensor:
    """||a_i||_1: how far, in units of -lr, `steps` local steps move for a unit gradient in each of them; a scalar.

    The solver does not change with time, so entry tau - 1 - k of a_i is how far the number has moved after k + 1 steps
    of which only the first had a gradient.
    """
    solver = replace(opt, weight_decay=0.0, clip=None)
    moved = norm = torch.zeros_like(steps)
    state = solver.init({"x": moved})
    for k in range(data.turn.steps["local"].shape[0]):
        pull = mu * moved + (1 if k == 0 else 0)
        change, state = solver.update({"x": pull}, state, {"x": moved}, data.rate)
        moved = moved + change["x"]
        norm = norm + (steps > k) * moved.abs()
    return norm / (opt.lr * data.rate)
