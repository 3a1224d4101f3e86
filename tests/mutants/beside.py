"""Mistakes in methods with something beside the common model: private heads, policies, embeddings, vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import test_fedbabu
import test_fedcp
import test_feddbe
import test_fedgc
import test_fedgh
import test_fedrod
import test_gpfl
from reference.model import Mlp

from tests.mutants import checks
from tests.mutants.checks import WRONG
from tests.mutants.planting import COMMON, Check, Default, Edit, Mutant
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local.classes import class_counts
from weft.local.debias import debiased, with_dbe
from weft.local.plug import plugged
from weft.methods.fedbabu import fedbabu
from weft.methods.fedcp import fedcp, kernel
from weft.methods.fedgc import correction, fedgc
from weft.methods.fedgh import fedgh
from weft.methods.fedrod import fedrod
from weft.methods.gpfl import gpfl, routed


@dataclass(frozen=True)
class Anew:
    """An edit of a function whose results are remembered: they are forgotten before and after."""

    edit: Edit
    remembered: Any

    @property
    def said(self) -> str:
        return self.edit.said

    @contextmanager
    def planted(self) -> Iterator[None]:
        self.remembered.cache_clear()
        try:
            with self.edit.planted():
                yield
        finally:
            self.remembered.cache_clear()


def _reference(name: str, test: Callable[..., None], *settings: Any, execute: Execute = Batched()) -> Check:
    """By the loop where a mistake overwrites what is received, which is no batched program."""
    return Check(f"reference {name}", partial(test, *settings, execute, 0, Mlp), WRONG)


rod = _reference("fedrod", test_fedrod.test_equals_the_reference, 1.0)
babu = _reference("fedbabu", test_fedbabu.test_equals_the_reference, "all")
gc = _reference("fedgc", test_fedgc.test_equals_the_reference, "averaged", 3.0)
gc_alone = Check(
    "reference fedgc, disjoint classes",
    partial(test_fedgc.test_equals_the_reference, "pushed", 3.0, Batched(), 10, Mlp),
    WRONG,
)
cp = _reference("fedcp", test_fedcp.test_equals_the_reference, 5.0)
paper = _reference("gpfl", test_gpfl.test_equals_the_reference, "paper")
gh = _reference("fedgh", test_fedgh.test_equals_the_reference, 3, 2, execute=loop)
dbe = _reference("feddbe", test_feddbe.test_equals_the_reference, 3.0, 0.3)
long_rows = Check("FedGC's correction bears long rows", test_fedgc.test_the_correction_bears_long_rows)
untouched = Check(
    "FedRoD's private head does not touch the model", test_fedrod.test_the_private_head_does_not_touch_the_model
)
at_home = Check("DBE's vector is in no message", test_feddbe.test_the_vector_is_in_no_message)
one_class = Check(
    "FedRoD: a client of one class trains its private head alone",
    test_fedrod.test_a_client_of_one_class_trains_its_private_head_alone,
    WRONG,
)
first_step = Check(
    "FedCP: the pull acts from the second step on", test_fedcp.test_the_pull_acts_from_the_second_step_on, WRONG
)

FEDROD = [
    Mutant(
        "the private head starts as a copy of the common one", "PFLlib", rod,
        Edit(fedrod, "zeros(net.split(first, role(\"head\"))[0])", "net.split(first, role(\"head\"))[0]"),
    ),
    Mutant(
        "the private loss reaches the body", COMMON, untouched,
        Edit(fedrod, "out.features.detach()", "out.features"),
    ),
    Mutant(
        "the private loss reaches the common head", COMMON, untouched,
        Edit(fedrod, "out.logits.detach()", "out.logits"),
    ),
    Mutant(
        "an absent class counts as one example", COMMON, one_class,
        Edit(fedrod, "torch.where(n > 0, n.clamp(min=1).log(), ABSENT)", "n.clamp(min=1).log()"),
    ),
    Mutant(
        "counts leave out the last batch", "PFLlib (`drop_last`)", rod,
        Edit(
            class_counts, "rows = data.turn.rows",
            "rows = torch.where(torch.arange(len(data.turn.rows)) < data.count // 4 * 4, data.turn.rows, -1)",
        ),
    ),
    Mutant(
        "counts turned round", COMMON, rod, Edit(fedrod, "out.logits + prior", "out.logits - prior"),
    ),
    Mutant("off by default", COMMON, checks.not_off("fedrod"), Default("fedrod", "gamma", 0.0)),
]  # fmt: skip

FEDBABU = [
    Mutant(
        "fine-tuning starts from the client's own body", "PFLlib (no download before fine-tuning)", babu,
        Edit(fedbabu, "task.mine, task.data.count)", "trained, task.data.count)"),
        Edit(fedbabu, "{**task.down.model, **task.mine}", "{**task.mine, **task.down.model}"),
        Edit(
            fedbabu, "descend(net, joined(task), task.data, within(net, part), opt,",
            "descend(net, {**joined(task), **task.mine}, task.data, within(net, part), opt,",
        ),
    ),
    Mutant(
        "the frozen head moves by decay", "the authors' code (rate 0 for the head; harmless without decay)", babu,
        Edit(
            fedbabu, "descend(net, joined(task), task.data, net.loss, opt, only=~keep).params",
            "descend(net, joined(task), task.data, lambda w, b: net.loss("
            "{k: v.detach() if 'head' in net.roles[k] else v for k, v in w.items()}, b), opt).params",
        ),
        Edit(fedbabu, "task.mine, task.data.count)", "net.split(trained, keep)[0], task.data.count)"),
    ),
    Mutant(
        "the head learns in the federation", COMMON, babu,
        Edit(fedbabu, "net.loss, opt, only=~keep).params", "net.loss, opt).params"),
        Edit(fedbabu, "task.mine, task.data.count)", "net.split(trained, keep)[0], task.data.count)"),
    ),
    Mutant(
        "fine-tuning renews running statistics of frozen layers", COMMON,
        Check(
            "reference fedbabu, head alone, with batch norm",
            partial(test_fedbabu.test_equals_the_reference, "head", Batched(), 2, test_fedbabu.BnMlp), WRONG,
        ),
        Edit(fedbabu, "within(net, part)", "net.loss"),
    ),
    Mutant(
        "the model answers before it is fine-tuned", "PFLlib (its curve)", babu,
        Edit(fedbabu, '"personal": View(tuned)', '"personal": View(untuned)'),
    ),
]  # fmt: skip

FEDGC = [
    Mutant(
        "exponentials overflow", "PFLlib (no log-sum-exp)", long_rows,
        Edit(
            correction, "torch.logaddexp(scores.flatten(0, 1).logsumexp(0), own)",
            "(scores.exp().sum((0, 1)) + own.exp()).log()",
        ),
    ),
    Mutant(
        "rows of absent clients stand still", COMMON, gc,
        Edit(fedgc, 'correction(own["weight"], own["classes"])', 'correction(own["weight"], own["classes"]) * '
             'torch.isin(torch.arange(len(own["classes"])), r.ids)[:, None, None]'),
    ),
    Mutant(
        "rows of the same class are pushed apart", COMMON, gc,
        Edit(correction, "has[:, :, None] * (1 - has)[:, None, :]", "has[:, :, None] * (has[:, None, :] * 0 + 1)"),
    ),
    Mutant(
        "the softmax has no numerator", COMMON, gc,
        Edit(
            correction, "torch.logaddexp(scores.flatten(0, 1).logsumexp(0), own)",
            "scores.flatten(0, 1).logsumexp(0)",
        ),
    ),
    Mutant(
        "the server pulls together", COMMON, gc, Edit(fedgc, 'own["weight"] - step', 'own["weight"] + step'),
    ),
    Mutant(
        "the server's step forgets the schedule", COMMON, checks.schedule("fedgc"),
        Edit(fedgc, "lam * opt.lr * r.rate", "lam * opt.lr"),
    ),
    Mutant("off by default", COMMON, checks.not_off("fedgc"), Default("fedgc", "lam", 0.0)),
    Mutant(
        "a class of the last batch is missed", "PFLlib (`drop_last`)", gc_alone,
        Edit(
            class_counts, "rows = data.turn.rows",
            "rows = torch.where(torch.arange(len(data.turn.rows)) < data.count // 4 * 4, data.turn.rows, -1)",
        ),
    ),
]  # fmt: skip

FEDCP = [
    Mutant(
        "answers are drawn with noise", "the authors' code (Gumbel softmax when judging too)", cp,
        Edit(fedcp, 'if policy == "gumbel":', "if True:"),
    ),
    Mutant(
        "the personal head is overwritten by the received one", COMMON, cp,
        Edit(fedcp, "where(task.data.past > 0, task.mine, head)", "head"),
    ),
    Mutant(
        "the personal head alone is sent", COMMON, cp,
        Edit(fedcp, "scale(delta(head, {k: got[k] for k in head}), 0.5)", "delta(head, {k: got[k] for k in head})"),
    ),
    Mutant("masks swapped", COMMON, cp, Edit(fedcp, "s, r = a.softmax", "r, s = a.softmax")),
    Mutant(
        "kernels averaged", COMMON, cp,
        Edit(kernel, "torch.exp(-d / (2 * a))", "0.25 * torch.exp(-d / (2 * a))"),
    ),
    Mutant(
        "the reference features are in another mode", COMMON,
        Check(
            "reference fedcp, with batch norm",
            partial(test_fedcp.test_equals_the_reference, 5.0, Batched(), 2, test_fedcp.BnMlp), WRONG,
        ),
        Edit(fedcp, "net.train(got, batch)[0].features", "net.apply(got, batch.x).features"),
    ),
    Mutant(
        "the pull is to the model in training", COMMON, cp,
        Edit(fedcp, "net.train(got, batch)[0].features", "out.features.detach()"),
    ),
    Mutant(
        "no pull by default", "the authors' code (main program)", checks.not_off("fedcp"),
        Default("fedcp", "lam", 0.0),
    ),
]  # fmt: skip

GPFL = [
    Mutant("no decay by default", "PFLlib", checks.not_off("gpfl"), Default("gpfl", "mu", 0.0)),
    Mutant(
        "personal conditions are not divided unasked", "the authors' code", paper,
        Edit(gpfl, 'if p_scale == "paper" else 1', "if False else 1"),
    ),
    Mutant(
        "the magnitude trains the table", COMMON, paper,
        Edit(gpfl, "common - fixed[batch.y]", 'common - table["weight"][batch.y]'),
    ),
    Mutant(
        "the angle is to the received table", COMMON, paper,
        Edit(gpfl, 'F.normalize(table["weight"], dim=1)', "F.normalize(fixed, dim=1)"),
    ),
    Mutant("the valve scales without the one", COMMON, paper, Edit(routed, "(gamma + 1) * f", "gamma * f")),
    Mutant(
        "layer norm before the ReLU", COMMON, paper,
        Edit(
            routed, "normed(valve, n, torch.relu(project(valve, n, condition)))",
            "torch.relu(normed(valve, n, project(valve, n, condition)))",
        ),
    ),
    Mutant(
        "both routes have the common condition", COMMON, paper,
        Edit(gpfl, "for c in (fixed.mean(0), p))", "for c in (fixed.mean(0), fixed.mean(0)))"),
    ),
    Mutant(
        "a hundred times the pull", "PFLlib (lambda = 1)", checks.unlike("gpfl", lam=1), Default("gpfl", "lam", 1.0)
    ),
    Mutant(
        "the table does not follow the schedule", "PFLlib (decays one optimiser of three)", checks.schedule("gpfl"),
        Edit(
            gpfl, "Guided(*map(delta, new, got))",
            "Guided(*map(delta, new, got))._replace(table={k: (v - got.table[k]) / task.data.rate "
            "for k, v in new.table.items()})",
        ),
    ),
]  # fmt: skip

FEDGH = [
    Mutant(
        "a client's training moves the common head", "PFLlib (the head is that of client 0)", gh,
        Edit(
            fedgh, "total, count = class_sums(net, trained, task.data)",
            "[h.copy_(trained[k]) for k, h in task.down.head.items()]\n"
            "        total, count = class_sums(net, trained, task.data)",
        ),
    ),
    Mutant(
        "the client goes on with its own head", COMMON, gh,
        Edit(
            fedgh, "descend(net, under(net, task.mine, task.down.head),",
            "descend(net, {**under(net, task.mine, task.down.head), **task.mine},",
        ),
        Edit(fedgh, 'net.split(trained, ~role("head"))[0], task', "trained, task"),
    ),
    Mutant(
        "classes that nobody sent are trained on zeros", COMMON, gh,
        Edit(fedgh, 'torch.nonzero(up.protos["seen"],', 'torch.nonzero(up.protos["seen"] + 1,'),
    ),
    Mutant(
        "sums are sent for means", COMMON, gh,
        Edit(fedgh, '"mean": total / count.clamp(min=1)[:, None]', '"mean": total'),
    ),
    Mutant(
        "one batch however many pairs", COMMON, gh,
        Edit(fedgh, "torch.split(features, server_batch)", "torch.split(features, len(features))"),
        Edit(fedgh, "torch.split(label, server_batch)", "torch.split(label, len(label))"),
    ),
    Mutant(
        "a hundred times the server's rate", "PFLlib (`-slr 1`)", checks.unlike("fedgh", eta_s=1),
        Default("fedgh", "eta_s", 1.0),
    ),
]  # fmt: skip

FEDDBE = [
    Mutant("off by default", "PFLlib (`klw = 0`)", checks.not_off("feddbe"), Default("feddbe", "kappa", 0.0)),
    Mutant(
        "the pull is on features with the vector", COMMON, dbe,
        Anew(Edit(debiased, "live @ z.reshape(", "live @ (z + p).reshape("), debiased),
    ),
    Mutant(
        "the pull is a sum over entries", COMMON, dbe,
        Anew(Edit(debiased, "((r - tree[M]) ** 2).mean()", "((r - tree[M]) ** 2).sum()"), debiased),
    ),
    Mutant(
        "the running mean goes on from turn to turn", COMMON, dbe,
        Edit(with_dbe, "fresh = {R: torch.zeros_like(m), M: m}", "fresh = {R: p, M: m}"),
    ),
    Mutant(
        "the opening has the pull", COMMON, dbe,
        Edit(with_dbe, "debiased(net, 0.0, mu, 0.0, method.name)", "debiased(net, kappa, mu, 1.0, method.name)"),
    ),
    Mutant(
        "the vector is sent", COMMON, at_home,
        Edit(with_dbe, "{k: v for k, v in change.items() if k not in ENTRIES}", "change"),
    ),
    Mutant(
        "the vector does not follow the schedule", "PFLlib", checks.schedule("feddbe"),
        Edit(
            plugged, "reply.up.model, kept)",
            "reply.up.model, kept); kept = task.mine.beside + (kept - task.mine.beside) / task.data.rate",
        ),
    ),
]  # fmt: skip

FAMILIES = {
    "FedRoD": FEDROD,
    "FedBABU": FEDBABU,
    "FedGC": FEDGC,
    "FedCP": FEDCP,
    "GPFL": GPFL,
    "FedGH": FEDGH,
    "FedDBE": FEDDBE,
}
