"""FedAvg: clients run local SGD from the common model, the server adds the weighted mean of their changes.

Paper
    McMahan, Moore, Ramage, Hampson, Aguera y Arcas: "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, arXiv 1602.05629.
What it changes
    Nothing: it is the method that the others extend.
Algorithm
    w_k = w - eta * gradients over E local epochs from the received w; w <- w + sum_k n_k / n * (w_k - w) over the
    clients of the round (the paper's mean of models, written as a mean of changes).
Defaults
    eta = 0.05 (the paper tunes it on a grid); epochs and batch size are settings of the run (paper: E = 1, B = 10).
Deviations
    Weights are renormalised over the clients of the round, as every implementation does; the first version of the paper
    sums over all clients.
Neutral
    One client with all data is central training.
Promise
    With several local steps and different client optima it does not reach the optimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from weft.core import Channel, Method, Model, Net, Predict, Reply, Select, Task, Tree, View, method
from weft.core.tree import add, delta
from weft.local import SGD, Optimiser, descend


def global_view(net: Net, task: Task[Any, Any]) -> Predict:
    """Answer with the received model."""
    return lambda x: net.apply(task.down.model, x).logits


def kept_view(model: Callable[[Any], Tree] = lambda mine: mine) -> View:
    """Answer with the kept model; a client that had no turn yet answers with the received one, as far as it goes.

    model: state of a client -> the model in it.
    """

    def kept(net: Net, task: Task[Any, Any]) -> Predict:
        return lambda x: net.apply(model(task.mine), x).logits

    def received(net: Net, task: Task[Any, Any]) -> Predict:
        return lambda x: net.apply({**model(task.mine), **task.down.model}, x).logits

    return View(kept, newcomer=received, data=False)


@method("FedAvg", "base", reaches_optimum=False)
def fedavg(opt: Optimiser = SGD(0.05)) -> Method:
    """FedAvg. opt: the local optimiser."""

    def work(net: Net, task: Task[Model, tuple[()]]) -> Reply[Model, tuple[()]]:
        got = task.down.model
        local = descend(net, got, task.data, net.loss, opt).params
        return Reply(Model(delta(local, got)), (), task.data.count)

    return Method(
        "fedavg",
        server=lambda net, first: Model(first),
        client=lambda net, first: (),
        send=lambda state, r: state,
        work=work,
        advance=lambda state, up, r: state._replace(model=add(state.model, up.model)),
        views={"global": View(global_view, shared=True)},
        up={"model": Channel()},
    )


def personal_layers(keep: Select, opt: Optimiser, **parts: Any) -> Method:
    """FedAvg over the entries outside `keep`; those in it are trained too, and stay at their client.

    The parts of the method that differ may be given, as to `dataclasses.replace`.
    """

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        got = task.down.model
        trained = descend(net, {**got, **task.mine}, task.data, net.loss, opt).params
        own, shared = net.split(trained, keep)
        return Reply(Model(delta(shared, got)), own, task.data.count)

    def view(net: Net, task: Task[Model, Tree]) -> Predict:
        return lambda x: net.apply({**task.down.model, **task.mine}, x).logits

    own: dict[str, Any] = {
        "server": lambda net, first: Model(net.split(first, keep)[1]),
        "client": lambda net, first: net.split(first, keep)[0],
        "work": work,
        "views": {"personal": View(view, data=False)},
    }
    return replace(fedavg(opt), **{**own, **parts})
