"""What nodes send, what they keep, and whom the server takes in; without a network, but through the bytes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.engines.setting import METHODS, data_settings, method, run_settings, write_examples
from weft.core.errors import SettingError
from weft.experiment.plugins import load_methods
from weft.experiment.run import Run
from weft.experiment.settings import make
from weft.experiment.sources import federated

pytest.importorskip("flwr", reason="weft[flower] is not installed")
load_methods()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from weft.deploy.app import init

    folder = tmp_path_factory.mktemp("nodes")
    data = data_settings(write_examples(folder))
    init(folder / "app", method("fedavg"), data, run_settings(), nodes=3)
    return folder


def prepared(place: Path, label: str, line: Any, rounds: int = 2, **how: Any) -> Run:
    from weft.deploy.server import elsewhere

    settings = run_settings(executor="flower", rounds=rounds, **METHODS[label][2])
    data, chosen = federated(data_settings(place / "points.npz")), method(label)
    return Run.prepare(chosen, data, settings, elsewhere=elsewhere(line, chosen, data, settings, **how))


def test_only_declared_channels_leave(place: Path, tmp_path: Path) -> None:
    """No example, no label and no personal model is among the bytes, though all of them are there."""
    from tests.engines.line import Line, three
    from weft.deploy.records import noted

    line = Line(**three(place, tmp_path))
    keep = line.push_messages

    def push(messages: Any) -> Any:
        names = keep(messages)
        for name in names:
            reply = line.replies[name]
            kind = reply.metadata.message_type.partition(".")[2]
            allowed = {"hello": {"hello"}, "turn": {"turn", "up.model"}, "judge": {"marks"}}[kind]
            assert set(reply.content) == allowed
            if kind == "turn":
                assert set(noted(reply.content, "turn")) == {"ids", "weights", "steps", "rate"}
                ids = noted(reply.content, "turn")["ids"]
                assert sorted(reply.content["up.model"]) == sorted(map(str, ids))
        return names

    line.push_messages = push  # type: ignore[method-assign]
    run = prepared(place, "ditto", line)
    run.go()
    sent = b"".join(part for _, _, part in line.bytes)
    with np.load(place / "points.npz") as points:
        x = points["x"]
    rows = [row.tobytes()[:32] for row in (*x, *x.astype(np.float64))]
    source = federated(data_settings(place / "points.npz")).source
    rows += [row.tobytes()[:32] for row in ((x - source.shift) * source.scale).astype(np.float64)]
    assert not any(row in sent for row in rows)
    kept = list(tmp_path.rglob("*.safetensors"))
    assert kept
    from safetensors.numpy import load_file

    personal = [v.tobytes()[:64] for path in kept for v in load_file(path).values() if v.size >= 8]
    assert personal and not any(part in sent for part in personal)
    shared = next(v for v in run.federation.server.model.values() if v.numel() >= 100)
    assert shared.numel() * 8 < len(sent), "models do leave, so that the search above could have found something"


@pytest.mark.parametrize("label", ["scaffold", "fedproto, two architectures", "fedadam with top-k"])
def test_bytes_counted_are_bytes_sent(place: Path, tmp_path: Path, label: str) -> None:
    from tests.engines.line import Line, three

    run = prepared(place, label, Line(**three(place, tmp_path)))
    there = run.go()
    settings = run_settings(rounds=2, **METHODS[label][2])
    here = Run.prepare(method(label), federated(data_settings(place / "points.npz")), settings).go()
    assert there.totals["bytes_up"] == here.totals["bytes_up"]
    assert there.totals["bytes_down"] == here.totals["bytes_down"]
    for x, y in zip(tree_leaves(here.federation.server), tree_leaves(there.federation.server), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": "another"}, "we have fedavg of weft"),
        ({"shapes": "another"}, "its model has"),
        ({"clients": [0]}, "is node node-0: give every node a client of its own"),
        ({"clients": [9]}, "the federation has the clients 0 to 5"),
        ({"data": {"data": "nothing.npz"}}, "data = 'nothing.npz'"),
    ],
)
def test_who_is_refused(
    place: Path, tmp_path: Path, caplog: Any, monkeypatch: Any, change: dict[str, Any], why: str
) -> None:
    """One line that names the node, and a round without it."""
    from tests.engines.line import Line, three
    from weft.deploy import node as nodes

    told = {k: v for k, v in change.items() if k in ("clients", "data")}
    answers = three(place, tmp_path)
    from tests.engines.line import node

    bad = node(place / "app", "node-1", state=str(tmp_path / "bad"), **told)
    answers["node2"] = bad.answer
    if "version" in change or "shapes" in change:
        told_by = {"version": nodes.version, "shapes": nodes.shapes}

        def answer(message: Any) -> Any:
            with monkeypatch.context() as patch:
                if "version" in change:
                    patch.setattr(nodes, "version", lambda name: f"{name} of weft 0.0.9")
                else:
                    patch.setattr(
                        nodes, "shapes", lambda groups: [dict.fromkeys(told_by["shapes"](groups)[0], "float32 [1]")]
                    )
                return bad.answer(message)

        answers["node2"] = answer
    run = prepared(place, "fedavg", Line(**answers), rounds=2, deadline=0.3, min_clients=2)
    with caplog.at_level(logging.WARNING, "weft.federation"):
        run.go()
    lines = [r.getMessage() for r in caplog.records if r.name == "weft.federation"]
    assert len(lines) == 1 and why in lines[0] and "node node-1" in lines[0] and "is refused" in lines[0], lines
    assert run.federation.turns[[1, 4]].sum() == 0 < run.federation.turns.sum()


def test_a_restarted_node_has_what_it_kept(place: Path, tmp_path: Path) -> None:
    """Every message to a process of its own, as Flower's SuperNode does it: nothing but the folder remains."""
    from tests.engines.line import Line, node

    def fresh(i: int) -> Any:
        return lambda message: node(place / "app", f"node-{i}", state=str(tmp_path / f"{i}")).answer(message)

    run = prepared(place, "scaffold", Line(**{f"node{i + 1}": fresh(i) for i in range(3)}))
    there = run.go()
    here = Run.prepare(method("scaffold"), federated(data_settings(place / "points.npz")), run_settings(rounds=2)).go()
    for x, y in zip(tree_leaves(here.federation.server), tree_leaves(there.federation.server), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["scaffold", "feddbe", "mime", "marsit", "fedpac", "btfl"])
