"""DistFL: the server asks every uploaded model about inputs of its own, and averages only models that answer alike.

Paper
    Liu, Cai, Zhang, Li, Wang, Li, Guo, Chen: "DistFL: Distribution-aware Federated Learning for Mobile Scenarios",
    Proceedings of the ACM on Interactive, Mobile, Wearable and Ubiquitous Technologies 5(4), 2021, arXiv 2110.11619.
What it changes
    After a round from a common start, clients are put into clusters by what their models have learnt about their
    distributions; from then on FedAvg runs in each cluster. Clients send nothing but models.
Algorithm
    FedAvg for `warm` rounds gives w_0; in the next, all train from it. Probes X: Gaussian noise, of which a part for
    each class is moved to where w_0 sees that class (Adam on its logit). p_i = mean over X of softmax(f(X; w_i) / tau),
    K_i[a] = the same over the probes of class a; D_ij = sqrt(JS(p_i, p_j)) + mean_a sqrt(JS(K_i[a], K_j[a])), in bits.
    Clusters by average linkage, cut at the largest gap of the heights if it exceeds gap_min, else one. w_c starts as
    the mean of its members' w_i, weighted by n_i.
Defaults
    warm = 1, probes = 50 for each class, tau = 1, gap_min = 0.1, refine = 100 steps of 0.1, outlier = 1: our reading,
    as only the abstract was there to read, and no code; the rate is 0.05.
Deviations
    All but "cluster by distribution knowledge in uploaded models, then average within clusters" is our reading.
    Clusters are made once, of those in round warm + 1, and stay. Who comes later receives w_0 once: its model tells its
    knowledge, and it joins the cluster with the nearest mean of knowledge, where it is averaged from its next turn on,
    or founds one if all are farther than `outlier`. A client that had no turn answers with w_0. The probes are judged
    with running statistics. Tokens cannot be moved by gradients: there X is drawn, and stays.
Neutral
    gap_min = 2 leaves one cluster. Until round `warm` it is FedAvg.
Promise
    None about a common model: there are several. Nor is it a defence: a client may answer as another would.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from weft.core import Channel, Method, Model, Net, Round, Tree, View, method
from weft.core.errors import SettingError
from weft.core.stream import code, uniform
from weft.core.tree import add, each
from weft.local import SGD, Adam, Optimiser
from weft.local.noise import normal
from weft.methods.fedavg import fedavg, global_view
from weft.server import group_means, keep_all, per_client, put
from weft.server.linkage import clusters


class Clusters(NamedTuple):
    """Server state: models, w_0 first; per client its cluster, 0 if none, and its knowledge [1 + classes, classes]."""

    model: Tree
    member: Tensor
    knowledge: Tensor
    probes: Tensor  # [0] until they are made, then [classes * m, ...] in order of class


def noise(net: Net, count: int, like: Tensor) -> Tensor:
    """`count` inputs that hold nothing of anybody's data."""
    if net.input is None:
        raise SettingError("distfl makes inputs, and this network does not say what an example is: give it `input`")
    shape, key = (count, *net.input.shape), torch.tensor(code("probes"))
    if net.input.tokens:
        return (uniform(key, shape, torch.float64) * net.input.tokens).long().to(like.device)
    return normal(key, shape, like.dtype).to(like.device)


