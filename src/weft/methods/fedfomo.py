"""FedFomo: each client is sent some others' models, and mixes in those that are better on examples that it held out.

Paper
    Zhang, Sapra, Fidler, Yeung, Alvarez: "Personalized Federated Learning with First Order Model Optimization",
    ICLR 2021, arXiv 2012.08565.
What it changes
    There is no common model: a client weights each model that it receives by how much it lowers its own loss on held
    out examples, per distance; the server learns from these weights which models to send to whom.
Algorithm
    Candidates theta_n: M received models, and the client's own as it was sent last. w_n = (L(theta_prev) - L(theta_n))
    / ||theta_n - theta_prev||, L the mean loss on the held out share, theta_prev the model from which the client's last
    training started. theta <- theta_prev + sum_n w_n^+ / (sum w^+) (theta_n - theta_prev), theta_prev itself if no w_n
    is positive; then E epochs of SGD on the other examples. Server: P[i, n] += w_n, before clipping; the M slots are
    filled one by one with the largest P[i, .] left, or, with probability epsilon, with anyone.
Defaults
    M = 5, share = 0.2, epsilon = 0.3 minus 0.05 a round, eta = 0.1, as in the paper and the authors' code.
Deviations
    Distances are Euclidean over what gradients move; the authors' code takes the sum of magnitudes by default. Averages
    over groups of clients are no candidates. Only models that somebody sent are candidates; a download always has M
    slots, and empty ones count as bytes. The held out share is the same in all turns and never trained on; a client
    with too few examples for one goes on with its own model. Running statistics are mixed like the rest. Judged is the
    model after local training; a client that had no turn answers with the mean of the models that were sent.
Neutral
    None.
Promise
    None about a common model: there is no such model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from weft.core import Batch, Channel, Method, Model, Net, Phase, Reply, Round, Task, Tree, method
from weft.core.stream import stream
from weft.core.tree import add, delta, each
from weft.local import SGD, Optimiser, descend, scan
from weft.methods.fedavg import kept_view
from weft.server import keep_all
from weft.server.rows import NOBODY, alike, at, mean_of_seen, met, put, spread


class Fomo(NamedTuple):
    """Server state: everybody's latest model, who has sent one, and P [1, 1], later [population, population]."""

    models: Tree
    seen: Tree
    affinity: Tensor


class Offer(NamedTuple):
    """Download: M models, and which of the slots hold one."""

    peers: Tree
    there: Tree


class Verdict(NamedTuple):
    """Upload: the change of the client's model since it last sent it, and the weights w_n of the slots."""

    model: Tree
    worth: Tree


class Own(NamedTuple):
    """What a client keeps: its model, and the one from which its last training started."""

    model: Tree
    before: Tree


def chosen(state: Fomo, r: Round, most: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """(whose models the round's clients get [cohort, slots], which slots are filled), on the host."""
    n = r.population
    affinity = state.affinity.cpu().expand(n, n)[r.ids]
    taken = (spread(state.seen, n)["seen"].cpu() == 0) | (torch.arange(n) == r.ids[:, None])
    rngs = [stream(r.seed, "fedfomo", r.number, k) for k in r.ids.tolist()]
    luck = torch.stack([torch.from_numpy(g.random(n)) for g in rngs])
    slots, filled = [], []
    for _ in range(max(1, min(most, n - 1))):
        left = affinity.masked_fill(taken, -torch.inf)
        greedy = torch.tensor([g.random() >= epsilon for g in rngs])[:, None] & (left == left.amax(1, keepdim=True))
        slot = (luck + greedy).masked_fill(taken, -1.0).argmax(1, keepdim=True)
        slots.append(slot)
        filled.append(~taken.gather(1, slot))
        taken = taken.scatter(1, slot, True)
    return torch.cat(slots, 1), torch.cat(filled, 1)


@method(
    "FedFomo",
    "personalised",
    off={"share": 0.01},
    exempt={"names": "which models are sent, and in which order, is drawn for each name"},
)
def fedfomo(
    opt: Optimiser = SGD(0.1), M: int = 5, share: float = 0.2, epsilon: float = 0.3, decay: float = 0.05
) -> Method:
    """FedFomo. opt: the local optimiser; M: models sent to a client; share: of its examples that a client holds out.

    epsilon, decay: probability that a slot is filled with anyone, and how much less it is in each round.
    """

    def choice(state: Fomo, r: Round) -> tuple[Tensor, Tensor]:
        return chosen(state, r, M, epsilon - decay * (r.number - 1))

    def send(state: Fomo, r: Round) -> Offer:
        slots, filled = choice(state, r)
        models = spread(state.models, r.population)
        like = next(iter(models.values()))
        return Offer(each(lambda x: x[slots.to(x.device)], models), {"there": filled.to(like)})

    def work(net: Net, task: Task[Offer, Own]) -> Reply[Verdict, Own]:
        (peers, there), own, data = task.down, task.mine, task.data
        few = {k: torch.stack([own.before[k], x]) for k, x in own.model.items()}
        pool = {
            k: torch.cat([x, peers.get(k, x[:1].expand(len(there["there"]), *x.shape[1:]))]) for k, x in few.items()
        }

        def judge(total: Tensor, batch: Batch, pool: Tree) -> Tensor:
            def loss(tree: Tree) -> Tensor:
                return (net.criterion(net.apply(tree, batch.x).logits, batch.y) * batch.live).sum()

            return total + vmap(loss)(pool)

        losses = scan(judge, data.rate.new_zeros(len(there["there"]) + 2), data, given=(pool,), phase="held")
        held = (data.turn.steps["held"] >= 0).sum()
        gaps = torch.stack([(x[1:] - x[:1]).flatten(1).square().sum(1) for x in net.learnable(pool).values()])
        gap = gaps.sum(0).sqrt()
        real = torch.cat([torch.ones_like(gap[:1]), there["there"]]) * (gap > 0)
        worth = real * (losses[0] - losses[1:]) / held.clamp(min=1) / torch.where(gap > 0, gap, 1)
        good = worth.clamp(min=0)
        mixture = good / torch.where(good.sum() > 0, good.sum(), 1)
        mixture = torch.where(held > 0, mixture, torch.arange(len(gap), device=gap.device) == 0)
        start = {k: (1 - mixture.sum()) * x[0] + torch.tensordot(mixture, x[1:], 1) for k, x in pool.items()}
        trained = descend(net, start, data, net.loss, opt).params
        return Reply(Verdict(delta(trained, own.model), {"worth": worth[1:]}), Own(trained, start), data.count)

    def advance(state: Fomo, up: Verdict, r: Round) -> Fomo:
        slots, _ = choice(state, r)
        whole = state.affinity.expand(r.population, r.population)
        here = (r.ids[:, None].expand_as(slots).to(whole.device), slots.to(whole.device))
        affinity = whole.index_put(here, up.worth["worth"].to(whole), accumulate=True)
        return Fomo(put(state.models, r, add(at(state.models, r), up.model)), met(state.seen, r), affinity)

    return Method(
        "fedfomo",
        server=lambda net, first: Fomo(alike(first), NOBODY, torch.zeros(1, 1, dtype=torch.float64)),
        client=lambda net, first: Own(first, first),
        send=send,
        work=work,
        advance=advance,
        views={"personal": kept_view(lambda mine: mine.model)},
        up={"model": Channel(reduce=keep_all), "worth": Channel(reduce=keep_all)},
        private_send=True,
        show=lambda state, r: Model(mean_of_seen(state.models, state.seen)),
        phases={"local": Phase(part=(share, 1.0)), "held": Phase(part=(0.0, share), epochs=1)},
    )
