"""Net: a model as functions of a tree."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.errors import SettingError
from weft.core.layers import MaskedBatchNorm, StreamDropout, replaced
from weft.core.select import Select
from weft.core.stream import fold
from weft.core.task import Batch
from weft.core.tree import Tree


class Out(NamedTuple):
    """What a network says about a batch."""

    logits: Tensor  # [batch, classes] or [batch, time, classes]
    features: Tensor  # [batch, width]: the input of the head
    penalty: Tensor | float = 0.0  # in training: a term of the network's own, which losses add


class Fit(NamedTuple):
    """The value of a loss, and the buffers that computing it has changed."""

    value: Tensor  # scalar
    buffers: Any  # Tree with the changed entries only; {} without batch norm


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, [batch]; for sequences the mean over positions with y >= 0."""
    if logits.ndim == 2:
        return -F.log_softmax(logits, -1).gather(-1, y[:, None])[:, 0]
    judged = (y >= 0).to(logits.dtype)
    each = -F.log_softmax(logits, -1).gather(-1, y.clamp(min=0)[..., None])[..., 0]
    return (each * judged).sum(1) / judged.sum(1).clamp(min=1)


def masked_mean(values: Tensor, live: Tensor) -> Tensor:
    """Mean of `values` [batch] over live rows; 0 if there is none."""
    return (values * live).sum() / live.sum().clamp(min=1)


class Input(NamedTuple):
    """What one example is, as the network sees it."""

    shape: tuple[int, ...]
    tokens: int = 0  # size of the vocabulary; 0: the entries are numbers, about standard normal


Forward = Callable[[Tree, Tensor, Tensor | None, Tensor | None], tuple[Out, Tree]]
"""(tree, x, live, key) -> (Out, changed buffers); `live` and `key` are None when judging."""


def _no_head(tree: Tree, features: Tensor) -> Tensor:
    raise SettingError("this network does not say what its head is: make it with Net.from_module, or give `head`")


@dataclass(frozen=True, eq=False)
class Net:
    """A model as functions. Make one with `Net.from_module`, or from functions of your own."""

    init: Callable[[int], Tree]
    forward: Forward
    roles: Mapping[str, frozenset[str]]  # entry -> its roles
    classes: int = 0
    width: int = 0  # size of the feature vector
    criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy  # (logits, y) -> [batch]
    head: Callable[[Tree, Tensor], Tensor] = _no_head  # (tree, features) -> logits, by the entries of the head alone
    input: Input | None = None  # what an example is, for who makes examples of its own; None: not known
    common: Net | None = None  # the first architecture of a mixed federation, which is the server's; None: this one

    def apply(self, tree: Tree, x: Tensor) -> Out:
        """Judge: running statistics, no dropout."""
        return self.forward(tree, x, None, None)[0]

    def train(self, tree: Tree, batch: Batch) -> tuple[Out, Tree]:
        """Forward pass of a training step; returns the changed buffers too."""
        return self.forward(tree, batch.x, batch.live, batch.key)

    def loss(self, tree: Tree, batch: Batch) -> Fit:
        """Mean criterion over the live rows of a batch, in training mode."""
        out, buffers = self.train(tree, batch)
        return Fit(masked_mean(self.criterion(out.logits, batch.y), batch.live) + out.penalty, buffers)

    def split(self, tree: Tree, select: Select) -> tuple[Tree, Tree]:
        """(entries that are selected, the others)."""
        chosen = {k: v for k, v in tree.items() if select.test(k, self.roles[k])}
        return chosen, {k: v for k, v in tree.items() if k not in chosen}

    def learnable(self, tree: Tree) -> Tree:
        """The entries that gradients move: everything but buffers."""
        return {k: v for k, v in tree.items() if "buffer" not in self.roles[k]}

    @property
    def buffers(self) -> frozenset[str]:
        """Names of the entries that are carried rather than learnt (running statistics)."""
        return frozenset(k for k, r in self.roles.items() if "buffer" in r)

    @staticmethod
    def from_module(
        module: nn.Module | Callable[[], nn.Module],
        head: str | None = None,
        *,
        classes: int | None = None,
        roles: Mapping[str, Sequence[str]] | None = None,
        criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        dtype: torch.dtype = torch.float32,
    ) -> Net:
        """Turn any `nn.Module` into a Net.

        Args:
            module: the network, whose weights are then the start whatever the seed (a pretrained net), or a
                function without arguments that builds it, which is called under the initialisation seed.
            head: dotted name of the layer whose input are the features and whose output are the logits;
                by default the last ``nn.Linear``.
            classes: number of classes; by default the head's ``out_features``.
            roles: further roles, name -> prefixes of parameter names, beside ``head``, ``norm``,
                ``batchnorm`` and ``buffer``, which are found by layer type.
            criterion: (logits, y) -> loss of each example, [batch].
            dtype: floating-point type of the parameters.

        Raises:
            SettingError: no such head, or a layer that cannot be run for many clients at once.
        """

        def build() -> nn.Module:
            made: nn.Module = copy.deepcopy(module) if isinstance(module, nn.Module) else module()
            return replaced(made).to(dtype)

        with torch.random.fork_rng(devices=[]):
            _seed(0)
            training = build().train()
        top = _head(training, head)
        hold = _Held(training, top)
        names = {n: _roles(training, n, top, roles or {}) for n in _entries(training)}
        carried = tuple(n for n, r in names.items() if "buffer" in r)
        masked = tuple(n for n, m in training.named_modules() if isinstance(m, MaskedBatchNorm))
        noisy = tuple(n for n, m in training.named_modules() if isinstance(m, StreamDropout))

        def init(seed: int) -> Tree:
            with torch.random.fork_rng(devices=[]):
                _seed(seed)
                return {k: v.detach().clone() for k, v in _entries(build()).items()}

        def forward(tree: Tree, x: Tensor, live: Tensor | None, key: Tensor | None) -> tuple[Out, Tree]:
            if live is None or key is None:
                logits = torch.func.functional_call(hold.judging, tree, (x,))
                return Out(logits, hold.let_go()), {}
            own = live.sum() * 0  # makes the copies per client under vmap even where the tree is shared
            moved = {k: tree[k] + own for k in carried}
            context = {f"{n}.live": live for n in masked}
            context |= {f"{n}.key": fold(key, i) for i, n in enumerate(noisy)}
            logits = torch.func.functional_call(hold.training, {**tree, **moved, **context}, (x,))
            return Out(logits, hold.let_go()), moved

        layer = training.get_submodule(top)
        parts = {n: n.removeprefix(top + ".") for n in names if n.startswith(top + ".")}

        def head_of(tree: Tree, features: Tensor) -> Tensor:
            entries = {p: tree[n] for n, p in parts.items()}
            logits: Tensor = torch.func.functional_call(hold.judging.get_submodule(top), entries, (features,))
            hold.let_go()
            return logits

        outputs, width = getattr(layer, "out_features", 0), getattr(layer, "in_features", 0)
        return Net(init, forward, names, classes or int(outputs), int(width), criterion, head_of)


