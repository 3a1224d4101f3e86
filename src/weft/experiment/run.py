"""A run: rounds of training, evaluation, metrics and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from weft.core.allocator import give_back_freed_memory
from weft.core.clients import Clients
from weft.core.errors import SettingError
from weft.core.here import Here
from weft.core.method import Method
from weft.core.parallel import intra_op
from weft.core.round import Federation, begin, play
from weft.data import manifest
from weft.data.federated import FederatedData
from weft.evaluation.protocol import judge
from weft.experiment import assemble, checkpoint
from weft.experiment.account import Account
from weft.experiment.cohort import able, cohort, typical
from weft.experiment.engine import Engine, engine
from weft.experiment.folder import Rows, RunFolder
from weft.experiment.history import History
from weft.experiment.probe import Probe, probe
from weft.experiment.profile import Profile
from weft.experiment.protection import Protection, protection, secured, with_parts
from weft.experiment.refusals import refuse
from weft.experiment.result import Result
from weft.experiment.settings import RunSettings, described
from weft.experiment.settled import planned, settled
from weft.experiment.status import Status
from weft.experiment.summary import dumps, summarise
from weft.experiment.trackers import Tracking
from weft.experiment.trackers import refuse as refuse_trackers


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


GIVE_BACK = 50
"""After so many rounds freed memory goes back to the system, since holes between blocks that stay add up; more often
would cost time, as the next round asks for most of it again."""


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
    engine: Engine
    model: Any = None  # a network that is not one by name
    protection: Protection | None = None
    folder: RunFolder | None = None
    tracking: Tracking = field(default_factory=lambda: Tracking([], Path(), {}))
    done: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    history: History = field(default_factory=History)
    profiling: Profile | None = None
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
        refuse(method, data, settings)
        if settings.executor == "flower" and elsewhere is None:
            raise SettingError("executor = 'flower' needs nodes: use `weft run` or `weft deploy init`")
        refuse_trackers(trackers)
        where, dtype = assemble.device(settings.device), assemble.DTYPES[settings.precision]
        guard = protection(method, data, settings)
        parts, alone = with_parts(method, data, settings, guard)
        nets = [g.net for g in like.here.groups] if like else None
        if nets is None:
            nets = assemble.networks(model or settings.model, data, settings.precision, where)
        groups = assemble.groups(method, nets, data.clients())
        groups = groups if like else assemble.placed(groups, where)
        if out is None and (resume or trackers):
            raise SettingError("resume and trackers need a run folder: give `out`")
        examples = like.here.examples if like else assemble.examples(data, where, dtype)
        here = settled(alone, groups, examples, data, settings)
        federation = begin(parts, secured(here, parts, settings), data.clients(), settings.init_seed)
        for group in reversed(groups):  # every architecture; the figures are those of a client of the first one
            found = probe(federation, here, typical(parts, data, settings, group))
        size = sum(row["bytes"] for row in found.wire) + sum(k.row_bytes for k in here.kept)
        chosen = engine(method, data, settings, model, where, flops=found.flops_per_step, size=size)
        planned(here, data, settings, chosen.plan)
        if elsewhere is not None:
            federation = begin(parts, elsewhere(parts, here), data.clients(), settings.init_seed)
        made = Run(method, data, settings, federation, here, where, found, chosen, model, guard)
        if profiled:
            made.profiling = here.execute = Profile(here.execute)
        if out is not None:
            said = described(method, data, settings, model)
            made.folder = RunFolder.start(Path(out), said, resume=resume)
            made.folder.write("manifest.json", manifest.text(data))
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
        self.done, self.federation, kept = checkpoint.restore(place, self.federation)
        self.totals = {k: v for k, v in kept.items() if k != "privacy"}
        ledger = kept.get("privacy", self._ledger())
        if ledger != self._ledger():
            raise SettingError(
                f"the ledger of {place} is of another noise or cohort ({ledger}): use the settings it had"
            )
        self.folder.forget_metrics_after(self.done)
        self.history.read(self.folder.metrics(over_clients=True))

    @property
    def last(self) -> int:
        """The round after which the run ends, since all are played or the privacy budget is spent."""
        return self.protection.last if self.protection else self.settings.rounds

    def _ledger(self) -> dict[str, Any] | None:
        """What the ledger must know to go on: what each round costs, and how many there were."""
        if self.protection is None:
            return None
        spent = self.protection.spent(self.done, self.federation.turns)
        return {**asdict(self.protection.ledger), "rounds": spent}

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
        here = self.settings.executor in ("batched", "loop")
        with Status(self.folder, about, self.last, done=self.done, local=here) as status, self._spread(), self.cores():
            self.federation.clients.watched(status.node)
            self._play(tell, status)
        _give_back()
        return self.result()

    def cores(self) -> AbstractContextManager[None]:
        """Inside, the cores of this machine are left to the executor's workers, if it has any."""
        workers = self.settings.executor == "batched" and self.engine.plan.workers > 1
        return intra_op(1) if workers else nullcontext()

    @contextmanager
    def _spread(self) -> Iterator[None]:
        """Have the clients where the engine runs them; afterwards they are here again, with what they keep."""
        if self.engine.spread is None or self.done >= self.last:
            yield
            return
        home, clients = self.federation.clients, self.engine.spread(self.here)
        try:
            there = secured(clients, self.federation.method, self.settings)
            self.federation = replace(self.federation, clients=there)
            yield
        finally:
            clients.close()
            self.federation = replace(self.federation, clients=home)

    def _play(self, tell: Tell | None, status: Status) -> None:
        headline: dict[str, float] = {}
        account = Account(self.device, self.profiling is not None, self.clock)
        _give_back()  # what dividing a large population took
        for number in range(self.done + 1, self.last + 1):
            there = self.federation.clients.there(torch.from_numpy(able(self.data)))
            ids = cohort(self.federation.method, there.numpy(), self.settings, number)
            status.round(number, ids.tolist())
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
            for client in played.skipped.tolist():
                status.failure(f"client {client}", "left out of the round: what it sent was not finite")
            rows = Rows()
            costs = {
                "bytes_up": float(played.traffic.up),
                "bytes_down": float(played.traffic.down),
                "steps": float(played.steps),
                "flops": played.steps * self.probe.flops_per_step,
            }
            status.phase("evaluating")
            with account.of("evaluation"):
                if number % self.settings.evaluate_every == 0 or number == self.last:
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
                self._keep(number, rows)
            figures = {**headline, **{f"run/{k}": v for k, v in costs.items()}}
            status.done(number, figures)
            self.tracking.log(number, figures)
            if number % GIVE_BACK == 0:
                _give_back()
            if tell:
                tell(RoundReport(number, self.last, len(ids), costs["total_seconds"], headline))

    def _evaluate(self, number: int, cohort: Tensor, rows: Rows) -> dict[str, float]:
        """Judge the round, add what was found to `rows`, and return the headline figures."""
        pooled = "pooled data" in self.federation.method.needs
        seen = np.arange(self.data.clients()) if pooled else cohort.numpy()
        headline = {}
        for found in judge(self.federation, self.data, seen, number, full=number == self.last):
            where = (number, found.split, found.view, found.group)
            rows.add(*where, found.figures)
            if found.group in ("all", "new"):
                for metric, values in found.metrics.items():
                    rows.add(*where, {metric: values}, clients=found.clients)
            if found.group == "all":
                headline[f"{found.split}/{found.view}/accuracy"] = found.figures["accuracy"]
        return headline

    def profile(self) -> list[str]:
        """The account of the rounds played, as lines; with a run folder, also written to ``profile.json``."""
        assert self.profiling, "the run was not prepared as `profiled`"
        plan = f"{self.engine.plan}{self._compiled()}"
        told, plain = self.profiling.told(self.totals, self.federation.net, self.here.examples, plan)
        if self.folder:
            self.folder.write("profile.json", dumps(plain))
        return told

    def _keep(self, number: int, rows: Rows) -> None:
        self.history.add(rows.parts)
        if not self.folder:
            return
        self.folder.write_metrics(number, rows.tables())
        if number % self.settings.checkpoint_every == 0 or number == self.last:
            ledger = self._ledger()
            extra = {**self.totals, **({"privacy": ledger} if ledger else {})}
            checkpoint.write(self.folder.path, number, self.federation, extra)
        self.folder.write("summary.json", dumps(self._summary()))

    def _summary(self) -> dict[str, Any]:
        return summarise(
            self.method,
            self.federation.method.views,
            self.data,
            self.settings,
            self.history,
            self.done,
            self.totals,
            self.probe,
            self.device,
            self.last,
            self.protection.statement(self.done, self.federation.turns) if self.protection else None,
            f"{self.engine.about}{self._compiled()}",
        )

    def _compiled(self) -> str:
        """What the plan of the clients in this process could not say beforehand."""
        return "; turns in machine code" if getattr(self.here.execute, "compiled", False) else ""

    def result(self) -> Result:
        """What the rounds played so far gave; closes trackers and writes the summary."""
        self.tracking.close()
        summary = self._summary()
        if self.folder:
            self.folder.write("summary.json", dumps(summary))
        measured = self.folder.metrics if self.folder else self.history.table
        said = described(self.method, self.data, self.settings, self.model)
        return Result(
            self.method.name, summary, measured, self.federation, self.here, self.data, said, dict(self.totals)
        )


def _give_back() -> None:
    """Let the system have freed memory, also that of Arrow's own allocator."""
    pa.default_memory_pool().release_unused()
    give_back_freed_memory()
