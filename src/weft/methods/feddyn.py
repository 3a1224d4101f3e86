"""FedDyn: a linear and a quadratic term change each client's loss until all agree where the mean is stationary.

Paper
    Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: "Federated Learning Based on Dynamic Regularization",
    ICLR 2021, arXiv 2111.04263.
What it changes
    Client k minimises L_k(w) - <g_k, w> + alpha/2 ||w - theta||^2, where g_k estimates its gradient at the optimum.
Algorithm
    theta_k from theta by SGD on that loss, with g_k held at its value before the turn; g_k <- g_k - alpha (theta_k -
    theta). Server, over the clients P of the round of m in all: h <- h - alpha/m sum_P (theta_k - theta); theta <-
    1/|P| sum_P theta_k - h / alpha. So h is always the mean of all g_k.
Defaults
    alpha = 0.01, as in the authors' example; gradients clipped at norm 10, as in the authors' code, since -h/alpha
    can be large in the first rounds. The learning rate is 0.05 (theirs: 0.1, decayed).
Deviations
    One alpha for all clients as in the paper; the authors' code divides it by the client's relative size. Sent is the
    change theta_k - theta. The paper judges the mean of the round's theta_k; the view `global` judges theta, which is
    what clients receive, since the other model would double the download. No g_k and h for running statistics.
Neutral
    None; with all g_k = 0 (the first round) the clients do what FedProx does with mu = alpha.
Promise
    It reaches the optimum of quadratics with different minimisers when clients come near their minimum in a turn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from weft.core import Batch, Channel, Fit, Method, Model, Net, Reply, Round, Task, Tree, method
from weft.core.errors import SettingError
from weft.core.tree import add, delta, dot, scale, sub, zeros
from weft.local import SGD, Optimiser, descend, prox
from weft.methods.fedavg import fedavg
from weft.server import plain


class Dynamic(NamedTuple):
    """Server state."""

    model: Tree  # theta
    h: Tree  # mean of all clients' g_k


@method("FedDyn", "optimisation", reaches_optimum=True)
def feddyn(opt: Optimiser = SGD(0.05, clip=10.0), alpha: float = 0.01) -> Method:
    """FedDyn. opt: the local optimiser; alpha: weight of the quadratic term."""
    if alpha <= 0:
        raise SettingError(f"alpha = {alpha} leaves nothing to divide by: use a number above 0, such as 0.01")

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        theta, g_k = task.down.model, task.mine

        def loss(w: Tree, batch: Batch, theta: Tree, g_k: Tree) -> Fit:
            value, buffers = net.loss(w, batch)
            return Fit(value - dot(g_k, w) + prox(net, w, theta, alpha), buffers)

        change = delta(descend(net, theta, task.data, loss, opt, given=(theta, g_k)).params, theta)
        return Reply(Model(change), sub(g_k, scale(net.learnable(change), alpha)), task.data.count)

    def advance(state: Dynamic, up: Model, r: Round) -> Dynamic:
        moved = r.net.learnable(up.model)
        h = sub(state.h, scale(moved, alpha * len(r.ids) / r.population))
        theta = add(state.model, up.model)
        return Dynamic({k: v - h[k] / alpha if k in h else v for k, v in theta.items()}, h)

    return replace(
        fedavg(opt),
        server=lambda net, first: Dynamic(first, zeros(net.learnable(first))),
        client=lambda net, first: zeros(net.learnable(first)),
        send=lambda state, r: Model(state.model),
        work=work,
        advance=advance,
        up={"model": Channel(reduce=plain)},
    )
