"""A node: some clients of a federation, their examples and what they keep, and the answers to the server's messages."""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor
from torch.utils._pytree import tree_map

from weft.core.clients import Exam, Group, Marks
from weft.core.clients import Message as Asked
from weft.core.errors import SettingError
from weft.core.here import Here, turn_of
from weft.core.registry import find
from weft.core.turn import Mine
from weft.deploy.call import called, protected, shapes, version
from weft.deploy.held import HeldUploads
from weft.deploy.records import download, note, noted, put_uploads
from weft.deploy.settings import NodeSettings
from weft.deploy.shelf import Shelf
from weft.evaluation.protocol import Examiner
from weft.executors import Batched
from weft.experiment import assemble
from weft.experiment.drawing import Drawing
from weft.experiment.plugins import load_methods

log = logging.getLogger("weft.node")


class Node:
    """What a node does with messages. It knows one run at a time."""

    def __init__(self, settings: NodeSettings, lasting: bool = True) -> None:
        """`lasting`: whether this process is there until the run ends, so that it can hold what is not to be sent."""
        self.settings, self.lasting = settings, lasting
        self._post: tuple[dict[str, Any], Post] | None = None
        load_methods(tuple(settings.plugins))

    def answer(self, message: Message) -> Message:
        """The reply to a message of the server: an answer, or the sentence why there is none."""
        reply, kind = RecordDict(), message.metadata.message_type.partition(".")[2]
        try:
            told = noted(message.content, "call")
            if told["settings"]["secure_aggregation"] and not self.lasting:
                raise SettingError(
                    "secure_aggregation holds uploads and keys in memory between messages, and flower-supernode starts "
                    f"a process for each: start node {self.settings.name} with `weft deploy node`"
                )
            if self._post is None or self._post[0] != told:
                self._post = told, Post(self.settings, told)
            post = self._post[1]
            doing = {"hello": post.hello, "turn": post.turn, "sum": post.sum, "judge": post.judge}
            doing[kind](message.content, reply)
        except SettingError as error:
            log.error("refused: %s", error)
            note(reply, "refused", {"why": str(error), "name": self.settings.name})
        return Message(reply, reply_to=message)


