"""Per-FedAvg: learns a common model that is good after one gradient step on a client's own examples.

Paper
    Fallah, Mokhtari, Ozdaglar: "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
    Meta-Learning Approach", NeurIPS 2020, arXiv 2002.07948.
What it changes
    The local objective becomes F_k(w) = f_k(w - alpha grad f_k(w)).
Algorithm
    With independent batches D, D', D'' in each step: d = grad f(w - alpha grad f(w; D); D'), then w <- w - beta d (FO)
    or w <- w - beta (d - alpha [grad f(w + e d; D'') - grad f(w - e d; D'')] / 2e) (HF). w <- 1/|S| sum_k w_k. A client
    answers after one step of rate alpha on a batch of its training examples, made on a copy.
Defaults
    mode = FO, the variant of nearly all published comparisons; alpha = 0.01 as in the paper; beta = 0.05 (the paper's
    0.001 goes with many more steps). e = 0.001 / ||d||, so that the difference has the same length in every network.
Deviations
    Local work is counted in epochs; every step draws one batch for each of its gradients. A schedule moves beta only,
    since alpha belongs to the objective. Running statistics follow the pass at w on D alone, and take the mean weighted
    by n_k; models take the uniform mean. A client that had no turn adapts a copy like any other.
Neutral
    alpha = 0 is FedAvg with equal weights on the batches D'.
Promise
    It minimises another objective than the mean loss, and does not reach the optimum of that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor
from torch.func import grad

from weft.core import Batch, Channel, Method, Model, Net, Phase, Predict, Reply, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.tree import add, delta, scale, sq_norm, sub
from weft.local import SGD, Optimiser, scan
from weft.methods.fedavg import fedavg, global_view
from weft.server import plain

LENGTH = 1e-3  # of the difference that stands for the Hessian


def slope(net: Net, w: Tree, batch: Batch) -> tuple[Tree, Tree]:
    """(gradient of the loss at w over learnable entries, changed running statistics)."""
    found: tuple[Tree, Tree] = grad(lambda p: net.loss({**w, **p}, batch), has_aux=True)(net.learnable(w))
    return found


@method("Per-FedAvg", "personalised", reaches_optimum=False, off={"alpha": 0.0})
def per_fedavg(
    opt: Optimiser = SGD(0.05), alpha: float = 0.01, mode: Literal["FO", "HF"] = "FO", adapt_steps: int = 1
) -> Method:
    """Per-FedAvg. opt: the outer optimiser, whose rate is beta; alpha: rate of the inner step.

    mode: first order, or with a Hessian product by differences; adapt_steps: steps of rate alpha before answering.
    """
    if mode not in ("FO", "HF"):
        raise SettingError(f"mode = {mode!r} is no variant of Per-FedAvg: use 'FO' or 'HF'")
    drawn = ("inner", "outer", "hessian")[: 2 if mode == "FO" else 3]

    def adapt(net: Net, w: Tree, batch: Batch) -> Tree:
        g, buffers = slope(net, w, batch)
        return {**w, **add(net.learnable(w), scale(g, -alpha)), **buffers}

    def work(net: Net, task: Task[Model, tuple[()]]) -> Reply[Model, tuple[()]]:
        got, data = task.down.model, task.data

        def step(carry: tuple[Tree, Any], batches: tuple[Batch, ...], rate: Tensor) -> tuple[Tree, Any]:
            w, state = carry
            near, p = adapt(net, w, batches[0]), net.learnable(w)
            d, _ = slope(net, near, batches[1])
            if mode == "HF":
                e = LENGTH / sq_norm(d).sqrt().clamp(min=1e-30)
                ahead, _ = slope(net, {**w, **add(p, scale(d, e))}, batches[2])
                behind, _ = slope(net, {**w, **sub(p, scale(d, e))}, batches[2])
                d = sub(d, scale(sub(ahead, behind), alpha / (2 * e)))
            change, state = opt.update(d, state, p, rate)
            return {**near, **add(p, change)}, state

        w, _ = scan(step, (got, opt.init(net.learnable(got))), data, given=(data.rate,), phase=drawn)
        return Reply(Model(delta(w, got)), (), data.count)

    def view(net: Net, task: Task[Model, tuple[()]]) -> Predict:
        own = scan(lambda w, batch: adapt(net, w, batch), task.down.model, task.data, phase="adapt")
        return lambda x: net.apply(own, x).logits

    return replace(
        fedavg(opt),
        work=work,
        views={"global": View(global_view, shared=True), "personal": View(view)},
        up={"model": Channel(reduce=plain)},
        phases={**dict.fromkeys(drawn, Phase()), "adapt": Phase(steps=adapt_steps)},
    )
