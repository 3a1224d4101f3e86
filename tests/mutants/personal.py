"""Mistakes in methods with personal models, private layers or prototypes."""

from __future__ import annotations

from tests.mutants import checks
from tests.mutants.checks import personal, reference
from tests.mutants.planting import COMMON, Default, Edit, Mutant
from weft.local.blend import learn_weights
from weft.methods.apfl import apfl
from weft.methods.ditto import ditto
from weft.methods.fedala import fedala
from weft.methods.fedavg import personal_layers
from weft.methods.fedbn import fedbn
from weft.methods.fedproto import fedproto
from weft.methods.fedrep import fedrep
from weft.methods.lg_fedavg import lg_fedavg
from weft.methods.per_fedavg import per_fedavg
from weft.methods.pfedme import pfedme

DITTO = [
    Mutant(
        "the anchor is the client's own trained model", COMMON, personal("ditto"),
        Edit(ditto, "given=(got,)", "given=(w,)"),
    ),
    Mutant(
        "norm not squared", "PFLlib (its reported loss)", personal("ditto"),
        Edit(ditto, "prox(net, v, anchor, lam)", "lam / 2 * prox(net, v, anchor, 2.0).clamp(min=1e-30).sqrt()"),
    ),
    Mutant(
        "twice the penalty", COMMON, personal("ditto"),
        Edit(ditto, "prox(net, v, anchor, lam)", "prox(net, v, anchor, 2 * lam)"),
    ),
    Mutant(
        "the personal model starts from the received one", COMMON, personal("ditto"),
        Edit(ditto, "descend(net, v, task.data", "descend(net, got, task.data"),
    ),
    Mutant("off by default", "PFLlib", checks.not_off("ditto"), Default("ditto", "lam", 0.0)),
]  # fmt: skip

APFL = [
    Mutant(
        "the private gradient lacks alpha", "fedjax (`apfl.py`)", personal("apfl"),
        Edit(
            apfl, "moves = [opt.update",
            "g = Pair(g.w, {k: v / alpha for k, v in g.v.items()}); moves = [opt.update",
        ),
    ),
    Mutant(
        "the private gradient is taken at v", "PFLlib", personal("apfl"),
        Edit(apfl, "mixed(net, Pair(pair.w, {**pair.v, **moving.v}), alpha)", "{**pair.v, **moving.v}"),
    ),
    Mutant(
        "v is overwritten by the mixture", "PFLlib", personal("apfl"),
        Edit(apfl, "Mixture(pair, share)", "Mixture(Pair(pair.w, mixed(net, pair, share)), share)"),
    ),
    Mutant(
        "alpha is not clipped", COMMON, personal("apfl clipped"),
        Edit(apfl, "(alpha - lr_alpha * rate * slope).clamp(0, 1)", "alpha - lr_alpha * rate * slope"),
    ),
    Mutant(
        "alpha moves in every step", "PFLlib", personal("apfl"),
        Edit(apfl, "batch.number == 0", "batch.number >= 0"),
    ),
    Mutant(
        "the private model never moves", "fluke (`merge_models` steps the wrong copy)", checks.moves("apfl"),
        Edit(apfl, "Pair(pair.w, {**pair.v, **moving.v})", "pair"),
    ),
    Mutant(
        "the private model alone, at first", "PFLlib (alpha = 1)", checks.unlike("apfl", alpha=1),
        Default("apfl", "alpha", 1.0),
    ),
    Mutant(
        "alpha decays", "the authors' code; PFLlib (0.02 alpha)", personal("apfl"),
        Edit(apfl, "lr_alpha * rate * slope", "lr_alpha * rate * (slope + 0.02 * alpha)"),
    ),
]  # fmt: skip

PER_FEDAVG = [
    Mutant(
        "two plain steps", COMMON, personal("per-fedavg"),
        Edit(per_fedavg, "{**near, **add(p, change)}", "{**near, **add(net.learnable(near), change)}"),
    ),
    Mutant(
        "the same batch twice", COMMON, personal("per-fedavg"),
        Edit(per_fedavg, "slope(net, near, batches[1])", "slope(net, near, batches[0])"),
    ),
    Mutant(
        "sign of the Hessian term", COMMON, personal("per-fedavg HF"),
        Edit(per_fedavg, "d = sub(d, scale(", "d = add(d, scale("),
    ),
    Mutant(
        "weights n_k", "PFLlib", personal("per-fedavg"),
        Edit(per_fedavg, 'up={"model": Channel(reduce=plain)}', 'up={"model": Channel()}'),
    ),
]  # fmt: skip

PFEDME = [
    Mutant(
        "theta is the same object as w", "the authors' code (issue 5); PFLlib (issue 32)", personal("pfedme"),
        Edit(pfedme, "Reply(Model(delta(w, got)), theta,", "Reply(Model(delta(w, got)), w,"),
    ),
    Mutant(
        "beta stays with the old model", COMMON, checks.moves("pfedme"),
        Edit(pfedme, "else beta * v", "else (1 - beta) * v"),
    ),
    Mutant(
        "running statistics are extrapolated", COMMON, checks.extrapolated,
        Edit(pfedme, "v if k in r.net.buffers else beta * v", "beta * v"),
    ),
    Mutant(
        "weights n_k", "the authors' code; PFLlib", personal("pfedme"),
        Edit(pfedme, 'up={"model": Channel(reduce=plain)}', 'up={"model": Channel()}'),
    ),
    Mutant(
        "the common model never moves", "PFLlib (beta = 0)", checks.unlike("pfedme", beta=0),
        Default("pfedme", "beta", 0.0),
    ),
    Mutant(
        "the received model answers", "PFLlib (issue 32)", checks.answers("pfedme"),
        Edit(pfedme, '"personal": kept_view()', '"personal": View(global_view)'),
    ),
]  # fmt: skip