class _Held(threading.local):
    """The module in both modes, for each thread its own: a functional call puts the entries into the module."""

    def __init__(self, module: nn.Module, top: str) -> None:
        self.training = copy.deepcopy(module)
        self.judging = copy.deepcopy(module).eval()
        for m in (self.training, self.judging):
            m.get_submodule(top).register_forward_pre_hook(lambda _, args: setattr(self, "_features", args[0]))

    def let_go(self) -> Tensor:
        """The features of the call that has just been made; a thread that holds them would hold them for good."""
        found: Tensor = self.__dict__.pop("_features")
        return found


def _seed(seed: int) -> None:
    """Seed the CPU's generator only: a forked state of an accelerator would cost time and is not used."""
    torch.default_generator.manual_seed(seed)


def _entries(module: nn.Module) -> Tree:
    """Parameters and the floating-point buffers that a state dictionary would hold."""
    saved = module.state_dict(keep_vars=True)
    return {k: v for k, v in saved.items() if v.is_floating_point()}


def _head(module: nn.Module, head: str | None) -> str:
    linear: list[str] = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    if head is None and linear:
        return linear[-1]
    if head is None or head not in dict(module.named_modules()):
        known = ", ".join(n for n, _ in module.named_modules() if n)
        raise SettingError(f"head = {head!r} is no layer of this network: use one of {known}")
    return str(head)


_NORMS = (MaskedBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)


def _roles(module: nn.Module, entry: str, head: str, own: Mapping[str, Sequence[str]]) -> frozenset[str]:
    owner = module.get_submodule(entry.rpartition(".")[0])
    found = {r for r, prefixes in own.items() if any(entry.startswith(p) for p in prefixes)}
    found |= {"head"} if entry.startswith(head + ".") else set()
    found |= {"norm"} if isinstance(owner, _NORMS) else set()
    found |= {"batchnorm"} if isinstance(owner, MaskedBatchNorm) else set()
    found |= {"buffer"} if entry in dict(module.named_buffers()) else set()
    return frozenset(found)