def refined(net: Net, model: Tree, x: Tensor, steps: int) -> Tensor:
    """The inputs, each moved to where the model sees its class: ascent of the class's logit by Adam."""
    label = torch.arange(net.classes, device=x.device).repeat_interleave(len(x) // net.classes)
    opt = Adam(0.1)
    state = opt.init({"x": x})

    def missed(x: Tensor) -> Tensor:
        return -net.apply(model, x).logits.gather(1, label[:, None]).sum()

    for _ in range(steps if x.is_floating_point() else 0):
        change, state = opt.update({"x": grad(missed)(x)}, state, {"x": x}, x.new_ones(()))
        x = x + change["x"]
    return x


def knowledge(net: Net, models: Tree, probes: Tensor, tau: float) -> Tensor:
    """[k, 1 + classes, classes]: the mean answer of each of k models to all probes, and to those of each class."""
    count = len(next(iter(models.values())))
    answers = (net.apply(each(lambda x, i=i: x[i], models), probes).logits for i in range(count))
    rows = torch.stack([(z / tau).softmax(-1).reshape(net.classes, -1, net.classes).mean(1) for z in answers])
    return torch.cat([rows.mean(1, keepdim=True), rows], 1)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """D of knowledge a and b, [..., 1 + classes, classes], between 0 and 2."""
    middle = (a + b) / 2
    bits = sum((x * (x / middle.clamp(min=1e-30)).clamp(min=1e-30).log2()).sum(-1) for x in (a, b)) / 2
    root = torch.as_tensor(bits).clamp(min=0).sqrt()
    return root[..., 0] + root[..., 1:].mean(-1)


@method("DistFL", "clustered", neutral=("fedavg", {}, {"warm": 1000}))
def distfl(
    opt: Optimiser = SGD(0.05),
    warm: int = 1,
    probes: int = 50,
    tau: float = 1.0,
    gap_min: float = 0.1,
    outlier: float = 1.0,
    refine: int = 100,
) -> Method:
    """DistFL. opt: the local optimiser; warm: rounds of FedAvg; probes: inputs for each class; tau: temperature.

    gap_min: least gap that parts clients; outlier: distance beyond which a latecomer founds a cluster; refine: steps.
    """
    if min(warm, refine) < 0 or probes < 1 or tau <= 0:
        raise SettingError(
            f"warm = {warm}, refine = {refine}, probes = {probes}, tau = {tau} of distfl: use 0 or more for the first "
            "two, a probe or more, and a temperature above 0"
        )

    def server(net: Net, first: Tree) -> Clusters:
        like, c = next(iter(first.values())), net.classes
        none = torch.zeros(1, dtype=torch.int64, device=like.device)
        return Clusters(each(lambda x: x[None], first), none, like.new_zeros(1, 1 + c, c), like.new_zeros(0))

    def send(state: Clusters, r: Round) -> Model:
        here = per_client(state.member, r.population)[r.ids.to(state.member.device)]
        return Model(each(lambda x: x[here], state.model))

    def joined(state: Clusters, told: Tensor) -> Tensor:
        """The cluster of each latecomer, int64, from its knowledge; new ones follow the last."""
        count = len(next(iter(state.model.values())))
        means = torch.stack([state.knowledge[state.member == c].mean(0) for c in range(1, count)])
        found = []
        for one in told:
            gap, where = apart(one, means).min(0)
            found.append(int(where) + 1 if gap <= outlier else count)
            count += found[-1] == count
        return torch.tensor(found, device=told.device)

    def advance(state: Clusters, up: Model, r: Round) -> Clusters:
        assert r.weights is not None
        here, weights = per_client(state.member, r.population)[r.ids.to(state.member.device)], r.weights
        count, late = len(next(iter(state.model.values()))), here == 0
        if r.number > warm and late.any():
            start = each(lambda x: x[0], state.model)
            if count == 1:
                x = noise(r.net, probes * r.net.classes, state.knowledge)
                state = state._replace(probes=refined(r.net, start, x, refine))
            told = knowledge(r.net, each(lambda w, d: w + d[late], start, up.model), state.probes, tau)
            if count == 1:
                cluster = here = clusters(apart(told[:, None], told[None]), gap_min) + 1
            else:
                cluster = joined(state, told)
                here = here.index_put((late,), torch.where(cluster < count, 0, cluster))
                weights = torch.where(here == 0, 0, weights)  # they moved w_0, which stands still
            more = max(count, int(cluster.max()) + 1) - count
            model = each(lambda x: torch.cat([x, x[:1].expand(more, *x.shape[1:])]), state.model)
            new, count = r.ids[late.cpu()], count + more
            state = state._replace(
                model=model,
                member=put(state.member, new, cluster, r.population),
                knowledge=put(state.knowledge, new, told, r.population),
            )
        return state._replace(model=add(state.model, group_means(up.model, here, weights, count)))

    return replace(
        fedavg(opt),
        server=server,
        send=send,
        advance=advance,
        views={"personal": View(global_view, data=False)},
        up={"model": Channel(reduce=keep_all)},
        private_send=True,
    )
