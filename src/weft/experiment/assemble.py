"""From settings to what a run needs: examples on a device, networks, and the method with its parts on."""

from __future__ import annotations

import functools
import inspect
import typing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weft.core.clients import Group
from weft.core.errors import SettingError
from weft.core.method import Method, tune
from weft.core.net import Input, Net, Out
from weft.core.registry import find
from weft.core.task import Examples
from weft.core.tree import Tree
from weft.data.federated import FederatedData
from weft.experiment.settings import RunSettings, read
from weft.local.blend import with_blend
from weft.local.buffers import with_buffers
from weft.local.debias import with_dbe
from weft.models import build
from weft.privacy.private import Privacy, private
from weft.server import TrimmedMean, mean, median, plain
from weft.wire import Quantise, Sign, SVDEnergy, TopK

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.float32, "tf32": torch.float32}


def device(name: str) -> torch.device:
    """The device of a run; `auto` is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.zeros(1, device=found).item()  # a device without numbers, such as meta, will not do
    except (RuntimeError, AssertionError):
        raise SettingError(f"device = {name!r} is not there: use cpu or auto") from None
    return found


def examples(data: FederatedData, where: torch.device, dtype: torch.dtype) -> Examples:
    """The source's arrays as tensors, without a copy on the CPU."""
    source = data.source
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        x, y = torch.from_numpy(source.x).to(where), torch.from_numpy(source.y).to(where)
    if source.kind in ("text", "characters"):
        return Examples(x.long(), y, dtype=dtype)
    shift, scale = (torch.tensor(v, device=where, dtype=dtype) for v in (source.shift, source.scale))
    return Examples(x, y, shift, scale, dtype)


Network = str | Net | Callable[[], nn.Module]
"""A model by name, a Net, or a function that builds a module."""


def networks(model: Network | Sequence[Network], data: FederatedData, precision: str, where: torch.device) -> list[Net]:
    """One net per architecture; a name may list several, with commas.

    On a GPU it also settles, for the process, whether products of float32 may be made of TF32: torch makes those of
    convolutions so by default, which would be other numbers than a CPU's.
    """
    if precision == "tf32" and where.type != "cuda":
        raise SettingError(f"precision = 'tf32' needs a GPU, and this run is on {where.type}: use bf16 or fp32")
    if where.type == "cuda":
        found: Any = torch.backends
        for operation in (found.cuda.matmul, found.cudnn.conv, found.cudnn.rnn):
            operation.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    if isinstance(model, str):
        model = [name.strip() for name in model.split(",")]
    source = data.source
    facts: dict[str, Any] = {
        "shape": tuple(source.x.shape[1:]),
        "classes": source.classes,
        "vocabulary": source.vocabulary,
        "kind": source.kind,
    }
    dtype, nets = DTYPES[precision], []
    for one in model if isinstance(model, Sequence) else [model]:
        if isinstance(one, str):
            nets.append(_named(one, precision, where.type, **facts))
            continue
        net = one if isinstance(one, Net) else Net.from_module(one, dtype=dtype)
        net = net if net.input else replace(net, input=Input(facts["shape"], source.vocabulary))
        nets.append(_in_bfloat16(net, where.type) if precision == "bf16" else net)
    return nets


@functools.lru_cache(maxsize=32)
def _named(model: str, precision: str, where: str, **facts: Any) -> Net:
    """A net of the catalogue, the same one in all runs of a process, which then share the traces of its steps."""
    _, head = build(model, **facts)

    def module() -> nn.Module:
        return build(model, **facts, seed=int(torch.initial_seed()) % 2**32)[0]

    net = Net.from_module(module, head, classes=facts["classes"], dtype=DTYPES[precision])
    net = replace(net, input=Input(facts["shape"], facts["vocabulary"]))
    return _in_bfloat16(net, where) if precision == "bf16" else net


def _in_bfloat16(net: Net, where: str) -> Net:
    """The net with products in bfloat16; parameters, gradients and what is said stay in float32."""

    def forward(tree: Tree, x: Tensor, live: Tensor | None, key: Tensor | None) -> tuple[Out, Tree]:
        with torch.autocast(where, torch.bfloat16, cache_enabled=False):
            out, buffers = net.forward(tree, x, live, key)
        return Out(out.logits.float(), out.features.float()), buffers

    return replace(net, forward=forward)


