"""Mistakes in methods that group clients, and in one that tells own from others' examples as it answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import test_btfl
import test_cfl
import test_distfl
import test_ifca
import test_pfa
from reference.model import BnMlp, Mlp, ReluMlp

from tests.data import test_streams
from tests.mutants.checks import WRONG
from tests.mutants.planting import COMMON, Check, Edit, Mutant
from weft.data import streams
from weft.executors import Batched
from weft.methods.btfl import btfl, foreign, levels
from weft.methods.cfl import cfl
from weft.methods.distfl import apart, distfl, knowledge, refined
from weft.methods.ifca import fittest, ifca
from weft.methods.pfa import nearest, pfa, sparsity
from weft.server.linkage import clusters


def _check(said: str, test: Callable[..., None], *settings: Any) -> Check:
    return Check(said, partial(test, *settings), (*WRONG, RuntimeError, IndexError))


split = _check("reference cfl", test_cfl.test_equals_its_algorithm, 1e9, 0.0, 1, Batched(), 0, Mlp)
chosen = _check("reference ifca", test_ifca.test_equals_algorithm_1, Batched(), 0, Mlp)
grouped = _check("reference pfa", test_pfa.test_equals_the_reference, 0, Batched(), 7, ReluMlp, 0.0)
shares = _check("PFA's sparsity is a share", test_pfa.test_sparsity_is_a_share_that_neither_order_nor_padding_changes)
single = _check("PFA's groups of one train alone", test_pfa.test_one_group_is_fedavg_and_single_ones_train_alone)


def _linked() -> None:
    for seed in range(8):
        test_pfa.test_linkage_is_its_definition(seed)


linked = _check("average linkage is its definition", _linked)
probed = _check("reference distfl", test_distfl.test_equals_the_reference, Batched(), 2, Mlp, 4, 0.02, 1.0, 4)
gap = _check("DistFL's distance", test_distfl.test_distance)
late = _check("reference distfl, outliers", test_distfl.test_equals_the_reference, Batched(), 1, Mlp, 2, 2.0, 0.05, 4)
BATCHES: dict[str, Any] = {"kappa": 4.0, "U": 5.0, "stream": 3}
told = _check("reference btfl", test_btfl.test_equals_the_reference, Batched(), 0, ReluMlp, 2, BATCHES)
fine = _check("reference btfl, 16 levels", test_btfl.test_equals_the_reference, Batched(), 2, BnMlp, 16, BATCHES)
mixed = _check("BTFL's share follows its two sources", test_btfl.test_the_share_follows_its_two_sources)
common = _check("BTFL without its penalty is FedAvg", test_btfl.test_the_common_model_without_penalty_is_fedavgs)
asked = _check("streams hold what they say", test_streams.test_streams_hold_the_test_examples_that_they_say, "switch")
abroad = _check(
    "streams of other domains", test_streams.test_streams_hold_the_test_examples_that_they_say, "external-domain"
)

IFCA = [
    Mutant("the worst model is chosen", COMMON, chosen, Edit(fittest, ".argmin()", ".argmax()")),
    Mutant(
        "models count examples", COMMON, chosen,
        Edit(ifca, "torch.ones_like(chosen), clusters", "r.weights, clusters"),
    ),
]  # fmt: skip

CFL = [
    Mutant(
        "a split ignores who is absent", COMMON, split,
        Edit(
            cfl,
            "put(state.size, r.ids, r.weights, r.population)",
            "put(state.size * 0, r.ids, r.weights, r.population)",
        ),
    ),
]  # fmt: skip

PFA = [
    Mutant(
        "padding counts in the sparsity", COMMON, shares,
        Edit(sparsity, "whole.live.sum().clamp(min=1)", "len(whole.live)"),
    ),
    Mutant(
        "what fires is counted", COMMON, grouped,
        Edit(pfa, "s = sparsity(net, got, task.data, eps)", "s = (1 - sparsity(net, got, task.data, eps)) ** 2"),
    ),
    Mutant(
        "latecomers move a model that they did not train", COMMON, grouped,
        Edit(
            pfa,
            "weights = torch.where(late, 0, weights)",
            "here = put(state.member, new, joined, r.population)[r.ids]",
        ),
    ),
    Mutant(
        "the nearest member decides, not the mean", COMMON, grouped,
        Edit(
            nearest,
            "apart = among @ (known - s).square().sum(1).sqrt() / among.sum(1)",
            "apart = torch.where(among > 0, (known - s).square().sum(1).sqrt(), torch.inf).amin(1)",
        ),
    ),
    Mutant("an exact zero is none", COMMON, grouped, Edit(sparsity, "abs() <= eps", "abs() < eps")),
    Mutant("groups form a round too early", COMMON, grouped, Edit(pfa, "r.number > warm", "r.number >= warm")),
    Mutant(
        "a stranger answers with w_F", COMMON, grouped,
        Edit(pfa, "torch.where(own[\"member\"] > 0, own[\"member\"], joined)", "own[\"member\"]"),
    ),
    Mutant(
        "a stranger is judged by a group's model", COMMON, grouped,
        Edit(pfa, "each(lambda x: x[0], models)", "each(lambda x: x[-1], models)"),
    ),
    Mutant(
        "similarity of a group's models, not of w_F", COMMON, grouped,
        Edit(pfa, "put(state.sparsity, new, told, r.population)", "put(state.sparsity, r.ids, 0.5 * s, r.population)"),
    ),
    Mutant(
        "groups count members alike", COMMON, grouped,
        Edit(pfa, "))), r.weights", "))), torch.ones_like(r.weights)"),
    ),
    Mutant(
        "groups start at the first model", COMMON, single,
        Edit(pfa, "x.expand(count, *x.shape[1:])", "(0 * x).expand(count, *x.shape[1:])"),
    ),
    Mutant(
        "all linkages are single", COMMON, linked,
        Edit(
            clusters,
            "joined = (size[a] * between[a] + size[b] * between[b]) / (size[a] + size[b])",
            "joined = torch.minimum(between[a], between[b])",
        ),
    ),
    Mutant(
        "members of a cluster count alike, whatever its size", COMMON, linked,
        Edit(clusters, "size[a] += size[b]", "size[a] += 0"),
    ),
]  # fmt: skip

DISTFL = [
    Mutant("clusters form a round too early", COMMON, probed, Edit(distfl, "r.number > warm", "r.number >= warm")),
    Mutant("answers without a temperature", COMMON, probed, Edit(knowledge, "(z / tau)", "z")),
    Mutant(
        "probes of a class are read as another's", COMMON, probed,
        Edit(
            knowledge,
            "reshape(net.classes, -1, net.classes).mean(1)",
            "reshape(-1, net.classes, net.classes).mean(0)",
        ),
    ),
    Mutant(
        "a cluster's first member stands for it", COMMON, probed,
        Edit(distfl, "state.knowledge[state.member == c].mean(0)", "state.knowledge[state.member == c][0]"),
    ),
    Mutant("founders of a round share a cluster", COMMON, late, Edit(distfl, "count += found[-1] == count", "pass")),
    Mutant("who founds a cluster begins at w_0", COMMON, late, Edit(distfl, "where(here == 0, 0,", "where(late, 0,")),
    Mutant("divergence without its root", COMMON, gap, Edit(apart, "clamp(min=0).sqrt()", "clamp(min=0)")),
    Mutant("nats for bits", COMMON, gap, Edit(apart, ".log2()", ".log()")),
    Mutant("probes leave their class", COMMON, probed, Edit(refined, "return -net", "return net")),
    Mutant(
        "knowledge of the change, not of the model", COMMON, probed,
        Edit(distfl, "lambda w, d: w + d[late]", "lambda w, d: d[late]"),
    ),
    Mutant(
        "nobody founds a cluster", COMMON, late,
        Edit(distfl, "where) + 1 if gap <= outlier else count", "where) + 1"),
    ),
    Mutant(
        "latecomers move a model that they did not train", COMMON, probed,
        Edit(distfl, "torch.where(cluster < count, 0, cluster)", "cluster"),
    ),
]  # fmt: skip

BTFL = [
    Mutant(
        "entropies of the head before it was fitted", COMMON, told,
        Edit(btfl, "@ head[\"own\"].T, out", "@ task.mine.head[\"own\"].T, out"),
    ),
    Mutant("histograms weigh by examples", COMMON, told, Edit(btfl, "Channel(reduce=plain)", "Channel()")),
    Mutant(
        "ln 100 for all numbers of classes", "the authors' code", told,
        Edit(btfl, "math.log(net.classes)", "math.log(100)"),
    ),
    Mutant(
        "the penalty is a mean over the batch", COMMON, told,
        Edit(btfl, "sum() / 32", "sum() / batch.live.sum()"),
    ),
    Mutant("likelihood of all features, not of one", COMMON, told, Edit(btfl, "/ net.width).exp()", ").exp()")),
    Mutant(
        "heads change places", COMMON, told,
        Edit(btfl, "e * g.log_softmax(-1) + (1 - e) * p", "(1 - e) * g.log_softmax(-1) + e * p"),
    ),
    Mutant(
        "foreign and own are counted the other way", COMMON, told,
        Edit(btfl, "alpha = alpha + ((a_l < a_g)", "alpha = alpha + ((a_l > a_g)"),
    ),
    Mutant("forgetting ends below the prior", COMMON, told, Edit(btfl, "U / 10 + 1, v)", "U / 10, v)")),
    Mutant("c = 0.2 with many levels", "the authors' code", fine, Edit(btfl, "min(0.2, 1 / (2 * Q))", "0.2")),
    Mutant(
        "the head is fitted to features of a training pass", COMMON, fine,
        Edit(btfl, "logits = net.apply(got, batch.x).features", "logits = net.train(got, batch)[0].features"),
    ),
    Mutant(
        "r = 1 gives lambda = 0", "the authors' code (two strict branches)", mixed,
        Edit(foreign, "ratio[:, None])", "torch.where(ratio == 1, 0, ratio)[:, None])"),
    ),
    Mutant(
        "a client is among the others", COMMON, told,
        Edit(btfl, "others = (n * mean - own) / (n - 1).clamp(min=1)", "others = mean"),
    ),
    Mutant("levels are cut, not rounded", COMMON, told, Edit(levels, ".round()", "")),
    Mutant(
        "the likelihood that is scaled up is thought larger", COMMON, told,
        Edit(btfl, "(a_l * u_l - a_g * u_g)", "(a_l / u_l - a_g / u_g)"),
    ),
    Mutant(
        "the personal head answers with the present body", COMMON, told,
        Edit(
            btfl,
            "model, s = task.mine.model, task.mine.seen",
            "model, s = task.down.model, task.mine.seen",
        ),
    ),
    Mutant(
        "examples are counted before they are answered", COMMON, told,
        Edit(
            btfl,
            "e = torch.where(s[\"alone\"] > 0, 0.5, foreign(alpha, beta, ratio))",
            "e = torch.where(s[\"alone\"] > 0, 0.5, foreign(alpha + (a_l < a_g).sum(), beta, ratio))",
        ),
    ),
    Mutant("nothing is forgotten", COMMON, told, Edit(btfl, "total > U", "total > 1e9")),
    Mutant("nobody else counts as somebody", COMMON, told, Edit(btfl, "(n <= 1).to(own)", "(n <= 0).to(own)")),
    Mutant("the penalty stays on", COMMON, common, Edit(btfl, "sigma * size", "(sigma + 0.01) * size")),
]  # fmt: skip

STREAMS = [
    Mutant(
        "others' examples come first", COMMON, asked,
        Edit(streams.switch, "np.concatenate([own, others])", "np.concatenate([others, own])"),
    ),
    Mutant("own examples are among others'", COMMON, asked, Edit(streams._made, "tests[owner != k]", "tests")),
    Mutant(
        "another domain is any domain", COMMON, abroad,
        Edit(streams._made, "others[~np.isin(domain[others], mine)]", "others"),
    ),
]  # fmt: skip

FAMILIES = {"IFCA": IFCA, "CFL": CFL, "PFA": PFA, "DistFL": DISTFL, "BTFL": BTFL, "Domains and streams": STREAMS}
