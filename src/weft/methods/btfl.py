"""BTFL: each test example is answered by a mixture of a common and a personal head, by how foreign it looks.

Paper
    Zhou, Liu: "BTFL: A Bayesian-based Test-Time Generalization Method for Internal and External Data Distributions in
    Federated learning", KDD 2025, arXiv 2503.06633.
What it changes
    Beside FedAvg, with a penalty on features, each client trains a head of its own on the received body. When it
    answers, a share e of the common head follows from two updates: a Beta prior over the share of foreign examples,
    renewed from the stream so far, and a likelihood ratio of the present example.
Algorithm
    Training: q = round(tanh(z)(Q - 1)), P_i[v, j] = share of the client's examples with q_j = v; P_g = mean P of the
    others in the round. Personal head: one epoch of CE on features of the received w. Local: CE + sigma ||Z||_1 / 32.
    Answers, a_l = sum_j log(c + (1 - cQ) P_i[q_j, j]), a_g with P_g; H entropies of the heads, h their means over the
    training examples; u_l = exp(H_l / h_l - 1), u_g = exp(H_g / ln C - 1); r = exp((a_l u_l - a_g u_g) / d); lambda =
    1 + kappa tanh(r - 1), below 1 the inverse of that of 1 / r; e = integral of Beta(m; alpha, beta) m / (m + (1 - m)
    lambda), trapezoids on 100 points of [0.01, 0.99]; e log p_g + (1 - e) log p_l. After a batch: alpha += examples
    that look foreign by P, H_g < h_g and H_l > h_l, beta += those that look own by all three; above U both shrink to a
    tenth of U in sum, plus 1 each.
Defaults
    Q = 2, kappa = 4, sigma = 0.001, U = 5, a rate of 0.01: the authors' scripts for the CNN, with 5 local epochs.
Deviations
    c = min(0.2, 1 / (2 Q)), since 0.2 makes weights negative from Q = 5. ln C stands for ln 100; r = 1 gives lambda = 1
    (theirs: 0). Histograms, entropies and the personal head's features are of judging mode; negative features are at
    level 0. The received model is kept beside its head, as the pair that answers. Test batches are of `stream` = 32
    examples, in the order of the examples, and every set of examples is a stream of its own. Without others in the
    round e = 1/2. A client that had no turn answers with the common model. Mean features are not sent: answers do not
    use them.
Neutral
    sigma = 0: the common model is FedAvg's.
Promise
    None that quadratics can show: the heads stand on features, which they have not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from weft.core import Batch, Channel, Fit, Method, Model, Net, Nothing, Phase, Reply, Round, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.core.tree import add, delta
from weft.local import SGD, Optimiser, descend
from weft.local.parts import key, linear
from weft.methods.fedavg import fedavg, global_view
from weft.server import plain


class Common(NamedTuple):
    """Server state: the model; mean histogram [Q, d] and number of the clients of the latest round."""

    model: Tree
    seen: Tree


class Seen(NamedTuple):
    """The second download."""

    seen: Tree


class Up(NamedTuple):
    """Upload: the change of the model, and the client's histogram."""

    model: Tree
    seen: Tree


class Own(NamedTuple):
    """What a client keeps: head [C, d], the model that it was fitted to, P_i and P_g, h_l, h_g, and if it was alone."""

    head: Tree
    model: Tree
    seen: Tree


def levels(z: Tensor, q: int) -> Tensor:
    """The level of every feature, int64, 0 to q - 1; padding may be anything."""
    return (z.clamp(min=0).nan_to_num().tanh() * (q - 1)).round().long()


def entropy(logits: Tensor) -> Tensor:
    """Of softmax(logits), [n]."""
    log = logits.log_softmax(-1)
    return -(log.exp() * log).sum(-1)


def foreign(alpha: Tensor, beta: Tensor, ratio: Tensor) -> Tensor:
    """E for each ratio lambda [n]."""
    m = torch.linspace(0.01, 0.99, 100, dtype=ratio.dtype, device=ratio.device)
    scale = torch.lgamma(alpha + beta) - torch.lgamma(alpha) - torch.lgamma(beta)
    density = (scale + (alpha - 1) * m.log() + (beta - 1) * (1 - m).log()).exp()
    return torch.trapezoid(density * m / (m + (1 - m) * ratio[:, None]), m)


