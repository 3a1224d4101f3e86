"""Mistakes below all methods: batches, masks, kept state, executors, checkpoints, data."""

from __future__ import annotations

from tests.mutants import checks
from tests.mutants.planting import COMMON, Edit, Mutant
from weft.compiled import chain
from weft.compiled.work import Work
from weft.core import net, round
from weft.core.kept import Kept
from weft.core.layers import MaskedBatchNorm, StreamDropout
from weft.data import federate
from weft.executors import batched, machine
from weft.experiment import checkpoint, cohort, settings, summary
from weft.local import SGD, batches, descend

ENGINE = [
    Mutant(
        "clients share one kept buffer", "pfl-research (SCAFFOLD's option I, in-memory store)",
        checks.absent("scaffold"),
        Edit(
            Kept.scatter, "row.index_copy_(0, self._at[members], new.detach().to(row.device, row.dtype))",
            "row[:] = new[-1].detach()",
        ),
    ),
    Mutant(
        "the server's control is not in the checkpoint", "pfl-research (`_server_c`)", checks.resume("scaffold"),
        Edit(
            checkpoint.restore, "server=server",
            'server=federation.server._replace(model=state["server"].model)',
        ),
    ),
    Mutant(
        "moments of the server optimiser are not in the checkpoint", COMMON, checks.resume("fedadam"),
        Edit(checkpoint.restore, "then=then", "then={}"),
    ),
    Mutant(
        "momentum leaks into the next turn", COMMON,
        checks.reference("fedavg heavy", executor="loop"),
        Edit(SGD.init, '"buffer": zeros(params)', '"buffer": self.__dict__.setdefault("kept", zeros(params))'),
        Edit(SGD.update, "self.momentum * b + a,", "b.mul_(self.momentum).add_(a),"),
    ),
    Mutant(
        "the received model is changed in place", "FedML #115", checks.unchanged("fedprox"),
        Edit(descend, "old[str(i)] + change[str(i)]", "old[str(i)].add_(change[str(i)])"),
    ),
    Mutant(
        "the short last batch is dropped", "PFLlib (`drop_last`)", checks.epochs,
        Edit(
            batches._batches, "return padded.reshape(count * per_epoch, size)[: phase.steps]",
            "whole = padded.reshape(count * per_epoch, size); return whole[(whole >= 0).all(1)]",
        ),
    ),
    Mutant(
        "batches depend on the place in the cohort", "Flower #3328 (order of virtual clients)", checks.places,
        Edit(batches.draw_turns, "number, each=ids", "number, each=range(len(ids))"),
    ),
    Mutant(
        "every client draws the same numbers", "PFLlib (seeds torch with 0 in each client)", checks.streams,
        Edit(batches.draw_turns, "number, each=ids", "number, each=[0] * len(ids)"),
    ),
    Mutant(
        "every round draws the same batches", "the pFedMe repository (unshuffled loaders)", checks.streams,
        Edit(batches.draw_turns, "number, each=ids", "each=ids"),
    ),
    Mutant(
        "a share is a slice", "FedALA's code", checks.share,
        Edit(
            batches._batches, "rng.permutation(rows)[:",
            "rows[rng.integers(len(rows) - int(phase.share * len(rows)) + 1) :][:",
        ),
    ),
    Mutant(
        "dropout depends on the chunk", "FLamby #170, Flower #3328 (results depend on order)", checks.chunks("fedavg"),
        Edit(batched._part, "turn._replace(steps=", "turn._replace(key=torch.arange(len(here)), steps="),
    ),
    Mutant(
        "a value lies where another one is still read", COMMON, checks.machine("fedavg"),
        Edit(Work.laid, "if p.last >= place.first)", "if p.last > place.first + 1)"),
    ),
    Mutant(
        "machine code makes steps that are padding", COMMON, checks.machine("fednova"),
        Edit(Work._loop, '"if (!real) continue;"', '""'),
    ),
    Mutant(
        "rows that fill no block are left out of a sum", COMMON, checks.added,
        Edit(chain.chain, "if left else []", "if not left else []"),
    ),
    Mutant(
        "a program knows a learning rate by its type only", COMMON, checks.reused,
        Edit(machine.in_machine_code, "tuple((type(x), x) for x in leaves)", "tuple(type(x) for x in leaves)"),
    ),
    Mutant(
        "dropout has one mask in all steps", "resetting a seed inside `forward` (openfl #248)", checks.masks,
        Edit(StreamDropout.forward, "self.key, shape", "self.key * 0, shape"),
    ),
    Mutant(
        "replies come in the order of the work", "Flower #3328", checks.executors("ditto"),
        Edit(batched._in_order, "torch.split(places, [", "torch.split(torch.arange(len(places)), ["),
    ),
    Mutant(
        "padding counts in batch norm", COMMON, checks.padding("fedavg"),
        Edit(MaskedBatchNorm.forward, "live = self.live.reshape(", "live = torch.ones_like(self.live).reshape("),
    ),
    Mutant(
        "padding counts in the loss", COMMON, checks.padding("fedprox"),
        Edit(net.masked_mean, "(values * live).sum() / live.sum().clamp(min=1)", "values.mean()"),
    ),
    Mutant(
        "the unbiased variance normalises", COMMON, checks.central("fedavg"),
        Edit(MaskedBatchNorm.forward, "y = (x -", "var = unbiased if self.training else var; y = (x -"),
    ),
    Mutant(
        "the test split chooses the round", "PFLlib (`test_acc[i].max()`), Flower's niid_bench", checks.chosen,
        Edit(summary._figures, 'history.of("validation", view', 'history.of("test", view'),
    ),
    Mutant(
        "training examples are the test", "FedML #163; Federated-Learning-Backdoor #5", checks.split,
        Edit(federate._divided, "np.flatnonzero(official)", "pool"),
    ),
    Mutant(
        "lost answers are counted", "PFLlib (divides by the configured number)", checks.lost("scaffold"),
        Edit(round.play, "rnd._replace(ids=there, weights=weights)", "rnd._replace(weights=weights)"),
    ),
    Mutant(
        "everybody trains, whatever the cohort", "PFLlib (APPLE)", checks.cohorts,
        Edit(cohort.cohort, "rng.choice(there, int(size), replace=False)", "there"),
    ),
    Mutant(
        "cohorts have no seed", "PFLlib (seeds torch alone)", checks.seeded,
        Edit(cohort.cohort, 'stream(settings.seed, "cohort", number)', "np.random.default_rng()"),
    ),
    Mutant(
        "False is true", "PFLlib (`type=bool`)", checks.yes_or_no,
        Edit(settings.read, 'return value.lower() == "true"', "return bool(value)"),
    ),
]  # fmt: skip

FAMILIES = {"Engine and data": ENGINE}
