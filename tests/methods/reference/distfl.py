"""DistFL (Liu et al. 2021): clusters by what uploaded models answer to the server's own probe inputs."""

from __future__ import annotations

from functools import partial

import numpy as np

from .descent import combine, descend, minus
from .linkage import clusters
from .model import Array, Mlp, Tree, softmax
from .world import World


def refined(p: Tree, x: Array, steps: int, lr: float = 0.1) -> Array:
    """Probes [classes * m, d] in order of class: `steps` of Adam that raise the logit of their class (Mlp only)."""
    classes = len(p["head.bias"])
    label = np.repeat(np.arange(classes), len(x) // classes)
    x, m, v = x.copy(), np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        f = Mlp.features(p, x)
        g = -((p["head.weight"][label] * (1 - f**2)) @ p["body.weight"])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return x


def knowledge(world: World, p: Tree, probes: Array, tau: float) -> tuple[Array, Array]:
    """(p_i [C], K_i [C, C]): mean answer to all probes, and to the probes of each class."""
    said = softmax(world.model.logits(p, probes) / tau)
    classes = said.shape[1]
    m = len(said) // classes
    return said.mean(0), np.stack([said[a * m : (a + 1) * m].mean(0) for a in range(classes)])


def js(a: Array, b: Array) -> float:
    """Jensen-Shannon divergence in bits."""
    mid, total = (a + b) / 2, 0.0
    for one in (a, b):
        total += sum(float(x * np.log2(x / y)) / 2 for x, y in zip(one, mid, strict=True) if x > 0)
    return max(total, 0.0)


def apart(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """The distance of two clients' knowledge, in [0, 2]."""
    rows = [js(x, y) ** 0.5 for x, y in zip(a[1], b[1], strict=True)]
    return float(js(a[0], b[0]) ** 0.5 + np.mean(rows))


def distfl(
    world: World,
    noise: Array,
    *,
    lr: float,
    warm: int,
    gap_min: float,
    outlier: float,
    tau: float = 1.0,
    refine: int = 0,
) -> tuple[Tree, list[Tree], list[set[int]], dict[int, tuple[Array, Array]]]:
    """(w_0, models, clusters, knowledge). Who comes later receives w_0, and joins the nearest centroid."""
    train = partial(descend, world, lr=lr)
    common, models, groups = dict(world.first), list[Tree](), list[set[int]]()
    known: dict[int, tuple[Array, Array]] = {}
    probes = noise
    for number, turn in enumerate(world.turns, 1):
        n = dict(zip(turn.ids, world.counts(turn.ids), strict=True))
        if number <= warm:
            sent = [minus(train(i, common, turn.batches[i]["local"]), common) for i in turn.ids]
            step = combine(sent, [n[i] / sum(n.values()) for i in turn.ids])
            common = {k: v + step[k] for k, v in common.items()}
            continue
        if not groups:
            probes = refined(common, noise, refine) if refine else noise
        late = [i for i in turn.ids if i not in known]
        told = {i: train(i, common, turn.batches[i]["local"]) for i in late}
        fresh = {i: knowledge(world, told[i], probes, tau) for i in late}
        where = {i: c for c, g in enumerate(groups) for i in g}
        for c, model in enumerate(models):
            here = [i for i in turn.ids if where.get(i) == c]
            if here:
                total = sum(n[i] for i in here)
                sent = [minus(train(i, model, turn.batches[i]["local"]), model) for i in here]
                step = combine(sent, [n[i] / total for i in here])
                models[c] = {k: v + step[k] for k, v in model.items()}
        if not groups:
            d = np.array([[apart(fresh[i], fresh[j]) for j in late] for i in late])
            groups = [{late[k] for k in part} for part in clusters(d, gap_min)]
            for g in groups:
                total = sum(n[i] for i in sorted(g))
                models.append(combine([told[i] for i in sorted(g)], [n[i] / total for i in sorted(g)]))
        else:
            centres = [tuple(np.mean([known[j][part] for j in sorted(g)], axis=0) for part in (0, 1)) for g in groups]
            for i in late:
                d = np.array([apart(fresh[i], c) for c in centres])  # type: ignore[arg-type]
                if d.min() > outlier:
                    groups.append({i})
                    models.append(told[i])
                else:
                    groups[int(d.argmin())].add(i)
        known |= fresh
    return common, models, groups, known
