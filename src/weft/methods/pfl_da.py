"""PFL-DA: private layers bring each client's inputs under a common head, and a private head that is tied to it answers.

Paper
    Shi, Al Kontar: "Personalized Federated Learning via Domain Adaptation with an Application to Distributed 3D
    Printing", Technometrics 2023.
What it changes
    As in LG-FedAvg the layers phi_k below the head are private and the head g is common; a second head h_k is private
    too, and is pulled towards g.
Algorithm
    h_k: E epochs of SGD on CE(h_k(phi_k(x))) + lambda ||h_k - g||^2 with phi_k fixed; then phi_k and a copy g_k of g: E
    epochs of SGD on CE(g_k(phi_k(x))). Only g_k is sent; g <- sum_k n_k / n * g_k. Client k answers with h_k and phi_k.
Defaults
    lambda = 1 as in public code (the paper's is not confirmed); eta = 0.05.
Deviations
    The order of the phases is that of public code (not confirmed in the paper), so that h_k is fitted to phi_k as it
    was before the turn. The penalty is the squared norm: at h_k = g the norm has no gradient. Each phase has an
    optimiser of its own, and running statistics stand still while the head learns. Losses are those of the network. A
    client that had no turn answers with g on its first layers.
Neutral
    The common head is that of LG-FedAvg for any lambda.
Promise
    None about a common model: there is no such model.
"""

from __future__ import annotations

from weft.core import Batch, Fit, Method, Model, Net, Phase, Predict, Reply, Select, Task, Tree, View, method
from weft.core.errors import SettingError
from weft.core.select import role
from weft.core.tree import delta, where
from weft.local import SGD, Optimiser, descend, prox
from weft.local.frozen import within
from weft.methods.fedavg import personal_layers


@method("PFL-DA", "personalised", neutral=("lg-fedavg", {}, {}), mixed=True, off={"lam": 0.0})
def pfl_da(
    opt: Optimiser = SGD(0.05), lam: float = 1.0, head_epochs: int | None = None, head: Select = role("head")
) -> Method:
    """PFL-DA. opt: the optimiser of either phase; lam: weight of the pull; head: what is shared, and doubled.

    head_epochs: epochs of the private head, by default the run's.
    """
    if lam < 0:
        raise SettingError(f"lam = {lam} pushes the private head away from the common one: use 0 or more, such as 1")

    def work(net: Net, task: Task[Model, Tree]) -> Reply[Model, Tree]:
        got, own, data = task.down.model, task.mine, task.data

        def loss(w: Tree, batch: Batch, common: Tree) -> Fit:
            value, buffers = net.loss(w, batch)
            return Fit(value + prox(net, net.split(w, head)[0], common, 2 * lam), buffers)

        tied = descend(
            net, own, data, within(net, head, loss), opt, given=(net.split(got, head)[0],), only=head, phase="head"
        ).params
        trained = descend(net, {**own, **got}, data, net.loss, opt).params
        shared, below = net.split(trained, head)
        return Reply(Model(delta(shared, got)), {**own, **below, **net.split(tied, head)[0]}, data.count)

    def view(net: Net, task: Task[Model, Tree]) -> Predict:
        own = where(task.data.past > 0, task.mine, {**task.mine, **task.down.model})
        return lambda x: net.apply(own, x).logits

    return personal_layers(
        ~head,
        opt,
        client=lambda net, first: first,
        work=work,
        views={"personal": View(view)},
        phases={"local": Phase(), "head": Phase(epochs=head_epochs)},
    )
