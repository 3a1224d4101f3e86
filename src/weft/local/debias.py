"""The domain bias eliminator: a private vector before the head, and a pull of the mean feature to a common one.

Zhang et al.: "Eliminating Domain Bias for Federated Learning in Representation Space", NeurIPS 2023. It is made of a
network with three more entries, which the clients of any method that trains by `descend` hold beside their model: the
vector p, the running mean r of features, and the common mean m.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from weft.core.channel import Channel
from weft.core.errors import SettingError
from weft.core.method import Method, Round, Stacked, shown
from weft.core.net import Net, Out
from weft.core.task import Reply, Task
from weft.core.tree import Tree
from weft.local.plug import Own, Plug, plugged, received

ENTRIES = P, R, M = "dbe.bias", "dbe.running", "dbe.mean"


class Debiased(NamedTuple):
    """The server's state: the method's, and the common mean."""

    inner: Any
    mean: Tree

    @property
    def model(self) -> Any:
        """That of the method."""
        return self.inner.model


class Mean(NamedTuple):
    """Upload of the opening: a client's mean feature."""

    mean: Tree


def with_dbe(method: Method, kappa: float = 50.0, mu: float = 1.0, bias_rate: float = 1.0) -> Method:
    """The same method on features that are rid of the clients' biases.

    Args:
        method: one that sends a model, and trains by `descend`.
        kappa: weight of the pull to the common mean.
        mu: momentum of the running mean; 1: the mean of the batch alone.
        bias_rate: learning rate of p in units of the model's.
    """
    if not 0 < mu <= 1 or kappa < 0 or bias_rate < 0:
        raise SettingError(
            f"kappa = {kappa}, mu = {mu}, bias_rate = {bias_rate}: use mu above 0 and up to 1, and 0 or more for both"
        )

    if method.opening is not None:
        raise SettingError(f"DBE begins with an exchange of its own, and so does {method.name}: use another method")

    def enter(net: Net, task: Task[Any, Any], p: Tensor) -> tuple[Task[Any, Any], Tensor]:
        m = task.down.model[M]
        fresh = {R: torch.zeros_like(m), M: m}
        down = task.down._replace(model={**task.down.model, P: p, **fresh})
        return task._replace(down=down, mine=_renewed(task.mine, fresh)), p

    def leave(got: Tree, start: Tree, change: Tree, p: Tensor) -> tuple[Tree, Tensor]:
        return {k: v for k, v in change.items() if k not in ENTRIES}, p + change.get(P, 0.0)

    def look(net: Net, task: Task[Any, Any], p: Tensor | None) -> Task[Any, Any]:
        nothing = torch.zeros_like(task.down.model[M])
        model = {**task.down.model, P: nothing if p is None else p, R: nothing}
        return task._replace(down=task.down._replace(model=model))

    def measure(net: Net, task: Task[Any, Own]) -> Reply[Mean, tuple[()]]:
        plain = debiased(net, 0.0, mu, 0.0, method.name)
        start, _ = enter(net, task._replace(mine=task.mine.mine), task.mine.beside)
        reply = method.work(plain, start)
        seen = _SEEN.get(plain, Seen())
        if seen.trained and not seen.learnt:
            raise SettingError(f"{method.name} does not train by `descend`, so the vector of DBE would never learn")
        if seen.trained and not seen.heeded:
            raise SettingError(f"the loss of {method.name} leaves out the penalty of the network, which DBE needs")
        models = list(_models((reply.up, reply.mine)))
        if not models:
            raise SettingError(f"{method.name} does not train the model that it receives, which DBE needs")
        return Reply(Mean({"mean": models[0][R]}), (), task.data.count)

    def seen(down: Any, state: Debiased, stacked: bool, r: Round) -> Any:
        m = state.mean["mean"]
        return down._replace(model={**received(method, down), M: m.expand(len(r.ids), *m.shape) if stacked else m})

    def show(state: Debiased, r: Round) -> Any:
        down, stacked = shown(method, state.inner, r)
        found = seen(down, state, stacked, r)
        return Stacked(found) if stacked else found

    plug = Plug(
        first=lambda net, first: _zeros(net, first)[P],
        enter=enter,
        leave=leave,
        look=look,
        net=lambda net: debiased(net, kappa, mu, bias_rate, method.name),
        model=lambda net, first: {**first, **_zeros(net, first)},
    )
    made = replace(
        plugged(method, plug),
        server=lambda net, first: Debiased(method.server(net, first), {"mean": _zeros(net, first)[M]}),
        send=lambda state, r: seen(method.send(state.inner, r), state, method.private_send, r),
        show=show if method.show else None,
        advance=lambda state, up, r: state._replace(inner=method.advance(state.inner, up, r)),
    )
    opening = replace(
        made, work=measure, advance=lambda state, up, r: state._replace(mean=up.mean), up={"mean": Channel()}
    )
    return replace(made, opening=opening)


@dataclass
class Seen:
    """What a method did with a debiased network: trained it, took a gradient at p, asked for the penalty."""

    trained: bool = False
    learnt: bool = False
    heeded: bool = False


_SEEN: WeakKeyDictionary[Net, Seen] = WeakKeyDictionary()


@dataclass(frozen=True)
class Watched:
    """An `Out` that notes whether its penalty is asked for."""

    logits: Tensor
    features: Tensor
    term: Tensor
    seen: Seen

    @property
    def penalty(self) -> Tensor:
        """The penalty."""
        self.seen.heeded = True
        return self.term


@lru_cache(maxsize=64)
def debiased(net: Net, kappa: float, mu: float, bias_rate: float, user: str) -> Net:
    """The network with p added to its features, and the pull as a penalty; one object for each `user`'s settings."""
    if net.common is not None:
        raise SettingError("DBE compares features of all clients, which unlike networks do not share: use one model")

    def forward(tree: Tree, x: Tensor, live: Tensor | None, key: Tensor | None) -> tuple[Out, Tree]:
        out, buffers = net.forward({k: tree[k] for k in net.roles}, x, live, key)
        z, p = out.features, tree[P]
        if bias_rate != 1:
            p = p.detach() + bias_rate * (p - p.detach())
        logits = net.head(tree, z + p)
        if live is None:
            return Out(logits, z), {}
        seen = _SEEN.setdefault(biased, Seen())
        seen.trained, seen.learnt = True, seen.learnt or tree[P].requires_grad
        centre = live @ z.reshape(len(z), -1, net.width).mean(1) / live.sum().clamp(min=1)
        r = (1 - mu) * tree[R] + mu * centre
        watched = Watched(logits, z, kappa / 2 * ((r - tree[M]) ** 2).mean(), seen)
        return cast(Out, watched), {**buffers, R: r}

    buffer = frozenset({"buffer"})
    biased = replace(net, forward=forward, roles={**net.roles, P: buffer | {"aside"}, R: buffer, M: buffer})
    return biased


def _zeros(net: Net, first: Tree) -> Tree:
    like = next(iter(first.values()))
    return {k: like.new_zeros(net.width) for k in ENTRIES}


def _renewed(state: Any, fresh: Tree) -> Any:
    """The method's own state with these entries in all its models."""
    if isinstance(state, dict):
        return {**state, **fresh} if M in state else state
    if isinstance(state, tuple):
        parts = [_renewed(x, fresh) for x in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def _models(state: Any) -> Iterator[Tree]:
    """All models in a state, in order."""
    if isinstance(state, dict) and R in state:
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from _models(part)
