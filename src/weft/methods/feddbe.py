"""FedDBE: FedAvg with a private vector before the head, and a pull of each client's mean feature to a common mean.

Paper
    Zhang, Hua, Cao, Wang, Song, Xue, Ma, Guan: "Eliminating Domain Bias for Federated Learning in Representation
    Space", NeurIPS 2023, arXiv 2311.14975.
What it changes
    Features z become z + p_k before the head, p_k learnt and kept at home; a penalty moves what is special to the
    client's features into p_k. `weft.local.debias.with_dbe` does so to other methods than FedAvg.
Algorithm
    Opening, with all clients: each trains the initial model as in a turn without p and penalty; m <- sum_k n_k / n *
    r_k, r_k its running mean of z; the models are thrown away. Rounds: r <- (1 - mu) r + mu * mean of z in the batch,
    from r = 0 in every turn, with the gradient of the batch alone; SGD on model and p_k of CE(head(z + p_k), y) +
    kappa/2 * mean over the entries of (r - m)^2; w <- sum_k n_k / n * w_k. Client k answers with the common model and
    p_k, the common view with p = 0.
Defaults
    kappa = 50, mu = 1, the authors' for the 4-layer CNN (public code: kappa = 0). eta = 0.05 (theirs: 0.005).
Deviations
    The penalty is the mean over entries, as in the code to which kappa = 50 belongs. The opening draws the batches of
    the first round. m goes with every download, since any client may be a new one. A schedule moves p_k too. A client
    that had no turn answers with p_k = 0.
Neutral
    With kappa = 0 and bias_rate = 0 it is FedAvg.
Promise
    None that quadratics can show: the vector stands on features, which they have not.
"""

from __future__ import annotations

from weft.core import Method, method
from weft.local import SGD, Optimiser
from weft.local.debias import with_dbe
from weft.methods.fedavg import fedavg


@method("FedDBE", "personalised", neutral=("fedavg", {}, {"kappa": 0.0, "bias_rate": 0.0}), off={"kappa": 0.0})
def feddbe(opt: Optimiser = SGD(0.05), kappa: float = 50.0, mu: float = 1.0, bias_rate: float = 1.0) -> Method:
    """FedDBE. opt: the local optimiser; kappa: weight of the pull; mu: momentum of the running mean.

    bias_rate: learning rate of the private vector in units of the model's.
    """
    return with_dbe(fedavg(opt), kappa, mu, bias_rate)
