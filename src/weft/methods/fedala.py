"""FedALA: each client learns, entry by entry, how much of the received head to blend into its own before it trains.

Paper
    Zhang, Hua, Wang, Song, Xue, Ma, Guan: "FedALA: Adaptive Local Aggregation for Personalized Federated Learning",
    AAAI 2023, arXiv 2212.01197.
What it changes
    Local training starts from a blend of the received model and the client's own, not from the received model.
Algorithm
    Lower layers: as received. Upper layers: Theta_i + W (Theta - Theta_i), with W learnt on a share s of the client's
    examples: W <- clamp(W - eta g (Theta - Theta_i), 0, 1), g the gradient at the blend. A client's first turn has W =
    1; in the second the passes go on until the losses of the last num_pre_loss ones deviate by less than the threshold;
    later there is one pass a turn. Then E epochs of SGD on all layers; Theta <- sum_k n_k / n * Theta_k.
Defaults
    upper = the head, s = 0.8, eta = 1, threshold = 0.01, num_pre_loss = 10, as in the paper; max_passes = 100, where
    the authors' code has no end. Rate of the local SGD 0.05 (theirs: 0.005 and 0.1).
Deviations
    W is learnt at the clients of a round, as in the paper, not at all clients as in the authors' code. Judged is the
    blend of the present model with the W of the client's last turn; the authors learn W once more before they judge.
    The share is drawn at random, as in the paper; the code takes a slice. The start is told by the number of a client's
    turns, not by a difference that is exactly 0. Running statistics are received and averaged like the lower layers;
    the passes for W use those of the batch, and change none. A client that had no turn has W = 1, and answers with the
    received model.
Neutral
    eta = 0 leaves W = 1, and it trains as FedAvg.
Promise
    None about a common model: what the server holds is only ever blended into others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from weft.core import Method, Model, Net, Phase, Predict, Reply, Select, Task, Tree, View, method
from weft.core.select import role
from weft.core.tree import delta, each
from weft.local import SGD, Optimiser, descend
from weft.local.blend import ala_phases, blend, learn_weights
from weft.methods.fedavg import fedavg, global_view


class Own(NamedTuple):
    """What a client keeps: its model after the last turn, and the weights of the upper layers."""

    model: Tree
    weights: Tree


@method("FedALA", "personalised", neutral=("fedavg", {}, {"eta": 0.0}))
def fedala(
    opt: Optimiser = SGD(0.05),
    eta: float = 1.0,
    share: float = 0.8,
    upper: Select = role("head"),
    threshold: float = 0.01,
    num_pre_loss: int = 10,
    max_passes: int = 100,
) -> Method:
    """FedALA. opt: the local optimiser; eta: rate of the weights; share: s; upper: layers that are blended.

    threshold, num_pre_loss, max_passes: the start phase ends when so many losses deviate by less, or after that many
    passes.
    """

    def client(net: Net, first: Tree) -> Own:
        chosen, _ = net.split(net.learnable(first), upper)
        return Own(first, each(lambda x: x.new_ones(x.shape), chosen))

    def work(net: Net, task: Task[Model, Own]) -> Reply[Model, Own]:
        got, (own, weights), data = task.down.model, task.mine, task.data
        weights = learn_weights(
            net, got, own, weights, data, eta=eta, passes=max_passes, window=num_pre_loss, threshold=threshold
        )
        local = descend(net, blend(got, own, weights), data, net.loss, opt).params
        return Reply(Model(delta(local, got)), Own(local, weights), data.count)

    def view(net: Net, task: Task[Model, Own]) -> Predict:
        start = blend(task.down.model, *task.mine)
        return lambda x: net.apply(start, x).logits

    return replace(
        fedavg(opt),
        client=client,
        work=work,
        views={"global": View(global_view, shared=True), "personal": View(view)},
        phases={"local": Phase(), **ala_phases(share, max_passes)},
    )
