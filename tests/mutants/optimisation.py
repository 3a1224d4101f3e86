"""Mistakes in methods with one common model, and in what the server does with changes."""

from __future__ import annotations

from tests.mutants import checks
from tests.mutants.checks import optimum, reference
from tests.mutants.planting import COMMON, Default, Edit, Mutant
from weft.core import round as rounds
from weft.core.channel import Sum
from weft.local import prox
from weft.methods.fedavg import fedavg
from weft.methods.feddyn import feddyn
from weft.methods.fednova import accumulated, fednova
from weft.methods.fedprox import fedprox
from weft.methods.moon import moon
from weft.methods.scaffold import scaffold
from weft.server import Adaptive, Momentum

FEDAVG = [
    Mutant(
        "weights sum to 2", "fluke (`global_step: 2` multiplies the models' weights)", reference("fedavg"),
        Edit(Sum.__call__, "share / share.sum()", "2 * share / share.sum()"),
    ),
    Mutant(
        "equal weights for weighted ones", COMMON, reference("fedavg"),
        Edit(Sum._counts, "weights if self.weighted else torch.ones_like(weights)", "torch.ones_like(weights)"),
    ),
    Mutant(
        "the last client overwrites the mean", "FedML (`agg_operator.py`)", checks.names("fedavg"),
        Edit(Sum.__call__, "torch.tensordot(share.to(x.dtype), x, 1)", "x[-1]"),
    ),
    Mutant(
        "running statistics are never sent", "PFLlib; vaseline555/Federated-Learning-in-PyTorch #14",
        checks.central("fedavg"),
        Edit(
            fedavg, "Reply(Model(delta(local, got))",
            "Reply(Model({k: v * (k not in net.buffers) for k, v in delta(local, got).items()})",
        ),
    ),
    Mutant(
        "the common model is changed in place", "FedML #115 (not deep-copied)", checks.unchanged("fedavg"),
        Edit(fedavg, "add(state.model, up.model)", "{k: v.add_(up.model[k]) for k, v in state.model.items()}"),
    ),
]  # fmt: skip

SCAFFOLD = [
    Mutant(
        "sign of the control flipped", "pfl-research (`scaffold.py`)", optimum("scaffold"),
        Edit(scaffold, "-1 / (steps", "1 / (steps"),
    ),
    Mutant(
        "the last client overwrites both means", "FedML (`agg_operator.py`)", optimum("scaffold"),
        Edit(Sum.__call__, "torch.tensordot(share.to(x.dtype), x, 1)", "x[-1]"),
    ),
    Mutant(
        "c_i is sent where its change is expected", "Plato #382", optimum("scaffold"),
        Edit(scaffold, "Scaffold(change, turned)", "Scaffold(change, renewed)"),
    ),
    Mutant(
        "the divisor forgets the steps", "Plato #382; PFLlib #152, #160", optimum("scaffold"),
        Edit(scaffold, "(steps.clamp(min=1) * opt.lr", "(opt.lr"),
    ),
    Mutant(
        "the divisor counts examples for steps", "FL4Health PR #64", reference("scaffold II"),
        Edit(scaffold, "steps.clamp(min=1)", "data.count"),
    ),
    Mutant(
        "configured steps instead of real ones", "PFLlib (its slow-client mode trains fewer epochs)",
        reference("scaffold II"),
        Edit(scaffold, "steps.clamp(min=1)", 'len(data.turn.steps["local"])'),
    ),
    Mutant(
        "the divisor has the rate before the schedule", "PFLlib (rate after its decay)", checks.schedule("scaffold"),
        Edit(scaffold, "opt.lr * data.rate", "opt.lr"),
    ),
    Mutant(
        "models weighted by n_k, controls not", "NIID-Bench", reference("scaffold II"),
        Edit(scaffold, '"model": Channel(reduce=plain)', '"model": Channel()'),
    ),
    Mutant(
        "running statistics have controls", "NIID-Bench", checks.statistics("scaffold"),
        Edit(scaffold, "net.learnable(change)", "change"),
        Edit(scaffold, "Scaffold(first, zeros(net.learnable(first)))", "Scaffold(first, zeros(first))"),
        Edit(
            scaffold, "client=lambda net, first: zeros(net.learnable(first))",
            "client=lambda net, first: zeros(first)",
        ),
    ),
    Mutant(
        "c moves as if all clients took part", COMMON, reference("scaffold II"),
        Edit(scaffold, "scale(up.control, len(r.ids) / r.population)", "up.control"),
    ),
    Mutant(
        "controls start at random", "NIID-Bench #8", reference("scaffold II"),
        Edit(
            scaffold, "client=lambda net, first: zeros(net.learnable(first))",
            "client=lambda net, first: net.learnable(net.init(7))",
        ),
    ),
    Mutant(
        "the correction has the wrong sign", COMMON, optimum("scaffold", 3),
        Edit(scaffold, "given=(sub(c, c_i),)", "given=(sub(c_i, c),)"),
    ),
]  # fmt: skip

FEDPROX = [
    Mutant(
        "norm not squared", "PFLlib (its reported loss)", reference("fedprox"),
        Edit(
            prox, "weight / 2 * sq_norm(sub(net.learnable(params), anchor))",
            "weight / 2 * sq_norm(sub(net.learnable(params), anchor)).clamp(min=1e-30).sqrt()",
        ),
    ),
    Mutant(
        "twice the penalty", "libraries that leave out the half", reference("fedprox"),
        Edit(prox, "weight / 2", "weight"),
    ),
    Mutant(
        "the penalty is added once for each parameter", "msrflute (`run_train_epoch_fedprox`)", reference("fedprox"),
        Edit(
            prox, "sq_norm(sub(net.learnable(params), anchor))",
            "sum(n * (v**2).sum() for n, v in enumerate(reversed(sub(net.learnable(params), anchor).values()), 1))",
        ),
    ),
    Mutant(
        "the anchor is the model in training", COMMON, reference("fedprox"),
        Edit(fedprox, "prox(net, w, anchor, mu)", "prox(net, w, w, mu)"),
    ),
    Mutant("off by default", "PFLlib", checks.not_off("fedprox"), Default("fedprox", "mu", 0.0)),
]  # fmt: skip

