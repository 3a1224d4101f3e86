"""PFA: after FedAvg, clients whose activations are zero at like places form groups, and FedAvg goes on in each group.

Paper
    Liu, Guo, Chen: "PFA: Privacy-preserving Federated Adaptation for Effective Model Personalization", WWW 2021,
    arXiv 2103.01548.
What it changes
    A federated model is adapted not by one client's few examples, but by those of clients with a like distribution;
    who is like whom is told by the sparsity of the last activations on each client's own data.
Algorithm
    Stage 1: FedAvg for `warm` rounds gives w_F. Stage 2: s_i[c] = mean over the client's training examples of the share
    of exact zeros in channel c, w_F judging; D_ij = ||s_i - s_j||_2. Stage 3: clusters by average linkage on D, cut
    at the largest gap of the heights; FedAvg in each of them, from w_F.
Defaults
    warm = 50 rounds and SGD with rate 0.01 and momentum 0.5, as in the authors' scripts, where 30 rounds follow: set
    the run's rounds to 80, or `warm` to less. All channels are used (the script draws 20 of 512).
Deviations
    The layer is the input of the head. w_F is the model after stage 1, not the one of its best validation round. Means
    weight by n_i, those of the script are uniform. The paper's schedule for large populations is not stated exactly,
    and grouping in the code is done by hand: the clustering is our reading. Stages 2 and 3 begin in one round: who is
    in it sends s_i with the change, which is one from w_F for everybody. Each upload has the sparsity of the received
    model; only that of w_F counts. Who comes later gets w_F once, is not averaged in that round, and joins the group of
    the least mean distance, as does a client that had no turn and only answers. Where activations are not exactly 0
    (tanh, GELU, after average pooling), `eps` says up to what they count as such.
Neutral
    Until round `warm` it is FedAvg; with groups = 1 it stays so, if all are in round warm + 1.
Promise
    None about a common model: there are several.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from weft.core import Channel, Method, Model, Net, Predict, Reply, Round, Stacked, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.task import Data
from weft.core.tree import add, delta, each
from weft.local import SGD, Optimiser, descend
from weft.methods.fedavg import fedavg
from weft.server import group_means, keep_all, per_client, put
from weft.server.linkage import clusters

PAPER = SGD(0.01, momentum=0.5)


class Groups(NamedTuple):
    """Server state: models, w_F first; per client its group, 0 if it has none yet, and s_i [width]."""

    model: Tree
    member: Tensor
    sparsity: Tensor


class Up(NamedTuple):
    """Upload: the change of the received model, and the sparsity of its activations."""

    model: Tree
    sparsity: Tree


class Shown(NamedTuple):
    """What views get: all models, everybody's group and s_i, and the client's own group."""

    models: Tree
    others: Tree
    own: Tree


def sparsity(net: Net, model: Tree, data: Data, eps: float) -> Tensor:
    """For each channel of the head's input the share of the client's training examples at which it is 0, [width]."""
    whole = data.all()
    zero = (net.apply(model, whole.x).features.abs() <= eps).to(whole.live).reshape(len(whole.y), -1, net.width)
    return whole.live @ zero.mean(1) / whole.live.sum().clamp(min=1)


def nearest(s: Tensor, known: Tensor, member: Tensor, groups: int) -> Tensor:
    """The number, from 1, of the group with the least mean distance to s [width], int64; 0 if there is no group."""
    if not groups:
        return torch.zeros_like(member[0])
    among = (member == torch.arange(1, groups + 1, device=member.device)[:, None]).to(s.dtype)
    apart = among @ (known - s).square().sum(1).sqrt() / among.sum(1)
    return apart.argmin() + 1


@method("PFA", "clustered", neutral=("fedavg", {"opt": PAPER}, {"warm": 1000}))
def pfa(opt: Optimiser = PAPER, warm: int = 50, groups: int = 0, eps: float = 0.0) -> Method:
    """PFA. opt: the local optimiser; warm: rounds of FedAvg; groups: their number, 0: as the distances say.

    eps: the largest activation that counts as none.
    """
    if min(warm, groups, eps) < 0:
        raise SettingError(f"warm = {warm}, groups = {groups}, eps = {eps} of pfa: use 0 or more for each")

    def server(net: Net, first: Tree) -> Groups:
        like = next(iter(first.values()))
        none = torch.zeros(1, dtype=torch.int64, device=like.device)
        return Groups(each(lambda x: x[None], first), none, like.new_zeros(1, net.width))

    def members(state: Groups, r: Round) -> Tensor:
        return per_client(state.member, r.population)[r.ids.to(state.member.device)]

    def send(state: Groups, r: Round) -> Model:
        return Model(each(lambda x: x[members(state, r)], state.model))

    def work(net: Net, task: Task[Model, tuple[()]]) -> Reply[Up, tuple[()]]:
        got = task.down.model
        s = sparsity(net, got, task.data, eps)
        local = descend(net, got, task.data, net.loss, opt).params
        return Reply(Up(delta(local, got), {"zero": s}), (), task.data.count)

    def advance(state: Groups, up: Up, r: Round) -> Groups:
        assert r.weights is not None
        here, count, weights = members(state, r), len(next(iter(state.model.values()))), r.weights
        late, s = here == 0, up.sparsity["zero"]
        if r.number > warm and late.any():
            new, told = r.ids[late.cpu()], s[late]
            if count == 1:
                joined = clusters(torch.cdist(s, s), count=groups) + 1
                here, count = joined, int(joined.max()) + 1
            else:
                joined = torch.stack([nearest(one, state.sparsity, state.member, count - 1) for one in told])
                weights = torch.where(late, 0, weights)  # they moved w_F, which stands still
            state = Groups(
                each(lambda x: x if len(x) == count else x.expand(count, *x.shape[1:]), state.model),
                put(state.member, new, joined, r.population),
                put(state.sparsity, new, told, r.population),
            )
        return state._replace(model=add(state.model, group_means(up.model, here, weights, count)))

    def show(state: Groups, r: Round) -> Stacked:
        banks = {"member": per_client(state.member, r.population), "zero": per_client(state.sparsity, r.population)}
        models, others = (each(lambda x: x.expand(len(r.ids), *x.shape), tree) for tree in (state.model, banks))
        return Stacked(Shown(models, others, {"member": members(state, r)}))

    def view(net: Net, task: Task[Shown, tuple[()]]) -> Predict:
        models, others, own = task.down
        s = sparsity(net, each(lambda x: x[0], models), task.data, eps)
        joined = nearest(s, others["zero"], others["member"], len(next(iter(models.values()))) - 1)
        number = torch.where(own["member"] > 0, own["member"], joined).reshape(1)
        model = each(lambda x: x.index_select(0, number)[0], models)
        return lambda x: net.apply(model, x).logits

    return replace(
        fedavg(opt),
        server=server,
        send=send,
        work=work,
        advance=advance,
        show=show,
        views={"personal": View(view)},
        up={"model": Channel(reduce=keep_all), "sparsity": Channel(reduce=keep_all)},
        private_send=True,
    )