def test_an_answer_that_was_lost_is_given_again(place: Path, tmp_path: Path, name: str) -> None:
    """Every message comes twice, each time to a process of its own, and only the second answer arrives."""
    from tests.engines.line import Line, node
    from weft.deploy.server import elsewhere

    def twice(i: int) -> Any:
        def answer(message: Any) -> Any:
            for _ in range(2):
                found = node(place / "app", f"node-{i}", state=str(tmp_path / f"{i}")).answer(message)
            return found

        return answer

    data, chosen = federated(data_settings(place / "points.npz")), make(name, {})
    line = Line(**{f"node{i + 1}": twice(i) for i in range(3)})
    short: dict[str, Any] = {"rounds": 2, "epochs": 1, "evaluate_every": 2}
    settings = run_settings(executor="flower", **short)
    there = Run.prepare(chosen, data, settings, elsewhere=elsewhere(line, chosen, data, settings)).go()
    here = Run.prepare(chosen, data, run_settings(**short)).go()
    for x, y in zip(tree_leaves(here.federation.server), tree_leaves(there.federation.server), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9)


def test_a_node_that_lost_its_folder_starts_anew(place: Path, tmp_path: Path, caplog: Any) -> None:
    import shutil

    from tests.engines.line import Line, node, three

    line = Line(**three(place, tmp_path))
    run = prepared(place, "scaffold", line, rounds=4, deadline=0.5, min_clients=1)
    played = run.federation.clients.keep

    def keep(ids: Any) -> None:  # after round 2, node-1 is a new process with an empty folder
        played(ids)
        if run.federation.clients._number == 2:  # type: ignore[attr-defined]
            shutil.rmtree(tmp_path / "1")
            line.nodes[2] = node(place / "app", "node-1", state=str(tmp_path / "1")).answer

    run.federation.clients.keep = keep  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "weft.federation"):
        run.go()
    lines = [r.getMessage() for r in caplog.records]
    assert any("start anew" in line for line in lines), lines
    assert run.done == 4


def test_too_few_clients_stop_the_run_with_a_sentence(place: Path, tmp_path: Path) -> None:
    from tests.engines.line import Line, three
    from weft.deploy.clients import TooFew

    answers = three(place, tmp_path)
    silent = {**answers, "node2": lambda message: None, "node3": lambda message: None}
    with pytest.raises(TooFew, match="2 of at least 5 clients came within"):
        prepared(place, "fedavg", Line(**silent), deadline=0.3, min_clients=5).go()


