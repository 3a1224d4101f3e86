"""CFL: a cluster whose mean change stalls while its members still move is split by the cosines of their changes.

Paper
    Sattler, Müller, Samek: "Clustered Federated Learning: Model-Agnostic Distributed Multitask Optimization Under
    Privacy Constraints", IEEE Transactions on Neural Networks and Learning Systems 32(8), 2021, arXiv 1910.01991.
What it changes
    FedAvg within each cluster; at first all clients are one cluster, and the server alone decides who goes where.
Algorithm
    Delta_i = change of client i. Cluster c is split if ||sum_i n_i / n_c Delta_i|| < eps1 and max_i ||Delta_i|| > eps2,
    into the two parts whose largest cosine across is least (most similar pairs are joined until two parts are left),
    if gamma < sqrt((1 - that cosine) / 2). Then theta_c <- theta_c + mean of the Delta_i of its members.
Defaults
    eps1 = 0.4, eps2 = 1.6, no split in the first 20 rounds nor of fewer than 3 clients, as in the authors' example;
    gamma = 0, as there. The scale of both eps is that of a model and its rate: the paper says eps1 = a tenth of the
    largest change. eta = 0.05.
Deviations
    The paper has all clients in every round. Here a cluster is judged by the last change of each member, the server
    keeps those, and means weight by n_i over the members in the round; a member that never had a turn goes with the
    larger part. The authors' code joins by complete linkage, and takes plain means. A client that had no turn is in the
    cluster that has been left the most (theirs: they descend the tree of splits). Running statistics are not compared.
Neutral
    eps1 = 0 never splits, and it is FedAvg.
Promise
    None about a common model: after a split there is none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core import Channel, Method, Model, Net, Round, Tree, View, method
from weft.core.tree import add, each
from weft.local import SGD, Optimiser
from weft.methods.fedavg import fedavg, global_view
from weft.server import group_means, keep_all, per_client, put


class Clusters(NamedTuple):
    """Server state: a model per cluster; per client its cluster, its last change, flat, and its n_i, 0 if unknown."""

    model: Tree
    member: Tensor
    change: Tensor
    size: Tensor


def halves(similar: Tensor) -> Tensor:
    """Bool [m], which of the two parts: the largest similarity across them is the least that there can be.

    They are what is left of a maximum spanning tree when its weakest edge is cut.
    """
    m = len(similar)
    near, via = similar[0].clone(), torch.zeros(m, dtype=torch.int64)
    outside, order, strength = torch.arange(m) > 0, [0], [float("inf")]
    for _ in range(m - 1):
        new = int(torch.where(outside, near, -torch.inf).argmax())
        order.append(new)
        strength.append(float(near[new]))
        outside[new] = False
        closer = outside & (similar[new] > near)
        near, via = torch.where(closer, similar[new], near), torch.where(closer, new, via)
    cut = order[strength.index(min(strength))]
    apart = torch.zeros(m, dtype=torch.bool)
    for i in order[1:]:
        apart[i] = i == cut or bool(apart[via[i]])
    return apart


@method("CFL", "clustered", neutral=("fedavg", {}, {"eps1": 0.0}))
def cfl(
    opt: Optimiser = SGD(0.05),
    eps1: float = 0.4,
    eps2: float = 1.6,
    gamma: float = 0.0,
    after: int = 20,
    fewest: int = 3,
) -> Method:
    """CFL. opt: the local optimiser; eps1, eps2: a cluster is split if its mean change is below, its largest one above.

    gamma: least distance of the two parts; after: rounds without a split; fewest: smallest cluster that is split.
    """

    def server(net: Net, first: Tree) -> Clusters:
        like = next(iter(first.values()))
        width = sum(v.numel() for v in net.learnable(first).values())
        none = torch.zeros(1, dtype=torch.int64, device=like.device)
        return Clusters(each(lambda x: x[None], first), none, like.new_zeros(1, width), like.new_zeros(1))

    def send(state: Clusters, r: Round) -> Model:
        here = per_client(state.member, r.population)[r.ids.to(state.member.device)]
        return Model(each(lambda x: x[here], state.model))

    def parted(members: Tensor, state: Clusters) -> Tensor | None:
        """Those of the members who leave the cluster."""
        change, size = state.change[members], state.size[members]
        mean = (size / size.sum()) @ change
        if len(members) < fewest or mean.norm() >= eps1 or change.norm(dim=1).max() <= eps2:
            return None
        unit = F.normalize(change, dim=1)
        similar = (unit @ unit.T).cpu()
        apart = halves(similar)
        if ((1 - similar[apart][:, ~apart].max()) / 2).clamp(min=0).sqrt() <= gamma:
            return None
        return members[(apart if 2 * apart.sum() <= len(apart) else ~apart).to(members.device)]

    def advance(state: Clusters, up: Model, r: Round) -> Clusters:
        assert r.weights is not None
        flat = torch.cat([v.flatten(1) for v in r.net.learnable(up.model).values()], 1)
        state = state._replace(
            member=per_client(state.member, r.population),
            change=put(state.change, r.ids, flat, r.population),
            size=put(state.size, r.ids, r.weights, r.population),
        )
        for cluster in range(len(next(iter(state.model.values()))) if r.number > after else 0):
            known = ((state.member == cluster) & (state.size > 0)).nonzero()[:, 0]
            leaving = parted(known, state) if len(known) else None
            if leaving is not None:
                models = each(lambda x, c=cluster: torch.cat([x, x[c : c + 1]]), state.model)
                new = len(next(iter(state.model.values())))
                state = state._replace(model=models, member=state.member.index_fill(0, leaving, new))
        here = state.member[r.ids.to(state.member.device)]
        step = group_means(up.model, here, r.weights, len(next(iter(state.model.values()))))
        return state._replace(model=add(state.model, step))

    return replace(
        fedavg(opt),
        server=server,
        send=send,
        advance=advance,
        views={"personal": View(global_view, data=False)},
        up={"model": Channel(reduce=keep_all)},
        private_send=True,
    )