FEDDYN = [
    Mutant(
        "norm not squared", "PFLlib", reference("feddyn"),
        Edit(feddyn, "prox(net, w, theta, alpha)", "alpha / 2 * prox(net, w, theta, 2.0).clamp(min=1e-30).sqrt()"),
    ),
    Mutant(
        "h divided by participants instead of all", COMMON, reference("feddyn"),
        Edit(feddyn, "alpha * len(r.ids) / r.population", "alpha"),
    ),
    Mutant(
        "sign of the linear term", COMMON, optimum("feddyn"),
        Edit(feddyn, "value - dot(g_k, w)", "value + dot(g_k, w)"),
    ),
    Mutant(
        "sign of g_k", COMMON, optimum("feddyn"),
        Edit(feddyn, "sub(g_k, scale(net.learnable(change), alpha))", "add(g_k, scale(net.learnable(change), alpha))"),
    ),
    Mutant(
        "sign of h in theta", COMMON, optimum("feddyn", 3),
        Edit(feddyn, "v - h[k] / alpha", "v + h[k] / alpha"),
    ),
    Mutant(
        "a hundred times the weight", "PFLlib (alpha = 1)", checks.unlike("feddyn", alpha=1),
        Default("feddyn", "alpha", 1.0),
    ),
]  # fmt: skip

FEDNOVA = [
    Mutant(
        "configured steps instead of real ones", COMMON, reference("fednova"),
        Edit(
            fednova, "accumulated(opt, mu, data, steps)",
            'accumulated(opt, mu, data, steps * 0 + len(data.turn.steps["local"]))',
        ),
    ),
    Mutant(
        "norm without the momentum", COMMON, reference("fednova momentum"),
        Edit(accumulated, "replace(opt, weight_decay", "replace(opt, momentum=0.0, weight_decay"),
    ),
    Mutant(
        "norm without the pull", COMMON, reference("fednova both"),
        Edit(accumulated, "pull = mu * moved +", "pull = 0 * moved +"),
    ),
    Mutant(
        "running statistics are normalised", COMMON, reference("fednova", norm=True),
        Edit(fednova, "net.learnable(change).items()", "change.items()"),
    ),
    Mutant(
        "clients without a step count", COMMON, checks.idle,
        Edit(fednova, "data.count * (steps > 0)", "data.count"),
    ),
]  # fmt: skip

FEDOPT = [
    Mutant(
        "sign of the pseudo-gradient", COMMON, reference("fedadam"),
        Edit(Adaptive.update, "self.lr * (a / first)", "-self.lr * (a / first)"),
    ),
    Mutant(
        "bias-corrected unasked", "Flower's FedAdam; Keras", reference("fedadam"),
        Edit(Adaptive.update, "corrected = self.bias_correction", "corrected = True"),
    ),
    Mutant(
        "tau inside the square root", COMMON, reference("fedadam"),
        Edit(Adaptive.update, "((b / second).sqrt() + self.tau)", "(b / second + self.tau).sqrt()"),
    ),
    Mutant(
        "v starts at 0 unasked", "Keras", reference("fedadagrad"),
        Edit(Adaptive.init, "self.tau**2 if", "0.0 if"),
    ),
    Mutant(
        "Yogi's sign", COMMON, reference("fedyogi"),
        Edit(Adaptive._second, "else v - (1", "else v + (1"),
    ),
    Mutant(
        "dampened momentum", "MOON's code", reference("fedavgm"),
        Edit(Momentum.update, "(1 - self.dampening)", "(1 - self.momentum)"),
    ),
    Mutant(
        "the server optimiser moves running statistics", COMMON, reference("fedadam", norm=True),
        Edit(rounds.advanced, "got, carried = encoded(rnd.net, tree)", "got, carried = tree, {}"),
    ),
]  # fmt: skip

MOON = [
    Mutant(
        "the previous model is the received one", "simulators that share one network object", reference("moon"),
        Edit(moon, "given=(got, task.mine, task.data.past)", "given=(got, got, task.data.past)"),
    ),
    Mutant(
        "contrast in the first turn", "PFLlib (the first old model is the initial one)", reference("moon"),
        Edit(moon, "past > 0", "past >= 0"),
    ),
    Mutant(
        "exponentials overflow", "PFLlib (no log-sum-exp)", reference("moon frozen"),
        Edit(
            moon, "-F.logsigmoid((near - far) / T)",
            "-torch.log((near / T).exp() / ((near / T).exp() + (far / T).exp()))",
        ),
    ),
    Mutant("no temperature", COMMON, reference("moon cold"), Edit(moon, "(near - far) / T", "(near - far)")),
    Mutant(
        "frozen models are not judging", "PFLlib (mode left as it is)", reference("moon", norm=True),
        Edit(moon, "net.apply(prev, batch.x).features", "net.train(prev, batch)[0].features"),
    ),
    Mutant("off by default", "PFLlib", checks.not_off("moon"), Default("moon", "mu", 0.0)),
]  # fmt: skip

FAMILIES = {
    "FedAvg": FEDAVG,
    "SCAFFOLD": SCAFFOLD,
    "FedProx": FEDPROX,
    "FedDyn": FEDDYN,
    "FedNova": FEDNOVA,
    "FedOpt": FEDOPT,
    "MOON": MOON,
}
