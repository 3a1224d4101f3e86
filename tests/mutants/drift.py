"""Mistakes in methods against drift: calibration, distillation, middleware models, corrected steps, one-bit sums."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import test_fedamd
import test_fedcross
import test_fedgen
import test_fedlc
import test_fedntd
import test_marsit
import test_mime
from reference.model import BnMlp, Mlp

from tests.mutants import checks
from tests.mutants.checks import WRONG
from tests.mutants.planting import COMMON, Check, Default, Edit, Mutant
from weft.core import SettingError
from weft.executors import Batched
from weft.local.classes import class_counts
from weft.methods.fedamd import fedamd
from weft.methods.fedcross import fedcross, partners
from weft.methods.fedgen import alike, fedgen
from weft.methods.fedlc import fedlc
from weft.methods.fedntd import fedntd, not_true
from weft.methods.marsit import marsit, merged
from weft.methods.mime import mime


def _reference(said: str, test: Callable[..., None], *settings: Any, norm: bool = False) -> Check:
    net = (BnMlp if norm else Mlp,) if test not in (test_fedamd.test_equals_the_reference, MIME) else ()
    said = f"reference {said}" + (", with batch norm" if norm else "")
    return Check(said, partial(test, *settings, Batched(), 0, *net), WRONG)


MIME = test_mime.test_equals_the_reference
lc = _reference("fedlc", test_fedlc.test_equals_the_reference, 0.0)
ntd = _reference("fedntd", test_fedntd.test_equals_the_reference, 0.7, 3.0)
ntd_norm = _reference("fedntd", test_fedntd.test_equals_the_reference, 0.7, 3.0, norm=True)
gen = _reference("fedgen", test_fedgen.test_equals_the_reference, {})
amd = _reference("fedamd", test_fedamd.test_equals_the_reference, test_fedamd.P)
full = _reference("mime", MIME, "full", "momentum")
adam = _reference("mime on Adam", MIME, "full", "adam")
bits = _reference("marsit", test_marsit.test_equals_the_reference, 2)


def _refused() -> None:
    try:
        fedamd(p=1.0)
    except SettingError:
        return
    raise AssertionError("fedamd takes p = 1")


def cross(choose: str) -> Check:
    return _reference(f"fedcross, {choose}", test_fedcross.test_equals_the_reference, {}, choose)


FEDLC = [
    Mutant(
        "everybody has the counts of all clients together", "PFLlib", lc,
        Edit(
            fedlc, "class_counts(net, task.data)",
            "torch.bincount(task.data.examples.y, minlength=net.classes).to(task.data.count.dtype)",
        ),
    ),
    Mutant(
        "the margin is added", COMMON, lc, Edit(fedlc, "out.logits - margin", "out.logits + margin"),
    ),
    Mutant(
        "the softmax leaves out the true class", "the paper's printed equation; FL-bench #5", lc,
        Edit(
            fedlc, "net.criterion(calibrated, batch.y)",
            "calibrated.masked_fill(torch.arange(net.classes) == batch.y[:, None], -1e9).logsumexp(1)"
            " - calibrated.gather(1, batch.y[:, None])[:, 0]",
        ),
    ),
    Mutant(
        "counts of the batch", COMMON, lc,
        Edit(
            fedlc, "margin = tau * n",
            "n = ((batch.y[:, None] == torch.arange(net.classes)) * batch.live[:, None]).sum(0); margin = tau * n",
        ),
    ),
    Mutant(
        "counts leave out the last batch", "PFLlib (`drop_last`)", lc,
        Edit(
            class_counts, "rows = data.turn.rows",
            "rows = torch.where(torch.arange(len(data.turn.rows)) < data.count // 4 * 4, data.turn.rows, -1)",
        ),
    ),
]  # fmt: skip

FEDNTD = [
    Mutant("off by default", "PFLlib", checks.not_off("fedntd"), Default("fedntd", "beta", 0.0)),
    Mutant(
        "the mean over classes, not their sum", COMMON, ntd,
        Edit(fedntd, "(teacher - student)).sum(-1)", "(teacher - student)).mean(-1)"),
    ),
    Mutant("no T^2", COMMON, ntd, Edit(fedntd, "beta * T**2 * forgotten", "beta * forgotten")),
    Mutant(
        "the divergence the other way round", COMMON, ntd,
        Edit(fedntd, "teacher.exp() * (teacher - student)", "student.exp() * (student - teacher)"),
    ),
    Mutant(
        "the true class is distilled too", COMMON, ntd,
        Edit(not_true, "logits.gather(-1, others + (others >= y[..., None]))", "logits"),
    ),
    Mutant(
        "the received model takes the statistics of the batch", COMMON, ntd_norm,
        Edit(fedntd, "net.apply(glob, batch.x).logits", "net.train(glob, batch)[0].logits"),
    ),
]  # fmt: skip

FEDGEN = [
    Mutant(
        "the batch norm of G trains while clients draw", "PFLlib", gen,
        Edit(
            fedgen, "gen.apply(tree, inputs).logits",
            "gen.train(tree, Batch(inputs, y, batch.live, batch.key, batch.key))[0].logits",
        ),
    ),
    Mutant(
        "labels that nobody in the round has", "PFLlib (labels of all clients)", gen,
        Edit(fedgen, 'pairs(batch.key, prior["counts"]', 'pairs(batch.key, torch.ones_like(prior["counts"])'),
    ),
    Mutant(
        "generated features in the first round", "PFLlib", gen,
        Edit(fedgen, "now * (counts.sum() > 0).to(counts)", "torch.full_like(counts.sum(), now)"),
    ),
    Mutant(
        "no diversity", "PFLlib", gen, Edit(fedgen, " + diversity * alike(eps, made.logits)", ""),
    ),
    Mutant(
        "the sum of losses for the loss of the mean", "the authors' code", gen,
        Edit(fedgen, "(heads, made.logits).mean(0)", "(heads, made.logits)"),
        Edit(fedgen, "net.criterion(said, y).mean()", "sum(net.criterion(z, y).mean() for z in said)"),
    ),
    Mutant("alike features are rewarded", COMMON, gen, Edit(alike, "torch.exp(-apart", "torch.exp(apart")),
]  # fmt: skip

FEDCROSS = [
    Mutant(
        "similarities are summed over growing parts of the list", "the authors' code; PFLlib", cross("lowest"),
        Edit(
            partners, "unit = F.normalize(flat, dim=1)",
            "parts = [x.reshape(len(x), -1) for x in weights.values()]; unit = torch.cat("
            "[F.normalize(torch.cat(parts[: i + 1], 1), dim=1) for i in range(len(parts))], 1)",
        ),
    ),
    Mutant(
        "a model may be its own partner", "the authors' code; PFLlib (similarity to itself is 0)", cross("lowest"),
        Edit(partners, "alike.fill_diagonal_(-torch.inf)", "alike.fill_diagonal_(0.0)"),
    ),
    Mutant(
        "models are mixed one after the other", COMMON, cross("in-order"),
        Edit(
            fedcross, "models = mix(models, each(lambda s: s[other], models), alpha)",
            "[s.__setitem__(i, alpha * s[i] + (1 - alpha) * s[j]) for s in models.values()"
            " for i, j in enumerate(other.tolist())]",
        ),
    ),
    Mutant(
        "the offset is the number of the model, not of the round", "PFLlib (one name for both)", cross("in-order"),
        Edit(partners, "turn % (count - 1)", "torch.arange(count) % (count - 1)"),
    ),
    Mutant(
        "each model stays at its place in the round", "PFLlib (no shuffle)", cross("lowest"),
        Edit(fedcross, "torch.from_numpy(drawn)", "torch.arange(len(drawn))"),
    ),
    Mutant(
        "a trained model answers, not the mean", "PFLlib (evaluates the clients' models)", cross("lowest"),
        Edit(fedcross, "Model(state.model)", "Model(each(lambda s: s[0], state.models))"),
    ),
    Mutant(
        "the mean counts examples", "PFLlib", cross("lowest"),
        Edit(
            fedcross, "alpha)\n            mean = each(lambda s: s.mean(0), models)",
            "alpha)\n            share = r.weights / r.weights.sum()\n"
            "            mean = each(lambda s: (share @ s[place].flatten(1)).reshape(s[0].shape), models)",
        ),
    ),
]  # fmt: skip

FEDAMD = [
    Mutant(
        "no gradients before the first round", COMMON, amd,
        Edit(fedamd, "replace(made, opening=everyone)", "made"),
    ),
    Mutant(
        "anchors move the model", COMMON, amd,
        Edit(
            fedamd, "share = (1 - anchor) / (1 - anchor).sum().clamp(min=1)",
            "share = torch.full_like(anchor, 1 / len(r.ids))",
        ),
    ),
    Mutant(
        "weights n_k", COMMON, amd,
        Edit(
            fedamd, "share = (1 - anchor) / (1 - anchor).sum().clamp(min=1)",
            "share = (1 - anchor) * r.weights; share = share / share.sum().clamp(min=1)",
        ),
    ),
    Mutant(
        "steps are corrected at the received model", COMMON, amd,
        Edit(fedamd, "**buffers}, y, d)", "**buffers}, before, d)"),
    ),
    Mutant(
        "p = 1 makes everybody a miner", "the authors' code",
        Check("p = 1 of fedamd is refused", _refused),
        Edit(fedamd, "not 0 <= p < 1", "not 0 <= p <= 1"),
    ),
]  # fmt: skip

MIME_MISTAKES = [
    Mutant(
        "weights n_k", "fedjax (`mime.py`)", full,
        Edit(
            mime, 'up={"model": Channel(reduce=plain), "c": Channel(reduce=plain)}',
            'up={"model": Channel(), "c": Channel()}',
        ),
    ),
    Mutant(
        "steps lack the correction", COMMON, full,
        Edit(mime, "g = add(sub(g, gradient(net, down.model, batch)[0]), down.c)", "g = g"),
    ),
    Mutant(
        "the statistics are renewed before the clients move", COMMON, full,
        Edit(
            mime, 'if variant == "lite" else state',
            'if variant == "lite" else state._replace(m=mix(state.m, state.c, beta))',
        ),
    ),
    Mutant(
        "v holds gradients, not their squares", COMMON, adam, Edit(mime, "state.c[k] ** 2", "state.c[k].abs()"),
    ),
]  # fmt: skip

MARSIT = [
    Mutant(
        "what a client did not send is kept, not what was not done", COMMON, bits,
        Edit(
            marsit, "sub(g, step(task.down.bits, g))",
            "sub(g, each(lambda v: torch.where(v >= 0, eta_s, -eta_s).to(v), g))",
        ),
    ),
    Mutant(
        "an exact round does not clear what is kept", COMMON, bits,
        Edit(marsit, "c = zeros(g) if isinstance", "c = g if isinstance"),
    ),
    Mutant(
        "every hop is a fair coin", COMMON,
        Check(
            "the merge of marsit is unbiased",
            partial(test_marsit.test_the_merge_is_unbiased, "ours", [1.0, 1.0, 1.0, 1.0]), WRONG,
        ),
        Edit(merged, "* (passed + weight) < passed", "< 0.5"),
    ),
]  # fmt: skip

FAMILIES = {
    "FedLC": FEDLC,
    "FedNTD": FEDNTD,
    "FedGen": FEDGEN,
    "FedCross": FEDCROSS,
    "FedAMD": FEDAMD,
    "Mime": MIME_MISTAKES,
    "Marsit": MARSIT,
}
