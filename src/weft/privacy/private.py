"""Differential privacy of clients, for any method whose reductions are sums.

Paper
    McMahan, Ramage, Talwar, Zhang: "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv
    1710.06963 (clip, noise at the server); Andrew, Thakkar, McMahan, Ramaswamy: "Differentially Private Learning with
    Adaptive Clipping", NeurIPS 2021, arXiv 1905.03871.
Algorithm
    A client scales all that it sends in an exchange, D_i, by min(1, C / |D_i|), and counts like every other. Central:
    the server adds N(0, (z_D C)^2) to each entry of the sum, and divides by m, the number of clients that were drawn.
    Local: each client adds N(0, (z C)^2) itself. A round of E exchanges adds sqrt(E) times the noise to each, which
    together cost what one exchange with z costs. Adaptive: b_i = 1 if |D_i| <= C travels on a channel of its own;
    b = (sum (b_i - 1/2) + N(0, s_b^2)) / m + 1/2; then C <- C exp(-eta (b - gamma)), s_b = m / 20 and
    z_D = (z^-2 - (2 s_b)^-2)^(-1/2), so that the pair costs z.
Deviations
    Means are over m also when clients have vanished, since a true count would be a release; weights are equal, since
    a weight by examples has no bound. An upload that is not finite counts as zero.
"""

from __future__ import annotations

import functools
import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from weft.core.channel import Channel, Sum
from weft.core.errors import SettingError
from weft.core.method import Method, Predict, Round, View
from weft.core.net import Net
from weft.core.round import advanced
from weft.core.stream import code
from weft.core.task import Reply, Task
from weft.core.tree import Tree, each
from weft.privacy.clipping import clipped
from weft.privacy.noise import Source, drawn, noised

BIT = "unclipped"
"""The channel of the bit, and of the clip norm on the way down."""


@dataclass(frozen=True)
class Privacy:
    """How uploads are protected.

    Raises:
        SettingError: a number makes no sense, or the noise of adaptive clipping alone spends everything.
    """

    where: Literal["central", "local"]
    cohort: float  # m: clients that are drawn for a round, or their expected number
    clip_norm: float = 1.0  # C, or the first C
    noise_multiplier: float = 1.0  # z
    quantile: float = 0.0  # gamma: C goes to this quantile of the norms; 0: it stays
    rate: float = 0.2  # eta
    source: Source = "stream"

    def __post_init__(self) -> None:
        if not self.clip_norm > 0:
            raise SettingError(f"clip_norm = {self.clip_norm} is no norm: use a number above 0, such as 1")
        if not 0 <= self.noise_multiplier < math.inf:
            raise SettingError(f"noise_multiplier = {self.noise_multiplier} is no multiple: use 0 or more, such as 1")
        if self.noise_multiplier and math.isinf(self.clip_norm):
            raise SettingError("clip_norm = inf bounds nothing that noise could hide: use a number, such as 1")
        if not 0 <= self.quantile < 1:
            raise SettingError(
                f"adaptive_clip = {self.quantile} is no quantile: use a number between 0 and 1, such as 0.5"
            )
        if self.quantile and self.where == "local":
            raise SettingError(
                "adaptive_clip needs a server that may see a sum of bits: use dp = central, or leave it out"
            )
        if self.quantile and self.noise_multiplier >= 2 * self.bit_noise > 0:
            raise SettingError(
                f"noise_multiplier = {self.noise_multiplier:g} is spent by the noise on the bits of {self.cohort:g} "
                f"clients: use below {2 * self.bit_noise:g}, a larger cohort, or no adaptive_clip"
            )

    @property
    def bit_noise(self) -> float:
        """s_b: standard deviation of the noise on the number of unclipped uploads."""
        return self.cohort / 20 if self.quantile and self.noise_multiplier else 0.0

    @property
    def upload_noise(self) -> float:
        """z_D: what is left of z for the uploads."""
        z = self.noise_multiplier
        return z if not self.bit_noise else (z**-2 - (2 * self.bit_noise) ** -2) ** -0.5


