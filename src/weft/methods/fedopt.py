"""FedOpt: the clients' mean change is a pseudo-gradient for an optimiser at the server.

Paper
    Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: "Adaptive Federated Optimization", ICLR 2021,
    arXiv 2003.00295 (FedAdagrad, FedYogi, FedAdam); Hsu, Qi, Brown: "Measuring the Effects of Non-Identical Data
    Distribution for Federated Visual Classification", 2019, arXiv 1909.06335 (FedAvgM).
What it changes
    The server moves the model by momentum or by adaptive steps instead of adding the mean change Delta.
Algorithm
    Clients as in FedAvg. FedAvgM: u <- beta u + Delta, x <- x + eta u. The others: m <- beta1 m + (1 - beta1) Delta;
    Adagrad v <- v + Delta^2, Yogi v <- v - (1 - beta2) Delta^2 sign(v - Delta^2), Adam v <- beta2 v + (1 - beta2)
    Delta^2; x <- x + eta m / (sqrt(v) + tau), from m = 0 and v = tau^2.
Defaults
    beta = beta1 = 0.9 (0 for Adagrad), beta2 = 0.99, tau = 1e-3, eta = 1 for momentum and 0.1 for the others; the
    paper tunes both rates and tau on a grid for each data set.
Deviations
    Delta is weighted by numbers of examples, as in the paper's experiments; Algorithm 2 takes the plain mean. The
    authors' runs went through Keras, which corrects the bias of both moments, starts v at 0 and has beta2 = 0.999:
    that is `bias_correction=True, v_init=0, beta2=0.999`. Running statistics pass by the server optimiser. Momentum
    is not dampened; some public versions do so, which is a ten times smaller step.
Neutral
    FedAvgM with beta = 0 and eta = 1 is FedAvg.
Promise
    The drift of the clients remains: it does not reach the optimum.
"""

from __future__ import annotations

from weft.core import Method, method
from weft.core.method import tune
from weft.local import SGD, Optimiser
from weft.methods.fedavg import fedavg
from weft.server import Adaptive, Momentum


@method(
    "FedAvgM",
    "base",
    neutral=("fedavg", {}, {"beta": 0.0}),
    reaches_optimum=False,
    about="the clients' mean change, as a pseudo-gradient, goes through momentum at the server",
)
def fedavgm(
    opt: Optimiser = SGD(0.05), eta: float = 1.0, beta: float = 0.9, dampening: float = 0.0, nesterov: bool = False
) -> Method:
    """FedAvgM. opt: the local optimiser; eta: server rate; beta: server momentum; dampening, nesterov: as in SGD."""
    return tune(fedavg(opt), "model", then=Momentum(eta, beta, dampening, nesterov))


@method(
    "FedAdam",
    "base",
    reaches_optimum=False,
    about="Adam at the server: the mean change over the root of the running mean of its squares",
)
def fedadam(
    opt: Optimiser = SGD(0.05),
    eta: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    v_init: float | None = None,
    bias_correction: bool = False,
) -> Method:
    """FedAdam. opt: local optimiser; eta: server rate; beta1, beta2, tau: see above; v_init: first v, None: tau^2."""
    return tune(fedavg(opt), "model", then=Adaptive("adam", eta, beta1, beta2, tau, v_init, bias_correction))


@method(
    "FedYogi",
    "base",
    reaches_optimum=False,
    about="FedAdam whose mean of squares falls by a share of the newest square only, so that steps grow slowly",
)
def fedyogi(
    opt: Optimiser = SGD(0.05),
    eta: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    v_init: float | None = None,
    bias_correction: bool = False,
) -> Method:
    """FedYogi. opt: local optimiser; eta: server rate; beta1, beta2, tau: see above; v_init: first v, None: tau^2."""
    return tune(fedavg(opt), "model", then=Adaptive("yogi", eta, beta1, beta2, tau, v_init, bias_correction))


@method(
    "FedAdagrad",
    "base",
    reaches_optimum=False,
    about="the mean change over the root of the sum of all its squares so far, at the server",
)
def fedadagrad(
    opt: Optimiser = SGD(0.05), eta: float = 0.1, beta1: float = 0.0, tau: float = 1e-3, v_init: float | None = None
) -> Method:
    """FedAdagrad. opt: local optimiser; eta: server rate; beta1, tau: see above; v_init: first v, None: tau^2."""
    return tune(fedavg(opt), "model", then=Adaptive("adagrad", eta, beta1, tau=tau, v_init=v_init))
