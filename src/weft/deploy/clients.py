"""Clients at the nodes of a Flower federation: every exchange is a message to each node and its reply."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor
from torch.utils._pytree import tree_map

from weft.core.clients import Exam, Group, Marks, Part, TellNode, Timed, untimed, unwatched
from weft.core.clients import Message as Asked
from weft.core.errors import SettingError
from weft.core.here import turn_of
from weft.core.method import Method
from weft.deploy.call import shapes, unlike, version
from weft.deploy.clock import Clock
from weft.deploy.parts import figures, gathered
from weft.deploy.records import note, noted, put_download
from weft.deploy.uploads import WRONG, Plain, Turn, Uploads
from weft.deploy.uploads import told as in_words

log = logging.getLogger("weft.federation")
PATIENCE = 3
"""So many deadlines a round waits for its quorum before the run stops."""
POLL = (0.05, 0.5)
"""Least and most seconds between two questions for replies; see `pause`."""


class TooFew(ArithmeticError):
    """A round did not get its quorum; what was saved is whole, and the run can be resumed."""


class Seen(NamedTuple):
    """A node that has said who it is."""

    name: str
    clients: list[int]


@dataclass
class Remote:
    """The clients of a run, at their nodes; see `weft.core.clients.Clients`."""

    grid: Grid
    told: dict[str, Any]  # what nodes are told about the run; see `weft.deploy.call`
    method: Method
    groups: tuple[Group, ...]
    like: Callable[[Asked], Any]  # what one client answers to a message
    deadline: float = 60.0  # seconds
    min_clients: int = 0  # fewest clients of a round; 0: half of all
    uploads: Uploads = field(default_factory=Plain)
    run: int = field(default_factory=lambda: secrets.randbits(62))  # nodes keep their states under this number
    _nodes: dict[int, Seen] = field(default_factory=dict)  # who can be asked
    _away: dict[int, str] = field(default_factory=dict)  # node -> hello that it has not answered
    _owed: dict[str, int] = field(default_factory=dict)  # replies that came too late, to be thrown away
    _said: dict[int, str] = field(default_factory=dict)  # what was last said against a node
    _tell: TellNode = unwatched
    _met: bool = False
    _number: int = 0
    _there: set[int] = field(default_factory=set)  # who has answered all exchanges of the round so far

    def __post_init__(self) -> None:
        self.population = int(self.told["population"])
        self.least = self.min_clients or math.ceil(self.population / 2)
        self.last = torch.zeros(self.population, dtype=torch.int64)  # the last round that counted, of each client
        self._safe = deque([self.last.clone()], maxlen=2)  # the same at the last two checkpoints

    def watched(self, tell: TellNode) -> None:
        """Say what becomes of the nodes."""
        self._tell = tell
        for seen in self._nodes.values():
            tell(seen.name, "ready")

    def there(self, able: Tensor) -> Tensor:
        """Those of these clients that can be asked now; waits until a round can be had with them.

        The first time it gives everybody a deadline to come.

        Raises:
            TooFew: there is no quorum for several deadlines.
        """
        clock = Clock()
        while True:
            self._look_round()
            here = sorted({k for node in self._nodes.values() for k in node.clients} & set(able.tolist()))
            waited = clock.waited()
            if len(here) == len(able) or (len(here) >= self.least and (self._met or waited > self.deadline)):
                self._met = True
                return torch.tensor(here)
            if waited > PATIENCE * self.deadline:
                raise TooFew(f"{len(here)} of at least {self.least} clients came within {waited:.0f} s{self._why()}")
            time.sleep(pause(waited))

    def hear(self, message: Asked, timed: Timed = untimed) -> Iterable[Part]:
        """Ask the clients' nodes, and join their answers as they come."""
        method, like = turn_of(self.method, message), self.like(message)
        self._number = message.number
        wanted = set(message.ids.tolist())
        wanted &= self._there if message.exchange else wanted
        self._there = set()
        with timed("local"):
            parts = self.uploads.hear(self, Turn(method, self.groups[0].net, message, like, wanted))
        self._there = {k for part in parts for k in part.ids.tolist()}
        for part in parts:
            for k in part.skipped.tolist():
                what = (self._home(k), k, part.culprit, message.number)
                log.warning("node %s (client %d) sent what is not finite on channel %r in round %d", *what)
        yield from parts

    def keep(self, ids: Tensor) -> None:
        """The nodes are told with the next message."""
        self.last[ids] = self._number

    def judge(self, exam: Exam) -> dict[str, Marks]:
        """Ask every node for the figures of its clients."""
        found: dict[str, list[dict[str, Any]]] = {}
        for node, ids, reply in self.ask("judge", set(range(self.population)), lambda i: _asking(self, exam, i)):
            try:
                for part, marks in figures(reply, ids).items():
                    found.setdefault(part, []).append(marks)
            except WRONG as error:
                self.failed(node, error, f"its figures after round {exam.number} are left out")
        return {part: gathered(each) for part, each in found.items()}

    def state(self, client: int) -> Any:
        """Not to be had."""
        raise SettingError(f"client = {client}: what clients keep stays at their nodes, and so do personal models")

    def saved(self) -> Any:
        """After which round each client's state is, and the number under which nodes keep it."""
        self._safe.append(self.last.clone())
        return {"last": self.last, "run": torch.tensor(self.run)}

    def restore(self, saved: Any) -> None:
        """Go on from there; the nodes still have these states."""
        self.last, self.run = saved["last"], int(saved["run"])
        self._safe = deque([self.last.clone()], maxlen=2)

    def close(self) -> None:
        """Tell the nodes, with a last hello, which round counted; nothing is waited for."""
        for node in self._nodes:
            self._send(node, "hello", RecordDict())

    # asking

    def training(self, turn: Turn, ids: list[int]) -> RecordDict:
        """See `Nodes`."""
        message = turn.message
        places = torch.searchsorted(message.ids, torch.tensor(ids))
        records = RecordDict()
        down = tree_map(lambda x: x[places], message.down) if turn.method.private_send else message.down
        put_download(records, down)
        told = {"number": message.number, "exchange": message.exchange, "past": message.past[places].tolist()}
        note(records, "turn", told | self._bases(ids))
        return records

    def _bases(self, ids: list[int]) -> dict[str, Any]:
        return {"ids": ids, "base": self.last[ids].tolist(), "safe": self._safe[0][ids].tolist()}

    def _send(self, node: int, kind: str, records: RecordDict) -> str:
        family = {"hello": "query", "judge": "evaluate"}.get(kind, "train")
        note(records, "call", self.told | {"run": f"{self.run:016x}"})
        ttl = PATIENCE * self.deadline + 60
        message = Message(records, node, f"{family}.{kind}", ttl=ttl, group_id=str(self._number))
        return next(iter(self.grid.push_messages([message])))

    def quorum(self, wanted: set[int]) -> int:
        """See `Nodes`."""
        return min(self.least, len(wanted))

    def ask(
        self, kind: str, wanted: set[int], asking: Callable[[list[int]], RecordDict], quorum: int = 0
    ) -> Iterator[tuple[int, list[int], RecordDict]]:
        """See `Nodes`.

        Raises:
            TooFew: there is no quorum for several deadlines.
        """
        clock, heard = Clock(), 0
        waiting: dict[str, tuple[int, Seen, list[int]]] = {}
        open_to: set[int] = set(wanted)
        while True:
            for node, seen in list(self._nodes.items()):
                ids = [k for k in seen.clients if k in open_to]
                if ids:
                    waiting[self._send(node, kind, asking(ids))] = (node, seen, ids)
                    self._tell(seen.name, "evaluating" if kind == "judge" else "training")
                    open_to -= set(ids)
            for reply in self.grid.pull_messages(list(waiting)):
                node, seen, ids = waiting.pop(reply.metadata.reply_to_message_id)
                if self._fine(node, reply):
                    self._back(node, seen)
                    heard += len(ids)
                    yield node, ids, reply.content
                else:
                    open_to |= set(ids) if quorum else set()
            waited = clock.waited()
            late = waited > self.deadline
            if heard >= quorum and (late or not waiting):
                break
            if waited > PATIENCE * self.deadline:
                self._put_off(waiting)
                raise TooFew(
                    f"round {self._number}: {heard} of at least {quorum} clients answered within {waited:.0f} s"
                    f"{self._why()}"
                )
            if late:
                open_to |= self._lost_in(waiting)
            if not waiting:
                self._look_round()
            time.sleep(pause(waited))
        self._put_off(waiting)

    def _lost_in(self, waiting: dict[str, tuple[int, Seen, list[int]]]) -> set[int]:
        """Greet those that are late; one that answers that, but not what it was asked, has been started anew."""
        for node, seen, _ in waiting.values():
            if self._nodes.get(node) is seen:
                self._late(node)
        self._look_round()
        lost = {name: ids for name, (node, _, ids) in waiting.items() if node in self._nodes}
        for name in lost:
            self._owed[name] = waiting.pop(name)[0]
        return {k for ids in lost.values() for k in ids}

    def _put_off(self, waiting: dict[str, tuple[int, Seen, list[int]]]) -> None:
        """Those that have not answered are away until they say so, and what they answer yet is thrown away."""
        for name, (node, _, _) in waiting.items():
            self._owed[name] = node
            self._late(node)

    def _back(self, node: int, seen: Seen) -> None:
        """Ask a node again that has answered, even if it was late: what it says of itself need not be waited for."""
        self._nodes[node] = seen
        if node in self._away:
            self._owed[self._away.pop(node)] = node
        self._said.pop(node, None)
        self._tell(seen.name, "ready")

    def _late(self, node: int) -> None:
        self._against(node, "late", f"no answer in round {self._number} within {self.deadline:g} s")

    # what nodes answer

    def _fine(self, node: int, reply: Message) -> bool:
        """Whether this is an answer; if not, the node is away."""
        if reply.has_error():
            self._against(node, "lost", f"no answer in round {self._number}: {reply.error.reason}")
        elif "refused" in reply.content:
            said = noted(reply.content, "refused")
            self._against(node, "refused", str(said["why"]), str(said["name"]))
        return not reply.has_error() and "refused" not in reply.content

    def failed(self, node: int, error: Exception, outcome: str) -> None:
        """See `Nodes`."""
        self._against(node, "failed", f"{in_words(error)}; {outcome}")

    def _look_round(self) -> None:
        """Greet nodes that are new or away, and hear who they are."""
        online = set(self.grid.get_node_ids())
        for node in [n for n in self._nodes if n not in online]:
            self._against(node, "lost", "it is no longer connected")
        for node in online - set(self._nodes) - set(self._away):
            self._away[node] = self._send(node, "hello", RecordDict())
        if self._owed:
            for reply in self.grid.pull_messages(list(self._owed)):
                self._owed.pop(reply.metadata.reply_to_message_id, None)
        hellos = {name: node for node, name in self._away.items()}
        for reply in self.grid.pull_messages(list(hellos)) if hellos else ():
            node = hellos[reply.metadata.reply_to_message_id]
            del self._away[node]
            if self._fine(node, reply):
                try:
                    self._greeted(node, noted(reply.content, "hello"))
                except WRONG as error:
                    self._against(node, "refused", f"{in_words(error)} in what it says of itself")

    def _greeted(self, node: int, said: dict[str, Any]) -> None:
        """Take a node in, or say why not."""
        seen = Seen(str(said["name"]), [int(k) for k in said["clients"]])
        ours, theirs = version(self.method.name), said["version"]
        taken = {k: other.name for other in self._nodes.values() for k in other.clients if k in seen.clients}
        wrong = unlike(said["shapes"], shapes(self.groups))
        lost = [k for k, had in zip(seen.clients, said["kept"], strict=True) if self._lost(k, had)]
        why = ""
        if theirs != ours:
            why = f"it has {theirs}, and we have {ours}: install the same on both"
        elif wrong:
            why = f"{wrong}: its data or its model are of another shape"
        elif taken:
            k, other = next(iter(taken.items()))
            why = f"it says that it is client {k}, which is node {other}: give every node a client of its own"
        self._nodes[node] = seen
        if why:
            self._against(node, "refused", why)
            return
        if lost:
            log.warning("node %s comes without what its clients %s kept: they start anew", seen.name, lost)
            self.last[lost] = 0
        self._said.pop(node, None)
        log.info("node %s is here, with the clients %s", seen.name, seen.clients)
        self._tell(seen.name, "ready")

    def _lost(self, client: int, had: list[int]) -> bool:
        return bool(self.last[client]) and int(self.last[client]) not in had

    def _against(self, node: int, state: str, why: str, name: str = "") -> None:
        """Put a node away, and say so once; that one which is away is lost, too, is no news."""
        seen = self._nodes.pop(node, None)
        if seen is None and state == "lost" and node in self._said:
            return
        name = seen.name if seen else name or f"{node}"
        if self._said.get(node) != why:
            clients = f" (client {', '.join(map(str, seen.clients))})" if seen else ""
            log.warning("node %s%s is %s: %s", name, clients, state, why)
            self._tell(name, state, why)
            self._said[node] = why

    def _home(self, client: int) -> str:
        return next((seen.name for seen in self._nodes.values() if client in seen.clients), "that is gone")

    def _why(self) -> str:
        return "; " + "; ".join(f"node {node}: {why}" for node, why in self._said.items()) if self._said else ""


def pause(waited: float) -> float:
    """Seconds to the next question: a twentieth of the wait, since what a SuperLink answers it takes from the nodes."""
    return min(max(POLL[0], waited / 20), POLL[1])


def _asking(remote: Remote, exam: Exam, ids: list[int]) -> RecordDict:
    records = RecordDict()
    down, stacked = exam.look(torch.tensor(ids))
    put_download(records, down)
    told = {"number": exam.number, "split": exam.split, "view": exam.view, "full": exam.full, "stacked": stacked}
    note(records, "judge", told | {"past": exam.past[ids].tolist()} | remote._bases(ids))
    return records
