"""pFedMe: personal models are proximal points of the common one, which moves towards them.

Paper
    Dinh, Tran, Nguyen: "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, arXiv 2006.08848.
What it changes
    The local objective becomes the envelope F_k(w) = min over theta of f_k(theta) + lambda/2 ||theta - w||^2.
Algorithm
    On each batch K steps theta <- theta - eta_p (grad f(theta) + lambda (theta - w_k)), ended where that gradient is at
    most nu long, then w_k <- w_k - eta lambda (w_k - theta), which follows the gradient of the envelope. theta starts a
    turn at the received w and goes on from batch to batch; its last value answers. w <- (1 - beta) w + beta 1/|S| sum_k
    w_k.
Defaults
    lambda = 15, K = 5, eta = 0.005, beta = 1, nu = 0 as in the authors' code; eta_p = 0.05, one of the paper's, since
    0.09, the default of the code, diverges where the loss is curved more than 2 / 0.09 - lambda.
Deviations
    Only the clients of a round work; the paper has all work and averages some. theta is kept apart from w_k: in the
    authors' code the two are one object, so that w_k is what answers as the personal model. Local work is counted in
    epochs. A schedule moves eta only. Their weight decay of 0.001 is left out. Running statistics are those of theta in
    both models, and take the mean weighted by n_k without beta; models take the uniform mean. A client that had no turn
    answers with the received model.
Neutral
    None: eta = 0 leaves the common model where it is.
Promise
    The common model minimises the mean of envelopes, whose optimum is another one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.func import grad

from weft.core import Batch, Channel, Method, Model, Net, Reply, Round, Task, Tree, View, method
from weft.core.tree import add, delta, scale, sq_norm, sub, where
from weft.local import SGD, Optimiser, prox, scan
from weft.methods.fedavg import fedavg, global_view, kept_view
from weft.server import plain


@method("pFedMe", "personalised", reaches_optimum=False)
def pfedme(
    opt: Optimiser = SGD(0.005),
    lam: float = 15.0,
    inner_steps: int = 5,
    lr_inner: float = 0.05,
    nu: float = 0.0,
    beta: float = 1.0,
) -> Method:
    """PFedMe. opt: steps of the common model, eta; lam: lambda of the envelope; inner_steps, lr_inner: K and eta_p.

    nu: length of the inner gradient that is short enough; beta: how far the server goes to the mean.
    """

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        got, data = task.down.model, task.data

        def envelope(p: Tree, theta: Tree, w: Tree, batch: Batch) -> tuple[Tensor, Tree]:
            value, buffers = net.loss({**theta, **p}, batch)
            return value + prox(net, p, w, lam), buffers

        def step(carry: tuple[Tree, Tree, Any], batch: Batch, rate: Tensor) -> tuple[Tree, Tree, Any]:
            w, theta, state = carry
            for _ in range(inner_steps):
                g, buffers = grad(envelope, has_aux=True)(net.learnable(theta), theta, w, batch)
                new = {**theta, **add(net.learnable(theta), scale(g, -lr_inner)), **buffers}
                theta = where(sq_norm(g).sqrt() > nu, new, theta) if nu else new
            p = net.learnable(w)
            change, state = opt.update(scale(sub(p, theta), lam), state, p, rate)
            return {**theta, **add(p, change)}, theta, state

        first = (got, got, opt.init(net.learnable(got)))
        w, theta, _ = scan(step, first, data, given=(data.rate,))
        return Reply(Model(delta(w, got)), theta, data.count)

    def advance(state: Model, up: Model, r: Round) -> Model:
        change = {k: v if k in r.net.buffers else beta * v for k, v in up.model.items()}
        return Model(add(state.model, change))

    return replace(
        fedavg(opt),
        client=lambda net, first: first,
        work=work,
        advance=advance,
        views={"global": View(global_view, shared=True), "personal": kept_view()},
        up={"model": Channel(reduce=plain)},
    )
