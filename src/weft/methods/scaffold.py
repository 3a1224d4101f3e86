"""SCAFFOLD: control variates estimate each client's drift and subtract it from every local step.

Paper
    Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
    ICML 2020, arXiv 1910.06378.
What it changes
    A local step follows g_i(y) - c_i + c instead of g_i(y).
Algorithm
    y <- y - eta_l (g_i(y) - c_i + c) over K steps from the received x. New control: option I, c_i+ = gradient of all
    local data at x; option II, c_i+ = c_i - c + (x - y) / (K eta_l). Sent: y - x and c_i+ - c_i. Server, uniform means
    over S: x <- x + eta_g mean(y - x); c <- c + |S|/N mean(c_i+ - c_i).
Defaults
    Option II, eta_g = 1, as in the paper's experiments; eta_l = 0.05 (the paper tunes it).
Deviations
    The correction is a linear term of the loss, <c - c_i, y>, whose gradient it is. K counts the steps really made, and
    eta_l is the rate really used under a schedule. Means are uniform as in the paper, not weighted by n_i. Running
    statistics have no control variate; they take the mean weighted by n_i.
Neutral
    With one client the controls cancel, and it is plain SGD.
Promise
    It reaches the optimum of quadratics with different minimisers, also under partial participation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

from torch.func import grad

from weft.core import Batch, Channel, Fit, Method, Net, Reply, Round, Task, Tree, method
from weft.core.errors import SettingError
from weft.core.tree import add, delta, dot, scale, sub, zeros
from weft.local import SGD, descend
from weft.methods.fedavg import fedavg
from weft.server import plain


class Scaffold(NamedTuple):
    """Server state, download and upload have the same two channels."""

    model: Tree
    control: Tree


@method("SCAFFOLD", "optimisation", reaches_optimum=True)
def scaffold(opt: SGD = SGD(0.05), eta_g: float = 1.0, option: Literal["I", "II"] = "II") -> Method:
    """SCAFFOLD. opt: plain SGD; eta_g: server step; option: how the control is renewed."""
    if option == "II" and (not isinstance(opt, SGD) or opt.momentum):
        raise SettingError(
            "scaffold's option II divides by K * lr, which holds for plain SGD only: use momentum=0, or option='I'"
        )

    def work(net: Net, task: Task[Scaffold, Tree]) -> Reply[Scaffold, Tree]:
        (x, c), c_i, data = task.down, task.mine, task.data

        def loss(y: Tree, batch: Batch, shift: Tree) -> Fit:
            value, buffers = net.loss(y, batch)
            return Fit(value + dot(shift, y), buffers)

        y, steps = descend(net, x, data, loss, opt, given=(sub(c, c_i),))
        change = delta(y, x)
        if option == "I":
            still = {k: v for k, v in x.items() if k not in c}
            renewed = grad(lambda p: net.loss({**p, **still}, data.all()).value)(net.learnable(x))
            turned = delta(renewed, c_i)
        else:
            turned = sub(scale(net.learnable(change), -1 / (steps.clamp(min=1) * opt.lr * data.rate)), c)
            renewed = add(c_i, turned)
        return Reply(Scaffold(change, turned), renewed, data.count)

    def advance(state: Scaffold, up: Scaffold, r: Round) -> Scaffold:
        step = {k: eta_g * v if k in up.control else v for k, v in up.model.items()}
        return Scaffold(add(state.model, step), add(state.control, scale(up.control, len(r.ids) / r.population)))

    return replace(
        fedavg(opt),
        server=lambda net, first: Scaffold(first, zeros(net.learnable(first))),
        client=lambda net, first: zeros(net.learnable(first)),
        work=work,
        advance=advance,
        up={"model": Channel(reduce=plain), "control": Channel(reduce=plain)},
    )
