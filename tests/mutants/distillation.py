"""Mistakes in methods that share outputs, prototypes or a second model, and in ties between personal models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import test_feddistill
import test_fedkd
import test_fedmtl
import test_fedpcl
import test_fml
from reference.model import BnMlp, Mlp

from tests.mutants import checks
from tests.mutants.checks import WRONG
from tests.mutants.planting import COMMON, Check, Default, Edit, Mutant
from tests.wire import test_codecs
from weft.core import everything
from weft.executors import Batched
from weft.local.distil import divergence
from weft.methods.feddistill import feddistill
from weft.methods.fedkd import fedkd
from weft.methods.fedmtl import centring, fedmtl
from weft.methods.fedpcl import contrast, fedpcl, prototypes
from weft.methods.fml import fml
from weft.wire import SVDEnergy, low_rank

LIBRARIES = "PFLlib, HtFLlib"


def _reference(said: str, test: Callable[..., None], **settings: Any) -> Check:
    norm = ", with batch norm" if settings.get("net") is BnMlp else ""
    return Check(
        f"reference {said}{norm}", partial(test, **{"execute": Batched(), "seed": 0, "net": Mlp, **settings}), WRONG
    )


rows = _reference("feddistill", test_feddistill.test_equals_the_reference, outputs="softmax", leave_out=True)
first = Check("FD distils nothing in the first round", test_feddistill.test_the_first_round_distils_nothing, WRONG)
likely = Check("the rows of FD are probabilities", test_feddistill.test_rows_are_probabilities_of_own_classes, WRONG)
mutual = _reference("fml", test_fml.test_equals_the_reference, alpha=0.5, beta=0.5)
mentor = _reference("fedkd", test_fedkd.test_equals_the_reference, start=0.4, end=0.9)
dense = Check("low rank leaves what would not be smaller", test_codecs.test_low_rank_leaves_what_would_not_be_smaller)
three = Check("a head of three classes comes through", test_codecs.test_three_rows_are_no_three_factors, WRONG)
whole = _reference("fedkd, whole", test_fedkd.test_equals_the_reference, start=1.0, end=1.0)
sets = _reference("fedpcl", test_fedpcl.test_equals_the_reference, train=everything)
nobody = Check(
    "reference fedpcl, where nobody has a class", test_fedpcl.test_a_class_that_nobody_has_is_left_out, WRONG
)
order = Check(
    "FedPCL tells classes apart by their numbers", test_fedpcl.test_other_names_of_classes_change_nothing_else, WRONG
)
mean = _reference("fedmtl, mean", test_fedmtl.test_the_pull_to_the_mean_equals_the_reference)
learnt = _reference("fedmtl", test_fedmtl.test_learnt_relations_equal_the_reference)
learnt_norm = _reference("fedmtl", test_fedmtl.test_learnt_relations_equal_the_reference, seed=2, net=BnMlp)

FEDDISTILL = [
    Mutant(
        "a model's own logits stand in for a missing row", LIBRARIES, first,
        Edit(
            feddistill, '-(table["mean"][batch.y] * log).sum(1) * table["known"][batch.y]',
            '-(torch.where(table["known"][batch.y][:, None] > 0, table["mean"][batch.y], out.logits.detach()) * log)'
            ".sum(1)",
        ),
    ),
    Mutant(
        "raw logits are compared as probabilities", LIBRARIES, likely,
        Edit(feddistill, 'out.logits if outputs == "logits" else log.exp()', "out.logits"),
    ),
    Mutant(
        "a client's own rows are in what it gets", LIBRARIES, rows,
        Edit(feddistill, "if leave_out else", "if False else"),
    ),
    Mutant(
        "sums for means", COMMON, likely,
        Edit(feddistill, 'end.said["sum"] / count.clamp(min=1)[:, None]', 'end.said["sum"]'),
    ),
    Mutant(
        "padding counts in a row", COMMON, checks.padding("feddistill"),
        Edit(
            feddistill, "device=log.device)) * batch.live[:, None]",
            "device=log.device)) * torch.ones_like(batch.live[:, None])",
        ),
    ),
    Mutant("off by default", COMMON, checks.not_off("feddistill"), Default("feddistill", "lam", 0.0)),
]  # fmt: skip

FML = [
    Mutant(
        "what teaches is moved by its lesson", LIBRARIES, mutual,
        Edit(divergence, "target.detach()", "target"),
    ),
    Mutant(
        "the divergence is divided by the number of classes", LIBRARIES, mutual,
        Edit(divergence, "log_softmax(-1))).sum(-1)", "log_softmax(-1))).mean(-1)"),
    ),
    Mutant(
        "the divergence the other way round", COMMON, mutual,
        Edit(
            divergence, "(said.exp() * (said - logits.log_softmax(-1)))",
            "(logits.softmax(-1) * (logits.log_softmax(-1) - said))",
        ),
    ),
    Mutant(
        "weights n_k", COMMON, mutual, Edit(fml, '"model": Channel(reduce=plain)', '"model": Channel()'),
    ),
    Mutant(
        "no teaching by default", "HtFLlib (alpha = beta = 1)", checks.not_off("fml"),
        Default("fml", "alpha", 1.0), Default("fml", "beta", 1.0),
    ),
    Mutant(
        "the personal model is not taught, and the meme has no labels", "PFLlib (alpha = 1, beta = 0)",
        checks.unlike("fml", alpha=1, beta=0), Default("fml", "alpha", 1.0), Default("fml", "beta", 0.0),
    ),
]  # fmt: skip

FEDKD = [
    Mutant(
        "rank 0 where all values are needed", "the authors' code; PFLlib, HtFLlib", whole,
        Edit(
            low_rank._truncated, "rank = (energy < keep * energy[-1]).sum() + 1",
            "rank = ((energy < keep * energy[-1]).sum() + 1) * (energy[:-1] > keep * energy[-1]).any()",
        ),
    ),
    Mutant(
        "the model is cut, not its change", LIBRARIES, mentor,
        Edit(
            fedkd, 'cut(small, delta(mentee, got), task.down.energy["keep"])',
            'delta(cut(small, mentee, task.down.energy["keep"]), got)',
        ),
    ),
    Mutant(
        "the sum of task losses is differentiated", LIBRARIES, mentor,
        Edit(fedkd, ".detach() + EPS", " + EPS"),
    ),
    Mutant(
        "the mean is not cut again", COMMON, mentor,
        Edit(fedkd, "add(state.model, cut(r.net, up.model, energy(r)))", "add(state.model, up.model)"),
    ),
    Mutant(
        "the share of energy is a round late", COMMON, mentor,
        Edit(fedkd, "r.number / rounds", "(r.number - 1) / rounds"),
    ),
    Mutant(
        "distillation is not divided by the task losses", COMMON, mentor, Edit(fedkd, "taught / doubt", "taught"),
    ),
    Mutant(
        "what teaches is moved by its lesson", LIBRARIES, mentor, Edit(divergence, "target.detach()", "target"),
    ),
    Mutant(
        "the divergence is divided by the number of classes", LIBRARIES, mentor,
        Edit(divergence, "log_softmax(-1))).sum(-1)", "log_softmax(-1))).mean(-1)"),
    ),
    Mutant(
        "factors are sent though they are larger", LIBRARIES, dense,
        Edit(low_rank._most, "(m * n - 1) // (m + n + 1)", "min(m, n)"),
    ),
    Mutant(
        "three rows are taken for three factors", LIBRARIES, three,
        Edit(
            SVDEnergy.unpack, "_read(reader, x)",
            "(lambda t: t if x.shape[:1] != (3,) else 0 * t)(_read(reader, x))",
        ),
    ),
    Mutant(
        "newcomers are not to be judged", "PFLlib (one argument too few)", checks.newcomers("fedkd", TypeError),
        Edit(fedkd, "own_answers(net, task.mine.model, task)", "own_answers(net, task.mine.model)"),
    ),
]  # fmt: skip

FEDPCL = [
    Mutant(
        "prototypes in the order in which labels were met", "PFLlib", order,
        Edit(prototypes, "count, z = hot.sum(1)", "hot = hot[hot.argmax(1).argsort()]; count, z = hot.sum(1)"),
    ),
    Mutant(
        "padded classes come back as the client's own", "PFLlib (pads in place)", sets,
        Edit(
            fedpcl, "rows.put(state.protos, r, up.protos)",
            'rows.put(state.protos, r, {"mean": torch.where(up.protos["owned"][..., None] > 0, up.protos["mean"], '
            'send(state, r).protos["sets"][0]), "owned": up.protos["owned"] * 0 + 1})',
        ),
    ),
    Mutant(
        "sets of absent clients are lost", "libraries (sets of participants alone)", sets,
        Edit(
            fedpcl, "rows.put(state.protos, r, up.protos)",
            "rows.put({k: v * 0 for k, v in state.protos.items()}, r, up.protos)",
        ),
    ),
    Mutant(
        "prototypes are not scaled to length 1", COMMON, sets,
        Edit(contrast, 'F.normalize(protos["sets"], dim=2)', 'protos["sets"]'),
    ),
    Mutant(
        "clients are summed, not averaged", "the authors' code", sets,
        Edit(fedpcl, "seen / seen.sum().clamp(min=1)", "seen"),
    ),
    Mutant(
        "a class that nobody has ends the run", "PFLlib (asserts that all are there)", nobody,
        Edit(
            fedpcl, "owners, seen = owned.sum(0)",
            "assert not owned.any() or owned.any(0).all()\n        owners, seen = owned.sum(0)",
        ),
    ),
    Mutant(
        "a class that nobody has is in the softmax", COMMON, nobody,
        Edit(contrast, 'torch.where(protos["known"] > 0, cosine / tau, -1e30)', "(cosine / tau)"),
    ),
]  # fmt: skip

FEDMTL = [
    Mutant(
        "no gradient of the penalty", "PFLlib (detached weights)", mean,
        Edit(fedmtl, "p = net.learnable(w)", "p = {k: v.detach() for k, v in net.learnable(w).items()}"),
    ),
    Mutant(
        "the sum of all models is pulled to 0", "LG-FedAvg's code", mean,
        Edit(
            centring, "torch.eye(len(like), dtype=like.dtype, device=like.device) - 1 / len(like)",
            "0 * torch.eye(len(like), dtype=like.dtype) + (1 - 1 / len(like)) ** 2",
        ),
    ),
    Mutant("half the ties", COMMON, learnt, Edit(fedmtl, "2 * dot(p, others)", "dot(p, others)")),
    Mutant(
        "running statistics are related", "PFLlib (flattens the state dictionary)", learnt_norm,
        Edit(fedmtl, "rows.alike(net.learnable(first))", "rows.alike(first)"),
        Edit(fedmtl, "net.learnable(delta(new, old))", "delta(new, old)"),
    ),
    Mutant("off by default", COMMON, checks.not_off("fedmtl"), Default("fedmtl", "lam", 0.0)),
]  # fmt: skip

FAMILIES = {"FedDistill": FEDDISTILL, "FML": FML, "FedKD": FEDKD, "FedPCL": FEDPCL, "FedMTL": FEDMTL}
