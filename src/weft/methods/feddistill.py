"""FedDistill: clients share what their models say about each class on average, and distil towards what the others say.

Paper
    Jeong, Oh, Kim, Park, Bennis, Kim: "Communication-Efficient On-Device Machine Learning: Federated Distillation and
    Augmentation under Non-IID Private Data", MLPCD workshop at NeurIPS 2018, arXiv 1811.11479. Called FD there.
What it changes
    No model is sent, but one row of outputs per class; the local loss gains a term that compares each example with
    the row of its class.
Algorithm
    loss = CE(F(w, b), y_b) + lam * CE(F(w, b), Fhat_y), with F the softmax output. Fbar_l^(i) = mean of F over the
    examples of class l in the batches of the turn, while w moves. Down to client i: Fhat_l^(i) = mean of Fbar_l^(j)
    over the other clients j of the last round that own l. No such term without a row, hence none in the first round.
Defaults
    lam = 1, and a learning rate of 0.01, as in libraries; the paper states neither. It makes 250 steps a turn; here a
    turn has the run's epochs.
Deviations
    The paper has every class at every client; here a row is the mean over its owners, and a class that nobody else
    brought in the last round is not distilled. `outputs="logits"` compares raw mean logits as if they were
    probabilities, and `leave_out=False` gives all clients the mean with their own rows in it: the two are the code
    behind the published FedDistill figures, whose loss has no lower bound. That code distils towards a model's own
    logits where a row is missing: left out. The augmentation of the paper (FAug) is another method. A client that had
    no turn answers with the initial model.
Neutral
    lam = 0 trains every client alone.
Promise
    None: there is no common model.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from weft.core import Batch, Channel, Fit, Method, Net, Reply, Round, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.net import masked_mean
from weft.local import SGD, Optimiser, descend
from weft.server import keep_all


class Rows(NamedTuple):
    """Upload: mean output per class [classes, classes], owned [classes]; download: the same of others, and known."""

    rows: Tree


class Newest(NamedTuple):
    """Server state: the rows of the last round, stacked, and whose they are."""

    rows: Tree
    ids: Tensor


class Learner(NamedTuple):
    """A model, and what it has said in this turn; the latter is carried along like running statistics."""

    model: Tree
    said: Tree


@method("FedDistill (FD)", "distillation", neutral=("local", {"opt": SGD(0.01)}, {"lam": 0.0}), mixed=True)
def feddistill(
    opt: Optimiser = SGD(0.01),
    lam: float = 1.0,
    outputs: Literal["softmax", "logits"] = "softmax",
    leave_out: bool = True,
) -> Method:
    """FedDistill. opt: the local optimiser; lam: weight of the distillation; outputs: what the rows hold.

    leave_out: whether a client's own rows are left out of what it gets.
    """

    def server(net: Net, first: Tree) -> Newest:
        like, c = next(iter(first.values())), net.classes
        rows = {"mean": like.new_zeros(0, c, c), "owned": like.new_zeros(0, c)}
        return Newest(rows, torch.zeros(0, dtype=torch.int64))

    def send(state: Newest, r: Round) -> Rows:
        mean, owned = state.rows["mean"], state.rows["owned"]
        from_others = (state.ids != r.ids[:, None]) if leave_out else torch.ones(len(r.ids), len(state.ids))
        share = from_others.to(mean) @ owned
        table = torch.einsum("km,mab->kab", from_others.to(mean), mean) / share.clamp(min=1)[..., None]
        return Rows({"mean": table, "known": share.clamp(max=1)})

    def work(net: Net, task: Task[Rows, Tree]) -> Reply[Rows, Tree]:
        table = task.down.rows
        if net.classes != table["known"].shape[-1]:
            raise SettingError(
                f"feddistill averages rows of {table['known'].shape[-1]} classes, and a network has {net.classes}: use "
                "networks with as many"
            )

        def loss(learner: Learner, batch: Batch, table: Tree) -> Fit:
            out, buffers = net.train(learner.model, batch)
            log = out.logits.log_softmax(1)
            distilled = -(table["mean"][batch.y] * log).sum(1) * table["known"][batch.y]
            value = masked_mean(net.criterion(out.logits, batch.y) + lam * distilled, batch.live)
            hot = (batch.y[:, None] == torch.arange(net.classes, device=log.device)) * batch.live[:, None]
            output = (out.logits if outputs == "logits" else log.exp()).detach()
            said = {"sum": learner.said["sum"] + hot.T @ output, "count": learner.said["count"] + hot.sum(0)}
            return Fit(value, Learner(buffers, said))

        nothing = {"sum": torch.zeros_like(table["mean"]), "count": torch.zeros_like(table["known"])}
        end = descend(net, Learner(task.mine, nothing), task.data, loss, opt, given=(table,)).params
        count = end.said["count"]
        rows = {"mean": end.said["sum"] / count.clamp(min=1)[:, None], "owned": count.clamp(max=1)}
        return Reply(Rows(rows), end.model, task.data.count)

    return Method(
        "feddistill",
        server=server,
        client=lambda net, first: first,
        send=send,
        work=work,
        advance=lambda state, up, r: Newest(up.rows, r.ids),
        views={"personal": View(lambda net, task: lambda x: net.apply(task.mine, x).logits, data=False)},
        up={"rows": Channel(reduce=keep_all)},
        private_send=True,
    )