def groups(method: Method, nets: Sequence[Net], population: int) -> list[Group]:
    """Clients to architectures, in turn; refused if the method needs all alike."""
    if len(nets) > 1 and not find(method.name).mixed:
        raise SettingError(
            f"{method.name} needs one architecture for all clients, and model names {len(nets)}: use one model, or a "
            "method for mixed architectures such as fedproto"
        )
    if len(nets) > population:
        raise SettingError(f"model names {len(nets)} architectures for {population} clients: name fewer")
    everyone = np.arange(population)
    return [Group(n, torch.from_numpy(everyone[i :: len(nets)].copy())) for i, n in enumerate(nets)]


CODECS: dict[str, Callable[..., Any]] = {
    "topk": TopK,
    "svd": SVDEnergy,
    "quantise": lambda levels: Quantise(int(levels)),
    "sign": Sign,
}
REDUCTIONS: dict[str, Any] = {
    "mean": lambda: mean,
    "plain": lambda: plain,
    "median": lambda: median,
    "trimmed": TrimmedMean,
}


PLUGS: dict[str, Callable[..., Method]] = {"blend": with_blend, "dbe": with_dbe}
"""In the order in which they go on a method: the bias eliminator renews the network, so it stands outside."""


def plugged(method: Method, texts: Sequence[str]) -> Method:
    """The method with plug-ins, each written ``dbe`` or with options ``dbe:kappa=10,mu=0.9``; the order is ours."""
    wanted = dict(text.partition(":")[::2] for text in texts)
    if len(wanted) < len(texts):
        raise SettingError(f"plug = {', '.join(texts)} names one twice: name each plug-in once")
    for name in wanted:
        if name not in PLUGS:
            raise SettingError(f"plug = {name!r} is not known: use {' or '.join(PLUGS)}, with options after a colon")
    for name, plug in PLUGS.items():
        if name in wanted:
            method = plug(method, **_options(name, wanted[name], plug))
    return method


def _options(name: str, text: str, plug: Callable[..., Method]) -> dict[str, Any]:
    hints = typing.get_type_hints(plug)
    takes = [option for option in inspect.signature(plug).parameters if option != "method"]
    found = {}
    for key, equals, value in (pair.partition("=") for pair in text.split(",") if pair):
        if key not in takes or not equals:
            raise SettingError(
                f"plug = '{name}:{text}' has no option {key!r}: it takes {', '.join(takes)}, as key=value"
            )
        found[key] = read(key, value, hints[key])
    return found


def assembled(method: Method, run: RunSettings, privacy: Privacy | None = None) -> Method:
    """The method with the run's plug-ins, codec and reduction of the model channel, policy for buffers, and privacy."""
    method = plugged(method, run.plug)
    for setting, table, part in (("compress", CODECS, "encode"), ("aggregate", REDUCTIONS, "reduce")):
        text = getattr(run, setting)
        if text:
            method = tune(method, "model", **{part: _part(setting, text, table)})
    method = with_buffers(method, run.buffers)
    return private(method, privacy) if privacy else method


def _part(setting: str, text: str, table: dict[str, Any]) -> Any:
    name, _, argument = text.partition(":")
    if name not in table:
        raise SettingError(f"{setting} = {text!r} is not known: use {', '.join(table)}, with an argument after a colon")
    try:
        return table[name](*([float(argument)] if argument else []))
    except SettingError:
        raise
    except (TypeError, ValueError):
        raise SettingError(f"{setting} = {text!r} has a wrong or missing argument: write it like topk:0.01") from None


def placed(net_groups: Sequence[Group], where: torch.device) -> list[Group]:
    """Groups whose nets start on a device."""

    def moved(net: Net) -> Net:
        first = net.init
        return replace(net, init=lambda seed: {k: v.to(where) for k, v in first(seed).items()})

    return [g if where.type == "cpu" else Group(moved(g.net), g.ids) for g in net_groups]