LAYERS = [
    Mutant(
        "FedPer: the head is averaged too", COMMON, checks.at_home("fedper"),
        Edit(personal_layers, "Model(net.split(first, keep)[1])", "Model(first)"),
        Edit(
            personal_layers, "own, shared = net.split(trained, keep)",
            "own, shared = net.split(trained, keep)[0], trained",
        ),
    ),
    Mutant(
        "LG-FedAvg: running statistics of private layers travel", COMMON,
        checks.at_home("lg-fedavg"),
        Edit(lg_fedavg, "personal_layers(keep, opt)", 'personal_layers(keep & ~role("buffer"), opt)'),
    ),
    Mutant(
        "FedRep: phases swapped", COMMON, personal("fedrep"),
        Edit(
            fedrep, 'fit(fit({**got, **task.mine}, keep, "head"), ~keep, "body")',
            'fit(fit({**got, **task.mine}, ~keep, "body"), keep, "head")',
        ),
    ),
    Mutant(
        "FedRep: the frozen head goes on moving by decay", "the authors' code (one optimiser, zero gradients)",
        personal("fedrep"),
        Edit(
            fedrep, "net.loss(w, batch)",
            "net.loss({k: v if part.test(k, net.roles[k]) else v.detach() for k, v in w.items()}, batch)",
        ),
        Edit(fedrep, "only=part, ", ""),
    ),
    Mutant(
        "FedBN: layers found by the name bn", "the authors' code; PFLlib", checks.at_home("fedbn"),
        Edit(
            fedbn, "personal_layers(keep, opt)",
            'personal_layers(Select("bn", lambda path, roles: "bn" in path), opt)',
        ),
    ),
    Mutant(
        "FedBN: running statistics are averaged", COMMON, checks.at_home("fedbn"),
        Edit(fedbn, "personal_layers(keep, opt)", 'personal_layers(keep & ~role("buffer"), opt)'),
    ),
    Mutant(
        "FedRep: one epoch of the head", "PFLlib", checks.unlike("fedrep", head_epochs=1),
        Default("fedrep", "head_epochs", 1),
    ),
]  # fmt: skip

FEDALA = [
    Mutant(
        "the bias alone is blended", "a user's `layer_idx = 1`", personal("fedala"),
        Edit(
            fedala, "return Own(first, each",
            'chosen = {k: v for k, v in chosen.items() if k.endswith("bias")}; return Own(first, each',
        ),
    ),
    Mutant(
        "all layers are blended", "a user's `layer_idx = 0`", personal("fedala"),
        Edit(fedala, "return Own(first, each", "chosen = net.learnable(first); return Own(first, each"),
    ),
    Mutant(
        "W is not clamped", COMMON, personal("fedala"),
        Edit(learn_weights, "Clamped(eta)", "Clamped(eta, -1e9, 1e9)"),
    ),
    Mutant(
        "the kept model is the received one", COMMON, personal("fedala"),
        Edit(fedala, "Own(local, weights)", "Own(got, weights)"),
    ),
    Mutant(
        "W is learnt on the blend the other way round", COMMON, personal("fedala"),
        Edit(learn_weights, "net.loss(blend(received, own, w), batch)", "net.loss(blend(own, received, w), batch)"),
    ),
]  # fmt: skip

FEDPROTO = [
    Mutant(
        "divided by the number of owners once more", "the paper's equation", reference("fedproto"),
        Edit(fedproto, 'fresh = up.protos["sum"]', 'fresh = up.protos["sum"] / len(r.ids)'),
    ),
    Mutant(
        "a class that nobody brings is lost", "libraries (the table is rebuilt from participants)", checks.unbrought,
        Edit(fedproto, 'torch.where(count > 0, 1, old["known"])', "(count > 0) * 1.0"),
    ),
    Mutant(
        "features are compared with another class", COMMON, reference("fedproto"),
        Edit(fedproto, 'protos["mean"][batch.y]', 'protos["mean"][batch.y - 1]'),
    ),
    Mutant(
        "classes without a prototype are pulled to zero", COMMON, reference("fedproto"),
        Edit(fedproto, ' * protos["known"][batch.y]', ""),
    ),
    Mutant(
        "clients count alike unasked", "the code behind the published figures", reference("fedproto"),
        Edit(fedproto, 'if weighting == "uniform":', "if True:"),
    ),
]  # fmt: skip

FAMILIES = {
    "Ditto": DITTO,
    "APFL": APFL,
    "Per-FedAvg": PER_FEDAVG,
    "pFedMe": PFEDME,
    "Private layers": LAYERS,
    "FedALA": FEDALA,
    "FedProto": FEDPROTO,
}