def test_personal_models_stay(place: Path, tmp_path: Path) -> None:
    from tests.engines.line import Line, three

    result = prepared(place, "ditto", Line(**three(place, tmp_path)), rounds=1).go()
    with pytest.raises(SettingError, match="personal models"):
        result.predictor(client=0, view="personal")


def test_data_of_ones_own(tmp_path: Path) -> None:
    """A node whose examples are all of its one client; the others of the federation have none here."""
    from weft.deploy.settings import NodeSettings

    write_examples(tmp_path)
    names = {"name": "a", "superlink": "x:1", "certificate": tmp_path, "key": tmp_path, "state": tmp_path}
    told = {"data": str(tmp_path / "points.npz"), "partition": "own"}
    data = NodeSettings(**names, clients=[1], data=told).federated(3)  # type: ignore[arg-type]
    assert data.clients() == 3 and data.unseen.tolist() == [0, 2]
    assert sum(int(rows.counts[1]) for rows in data.splits().values()) == 360
    assert all(int(rows.counts[k]) == 0 for rows in data.splits().values() for k in (0, 2))
    with pytest.raises(SettingError, match="all examples are of one client"):
        NodeSettings(**names, clients=[0, 1], data=told).federated(3)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="use a name, a path, or module:function"):
        NodeSettings(**names, clients=[0], data={**told, "data": "nowhere:examples"}).federated(3)  # type: ignore[arg-type]


def test_late_answers_count_while_there_are_too_few(
    place: Path, tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three nodes answer after the deadline: the round has its quorum with them, and nothing is done twice."""
    from tests.engines.line import Line, three
    from weft.deploy import clients

    class Counted:
        """A clock for which every question takes a tenth of a second, however busy the machine is."""

        questions = 0

        def waited(self) -> float:
            self.questions += 1
            return self.questions / 10

    monkeypatch.setattr(clients, "Clock", Counted)
    line = Line(**three(place, tmp_path))
    push, pull = line.push_messages, line.pull_messages
    asked: list[int] = []  # nodes, as they are asked to train
    greeted: set[int] = set()  # nodes that were greeted since, because they are late
    heard: set[int] = set()
    sent: dict[str, tuple[str, int]] = {}

    def send(messages: Any) -> Any:
        kinds = [(m.metadata.message_type, m.metadata.dst_node_id) for m in messages]
        for kind, node in kinds:
            asked.extend([node] if kind == "train.turn" else [])
            greeted.update({node} & set(asked) if kind == "query.hello" else ())
        names = push(messages)
        sent.update(zip(names, kinds, strict=True))
        return names

    def slow(names: Any) -> Any:  # nodes 2 and 3 answer when they are late, and greet only then
        free = []
        for name in names:
            kind, node = sent[name]
            if node == 1 or (kind == "train.turn" and node in greeted) or not (node in asked and node not in heard):
                free.append(name)
                heard.update([node] if kind == "train.turn" else [])
        return pull(free)

    line.push_messages, line.pull_messages = send, slow  # type: ignore[method-assign]
    run = prepared(place, "fedavg", line, rounds=1, deadline=0.5, min_clients=6)
    with caplog.at_level(logging.WARNING, "weft.federation"):
        run.go()
    assert int(run.federation.turns.sum()) == 4 and len(asked) == len(set(asked)), asked
    assert greeted and sum("is late" in r.getMessage() for r in caplog.records) == len(greeted)


def test_a_large_message_travels_in_pieces() -> None:
    """No object on the way is larger than a piece, so that no limit of a transport is met by a large model."""
    from collections import namedtuple

    from flwr.app import Message, RecordDict
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    from tests.engines.line import Line, carried
    from weft.deploy.records import download, put_download

    Line()  # has it known who sends
    records, sent = RecordDict(), {"weight": torch.randn(1 << 22)}
    put_download(records, namedtuple("Down", ["model"])(sent))
    message = Message(records, 1, "train.turn", ttl=9.0)
    sizes = [len(piece.deflate()) for piece in get_all_nested_objects(message).values()]
    assert sum(sizes) > 1 << 24 and max(sizes) < 6 << 20
    message.metadata.__dict__["_message_id"] = message.object_id
    assert torch.equal(download(carried(message)[0].content, {}).model["weight"], sent["weight"])
