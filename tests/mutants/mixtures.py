"""Mistakes in methods that make a model for each client: out of others' models, an average of its own, or groups."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import test_apple
import test_fedamp
import test_fedas
import test_fedcac
import test_fedfomo
import test_fedpac
import test_fedphp
import test_pfl_da
from reference.model import BnMlp, Mlp

from tests.local import test_batches
from tests.mutants import checks
from tests.mutants.checks import WRONG
from tests.mutants.planting import COMMON, Check, Default, Edit, Mutant
from weft.core.here import Here
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import batches, descend
from weft.methods.apple import apple
from weft.methods.fedamp import _amp, fedamp, heurfedamp
from weft.methods.fedas import fedas, trace
from weft.methods.fedcac import fedcac, groups, sensitive
from weft.methods.fedfomo import chosen, fedfomo
from weft.methods.fedpac import fedpac, mixtures
from weft.methods.fedphp import fedphp, gaussians
from weft.methods.pfl_da import pfl_da


def _reference(
    name: str, test: Callable[..., None], *settings: Any, norm: bool = False, execute: Execute = Batched()
) -> Check:
    """By the loop where a mistake overwrites what is received, which does not show in a batched program."""
    said = f"reference {name}" + (", with batch norm" if norm else "")
    return Check(said, partial(test, *settings, execute, 2 if norm else 0, BnMlp if norm else Mlp), WRONG)


def _test(test: Callable[[], None], said: str, *fails: type[Exception]) -> Check:
    return Check(said, test, (*WRONG, *fails))


fomo = _reference("fedfomo", test_fedfomo.test_equals_the_reference, 5)
amp = _reference("fedamp", test_fedamp.test_equals_the_reference, "fedamp")
heur = _reference("heurfedamp", test_fedamp.test_equals_the_reference, "heurfedamp")
php = _reference("fedphp", test_fedphp.test_equals_the_reference, "mmd")
php_kd = _reference("fedphp kd", test_fedphp.test_equals_the_reference, "kd")
php_norm = _reference("fedphp", test_fedphp.test_equals_the_reference, "mmd", norm=True)
mixed = _reference("apple", test_apple.test_equals_the_reference, "cosine")
tied = _reference("pfl-da", test_pfl_da.test_equals_the_reference)
aligned = _reference("fedas", test_fedas.test_equals_the_reference, execute=loop)
judged = _test(aligned.run, "reference fedas, whose clients answer", AttributeError)
pac = _reference("fedpac", test_fedpac.test_equals_the_reference)
cac = _reference("fedcac", test_fedcac.test_equals_the_reference, 0.5, 6)
cac_soon = _reference("fedcac, beta = 2", test_fedcac.test_equals_the_reference, 0.3, 2)

slots = _test(test_fedfomo.test_greedy_and_random_slots, "FedFomo's slots are greedy or drawn")
limits = _test(test_fedamp.test_limits_of_attention, "FedAMP's mixtures stay inside, at all settings")
ends = _test(test_fedpac.test_mixtures_at_their_limits, "FedPAC's mixtures at their limits")
noise = _test(
    test_fedpac.test_one_example_does_not_look_free_of_noise, "one example does not look free of noise",
    np.linalg.LinAlgError,
)  # fmt: skip
alone = _test(
    test_fedcac.test_groups_shrink, "FedCAC's groups shrink, and one client is a group", RuntimeError, IndexError
)
ties = _test(test_fedcac.test_masks, "FedCAC's masks have their size, and no ties at 0")
parts = _test(test_batches.test_parts_are_drawn_at_random_for_each_client, "held out examples are drawn at random")

FEDFOMO = [
    Mutant(
        "squared distances", "the authors' code (`l2`)", fomo,
        Edit(fedfomo, "gap = gaps.sum(0).sqrt()", "gap = gaps.sum(0)"),
    ),
    Mutant(
        "worth is measured from the trained model", COMMON, fomo,
        Edit(fedfomo, "Own(trained, start), data.count", "Own(trained, trained), data.count"),
    ),
    Mutant(
        "the client's own model has a distance of 0", COMMON, fomo,
        Edit(fedfomo, "/ torch.where(gap > 0, gap, 1)", "/ gap"),
    ),
    Mutant(
        "worse models enter with negative weights", COMMON, fomo,
        Edit(fedfomo, "good = worth.clamp(min=0)", "good = worth"),
    ),
    Mutant(
        "affinities grow by what is clipped", COMMON, fomo,
        Edit(fedfomo, '{"worth": worth[1:]}', '{"worth": good[1:]}'),
    ),
    Mutant(
        "nobody is ever tried at random", "PFLlib", slots, Edit(chosen, "g.random() >= epsilon", "g.random() >= 0"),
    ),
    Mutant(
        "the last examples are held out, unshuffled", "PFLlib", parts,
        Edit(batches._part, 'stream(seed, "part", client).permutation(rows)[low:high]', "rows[low:high]"),
    ),
]  # fmt: skip

FEDAMP = [
    Mutant(
        "norm not squared", "PFLlib", amp,
        Edit(_amp, "prox(net, w, cloud, pull)", "pull / 2 * (prox(net, w, cloud, 2.0) + 1e-12).sqrt()"),
    ),
    Mutant(
        "the weight of the own model becomes negative", "PFLlib", limits,
        Edit(fedamp, "xi / xi.sum(1, keepdim=True).clamp(min=1)", "xi"),
    ),
    Mutant(
        "absent clients are in no mixture", "PFLlib", amp,
        Edit(
            _amp, "xi = torch.where(other",
            "xi = xi * torch.isin(torch.arange(r.population), r.ids); xi = torch.where(other",
        ),
    ),
    Mutant(
        "attention itself in place of its derivative", COMMON, amp,
        Edit(fedamp, "alpha / sigma * torch.exp(-gap / sigma)", "alpha * (1 - torch.exp(-gap / sigma))"),
    ),
    Mutant(
        "mixtures never get the weights of others", "an older PFLlib (HeurFedAMP)", heur,
        Edit(heurfedamp, "(1 - own) * (sigma", "0 * (sigma"),
    ),
    Mutant(
        "local training starts at the mixture", COMMON, amp,
        Edit(_amp, "descend(net, task.mine, task.data", "descend(net, {**task.mine, **task.down.model}, task.data"),
    ),
]  # fmt: skip

FEDPHP = [
    Mutant("no cross-entropy", "PFLlib (lambda = 1)", checks.unlike("fedphp", lam=1.0), Default("fedphp", "lam", 1.0)),
    Mutant("no history", "PFLlib (mu = 0)", checks.unlike("fedphp", mu=0.0), Default("fedphp", "mu", 0.0)),
    Mutant(
        "the received model answers", "PFLlib", php,
        Edit(fedphp, '"personal": kept_view()', '"personal": View(global_view)'),
    ),
    Mutant(
        "running statistics have no history", "PFLlib", php_norm,
        Edit(
            fedphp, "mix(task.mine, local, kept)",
            "{**mix(task.mine, local, kept), **{k: local[k] for k in net.buffers}}",
        ),
    ),
    Mutant(
        "momentum does not depend on a client's turns", COMMON, php, Edit(fedphp, "/ ramp).clamp(max=mu)", "* 0 + mu)"),
    ),
    Mutant(
        "momentum counts the present turn", COMMON, php,
        Edit(fedphp, "mu * data.past.to(data.count.dtype)", "mu * (data.past + 1).to(data.count.dtype)"),
    ),
    Mutant(
        "kernels of fixed widths", "PFLlib", php, Edit(gaussians, "(width * 2.0**i)", "(10 * 2.0**i)"),
    ),
    Mutant(
        "widths have a gradient", COMMON, php, Edit(gaussians, "torch.cat([a, b]).detach()", "torch.cat([a, b])"),
    ),
    Mutant(
        "the student's answer is tempered too", COMMON, php_kd,
        Edit(fedphp, "out.logits / T_student", "out.logits / T"),
    ),
    Mutant(
        "momentum follows the round, not the client's turns", "PFLlib", php,
        Edit(Here.drawn, "message.past[at]", "message.past[at] * 0 + number - 1"),
    ),
]  # fmt: skip

APPLE = [
    Mutant("weights never learn", "PFLlib", checks.not_off("apple"), Default("apple", "lr_p", 0.0)),
    Mutant("no pull to the shares", "PFLlib", checks.unlike("apple", mu=0.0), Default("apple", "mu", 0.0)),
    Mutant(
        "the gradient of a weight is a mean over entries", "PFLlib", mixed,
        Edit(
            apple, "turn, two = for_p.update(slope,",
            "turn, two = for_p.update(each(lambda x: x / sum(v.numel() for v in core.values()), slope),",
        ),
    ),
    Mutant(
        "the mixture is sent as the core", "PFLlib", mixed,
        Edit(apple, "Model(delta(core, own.core))", "Model(delta({k: answer[k] for k in core}, own.core))"),
    ),
    Mutant(
        "weights start alike", "PFLlib", mixed,
        Edit(apple, "return known / known.sum()", "return torch.full_like(known, 1 / n)"),
    ),
    Mutant(
        "twice the pull", "the authors' code", mixed,
        Edit(apple, 'base["pull"] * mu / 2 * sq_norm(shift)', 'base["pull"] * mu * sq_norm(shift)'),
    ),
    Mutant(
        "the pull fades one round late", COMMON, mixed, Edit(apple, "pull(r.number - 1)", "pull(r.number - 2)"),
    ),
    Mutant(
        "the rate is multiplied by the number of clients", "PFLlib", mixed,
        Edit(apple, "opt.update(g, states[0], core, rate)", "opt.update(g, states[0], core, rate * (n + 1))"),
    ),
]  # fmt: skip

PFL_DA = [
    Mutant(
        "the penalty has no gradient", "PFLlib (detached tensors)", tied,
        Edit(
            pfl_da, "prox(net, net.split(w, head)[0], common, 2 * lam)",
            "prox(net, {k: v.detach() for k, v in net.split(w, head)[0].items()}, common, 2 * lam)",
        ),
    ),
    Mutant("half the penalty", COMMON, tied, Edit(pfl_da, "common, 2 * lam)", "common, lam)")),
    Mutant(
        "frozen layers go on moving by decay", "PFLlib (one optimiser for both)", tied,
        Edit(
            pfl_da, "net.loss(w, batch)",
            "net.loss({k: v if head.test(k, net.roles[k]) else v.detach() for k, v in w.items()}, batch)",
        ),
        Edit(pfl_da, 'only=head, phase="head"', 'phase="head"'),
    ),
    Mutant(
        "the private head is trained with the extractor", COMMON, tied,
        Edit(
            pfl_da, "descend(net, {**own, **got}, data",
            "descend(net, {**own, **got, **net.split(tied, head)[0]}, data",
        ),
    ),
    Mutant(
        "a newcomer answers with a head that never learnt", "PFLlib (sets the common one only)", tied,
        Edit(pfl_da, "{**task.mine, **task.down.model}", "task.mine"),
    ),
]  # fmt: skip

FEDAS = [
    Mutant(
        "alignments pile up in the server's model", "the authors' code (one object for all)", aligned,
        Edit(descend, "old[str(i)] + change[str(i)]", "old[str(i)].add_(change[str(i)])"),
    ),
    Mutant(
        "class means of the received layers", COMMON, aligned,
        Edit(fedas, "class_sums(net, old, data)", "class_sums(net, {**old, **got}, data)"),
    ),
    Mutant(
        "examples count alike, whatever their class", COMMON, aligned,
        Edit(fedas, "(gap / alike.clamp(min=1)).sum()", "gap.sum() / batch.live.sum()"),
    ),
    Mutant(
        "lengths in place of squares", COMMON, aligned,
        Edit(trace, "sq_norm(grad(loss)(net.learnable(tree)))", "sq_norm(grad(loss)(net.learnable(tree))).sqrt()"),
    ),
    Mutant("weights n_k", COMMON, aligned, Edit(fedas, "fisher + LEAST", "data.count")),
    Mutant(
        "judging asks for what there is not, and nothing is saved", "PFLlib (crashes at its end)", judged,
        Edit(fedas, "kept_view()", "kept_view(lambda mine: mine.generalised)"),
    ),
    Mutant(
        "newcomers are not to be judged", "PFLlib (one argument too few)", checks.newcomers("fedas", TypeError),
        Edit(fedas, "kept_view()", "kept_view()._replace(newcomer=lambda net, task: net.apply(task.down.model))"),
    ),
]  # fmt: skip

FEDPAC = [
    Mutant(
        "later clients mix heads that are mixed already", "PFLlib (references to live heads)", pac,
        Edit(
            fedpac, "heads = each(lambda x: torch.tensordot(alpha.to(x), x, 1), add(at(state.heads, r), up.head))",
            "heads = add(at(state.heads, r), up.head)\n"
            "        for i, a in enumerate(alpha):\n"
            "            heads = {k: x.index_copy(0, torch.tensor([i]), torch.tensordot(a.to(x), x, 1)[None])"
            " for k, x in heads.items()}",
        ),
    ),
    Mutant(
        "weights go to other clients' heads", "PFLlib (two orders of participants)", pac,
        Edit(
            fedpac, 'mixtures(up.stats["h"], up.stats["V"])',
            'mixtures(*(up.stats[k].roll(1, 0) for k in ("h", "V")))',
        ),
    ),
    Mutant(
        "centroids count clients alike", "PFLlib", pac,
        Edit(
            fedpac, '{"sum": sums, "count": count}',
            '{"sum": sums / count.clamp(min=1)[:, None], "count": count.clamp(max=1)}',
        ),
    ),
    Mutant(
        "weights no longer sum to 1", "PFLlib", ends, Edit(mixtures, "alpha / alpha.sum()", "alpha"),
    ),
    Mutant("no floor under the variance", COMMON, noise, Edit(mixtures, ".clip(min=LEAST)", "")),
    Mutant(
        "drawn to own centroids in the first round", COMMON, pac,
        Edit(fedpac, 'begun = protos["known"].max()', 'begun = protos["known"].max() * 0 + 1'),
    ),
    Mutant(
        "statistics of after the turn", COMMON, pac,
        Edit(fedpac, '{"h": h, "V": v}', '{"h": sums / data.count, "V": v}'),
    ),
]  # fmt: skip

FEDCAC = [
    Mutant(
        "everything is critical", "PFLlib (tau = 1)", checks.unlike("fedcac", tau=1), Default("fedcac", "tau", 1.0)
    ),
    Mutant(
        "critical entries return to the first model", "PFLlib (customised once)", cac,
        Edit(fedcac, "put(state.custom, r, custom)", "state.custom"),
    ),
    Mutant(
        "sensitivity without the value", COMMON, cac, Edit(sensitive, "((w - old) * w).abs()", "(w - old).abs()"),
    ),
    Mutant(
        "groups shrink one round late", COMMON, cac_soon, Edit(fedcac, "r.number / beta", "(r.number - 1) / beta"),
    ),
    Mutant(
        "a single client has no pair", "the authors' code; PFLlib", alone,
        Edit(groups, "overlap[other] if len(flat) > 1 else overlap[0]", "overlap[other]"),
    ),
    Mutant(
        "what stood still is critical", COMMON, ties,
        Edit(sensitive, "torch.where(edge <= 1e-10, torch.where(s > 1e-20, s, torch.inf).min(), edge)", "edge"),
    ),
    Mutant(
        "custom models are kept whole", COMMON, cac,
        Edit(fedcac, "torch.where(m, x, y), critical", "torch.where(m | True, x, y), critical"),
    ),
    Mutant(
        "no round has a group by default", "PFLlib (beta = 0, which it then refuses)", checks.unlike("fedcac", beta=1),
        Default("fedcac", "beta", 0),
    ),
]  # fmt: skip

FAMILIES = {
    "FedFomo": FEDFOMO,
    "FedAMP": FEDAMP,
    "FedPHP": FEDPHP,
    "APPLE": APPLE,
    "PFL-DA": PFL_DA,
    "FedAS": FEDAS,
    "FedPAC": FEDPAC,
    "FedCAC": FEDCAC,
}
