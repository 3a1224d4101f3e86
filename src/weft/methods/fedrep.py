"""FedRep: first many epochs of the private head on a frozen representation, then the representation alone.

Paper
    Collins, Hassani, Mokhtari, Shakkottai: "Exploiting Shared Representations for Personalized Federated Learning",
    ICML 2021, arXiv 2102.07078.
What it changes
    Head and representation learn one after the other, the head for longer; only the representation phi is averaged.
Algorithm
    h_k: tau epochs of SGD with phi = phi^t fixed; then phi_k: SGD with h_k fixed; phi <- 1/|S| sum_k phi_k.
Defaults
    tau = 10, as in the authors' scripts; the representation learns for the run's epochs (theirs: 1 or 5). eta = 0.05
    (theirs: 0.01).
Deviations
    Each half has an optimiser of its own that starts afresh: in the authors' code momentum and weight decay go on
    moving the half that should stand still. Means are uniform as in the paper; running statistics take the mean
    weighted by n_k, and stand still while the head learns. The last round, in which every client fits its head once
    more, is left out: the view judges the present phi with the head of the client's last turn. A client that had no
    turn has the initial head.
Neutral
    None: with nothing kept, and no epochs of the head, it is FedAvg up to the order of the batches and equal weights.
Promise
    None about a common model: there is no such model.
"""

from __future__ import annotations

from weft.core import Batch, Channel, Fit, Method, Model, Net, Phase, Reply, Select, Task, Tree, method
from weft.core.select import role
from weft.core.tree import delta
from weft.local import SGD, Optimiser, descend
from weft.methods.fedavg import personal_layers
from weft.server import plain


@method("FedRep", "personalised", off={"head_epochs": 0})
def fedrep(opt: Optimiser = SGD(0.05), head_epochs: int = 10, keep: Select = role("head")) -> Method:
    """FedRep. opt: the optimiser of either half; head_epochs: epochs of the head; keep: what stays, the head."""

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        got = task.down.model

        def fit(model: Tree, part: Select, phase: str) -> Tree:
            def loss(w: Tree, batch: Batch) -> Fit:
                value, buffers = net.loss(w, batch)
                return Fit(value, net.split(buffers, part)[0])

            tree: Tree = descend(net, model, task.data, loss, opt, only=part, phase=phase).params
            return tree

        trained = fit(fit({**got, **task.mine}, keep, "head"), ~keep, "body")
        own, shared = net.split(trained, keep)
        return Reply(Model(delta(shared, got)), own, task.data.count)

    phases = {"head": Phase(epochs=head_epochs), "body": Phase()}
    return personal_layers(keep, opt, work=work, phases=phases, up={"model": Channel(reduce=plain)})
