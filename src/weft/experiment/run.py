"""A run: rounds of training, evaluation, metrics and checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from weft.core.clients import Clients, Group
from weft.core.errors import SettingError
from weft.core.here import Here
from weft.core.method import Method
from weft.core.registry import find
from weft.core.round import Federation, begin, play
from weft.core.stream import stream
from weft.core.task import Examples, Turn
from weft.core.turn import Execute
from weft.data.federated import FederatedData, Indices
from weft.evaluation.protocol import Examiner, judge
from weft.executors import Batched, Plan, loop, plan
from weft.experiment import assemble, checkpoint
from weft.experiment.account import PARTS, Account, Work, lines, measured
from weft.experiment.drawing import Drawing
from weft.experiment.folder import SCHEMA, Rows, RunFolder
from weft.experiment.plugins import load_methods
from weft.experiment.probe import Probe, probe
from weft.experiment.result import Result
from weft.experiment.settings import RunSettings, Settings, from_mapping, plain
from weft.experiment.sources import federated
from weft.experiment.summary import dumps, summarise
from weft.experiment.trackers import Tracking
from weft.experiment.trackers import refuse as refuse_trackers
from weft.wire import weigh


@dataclass(frozen=True)
class RoundReport:
    """What is told after every round, for a progress line."""

    number: int
    rounds: int
    clients: int
    seconds: float
    headline: Mapping[str, float]  # figure -> value, of the latest evaluation


Tell = Callable[[RoundReport], None]
Elsewhere = Callable[[Method, Here], Clients]
"""(the method with its parts on, clients in this process) -> the same clients where they live."""


def run(
    method: Method | str,
    data: FederatedData,
    *,
    model: assemble.Network | Sequence[assemble.Network] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    trackers: Sequence[str] = (),
    tell: Tell | None = None,
    **settings: Any,
) -> Result:
    """Train a method on federated data.

    Args:
        method: a method, or its name for its defaults.
        data: who has which examples.
        model: a network by name (also as the setting of that name), a `Net`, a function that builds an ``nn.Module``,
            or a list of them for mixed architectures.
        out: the run folder; without one nothing is written.
        resume: go on with the run in `out`.
        trackers: names of trackers to feed: tensorboard, mlflow, wandb.
        tell: called after every round.
        **settings: fields of `RunSettings`, such as ``rounds=50, lr_schedule="cosine"``.

    Returns:
        Result: history, summary and predictors.

    Raises:
        SettingError: a setting is wrong; nothing has been written.
        NotFinite: an upload held a NaN, and ``on_nan`` is "stop".
    """
    load_methods()
    if isinstance(method, str):
        method = find(method).make()
    if isinstance(model, str):
        settings["model"], model = model, None
    chosen = from_mapping(RunSettings, settings)
    return Run.prepare(method, data, chosen, model, out, resume, trackers).go(tell)


@dataclass
class Run:
    """A run that is ready to go."""

    method: Method
    data: FederatedData
    settings: RunSettings
    federation: Federation
    here: Here  # the clients, in this process
    device: torch.device
    probe: Probe
    plan: Plan
    model: Any = None  # a network that is not one by name
    folder: RunFolder | None = None
    tracking: Tracking = field(default_factory=lambda: Tracking([], Path(), {}))
    done: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    over_clients: list[pa.Table] = field(default_factory=list)
    rows: list[int] = field(default_factory=lambda: [0, 0])  # examples drawn, and examples computed; if profiled
    profiled: bool = False
    clock: Callable[[], float] = time.perf_counter

    @staticmethod
    def prepare(
        method: Method,
        data: FederatedData,
        settings: RunSettings,
        model: Any = None,
        out: Path | str | None = None,
        resume: bool = False,
        trackers: Sequence[str] = (),
        profiled: bool = False,
        like: Run | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> Run:
        """Build everything that can be refused before anything is written.

        `like`: a run on the same data with the same model, precision and device, whose network and examples are used.
        `elsewhere`: where the clients live, if it is not in this process.
        """
        _refuse(method, data, settings)
        if settings.executor == "flower" and elsewhere is None:
            raise SettingError("executor = 'flower' needs nodes: use `weft run` or `weft deploy init`")
        refuse_trackers(trackers)
        where, dtype = assemble.device(settings.device), assemble.DTYPES[settings.precision]
        parts = assemble.assembled(method, settings)
        nets = [g.net for g in like.here.groups] if like else None
        if nets is None:
            nets = assemble.networks(model or settings.model, data, settings.precision, where)
        groups = assemble.groups(method, nets, data.clients())
        groups = groups if like else assemble.placed(groups, where)
        if out is None and (resume or trackers):
            raise SettingError("resume and trackers need a run folder: give `out`")
        examples = like.here.examples if like else assemble.examples(data, where, dtype)
        pool = np.concatenate([data.train.client(k) for k in able(data)]) if "pooled data" in parts.needs else None
        draw = Drawing(data.train, settings, dtype, where, pool)
        here = Here.begin(parts, groups, examples, draw, loop, seed=settings.init_seed, weigh=weigh)
        federation = begin(parts, here, data.clients(), settings.init_seed)
        for group in reversed(groups):  # every architecture; the figures are those of a client of the first one
            found = probe(federation, here, typical(parts, data, settings, group))
        chosen = plan(
            where,
            flops_per_step=found.flops_per_step,
            bytes_per_client=sum(row["bytes"] for row in found.wire) + sum(k.row_bytes for k in here.kept),
            chunk=settings.chunk,
            workers=settings.workers,
        )
        if settings.executor == "batched":
            here.execute = Batched(chosen.chunk, chosen.workers, settings.rounds)
        here.examine = Examiner(data, chosen.chunk, chosen.workers)
        if elsewhere is not None:
            federation = begin(parts, elsewhere(parts, here), data.clients(), settings.init_seed)
        made = Run(method, data, settings, federation, here, where, found, chosen, model, profiled=profiled)
        if profiled:
            here.execute = made._counted(here.execute)
        if out is not None:
            said = described(method, data, settings, model)
            made.folder = RunFolder.start(Path(out), said, resume=resume)
            made.folder.write("manifest.json", json.dumps(data.manifest, indent=1) + "\n")
            made.tracking = Tracking(list(trackers), made.folder.path, said)
        if resume:
            made._resume()
        return made

    def _resume(self) -> None:
        assert self.folder
        place = checkpoint.latest(self.folder.path)
        if place is None:
            self.folder.forget_metrics_after(0)
            return
        self.done, self.federation, self.totals = checkpoint.restore(place, self.federation)
        self.folder.forget_metrics_after(self.done)
        old = self.folder.metrics()
        if len(old):
            self.over_clients.append(_over_clients_only(old))

    def go(self, tell: Tell | None = None) -> Result:
        """Play the rounds that are left."""
        headline: dict[str, float] = {}
        account = Account(self.device, self.profiled, self.clock)
        for number in range(self.done + 1, self.settings.rounds + 1):
            there = self.federation.clients.there(torch.from_numpy(able(self.data)))
            ids = cohort(self.federation.method, there.numpy(), self.settings, number)
            with account.of("aggregation"):
                played = play(
                    self.federation,
                    number,
                    ids,
                    skip_not_finite=self.settings.on_nan == "skip",
                    seed=self.settings.seed,
                    everybody=there,
                    timed=account.of,
                )
            self.federation = played.federation
            rows = Rows()
            costs = {
                "bytes_up": float(played.traffic.up),
                "bytes_down": float(played.traffic.down),
                "steps": float(played.steps),
                "flops": played.steps * self.probe.flops_per_step,
            }
            with account.of("evaluation"):
                if number % self.settings.evaluate_every == 0 or number == self.settings.rounds:
                    headline = self._evaluate(number, played.ids, rows)
            seconds = account.close()
            costs |= {f"{part}_seconds": spent for part, spent in seconds.items()}
            costs["training_seconds"] = seconds["data"] + seconds["local"] + seconds["aggregation"]
            costs["total_seconds"] = sum(seconds.values())
            for name, value in costs.items():
                self.totals[name] = self.totals.get(name, 0.0) + value
            rows.add(number, "run", "", "all", costs)
            self.done = number
            with account.of("checkpoint"):
                self._keep(number, rows.table())
            self.tracking.log(number, {**headline, **{f"run/{k}": v for k, v in costs.items()}})
            if tell:
                tell(RoundReport(number, self.settings.rounds, len(ids), costs["total_seconds"], headline))
        return self._finish()

    def _counted(self, execute: Execute) -> Execute:
        """The executor, with the examples that it computes counted."""

        def counted(method: Method, net: Any, down: Any, mine: Any, examples: Examples, turn: Turn, public: Any) -> Any:
            drawn = sum(int((s >= 0).sum()) for s in turn.steps.values())
            self.rows[0] += drawn
            self.rows[1] += execute.computed(turn) if isinstance(execute, Batched) else drawn
            return execute(method, net, down, mine, examples, turn, public)

        return counted

    def _evaluate(self, number: int, cohort: Tensor, rows: Rows) -> dict[str, float]:
        """Judge the round, add what was found to `rows`, and return the headline figures."""
        pooled = "pooled data" in self.federation.method.needs
        seen = np.arange(self.data.clients()) if pooled else cohort.numpy()
        headline = {}
        for found in judge(self.federation, self.data, seen, number, full=number == self.settings.rounds):
            where = (number, found.split, found.view, found.group)
            rows.add(*where, found.figures)
            if found.group in ("all", "new"):
                for metric, values in found.metrics.items():
                    rows.add(*where, {metric: values}, client=found.clients)
            if found.group == "all":
                headline[f"{found.split}/{found.view}/accuracy"] = found.figures["accuracy"]
        return headline

    def profile(self) -> list[str]:
        """The account of the rounds played, as lines; with a run folder, also written to ``profile.json``."""
        seconds = {part: self.totals.get(f"{part}_seconds", 0.0) for part in PARTS}
        steps, (rows, rows_run) = self.totals.get("steps", 0.0), self.rows
        model = sum(x.numel() * x.element_size() for x in self.federation.net.init(0).values())
        example = self.here.examples.look(torch.zeros(1, dtype=torch.int64, device=self.device))
        least = 3 * model * steps + example.numel() * example.element_size() * rows  # weights twice read, once written
        work = Work(steps, self.totals.get("flops", 0.0), least, rows, rows_run)
        best = measured(self.device, self.here.examples.dtype)
        if self.folder:
            told = {"plan": str(self.plan), "seconds": seconds, "work": work._asdict(), "ceilings": best._asdict()}
            self.folder.write("profile.json", dumps(told))
        return lines(seconds, work, best, str(self.plan))

    def _keep(self, number: int, rows: pa.Table) -> None:
        self.over_clients.append(_over_clients_only(rows))
        if not self.folder:
            return
        self.folder.write_metrics(number, rows)
        if number % self.settings.checkpoint_every == 0 or number == self.settings.rounds:
            checkpoint.write(self.folder.path, number, self.federation, self.totals)
        self.folder.write("summary.json", dumps(self._summary()))

    def _summary(self) -> dict[str, Any]:
        rows = pa.concat_tables(self.over_clients) if self.over_clients else SCHEMA.empty_table()
        return summarise(
            self.method,
            self.data,
            self.settings,
            self.federation,
            rows,
            self.done,
            self.totals,
            self.probe,
            self.device,
            f"{self.settings.executor}, {self.plan}" if self.settings.executor == "batched" else self.settings.executor,
        )

    def _finish(self) -> Result:
        self.tracking.close()
        summary = self._summary()
        if self.folder:
            self.folder.write("summary.json", dumps(summary))
        history = (
            self.folder.metrics() if self.folder else pa.concat_tables(self.over_clients or [SCHEMA.empty_table()])
        )
        said = {
            "settings": described(self.method, self.data, self.settings, self.model),
            "manifest": self.data.manifest,
        }
        return Result(self.method.name, summary, history, self.federation, self.here, said, self.totals)


def reopen(path: Path | str) -> Result:
    """The result of a run folder, with its models: what `Result.save` or a run with `out` has left.

    The method, the data and the network must be known by name; a stopped run gives its last checkpoint.

    Raises:
        SettingError: there is no run, or its data have changed.
    """
    load_methods()
    found = Settings.read(Path(path) / "settings.yaml")
    return Run.prepare(found.method, federated(found.data), found.run, out=path, resume=True)._finish()


def able(data: FederatedData) -> Indices:
    """The clients that train, ascending."""
    return np.setdiff1d(np.arange(data.clients()), data.unseen)


def cohort(method: Method, there: Indices, settings: RunSettings, number: int) -> Tensor:
    """The clients of a round from those that can be in it, uniformly without replacement, ascending."""
    if "pooled data" in method.needs:
        return torch.zeros(1, dtype=torch.int64)
    share = settings.cohort
    size = max(1, round(share * len(there))) if share <= 1 else min(int(share), len(there))
    chosen = stream(settings.seed, "cohort", number).choice(there, size, replace=False)
    return torch.from_numpy(np.sort(chosen))


def typical(method: Method, data: FederatedData, settings: RunSettings, group: Group) -> int:
    """A client of a group: the first of round 1, if there is one, that trains, else any."""
    first = cohort(method, able(data), settings, 1)
    for ids in (first, torch.from_numpy(np.setdiff1d(group.ids, data.unseen))):
        there = ids[torch.isin(ids, group.ids)]
        if len(there):
            return int(there[0])
    return int(first[0])


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


def _over_clients_only(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows["client"], -1))


def _refuse(method: Method, data: FederatedData, settings: RunSettings) -> None:
    """Combinations that make no sense."""
    missing = method.needs - {"pooled data"}
    if missing:
        raise SettingError(f"{method.name} needs {', '.join(sorted(missing))}, which a run does not provide yet")
    if "pooled data" in method.needs and settings.cohort != 1:
        raise SettingError(
            f"cohort = {settings.cohort:g} has no meaning for {method.name}, which pools all data: use 1"
        )
    able = data.clients() - len(data.unseen)
    if settings.cohort > able:
        raise SettingError(
            f"cohort = {settings.cohort:g} is more than the {able} clients that train: use at most {able}"
        )
