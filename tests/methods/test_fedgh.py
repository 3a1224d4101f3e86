"""FedGH against its reference, and that nobody's own head is the server's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.fedgh import fedgh as ref_fedgh
from reference.fedgh import in_order
from reference.model import BnMlp, Mlp, Model
from reference.world import make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedgh import fedgh


@pytest.mark.parametrize(("server_batch", "server_epochs"), [(10, 1), (3, 2)])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(server_batch: int, server_epochs: int, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=4, model=net)
    for turn in world.turns:
        turn.ids = [i for i in turn.ids if i != 1]  # never comes: answers with the first extractor
    method = fedgh(lr=0.2, eta_s=0.5, server_batch=server_batch, server_epochs=server_epochs)
    fed, once = run(world, method, execute), in_order(server_batch)
    out = ref_fedgh(world, lr=0.2, server_lr=0.5, order=lambda number, pairs: once(number, pairs) * server_epochs)
    assert out.model is not None
    close(fed.server.head, out.model)
    for i, tree in out.kept.items():
        close(kept(fed)[i], {k: v for k, v in tree.items() if not k.startswith("head.")})
        want = net.logits(tree | out.model, world.x[i])
        np.testing.assert_allclose(answer(fed, world, i), want, rtol=0, atol=1e-9)


def test_a_still_server_keeps_the_first_head() -> None:
    world = make_world(0)
    fed = run(world, fedgh(lr=0.2, eta_s=0.0), loop)
    close(fed.server.head, {k: v for k, v in world.first.items() if k.startswith("head.")}, 0)
    out = ref_fedgh(world, lr=0.2, server_lr=0.0, order=in_order(10))
    close(kept(fed)[0], {k: v for k, v in out.kept[0].items() if not k.startswith("head.")})


def test_what_is_sent_are_means_of_classes_and_their_labels() -> None:
    """Of a client with one example of a class, that example's features."""
    world = make_world(0, rounds=1)
    world.y[0] = np.array([2] + [1] * (len(world.y[0]) - 1))
    world.turns[0].ids = [0]
    fed = run(world, fedgh(lr=0.2, eta_s=0.5), loop)
    own = kept(fed)[0]
    f = np.tanh(world.x[0] @ own["body.weight"].numpy().T + own["body.bias"].numpy())
    pairs, head = (
        np.stack([f[1:].mean(axis=0), f[0]]),
        {k: torch.tensor(world.first[f"head.{k}"]) for k in ("weight", "bias")},
    )
    w, b = (head[k].requires_grad_() for k in ("weight", "bias"))
    value = torch.nn.functional.cross_entropy(torch.tensor(pairs) @ w.T + b, torch.tensor([1, 2]))
    g = torch.autograd.grad(value, (w, b))
    close(
        fed.server.head,
        {"head.weight": (w - 0.5 * g[0]).detach().numpy(), "head.bias": (b - 0.5 * g[1]).detach().numpy()},
    )
