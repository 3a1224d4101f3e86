"""Settings: what a run depends on, read from keywords, a command line or a YAML file."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from weft.core.errors import SettingError
from weft.core.method import Method
from weft.core.registry import find
from weft.core.select import Select
from weft.data.federated import FederatedData
from weft.local import SGD, Adam, AdamW, Optimiser


def _set(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class DataSettings:
    """Which examples, and how they are divided among clients."""

    data: str = _set("mnist-10k", "data set by name, or a path to npz, parquet or npy files, or hub:NAME")
    partition: str = _set("dirichlet", "how examples are divided (see `weft data`)")
    clients: int | None = _set(None, "number of clients; by default 20, or all natural ones")
    alpha: float = _set(0.1, "concentration of a Dirichlet partition; small means unlike clients")
    labels_per_client: int = _set(2, "labels that each client has (pathological, extended-dirichlet)")
    shards_per_client: int = _set(2, "shards that each client gets (shards)")
    min_examples: int = _set(2, "fewest training examples of a client")
    validation: float = _set(0.1, "share of each client's training examples kept for validation")
    new_clients: float = _set(0.0, "share of clients that never train and are only judged")
    protocol: Literal["official", "pooled"] = _set(
        "official", "official: the data's own test split; pooled: train and test merged, 75/25 per client"
    )
    domain: tuple[str, ...] = _set((), "make domains of an image set, one each time: plain, rotated, inverted, ...")
    stream: tuple[str, ...] = _set((), "further test stream, one each time: external, mixture, switch, external-domain")
    data_seed: int = _set(0, "seed of the partition, and of domains and streams")


@dataclass(frozen=True)
class RunSettings:
    """How long, with which model, and on what the federation trains."""

    rounds: int = _set(50, "communication rounds")
    epochs: int = _set(1, "local epochs of a turn")
    batch_size: int = _set(10, "examples in a local batch; 0: all")
    cohort: float = _set(1.0, "clients of a round: a share up to 1, or a number above")
    model: str = _set("cnn-small", "network by name (see `weft models`); several, with commas, for mixed architectures")
    lr_schedule: Literal["constant", "exponential", "step", "cosine"] = _set("constant", "learning rate over rounds")
    lr_decay: float = _set(0.99, "factor per round (exponential), or at each of two steps (step)")
    seed: int = _set(0, "seed of cohorts, batches and noise")
    init_seed: int = _set(0, "seed of the initial weights")
    device: str = _set("auto", "auto, cpu, cuda, cuda:1, ...")
    precision: Literal["fp32", "fp64", "bf16", "tf32"] = _set(
        "fp32", "floating-point type of the parameters; bf16, tf32: fp32 parameters, products in that (tf32: on a GPU)"
    )
    executor: Literal["batched", "loop", "ray", "flower"] = _set(
        "batched",
        "batched: many clients as one program; loop: one by one; ray: batched, on the actors of a cluster; flower: at "
        "nodes, over a network",
    )
    chunk: int = _set(0, "most clients in one program; 0: planned from the model and the machine")
    workers: int = _set(0, "programs side by side; 0: one for each core, or one on a GPU")
    compile: Literal["auto", "always", "never"] = _set(
        "auto", "turns of small networks in machine code, if there is a C compiler; auto: if the rounds repay it"
    )
    actors: int = _set(2, "with executor ray: processes that clients are shared among")
    actor_cpus: float = _set(1.0, "CPUs of an actor; may be a part of one")
    actor_gpus: float = _set(0.0, "GPUs of an actor; may be a part of one")
    ray_address: str = _set("", "a Ray cluster to join, such as auto or 10.0.0.1:6379; empty: one on this machine")
    evaluate_every: int = _set(1, "rounds between evaluations")
    buffers: Literal["average", "local", "recalibrate"] = _set("average", "what happens to batch-norm statistics")
    stragglers: float = _set(0.0, "share of a round's clients that make fewer epochs, uniform in 1..epochs")
    on_nan: Literal["stop", "skip"] = _set("stop", "when an upload is not finite: stop, or leave that client out")
    checkpoint_every: int = _set(1, "rounds between checkpoints")
    compress: str = _set("", "codec of the model channel, such as topk:0.01, svd:0.95, quantise:16, sign")
    aggregate: str = _set("", "reduction of the model channel: mean, plain, median, trimmed:0.1")
    sampling: Literal["fixed", "poisson"] = _set(
        "fixed", "fixed: so many clients without replacement; poisson: each client with the same chance"
    )
    dp: Literal["none", "central", "local"] = _set("none", "differential privacy: noise at the server, or at clients")
    clip_norm: float = _set(1.0, "largest norm of what a client sends, under dp")
    noise_multiplier: float = _set(1.0, "standard deviation of the noise under dp, in clip norms")
    adaptive_clip: float = _set(0.0, "quantile of norms that the clip norm follows, such as 0.5; 0: it stays")
    dp_noise: Literal["stream", "system"] = _set(
        "stream", "stream: from the seed, for experiments; system: from the operating system, which nobody can repeat"
    )
    epsilon: float = _set(0.0, "privacy budget: the run ends before it is passed; 0: none")
    delta: float = _set(0.0, "the delta of epsilon; 0: 1 / clients^1.1")
    secure_aggregation: bool = _set(False, "the server gets sums of uploads only (true)")
    secure_range: float = _set(64.0, "largest value of any number that is sent, under secure aggregation")
    secure_weight: float = _set(2.0**20, "largest weight of a client, under secure aggregation")
    secure_threshold: int = _set(0, "clients that must stay to the end of a secure sum; 0: two thirds")
    plug: tuple[str, ...] = _set((), "plug-in on the method, once for each: dbe or blend, or with options dbe:kappa=10")

    def __post_init__(self) -> None:
        for name, value in (("rounds", self.rounds), ("epochs", self.epochs)):
            if value < 1:
                raise SettingError(f"{name} = {value} leaves nothing to do: use 1 or more")
        if self.actors < 1:
            raise SettingError(f"actors = {self.actors} leaves nobody to train: use 1 or more")
        for name, part, least in (("actor_cpus", self.actor_cpus, 0.01), ("actor_gpus", self.actor_gpus, 0.0)):
            if not least <= part < math.inf or (part > 1 and part != int(part)):
                raise SettingError(f"{name} = {part:g} can't be had: use a part of one such as 0.5, or a whole number")
        if self.executor == "ray" and self.device.startswith("cuda") and not self.actor_gpus:
            raise SettingError(f"device = {self.device!r} needs actors with GPUs: add --actor-gpus 1, or a part of one")
        if self.executor == "ray" and self.device == "cpu" and self.actor_gpus:
            raise SettingError(f"actor_gpus = {self.actor_gpus:g} has no use with device = 'cpu': leave it out")
        for name, value in (("chunk", self.chunk), ("workers", self.workers)):
            if value < 0:
                raise SettingError(f"{name} = {value} is no number of them: use 1 or more, or 0 to leave the choice")
        for name, value in (("evaluate_every", self.evaluate_every), ("checkpoint_every", self.checkpoint_every)):
            if value < 1:
                raise SettingError(f"{name} = {value} is not a number of rounds: use 1 or more")
        if self.batch_size < 0:
            raise SettingError(f"batch_size = {self.batch_size} is not a batch: use 0 for all examples, or 1 or more")
        if not self.cohort > 0 or (self.cohort > 1 and self.cohort != int(self.cohort)):
            raise SettingError(
                f"cohort = {self.cohort} is no cohort: use a share in (0, 1], or a whole number of clients"
            )
        if not 0 <= self.stragglers <= 1:
            raise SettingError(f"stragglers = {self.stragglers} is not a share: use a number from 0 to 1")
        if not 0 < self.lr_decay <= 1:
            raise SettingError(
                f"lr_decay = {self.lr_decay} is no decay: use a factor above 0 and up to 1, such as 0.99"
            )
        for name, value in (("seed", self.seed), ("init_seed", self.init_seed)):
            if not 0 <= value < 2**63:
                raise SettingError(f"{name} = {value} is no seed: use a whole number from 0 to 2**63 - 1")


@dataclass(frozen=True)
class Settings:
    """All of it: written as settings.yaml, and enough to repeat the run."""

    method: Method
    data: DataSettings
    run: RunSettings

    def plain(self) -> dict[str, Any]:
        """As nested dictionaries of plain values."""
        return {
            "method": {"name": self.method.name, **{k: plain(v) for k, v in self.method.args.items()}},
            "data": dataclasses.asdict(self.data),
            "run": dataclasses.asdict(self.run),
        }

    @staticmethod
    def read(source: Mapping[str, Any] | Path) -> Settings:
        """From a YAML file or from what `plain` returns; missing settings take their defaults."""
        found = load_yaml(source) if isinstance(source, Path) else dict(source)
        for section in found:
            if section not in ("method", "data", "run"):
                raise SettingError(f"a settings file has no section {section!r}: it has method, data and run")
        method = found.get("method", {})
        if isinstance(method, str):
            method = {"name": method}
        if "name" not in method:
            raise SettingError("the settings file names no method: add `method: {name: fedavg}`")
        options = {k: v for k, v in method.items() if k != "name"}
        return Settings(
            make(method["name"], options),
            from_mapping(DataSettings, {k: v for k, v in found.get("data", {}).items() if k != "manifest"}),
            from_mapping(RunSettings, found.get("run", {})),
        )


def described(method: Method, data: FederatedData, settings: RunSettings, model: Any) -> dict[str, Any]:
    """The settings as plain values, for settings.yaml: what `weft run --config` reads."""
    values = dict(vars(settings))
    if model is not None:
        values["model"] = getattr(model, "__name__", type(model).__name__)
    recipe = {"data": data.source.name, **data.manifest.get("recipe", {})}
    recipe = {"data_seed" if k == "seed" else k: v for k, v in recipe.items()}
    return {
        "method": {"name": method.name, **{k: plain(v) for k, v in method.args.items()}},
        "data": {k: v for k, v in recipe.items() if k not in ("moved", "redrawn")}
        | {"manifest": data.manifest["hash"]},
        "run": values,
    }


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; `SettingError` if the file is missing or is not one."""
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingError(f"cannot read settings from {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise SettingError(f"{path} holds no settings: it needs sections method, data and run")
    for name, section in found.items():
        if name not in ("method", "data", "run"):
            raise SettingError(f"{path} has a section {name!r}: use method, data and run")
        if not isinstance(section, dict) and not (name == "method" and isinstance(section, str)):
            raise SettingError(
                f"section {name} of {path} is {section!r}: write settings under it, such as `rounds: 50`"
            )
    return found


def from_mapping(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A settings dataclass from names and values; values may be text from a command line."""
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            raise SettingError(
                f"there is no setting {name!r}: " + (f"did you mean {near[0]}?" if near else f"use {', '.join(hints)}")
            )
    return kind(**{name: read(name, value, hints[name]) for name, value in values.items()})


OPTIMISERS: dict[str, Callable[..., Any]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def make(name: str, options: Mapping[str, Any]) -> Method:
    """A method from its name and options, which may be text from a command line or plain values from a file.

    ``optimizer`` chooses the local optimiser; its own settings (lr, momentum, ...) stand beside the method's.
    """
    entry = find(name)
    hints = typing.get_type_hints(entry.make.__wrapped__)  # type: ignore[attr-defined]
    given: dict[str, Any] = {}
    loose = dict(options)
    if "opt" in entry.options and not dataclasses.is_dataclass(loose.get("opt")):
        written = loose.pop("opt", {})
        inner = dict(written) if isinstance(written, Mapping) else {"name": written}  # a mapping is written by `plain`
        chosen = inner.pop("name", None)
        chosen = loose.pop("optimizer", chosen)
        loose = inner | loose
        opt = entry.options["opt"].default if chosen is None else _optimiser("optimizer", chosen)
        fields = typing.get_type_hints(type(opt))
        own = {k: read(k, loose.pop(k), fields[k]) for k in list(loose) if k in fields and k not in hints}
        given["opt"] = replace(opt, **own)
    for key, value in loose.items():
        given[key] = read(key, value, hints[key]) if key in hints else value
    return entry.make(**given)


def _optimiser(name: str, value: Any) -> Any:
    """A local optimiser from its name, or from a mapping as `plain` writes it."""
    inner = dict(value) if isinstance(value, Mapping) else {"name": value}
    chosen = inner.pop("name", None)
    if chosen not in OPTIMISERS:
        raise SettingError(f"{name} = {chosen!r} is not known: use {', '.join(OPTIMISERS)}")
    opt = OPTIMISERS[chosen]()
    fields = typing.get_type_hints(type(opt))
    for key in inner:
        if key not in fields:
            raise SettingError(f"{name} = {chosen!r} has no setting {key!r}: it takes {', '.join(fields)}")
    return replace(opt, **{k: read(k, v, fields[k]) for k, v in inner.items()})


def plain(value: Any) -> Any:
    """A method's argument as a plain value that `make` reads back."""
    if isinstance(value, Select):
        return value.text
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = "adamw" if isinstance(value, Adam) and value.decoupled else type(value).__name__.lower()
        return {"name": name, **{k: plain(v) for k, v in vars(value).items() if k != "decoupled"}}
    return value


def read(name: str, value: Any, kind: Any) -> Any:
    """`value` as the annotated type `kind`; `SettingError` naming the setting if it is not one."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        if value not in options:
            raise SettingError(f"{name} = {value!r} is not known: use {' or '.join(map(str, options))}")
        return value
    if typing.get_origin(kind) is tuple:
        several = [] if value in ("", "none") else [value] if isinstance(value, str) else value
        if not isinstance(several, list | tuple):
            raise SettingError(f"{name} = {value!r} is not a list: write one, such as [{options[0].__name__}]")
        return tuple(read(name, one, options[0]) for one in several)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if value is None or (isinstance(value, str) and value.lower() == "none" and type(None) in options):
            return None
        return read(name, value, next(o for o in options if o is not type(None)))
    if kind is Optimiser:
        return value if dataclasses.is_dataclass(value) else _optimiser(name, value)
    if kind is Select:
        return value if isinstance(value, Select) else Select.parse(str(value))
    if kind is bool and isinstance(value, str):
        if value.lower() not in ("true", "false"):
            raise SettingError(f"{name} = {value!r} is neither true nor false")
        return value.lower() == "true"
    if kind in (int, float):
        try:
            number = float("" if isinstance(value, bool) else value)
        except (TypeError, ValueError, OverflowError):
            raise SettingError(f"{name} = {value!r} is not a number") from None
        if kind is float:
            return number
        if not number.is_integer():
            raise SettingError(f"{name} = {value!r} is not a whole number")
        try:
            return int(value)  # not through the float, which has 53 bits
        except ValueError:
            return int(number)
    if kind is str:
        return str(value)
    return value
