"""A run: rounds of training, evaluation, metrics and checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from weft.core.errors import SettingError
from weft.core.method import Method, Phase
from weft.core.registry import find
from weft.core.round import Execute, Federation, Group, begin, play
from weft.core.stream import stream
from weft.core.task import Examples, Turn
from weft.data.federated import FederatedData
from weft.evaluation.protocol import judge
from weft.executors import Batched, Plan, loop, plan
from weft.experiment import assemble, checkpoint
from weft.experiment.account import PARTS, Account, Work, lines, measured
from weft.experiment.folder import SCHEMA, Rows, RunFolder
from weft.experiment.plugins import load_methods
from weft.experiment.probe import Probe, probe
from weft.experiment.result import Result
from weft.experiment.settings import RunSettings, Settings, from_mapping, plain
from weft.experiment.sources import federated
from weft.experiment.status import Status
from weft.experiment.summary import dumps, summarise
from weft.experiment.trackers import Tracking
from weft.experiment.trackers import refuse as refuse_trackers
from weft.local.batches import draw_turns
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
    parts: Method
    data: FederatedData
    settings: RunSettings
    federation: Federation
    examples: Examples
    execute: Execute
    device: torch.device
    model: Any = None  # a network that is not one by name
    folder: RunFolder | None = None
    tracking: Tracking = field(default_factory=lambda: Tracking([], Path(), {}))
    done: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    over_clients: list[pa.Table] = field(default_factory=list)
    drawn_steps: int = 0
    rows: list[int] = field(default_factory=lambda: [0, 0])  # examples drawn, and examples computed; if profiled
    profiled: bool = False
    probe: Probe = field(default_factory=lambda: Probe([], 0.0))
    plan: Plan = field(default_factory=lambda: Plan(1, 1, ""))
    clock: Callable[[], float] = time.perf_counter
    drawn: dict[Any, Turn] | None = None  # turns of the latest round, shared with runs that draw the same

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
    ) -> Run:
        """Build everything that can be refused before anything is written.

        `like`: a run on the same data with the same model, precision and device, whose network and examples are used.
        """
        _refuse(method, data, settings)
        refuse_trackers(trackers)
        where, dtype = assemble.device(settings.device), assemble.DTYPES[settings.precision]
        parts = assemble.assembled(method, settings)
        nets = [g.net for g in like.federation.groups] if like else None
        if nets is None:
            nets = assemble.networks(model or settings.model, data, settings.precision, where)
        groups = assemble.groups(method, nets, data.clients())
        groups = groups if like else assemble.placed(groups, where)
        if out is None and (resume or trackers):
            raise SettingError("resume and trackers need a run folder: give `out`")
        federation = begin(parts, groups, data.clients(), settings.init_seed)
        examples = like.examples if like else assemble.examples(data, where, dtype)
        made = Run(method, parts, data, settings, federation, examples, loop, where, model, profiled=profiled)
        for group in reversed(groups):  # every architecture; the figures are those of a client of the first one
            made.probe = probe(federation, examples, partial(made._draw, 1), made._typical(group))
        made._plan()
        if out is not None:
            said = described(method, data, settings, model)
            made.folder = RunFolder.start(Path(out), said, resume=resume)
            made.folder.write("manifest.json", json.dumps(data.manifest, indent=1) + "\n")
            made.tracking = Tracking(list(trackers), made.folder.path, said)
        if resume:
            made._resume()
        return made

    def _plan(self) -> None:
        """Choose how cohorts are run."""
        settings = self.settings
        self.plan = plan(
            self.device,
            flops_per_step=self.probe.flops_per_step,
            bytes_per_client=sum(row["bytes"] for row in self.probe.wire)
            + sum(k.row_bytes for k in self.federation.kept),
            chunk=settings.chunk,
            workers=settings.workers,
        )
        if settings.executor == "batched":
            self.execute = Batched(self.plan.chunk, self.plan.workers, settings.rounds)

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
        about = {
            "name": self.folder.path.absolute().name if self.folder else self.method.name,
            "method": self.method.name,
            "data": self.data.source.name,
            "model": self.settings.model if self.model is None else "",
            "clients": self.data.clients(),
            "executor": self.settings.executor,
            "device": str(self.device),
        }
        with Status(self.folder, about, self.settings.rounds, done=self.done) as status:
            return self._go(tell, status)

    def _go(self, tell: Tell | None, status: Status) -> Result:
        headline: dict[str, float] = {}
        account = Account(self.device, self.profiled, self.clock)
        for number in range(self.done + 1, self.settings.rounds + 1):
            ids = self._cohort(number)
            self.drawn_steps = 0
            status.round(number, ids.tolist())
            with account.of("aggregation"):
                played = play(
                    self.federation,
                    number,
                    ids,
                    self.examples,
                    account.around("data", partial(self._draw_to_train, number)),
                    account.around("local", self.execute),
                    skip_not_finite=self.settings.on_nan == "skip",
                    weigh=weigh,
                    seed=self.settings.seed,
                    everybody=torch.from_numpy(self._able()),
                )
            self.federation = played.federation
            for client in played.skipped.tolist():
                status.failure(f"client {client}", "left out of the round: what it sent was not finite")
            rows = Rows()
            costs = {
                "bytes_up": float(played.traffic.up),
                "bytes_down": float(played.traffic.down),
                "steps": float(self.drawn_steps),
                "flops": self.drawn_steps * self.probe.flops_per_step,
            }
            status.phase("evaluating")
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
            status.phase("checkpoint")
            with account.of("checkpoint"):
                self._keep(number, rows.table())
            figures = {**headline, **{f"run/{k}": v for k, v in costs.items()}}
            status.done(number, figures)
            self.tracking.log(number, figures)
            if tell:
                tell(RoundReport(number, self.settings.rounds, len(ids), costs["total_seconds"], headline))
        return self._finish()

    def _able(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The clients that train, ascending."""
        return np.setdiff1d(np.arange(self.data.clients()), self.data.unseen)

    def _cohort(self, number: int) -> Tensor:
        """The clients of a round, uniformly without replacement, ascending."""
        if "pooled data" in self.parts.needs:
            return torch.zeros(1, dtype=torch.int64)
        able = self._able()
        share = self.settings.cohort
        size = max(1, round(share * len(able))) if share <= 1 else int(share)
        chosen = stream(self.settings.seed, "cohort", number).choice(able, size, replace=False)
        return torch.from_numpy(np.sort(chosen))

    def _typical(self, group: Group) -> int:
        """A client of a group: the first of round 1, if there is one, that trains, else any."""
        for ids in (self._cohort(1), torch.from_numpy(np.setdiff1d(group.ids, self.data.unseen))):
            here = ids[torch.isin(ids, group.ids)]
            if len(here):
                return int(here[0])
        return int(self._cohort(1)[0])

    def _draw(self, number: int, ids: Tensor, phases: Mapping[str, Phase], past: Tensor) -> Turn:
        """The turns of these clients, drawn once for all runs that share `drawn` and have the same settings."""
        if self.drawn is None:
            return self._fresh(number, ids, phases, past)
        what = (number, tuple(ids.tolist()), tuple(phases.items()), tuple(past.tolist()), self.settings)
        if what not in self.drawn:
            for old in [key for key in self.drawn if key[0] != number]:
                del self.drawn[old]
            self.drawn[what] = self._fresh(number, ids, phases, past)
        return self.drawn[what]

    def _fresh(self, number: int, ids: Tensor, phases: Mapping[str, Phase], past: Tensor) -> Turn:
        names = ids.tolist()
        rows = [self.data.train.client(k) for k in names]
        if "pooled data" in self.parts.needs:
            rows = [np.concatenate([self.data.train.client(k) for k in self._able()])] * len(names)
        epochs: int | list[int] = self.settings.epochs
        if self.settings.stragglers:
            late = stream(self.settings.seed, "stragglers", number)
            slow = late.random(self.data.clients()) < self.settings.stragglers
            fewer = late.integers(1, self.settings.epochs + 1, self.data.clients())
            epochs = [int(fewer[k]) if slow[k] else self.settings.epochs for k in names]
        return draw_turns(
            rows,
            names,
            phases,
            past.tolist(),
            seed=self.settings.seed,
            number=number,
            epochs=epochs,
            batch_size=self.settings.batch_size,
            rate=rate(self.settings, number),
            dtype=self.examples.dtype,
            device=self.device,
        )

    def _draw_to_train(self, number: int, ids: Tensor, phases: Mapping[str, Phase], past: Tensor) -> Turn:
        """The same, counted as training."""
        turn = self._draw(number, ids, phases, past)
        self.drawn_steps += sum(int((s >= 0).any(2).sum()) for s in turn.steps.values())
        if self.profiled:
            drawn = sum(int((s >= 0).sum()) for s in turn.steps.values())
            self.rows[0] += drawn
            self.rows[1] += self.execute.computed(turn) if isinstance(self.execute, Batched) else drawn
        return turn

    def _evaluate(self, number: int, cohort: Tensor, rows: Rows) -> dict[str, float]:
        """Judge the round, add what was found to `rows`, and return the headline figures."""
        seen = np.arange(self.data.clients()) if "pooled data" in self.parts.needs else cohort.numpy()
        headline = {}
        for found in judge(
            self.federation,
            self.parts.views,
            self.examples,
            self.data,
            seen,
            number,
            partial(self._draw, number),
            full=number == self.settings.rounds,
            together=self.plan.chunk,
            workers=self.plan.workers,
        ):
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
        example = self.examples.look(torch.zeros(1, dtype=torch.int64, device=self.device))
        least = 3 * model * steps + example.numel() * example.element_size() * rows  # weights twice read, once written
        work = Work(steps, self.totals.get("flops", 0.0), least, rows, rows_run)
        best = measured(self.device, self.examples.dtype)
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
        return Result(self.method.name, summary, history, self.federation, self.examples, self._draw, said, self.totals)


def reopen(path: Path | str) -> Result:
    """The result of a run folder, with its models: what `Result.save` or a run with `out` has left.

    The method, the data and the network must be known by name; a stopped run gives its last checkpoint.

    Raises:
        SettingError: there is no run, or its data have changed.
    """
    load_methods()
    found = Settings.read(Path(path) / "settings.yaml")
    return Run.prepare(found.method, federated(found.data), found.run, out=path, resume=True)._finish()


def rate(settings: RunSettings, number: int) -> float:
    """The schedule's factor on the local learning rate in round `number` (1, 2, ...)."""
    done = (number - 1) / settings.rounds
    match settings.lr_schedule:
        case "exponential":
            return settings.lr_decay ** (number - 1)
        case "step":
            return settings.lr_decay ** ((done >= 0.5) + (done >= 0.75))
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


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
