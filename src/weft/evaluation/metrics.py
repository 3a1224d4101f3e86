"""Metrics of each client, and the figures over clients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from weft.evaluation.answers import Answers

Array = np.ndarray[Any, np.dtype[Any]]

LOWER_IS_BETTER = frozenset({"loss", "perplexity"})


def per_client(answers: Answers, classes: int, *, full: bool = False) -> tuple[Array, Array, dict[str, Array]]:
    """Metrics of every client that has examples.

    Args:
        answers: what was said.
        classes: number of labels.
        full: also balanced accuracy, macro F1 and the area under the ROC curve; or, for sequences, perplexity.

    Returns:
        (client ids [k], examples of each [k], metric -> values [k]). Balanced accuracy and macro F1 are means over the
        labels that the client's examples have (F1: or that were guessed); the area under the curve is the mean over
        labels of one against the rest, NaN where a client has one label only.
    """
    ids, place, counts = np.unique(answers.client, return_inverse=True, return_counts=True)
    k = len(ids)
    found = {
        "accuracy": np.bincount(place, answers.right, k) / np.maximum(counts, 1),
        "loss": np.bincount(place, answers.loss, k) / np.maximum(counts, 1),
    }
    if not full:
        return ids, counts, found
    if len(answers.y) != len(answers.client):
        return ids, counts, found | {"perplexity": np.exp(found["loss"])}
    true = np.bincount(place * classes + answers.y, minlength=k * classes).reshape(k, classes)
    said = np.bincount(place * classes + answers.guess, minlength=k * classes).reshape(k, classes)
    hit = np.bincount(place * classes + answers.y, answers.right, k * classes).reshape(k, classes)
    recall = hit / np.maximum(true, 1)
    f1 = 2 * hit / np.maximum(true + said, 1)
    found["balanced_accuracy"] = recall.sum(1) / np.maximum((true > 0).sum(1), 1)
    found["macro_f1"] = f1.sum(1) / np.maximum(((true + said) > 0).sum(1), 1)
    if answers.scores is not None:
        found["auc"] = auc(place, answers.y, answers.scores, k)
    return ids, counts, found


def auc(place: Array, y: Array, scores: Array, clients: int) -> Array:
    """Area under the ROC curve of each client, one against the rest, mean over the labels that the client's `y` has.

    The Mann-Whitney form with ties counted half, for all clients at once.

    Args:
        place: int64 [n], 0 to `clients` - 1: whose entry it is.
        y: labels, int64 [n].
        scores: float64 [n, classes].
        clients: how many there are.

    Returns:
        float64 [clients], NaN where there is only one label.
    """
    classes = scores.shape[1]
    ours = np.bincount(place * classes + y, minlength=clients * classes).reshape(clients, classes)
    others = ours.sum(1, keepdims=True) - ours
    ranks = np.zeros((clients, classes))
    for c in range(classes):
        order = np.lexsort((scores[:, c], place))
        who, score = place[order], scores[order, c]
        tied = (score[1:] == score[:-1]) | (np.isnan(score[1:]) & np.isnan(score[:-1]))
        starts = np.flatnonzero(np.concatenate([[True], ~tied | (who[1:] != who[:-1])]))
        length = np.diff(np.append(starts, len(who)))
        before = np.concatenate([[0], np.cumsum(np.bincount(who, minlength=clients))])  # entries of earlier clients
        rank = np.repeat(starts + (length + 1) / 2, length) - before[who]
        ranks[:, c] = np.bincount(who, rank * (y[order] == c), clients)
    with np.errstate(invalid="ignore", divide="ignore"):
        areas = (ranks - ours * (ours + 1) / 2) / (ours * others)
    judged = ours > 0
    if classes == 2:
        judged[:, 0] &= ~judged[:, 1]  # of two labels one says all
    two = (ours > 0).sum(1) > 1
    return np.array([row[of].mean() if ok else math.nan for row, of, ok in zip(areas, judged, two, strict=True)])


def over_clients(counts: Array, metrics: Mapping[str, Array]) -> dict[str, float]:
    """Figures over clients: NAME is the mean weighted by examples, and NAME.mean, NAME.std, NAME.worst_decile.

    The worst decile is the mean over the worst tenth of clients, at least one. Clients whose value is NaN are left out.
    """
    figures = {}
    for name, values in metrics.items():
        known = ~np.isnan(values)
        if not known.any():
            continue
        v, n = values[known], counts[known]
        worst = np.sort(v if name not in LOWER_IS_BETTER else -v)[: max(1, math.ceil(len(v) / 10))]
        figures[name] = float((v * n).sum() / n.sum())
        figures[f"{name}.mean"] = float(v.mean())
        with np.errstate(invalid="ignore"):  # of an infinite loss the deviation is NaN
            figures[f"{name}.std"] = float(v.std())
        figures[f"{name}.worst_decile"] = float(abs(worst.mean()) if name in LOWER_IS_BETTER else worst.mean())
    return figures