class Post:
    """A run as a node takes part in it."""

    def __init__(self, settings: NodeSettings, told: dict[str, Any]) -> None:
        method, run = called(told)
        self.name, self.population = settings.name, told["population"]
        data = settings.federated(self.population)
        self.own = settings.clients
        where, dtype = assemble.device(settings.device), assemble.DTYPES[run.precision]
        nets = assemble.networks(run.model, data, run.precision, where)
        every = assemble.placed(assemble.groups(method, nets, self.population), where)
        here = torch.tensor(self.own)
        groups = [Group(g.net, g.ids[torch.isin(g.ids, here)]) for g in every]
        self.here = Here.begin(
            assemble.assembled(method, run, protected(told)),
            groups,
            assemble.examples(data, where, dtype),
            Drawing(data.train, run, dtype, where),
            Batched(rounds=run.rounds, compile=run.compile),
            seed=run.init_seed,
            examine=Examiner(data),
        )
        self.held = HeldUploads(settings.name, run) if run.secure_aggregation else None
        self.shelf = Shelf(settings.state / told["run"], self._first)
        self._firsts = {k: self._one(k) for k in self.own}

    def hello(self, asked: RecordDict, reply: RecordDict) -> None:
        """Who is here, and with what."""
        note(
            reply,
            "hello",
            {
                "name": self.name,
                "clients": self.own,
                "kept": [self.shelf.rounds(k) for k in self.own],
                "version": version(self.here.method.name),
                "shapes": shapes(self.here.groups),
            },
        )

    def turn(self, asked: RecordDict, reply: RecordDict) -> None:
        """One exchange of a round."""
        again = self.held.again(asked) if self.held else None
        if again is not None:
            note(reply, "turn", again)
            return
        told = noted(asked, "turn")
        number, exchange, ids = told["number"], told["exchange"], told["ids"]
        bases = dict(zip(ids, told["base"], strict=True))
        for client, base, safe in zip(ids, told["base"], told["safe"], strict=True):
            self.shelf.forget(client, {base, safe})
        message = Asked(number, exchange, torch.tensor(ids), torch.tensor(told["past"]), self._download(asked))
        turn = turn_of(self.here.method, message)
        # what was put by in this round's last exchange, or what was kept after the last round that counted
        later = bool(exchange and number)
        minds = self._minds(dict.fromkeys(ids, number) if later else bases, exchange - 1 if later else None)
        heard: dict[int, tuple[Any, Tensor]] = {}
        steps, rate = 0, 1.0
        for group in self.here.groups:
            some = [k for k in ids if k in group.ids]
            if not some:
                continue
            places = torch.tensor([ids.index(k) for k in some])
            given = tree_map(lambda x, p=places: x[p], message.down) if turn.private_send else message.down
            mine = tree_map(lambda *x: torch.stack(x), *_alike([minds[k] for k in some]))
            drawn, count = self.here.drawn(turn, message, places)
            got = self.here.execute(turn, group.net, given, mine, self.here.examples, drawn, self.here.public)
            steps += count
            rate = float(drawn.rate[0])
            for i, k in enumerate(some):
                heard[k] = tree_map(lambda x, i=i: x[i], (got.up, got.weight))
                if number:
                    self.shelf.put(k, number, exchange, tree_map(lambda x, i=i: x[i].cpu(), got.mine))
        up, weights = tree_map(lambda *x: torch.stack(x), *[heard[k] for k in ids])
        said, net = {"ids": ids, "steps": steps, "rate": rate}, self.here.groups[0].net
        if self.held:
            said = self.held.hold(asked, message, turn, net, up, weights, **said)
        else:
            put_uploads(reply, turn, net, ids, up)
            said["weights"] = weights.tolist()
        note(reply, "turn", said)

    def sum(self, asked: RecordDict, reply: RecordDict) -> None:
        """One step of a secure sum."""
        assert self.held, "the server adds openly"
        self.held.step(asked, reply)

    def judge(self, asked: RecordDict, reply: RecordDict) -> None:
        """How these clients do on their own examples; only figures leave."""
        told = noted(asked, "judge")
        ids, down = told["ids"], self._download(asked)
        minds = self._minds(dict(zip(ids, told["base"], strict=True)))
        for group, store in zip(self.here.groups, self.here.kept, strict=True):
            for k in ids:
                if k in group.ids:
                    place = torch.searchsorted(group.ids, torch.tensor([k]))
                    own = Mine(minds[k].method, {})  # what codecs remember is for sending, and nobody is judged by it
                    store.scatter(place, tree_map(lambda x: x[None], own))
        past = torch.zeros(self.population, dtype=torch.int64)
        past[torch.tensor(ids)] = torch.tensor(told["past"])

        def look(wanted: Tensor) -> tuple[Any, bool]:
            places = [ids.index(k) for k in wanted.tolist()]
            return (tree_map(lambda x: x[places], down) if told["stacked"] else down), told["stacked"]

        found = self.here.judge(Exam(told["number"], told["split"], told["view"], told["full"], past, look))
        note(reply, "marks", {part: _plain(marks) for part, marks in found.items()})

    def _download(self, asked: RecordDict) -> Any:
        return download(asked, vars(sys.modules[find(self.here.method.name).make.__module__]))

    def _minds(self, rounds: dict[int, int], exchange: int | None = None) -> dict[int, Mine]:
        try:
            return {client: self.shelf.take(client, number, exchange) for client, number in rounds.items()}
        except KeyError as error:
            client, number = error.args[0]
            raise SettingError(
                f"node {self.name} has no state of client {client} after round {number}, but after "
                f"{', '.join(map(str, self.shelf.rounds(client))) or 'none'}: bring back its folder of states"
            ) from None

    def _first(self, client: int) -> Mine:
        return self._firsts[client]

    def _one(self, client: int) -> Mine:
        mine: Mine = tree_map(lambda x: x[0].clone(), self.here.states(torch.tensor([client])))
        return mine


def _plain(marks: Marks) -> dict[str, Any]:
    metrics = {name: values.tolist() for name, values in marks.metrics.items()}
    return {"ids": marks.ids.tolist(), "counts": marks.counts.tolist(), "metrics": metrics}


def _alike(minds: list[Mine]) -> list[Mine]:
    """The same with zeros for what codecs remember of those that have sent nothing yet."""
    blank = {name: tree_map(torch.zeros_like, state) for mine in minds for name, state in mine.codecs.items()}
    return [Mine(mine.method, {name: mine.codecs.get(name, zero) for name, zero in blank.items()}) for mine in minds]


def client_app() -> ClientApp:
    """The same as a Flower app, for ``flower-supernode``; the node's settings file is named in its node config."""
    app, nodes = ClientApp(), {}

    def answer(message: Message, context: Context) -> Message:
        path = str(context.node_config.get("settings", ""))
        if path not in nodes:
            nodes[path] = Node(NodeSettings.read(path), lasting=False)
        return nodes[path].answer(message)

    for register, kind in ((app.query, "hello"), (app.train, "turn"), (app.train, "sum"), (app.evaluate, "judge")):
        register(kind)(answer)
    return app
