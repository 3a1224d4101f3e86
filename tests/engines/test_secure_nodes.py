"""Secure aggregation at nodes, without a network but through the bytes: repetition, bad answers, refusals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="weft[flower] is not installed")

from flwr.app import Message, RecordDict
from torch.utils._pytree import tree_leaves

from tests.engines.line import Line, node
from tests.engines.setting import data_settings, method, run_settings, write_examples
from weft.cli import main
from weft.core.errors import SettingError
from weft.deploy.app import init
from weft.deploy.clients import TooFew
from weft.deploy.held import HeldUploads
from weft.deploy.records import each_of, note, noted, put_each
from weft.deploy.server import elsewhere
from weft.experiment.plugins import load_methods
from weft.experiment.run import Run
from weft.experiment.settings import make
from weft.experiment.sources import federated
from weft.privacy import secure_server
from weft.privacy.fixed_point import OutOfRange

load_methods()
Answer = Callable[[Message], Message | None]
Change = Callable[[str, int, Message, Answer], Message | None]  # (step, round, message, what answers it)
CLOSE = 1e-9  # see `test_secure_flower`


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    data = data_settings(write_examples(folder))
    init(folder / "app", method("fedavg"), data, run_settings(), nodes=3)
    return folder


def line(place: Path, home: Path, change: Change | None = None) -> Line:
    """Three nodes with two clients each; `change` stands before node-2, and is told the step or kind."""

    def changed(answer: Answer) -> Answer:
        def found(message: Message) -> Message | None:
            kind = message.metadata.message_type.partition(".")[2]
            told = noted(message.content, {"sum": "step", "turn": "turn"}[kind]) if kind in ("sum", "turn") else {}
            number = int(message.metadata.group_id or 0)
            assert change
            return change(str(told.get("step", kind)), number, message, answer)

        return found

    answers: list[Answer] = [node(place / "app", f"node-{i}", state=str(home / f"{i}")).answer for i in range(3)]
    answers[2] = changed(answers[2]) if change else answers[2]
    return Line(**{f"node{i + 1}": answer for i, answer in enumerate(answers)})


def prepared(
    place: Path, line: Line, name: str = "fedavg", deadline: float = 60.0, lr: float = 0.1, **changed: Any
) -> Run:
    how = {"rounds": 2, "cohort": 1.0, "epochs": 1, "evaluate_every": 100, "secure_aggregation": True}
    settings = run_settings(executor="flower", **how | changed)
    data, chosen = federated(data_settings(place / "points.npz")), make(name, {"lr": lr})
    places = elsewhere(line, chosen, data, settings, deadline=deadline)  # type: ignore[arg-type]
    return Run.prepare(chosen, data, settings, elsewhere=places)


def plain(place: Path, name: str = "fedavg", **changed: Any) -> Run:
    how = {"rounds": 2, "cohort": 1.0, "epochs": 1, "evaluate_every": 100}
    made = Run.prepare(
        make(name, {"lr": 0.1}), federated(data_settings(place / "points.npz")), run_settings(**how | changed)
    )
    made.go()
    return made


def apart(one: Run, other: Run) -> float:
    each = [tree_leaves((run.federation.server, dict(run.federation.then))) for run in (one, other)]
    return max(float((x - y).abs().max()) for x, y in zip(*each, strict=True) if x.numel())


@pytest.mark.parametrize("name", ["fedavg", "fedadam"])
def test_the_numbers_are_those_of_plain_sums(place: Path, tmp_path: Path, name: str) -> None:
    """With a server optimiser in FedAdam; bytes are those of the simulated protocol."""
    run = prepared(place, line(place, tmp_path), name, cohort=4)
    run.go()
    same, simulated = plain(place, name, cohort=4), plain(place, name, cohort=4, secure_aggregation=True)
    assert apart(same, run) <= CLOSE and apart(simulated, run) <= CLOSE
    assert same.federation.turns.tolist() == run.federation.turns.tolist()
    for kind in ("bytes_up", "bytes_down", "steps"):
        assert run.totals[kind] == simulated.totals[kind], kind


def test_a_sum_is_begun_again_before_anything_is_revealed(place: Path, tmp_path: Path, caplog: Any) -> None:
    """Node-2 misses one step of each round: too few are left, and the second attempt has everybody, trained once."""
    missed, trained = {1: "shares", 2: "masked"}, []

    def change(step: str, number: int, message: Message, answer: Answer) -> Message | None:
        if missed.get(number) == step:
            del missed[number]
            return None
        reply = answer(message)
        if step == "turn" and reply:
            trained.append(noted(reply.content, "turn")["steps"])
        return reply

    with caplog.at_level(logging.WARNING, "weft.federation"):
        run = prepared(place, line(place, tmp_path, change), "scaffold", deadline=0.5)
        run.go()
    assert not missed and [steps > 0 for steps in trained] == [True, False, True, False]
    same = plain(place, "scaffold")
    assert apart(same, run) <= CLOSE and run.totals["steps"] == same.totals["steps"]
    lines = [r.getMessage() for r in caplog.records]
    again = "secure aggregation: 4 clients have {}, and 5 are needed: the round is lost in attempt 1 of 3"
    assert [sum(again.format(what) in line for line in lines) for what in ("shared keys", "sent values")] == [1, 1]


def test_a_late_upload_is_in_the_sum(place: Path, tmp_path: Path, caplog: Any) -> None:
    """Node-2 answers its turn after the deadline, while too few have: the first attempt has it."""
    made = line(place, tmp_path)
    push, pull, turn, greeting = made.push_messages, made.pull_messages, list[str](), list[str]()

    def pushed(messages: Any) -> list[str]:
        (message,) = messages
        name = push([message])[0]
        if message.metadata.dst_node_id == 3:
            kind = message.metadata.message_type
            turn.extend([name] if kind == "train.turn" else [])
            greeting.extend([name] if kind == "query.hello" and turn else [])
        return [name]

    def pulled(names: Any) -> list[Message]:  # the turn's reply comes once it is greeted as late, the greeting's never
        held = {*greeting, *(() if greeting else turn)}
        return pull([name for name in names if name not in held])

    made.push_messages, made.pull_messages = pushed, pulled  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "weft.federation"):
        run = prepared(place, made, rounds=1, deadline=2.0)
        run.go()
    assert run.federation.turns.tolist() == [1] * 6
    lines = [r.getMessage() for r in caplog.records if r.name == "weft.federation"]
    assert lines and all("node-2" in line and "is late" in line for line in lines), lines
    assert apart(plain(place, rounds=1), run) <= CLOSE


def test_too_few_are_left(place: Path, tmp_path: Path) -> None:
    """Nothing is begun again once shares are revealed; what was trained before is whole."""

    def change(step: str, number: int, message: Message, answer: Answer) -> Message | None:
        return None if number == 2 and step == "reveal" else answer(message)

    run = prepared(place, line(place, tmp_path, change), deadline=0.5)
    with pytest.raises(secure_server.TooFew, match="4 clients have revealed shares, and 5 are needed"):
        run.go()
    assert run.done == 1 and run.federation.turns.tolist() == [1] * 6
    assert apart(plain(place, rounds=1), run) <= CLOSE
    silent = line(place, tmp_path / "other", lambda step, number, message, answer: None)
    with pytest.raises(TooFew, match="4 of at least 5 clients came"):
        prepared(place, silent, deadline=0.3, secure_threshold=5).go()


@pytest.mark.parametrize("step", ["keys", "shares", "masked", "reveal"])
def test_an_answer_that_is_damaged_is_left_out(place: Path, tmp_path: Path, caplog: Any, step: str) -> None:
    """One line that names the node and the client; the sum is that of the others, or of all once values are in."""

    def change(told: str, number: int, message: Message, answer: Answer) -> Message | None:
        reply = answer(message)
        if told == step and reply and number == 1:
            each = each_of(reply.content, "sum", [2, 5])
            put_each(reply.content, "sum", {2: each[2][:-1], 5: each[5]})
        return reply

    with caplog.at_level(logging.WARNING, "weft.federation"):
        run = prepared(place, line(place, tmp_path, change), rounds=1, secure_threshold=4, cohort=6, deadline=5.0)
        run.go()
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1 and "node node-2 (client 2, 5) is failed" in lines[0], lines
    counted = {"keys": [1, 1, 0, 1, 1, 0], "shares": [1, 1, 0, 1, 1, 0], "masked": [1, 1, 0, 1, 1, 1]}
    assert run.federation.turns.tolist() == counted.get(step, [1] * 6)


def test_an_upload_is_in_one_sum_only(place: Path, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    """A server that wants another sum of the same uploads is refused: the difference might be one of them."""
    held: list[HeldUploads] = []
    step = HeldUploads.step

    def stepped(self: HeldUploads, asked: Any, reply: Any) -> None:
        step(self, asked, reply)
        held.append(self)

    monkeypatch.setattr(HeldUploads, "step", stepped)
    prepared(place, line(place, tmp_path), rounds=1).go()
    assert len({id(one) for one in held}) == 3
    for one in held:
        assert not one._words and not one._parties
    asked, reply = RecordDict(), RecordDict()
    put_each(asked, "sum", {0: b""})
    note(asked, "step", {"step": "keys", "sum": "round 1, exchange 0, again", "ids": [0], "threshold": 2})
    with pytest.raises(SettingError, match="node node-0 has no part in round 1, exchange 0, again"):
        step(held[0], asked, reply)


def test_a_number_beyond_the_range_stops_the_run(place: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfRange, match=r"round 1: client \d sends .* beyond secure_range = 1: use a larger range"):
        prepared(place, line(place, tmp_path), lr=10.0, aggregate="plain", secure_range=1.0).go()
    with pytest.raises(OutOfRange, match="beyond secure_weight = 8"):
        prepared(place, line(place, tmp_path / "other"), secure_weight=8.0).go()


@pytest.mark.parametrize("dp", ["central", "local"])
@pytest.mark.parametrize("secure", [True, False])
def test_nodes_clip_and_add_noise(place: Path, tmp_path: Path, dp: str, secure: bool) -> None:
    """Differential privacy is the same over a network, with and without secure sums."""
    how: dict[str, Any] = {"dp": dp, "clip_norm": 0.1, "noise_multiplier": 0.3, "rounds": 1}
    how |= {"adaptive_clip": 0.5, "noise_multiplier": 0.2} if dp == "central" else {}
    run = prepared(place, line(place, tmp_path), secure_aggregation=secure, **how)
    run.go()
    assert apart(plain(place, **how), run) <= CLOSE


def test_flower_s_own_supernode_is_refused(place: Path, tmp_path: Path, caplog: Any) -> None:
    """It starts a process for each message, which cannot hold an upload."""
    from weft.deploy.node import Node
    from weft.deploy.settings import NodeSettings

    made = line(place, tmp_path)
    made.nodes[3] = Node(NodeSettings.read(place / "app" / "nodes" / "node-2-here.yaml"), lasting=False).answer
    with caplog.at_level(logging.WARNING, "weft.federation"):
        run = prepared(place, made, rounds=1, deadline=0.3)
        run.go()
    lines = [r.getMessage() for r in caplog.records if r.name == "weft.federation"]
    assert len(lines) == 1 and "start node node-2 with `weft deploy node`" in lines[0], lines
    assert run.federation.turns.tolist() == [1, 1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["fedamp"], "needs every upload on channel"),
        (["local"], "sends nothing: leave it out"),
        (["fedavg", "--aggregate", "median"], "needs every upload on channel 'model'"),
        (["fedavg", "--cohort", "1", "--clients", "1"], "of a single client hides nothing"),
        (["fedavg", "--secure-threshold", "2"], "secure_threshold = 2 is not more than half of a cohort of 4"),
        (["fedavg", "--secure-range", "1e18"], "leave"),
        (["fedavg", "--dp", "central", "--compress", "topk:0.1"], "bounds what is sent, and the codec"),
        (["fedavg", "--sampling", "poisson"], "sampling = poisson may draw fewer"),
    ],
)
@pytest.mark.parametrize("place_of", ["init", "run"])
def test_what_cannot_be_added_securely_is_refused(
    place: Path, tmp_path: Path, words: list[str], why: str, place_of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and nothing is written."""
    folder = tmp_path / "new"
    clients = [] if "--clients" in words else ["--clients", "4"]
    common = [*words, *clients, "--data", str(place / "points.npz"), "--model", "logistic", "--secure-aggregation"]
    start = ["deploy", "init", str(folder)] if place_of == "init" else ["run"]
    end = [] if place_of == "init" else ["--executor", "flower", "--out", str(folder)]
    if "--clients" in words or place_of == "init":
        end += ["--nodes", "1"]
    assert main([*start, *common, *end]) == 2
    said = capsys.readouterr().err
    assert why in said and said.startswith("weft: ") and said.count("\n") == 1, said
    assert not folder.exists() and not list(tmp_path.iterdir())