class Private(NamedTuple):
    """The server's state: the method's, that of its server optimisers, and the clip norm."""

    inner: Any
    then: dict[str, Any]
    clip: Tree


def private(method: Method, privacy: Privacy) -> Method:
    """The same method, whose server learns of each client no more than differential privacy allows.

    Raises:
        SettingError: it needs every upload, or sends what clipping does not bound.
    """
    turns = [method]
    while turns[-1].next is not None:
        turns.append(turns[-1].next)
    _refuse(method, turns, privacy)
    made: Method | None = None
    for number in reversed(range(len(turns))):
        made = replace(_exchange(turns[number], privacy, number, len(turns)), next=made)
    assert made
    return made


def _refuse(method: Method, turns: list[Method], privacy: Privacy) -> None:
    name = method.name
    if "pooled data" in method.needs or not any(turn.up for turn in turns):
        why = "has all data in one place" if method.needs else "sends nothing"
        raise SettingError(f"dp = {privacy.where} protects what clients send, and {name} {why}: leave dp out")
    if method.opening is not None:
        raise SettingError(
            f"{name} begins with an exchange with every client, which no ledger covers: use another method, or no dp"
        )
    for turn in turns:
        for channel, parts in turn.up.items():
            if not isinstance(parts.reduce, Sum):
                raise SettingError(
                    f"dp = {privacy.where} needs sums, and the server of {name} sees every upload on channel "
                    f"{channel!r}: use a method whose server adds up, such as fedavg, or another --aggregate"
                )
            if parts.encode is not None:
                raise SettingError(
                    f"dp = {privacy.where} bounds what is sent, and the codec on channel {channel!r} of {name} "
                    "changes it afterwards: leave out --compress, or use another method"
                )
    if privacy.quantile and len(turns) > 1:
        raise SettingError(
            f"adaptive_clip has one norm, and {name} has {len(turns)} exchanges in a round: leave it out"
        )


def _exchange(method: Method, privacy: Privacy, number: int, exchanges: int) -> Method:
    """One turn of a round, protected."""
    up = {
        n: Channel(reduce=replace(c.reduce, weighted=False)) for n, c in method.up.items() if isinstance(c.reduce, Sum)
    }
    if privacy.where == "local":
        std = privacy.noise_multiplier * privacy.clip_norm * math.sqrt(exchanges) if privacy.noise_multiplier else 0.0
        return replace(
            method,
            work=_bounded(method.work, privacy.clip_norm, std, f"privacy noise {number}", privacy.source),
            up={n: replace(c, then=method.up[n].then) for n, c in up.items()},
        )
    adaptive = privacy.quantile > 0

    def server(net: Net, first: Tree) -> Private:
        norm = torch.tensor(privacy.clip_norm, dtype=next(iter(first.values())).dtype)
        return Private(method.server(net, first), {}, {"norm": norm})

    def send(state: Private, r: Round) -> Any:
        down = method.send(state.inner, r)
        clip = each(lambda x: x.expand(len(r.ids)), state.clip) if method.private_send else state.clip
        return _widened(down, clip) if adaptive else down

    def shown(state: Private, r: Round) -> Any:
        assert method.show
        return method.show(state.inner, r)

    return replace(
        method,
        server=server,
        send=send,
        show=shown if method.show else None,
        work=_bounded(method.work, None if adaptive else privacy.clip_norm),
        advance=_advance(method, privacy, number, exchanges),
        views={n: _seen(v) for n, v in method.views.items()} if adaptive else method.views,
        up={**up, BIT: Channel(reduce=Sum(weighted=False, divided=False))} if adaptive else up,
    )