@method(
    "BTFL",
    "personalised",
    neutral=("fedavg", {"opt": SGD(0.01)}, {"sigma": 0.0}),
    exempt={"home": "a client keeps its histogram, which is sent, to take it out of the mean of all"},
)
def btfl(
    opt: Optimiser = SGD(0.01),
    Q: int = 2,
    kappa: float = 4.0,
    sigma: float = 0.001,
    U: float = 5.0,
    stream: int = 32,
    head_epochs: int = 1,
) -> Method:
    """BTFL. opt: the optimiser of model and head; Q: levels; kappa: strength of the present example; sigma: of the L1.

    U: sum of alpha and beta that is forgotten; stream: test examples in a batch; head_epochs: of the personal head.
    """
    if Q < 2 or stream < 1 or min(kappa, sigma) < 0:
        raise SettingError(
            f"Q = {Q}, stream = {stream}, kappa = {kappa}, sigma = {sigma} of btfl: use at least 2, 1, 0 and 0"
        )
    c = min(0.2, 1 / (2 * Q))

    def server(net: Net, first: Tree) -> Common:
        like = next(iter(first.values()))
        return Common(first, {"mean": like.new_zeros(Q, net.width), "count": like.new_zeros(())})

    def client(net: Net, first: Tree) -> Own:
        like = next(iter(first.values()))
        head = linear(key(first, "btfl"), net.classes, net.width, like)["weight"]
        half, none = like.new_full((Q, net.width), 1 / Q), like.new_ones(())
        return Own({"own": head}, first, {"own": half, "others": half, "h_l": none, "h_g": none, "alone": none})

    def work(net: Net, task: Task[Model, Own]) -> Reply[Up, Own]:
        got, data = task.down.model, task.data

        def fitted(w: Tree, batch: Batch, got: Tree) -> Fit:
            logits = net.apply(got, batch.x).features @ w["own"].T
            return Fit(masked_mean(net.criterion(logits, batch.y), batch.live), {})

        def loss(w: Tree, batch: Batch) -> Fit:
            out, buffers = net.train(w, batch)
            value = masked_mean(net.criterion(out.logits, batch.y), batch.live)
            size = (out.features.abs().sum(-1) * batch.live).sum() / 32
            return Fit(value + sigma * size + out.penalty, buffers)

        head = descend(net, task.mine.head, data, fitted, opt, given=(got,), phase="head").params
        whole = data.all()
        out = net.apply(got, whole.x)
        at = levels(out.features, Q)
        hist = torch.stack([whole.live @ (at == v).to(whole.live) for v in range(Q)]) / data.count
        h = (masked_mean(entropy(z), whole.live) for z in (out.features @ head["own"].T, out.logits))
        seen = {**task.mine.seen, "own": hist, **dict(zip(("h_l", "h_g"), h, strict=True))}
        local = descend(net, got, data, loss, opt).params
        return Reply(Up(delta(local, got), {"mean": hist}), Own(head, got, seen), data.count)

    def advance(state: Common, up: Up, r: Round) -> Common:
        count = torch.full_like(state.seen["count"], len(r.ids))
        return Common(add(state.model, up.model), {**up.seen, "count": count})

    def heard(net: Net, task: Task[Seen, Own]) -> Reply[Nothing, Own]:
        (mean, n), own = task.down.seen.values(), task.mine.seen["own"]
        others = (n * mean - own) / (n - 1).clamp(min=1)
        seen = {**task.mine.seen, "others": others, "alone": (n <= 1).to(own)}
        return Reply(Nothing(), task.mine._replace(seen=seen), task.data.count)

    def view(net: Net, task: Task[Model, Own]) -> Callable[[Tensor], Tensor]:
        model, s = task.mine.model, task.mine.seen

        def likely(at: Tensor, seen: Tensor) -> Tensor:
            return (c + (1 - c * Q) * seen.gather(0, at)).log().sum(1)

        def predict(x: Tensor) -> Tensor:
            alpha = beta = torch.ones_like(s["h_l"])
            said = []
            for start in range(0, len(x), stream):
                out = net.apply(model, x[start : start + stream])
                g, p, at = out.logits, out.features @ task.mine.head["own"].T, levels(out.features, Q)
                H_g, H_l = entropy(g), entropy(p)
                a_l, a_g = likely(at, s["own"]), likely(at, s["others"])
                u_l = (H_l / s["h_l"].clamp(min=1e-12) - 1).exp()
                u_g = (H_g / math.log(net.classes) - 1).exp()
                r = ((a_l * u_l - a_g * u_g) / net.width).exp()
                ratio = torch.where(r >= 1, 1 + kappa * (r - 1).tanh(), 1 / (1 + kappa * (1 / r - 1).tanh()))
                e = torch.where(s["alone"] > 0, 0.5, foreign(alpha, beta, ratio))[:, None]
                said.append(e * g.log_softmax(-1) + (1 - e) * p.log_softmax(-1))
                alpha = alpha + ((a_l < a_g) & (H_g < s["h_g"]) & (H_l > s["h_l"])).sum()
                beta = beta + ((a_l > a_g) & (H_l < s["h_l"]) & (H_g > s["h_g"])).sum()
                total = alpha + beta
                alpha, beta = (torch.where(total > U, v / total * U / 10 + 1, v) for v in (alpha, beta))
            return torch.cat(said)

        return predict

    first = replace(
        fedavg(opt),
        server=server,
        client=client,
        send=lambda state, r: Model(state.model),
        work=work,
        advance=advance,
        views={"global": View(global_view, shared=True), "personal": View(view, newcomer=global_view, data=False)},
        up={"model": Channel(), "seen": Channel(reduce=plain)},
        phases={"local": Phase(), "head": Phase(epochs=head_epochs)},
    )
    back = replace(
        first, send=lambda state, r: Seen(state.seen), work=heard, advance=lambda state, up, r: state, up={}, phases={}
    )
    return replace(first, next=back)