def _bounded(
    work: Callable[[Net, Any], Reply[Any, Any]],
    largest: float | None,
    std: float = 0.0,
    purpose: str = "",
    source: Source = "stream",
) -> Callable[[Net, Any], Reply[Any, Any]]:
    """`work`, whose upload is clipped to a norm, or to the one that came down, and then noised at the client."""

    def bounded(net: Net, task: Task[Any, Any]) -> Reply[Any, Any]:
        down, clip = _narrowed(task.down) if largest is None else (task.down, {"norm": largest})
        reply = work(net, task._replace(down=down))
        sent, below = clipped(_real(net, reply.up), clip["norm"])
        if std:
            key = task.data.turn.key
            sent = {
                n: {k: x + std * drawn(key, x, f"{purpose} {n} {k}", source) for k, x in tree.items()}
                for n, tree in sent.items()
            }
        up = type(reply.up)(**sent)
        return Reply(_widened(up, {"bit": below}) if largest is None else up, reply.mine, torch.ones_like(reply.weight))

    return bounded


def _real(net: Net, up: Any) -> dict[str, Tree]:
    """The trees of an upload; refused where clipping says nothing about them."""
    trees: dict[str, Tree] = up._asdict()
    for name, tree in trees.items():
        for entry, x in tree.items():
            if entry in net.buffers:
                raise SettingError(
                    f"dp does not hide running statistics, such as {entry!r} on channel {name!r}: keep them at home "
                    "with --buffers local, or use a model without batch norm"
                )
            if not x.is_floating_point():
                raise SettingError(
                    f"dp cannot hide {entry!r} on channel {name!r}, which holds no real numbers: leave dp out"
                )
    return trees


def _advance(method: Method, privacy: Privacy, number: int, exchanges: int) -> Callable[[Private, Any, Round], Private]:
    """`advance` on noised sums only; server optimisers come after the noise too."""

    def advance(state: Private, up: Any, r: Round) -> Private:
        clip, there = state.clip, len(r.ids)
        std = privacy.upload_noise * math.sqrt(exchanges) * float(clip["norm"]) if privacy.noise_multiplier else 0.0
        if privacy.quantile:
            up, bit = _narrowed(up)
            centred = each(lambda x: x - there / 2, bit)
            hidden = noised(centred, privacy.bit_noise, privacy.source, r.seed, r.number, number, code(BIT))
            share = hidden["bit"] / privacy.cohort + 0.5
            clip = each(lambda c: c * torch.exp(-privacy.rate * (share - privacy.quantile)).to(c), clip)
        found = {}
        for name, tree in up._asdict().items():
            divided = method.up[name].reduce.divided  # type: ignore[attr-defined]
            part, size = (there / privacy.cohort, std / privacy.cohort) if divided else (1.0, std)
            whole = each(lambda x, part=part: x * part, tree)  # over m, where the reduction took who was there
            found[name] = noised(whole, size, privacy.source, r.seed, r.number, number, code(name))
        weights = None if r.weights is None else torch.ones_like(r.weights)
        inner, then = advanced(method, state.inner, state.then, type(up)(**found), r._replace(weights=weights))
        return Private(inner, then, clip)

    return advance


def _seen(view: View) -> View:
    """A view of a method whose download has the clip norm beside it."""
    predict = view.predict

    def narrowed(net: Net, task: Task[Any, Any]) -> Predict:
        return predict(net, task._replace(down=_narrowed(task.down)[0] if BIT in task.down._fields else task.down))

    return View(narrowed, view.shared)


@functools.cache
def _wider(kind: Any) -> Any:
    """A message of this kind with one more field."""
    make: Any = namedtuple  # so that it may have an attribute
    made = make(f"{kind.__name__}AndClip", (*kind._fields, BIT))
    made.inner = kind
    return made


def _widened(message: Any, tree: Tree) -> Any:
    kind: Any = type(message)
    return _wider(kind)(*message, tree)


@functools.cache
def _narrower(kind: Any) -> Any:
    """What was widened; a message that came over a network has lost it, so one with the same fields."""
    return getattr(kind, "inner", None) or namedtuple(kind.__name__, kind._fields[:-1])


def _narrowed(message: Any) -> tuple[Any, Tree]:
    """(the message, the tree that was put beside it)."""
    kind: Any = type(message)
    return _narrower(kind)(*message[:-1]), message[-1]
