"""Bad input on the command line: exit status 2, one line that names the setting, no traceback, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.experiment.small import archive, snapshot, source, weft

RUN = [
    "run",
    "fedavg",
    "--data",
    "npz:good.npz",
    "--model",
    "logistic",
    "--rounds",
    "1",
    "--clients",
    "4",
    "--out",
    "run",
]
OTHER = [*RUN[2:-2], "--out", "out"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good data and with bad."""
    monkeypatch.chdir(tmp_path)
    archive(Path("good.npz"))
    good = source()

    def saved(name: str, **arrays: Any) -> None:
        np.savez(name, **{**{"x": good.x, "y": good.y}, **arrays})

    saved("short.npz", y=good.y[:-1])
    saved("nan.npz", x=np.where(np.arange(len(good.x))[:, None] == 7, np.nan, good.x))
    saved("infinite.npz", x=np.where(np.arange(len(good.x))[:, None] == 7, np.inf, good.x))
    saved("flat.npz", x=good.x[:, 0])
    saved("fractions.npz", y=good.y + 0.5)
    np.savez("no-labels.npz", x=good.x)
    whole = Path("good.npz").read_bytes()
    Path("torn.npz").write_bytes(whole[: len(whole) // 2])
    Path("empty.npz").write_bytes(b"")
    Path("file").write_text("not a folder")
    Path("used").mkdir()
    Path("used/notes.txt").write_text("mine")
    Path("null.yaml").write_text("run:\n")
    Path("list.yaml").write_text("- fedavg\n")
    Path("section.yaml").write_text("rnu: {rounds: 3}\n")
    Path("setting.yaml").write_text("run: {ruonds: 3}\n")
    Path("torn.yaml").write_text("run: {rounds: [}\n")
    Path("method.yaml").write_text("method: {name: fedavg, mu: 1}\n")
    Path("plugin.py").write_text("1 / 0\n")
    return tmp_path


def bad(words: list[str], part: str) -> Any:
    return pytest.param(words, part, id=" ".join(words).removeprefix(" ".join(RUN)) or "plain")


def run(*words: str) -> list[str]:
    return [*RUN, *words]


BAD = [
    bad(["run", "fedvag", *OTHER], "did you mean fedavg"),
    bad(["run", *OTHER], "no method is named"),
    bad(["rnu"], "'rnu'"),
    bad(run("--mu", "1"), "fedavg has no option --mu"),
    bad(run("--momentun", "0.9"), "did you mean --momentum"),
    bad(run("--mu"), "option --mu needs a value"),
    bad(run("--lr", "--mu", "1"), "option --lr needs a value"),
    bad(run("stray"), "'stray' is no option"),
    bad(run("--rounds"), "expected one argument"),
    bad(run("--rounds", "ten"), "rounds = 'ten'"),
    bad(run("--rounds", "0"), "rounds = 0"),
    bad(run("--plug", "bde"), "plug = 'bde'"),
    bad(run("--plug", "dbe", "--plug", "dbe:mu=0.5"), "twice"),
    bad(run("--plug", "dbe:mu"), "has no option 'mu'"),
    bad(run("--plug", "dbe:kappa=much"), "kappa = 'much'"),
    bad(["run", "apfl", *OTHER, "--plug", "dbe"], "apfl does not train by `descend`"),
    bad(["run", "fednova", *OTHER, "--plug", "blend"], "FedNova sends"),
    bad(["run", "fedper", *OTHER, "--plug", "blend"], "fedper does not send"),
    bad(run("--rounds", "2.5"), "rounds = '2.5'"),
    bad(run("--rounds", "inf"), "rounds = 'inf'"),
    bad(run("--rounds", "nan"), "rounds = 'nan'"),
    bad(run("--epochs", "0"), "epochs = 0"),
    bad(run("--chunk", "-1"), "chunk = -1"),
    bad(run("--workers", "-2"), "workers = -2"),
    bad(run("--batch-size", "-1"), "batch_size = -1"),
    bad(run("--cohort", "0"), "cohort = 0"),
    bad(run("--cohort", "-2"), "cohort = -2"),
    bad(run("--cohort", "1.5"), "cohort = 1.5"),
    bad(run("--cohort", "5"), "cohort = 5 is more than the 4 clients"),
    bad(run("--cohort", "4", "--new-clients", "0.3"), "cohort = 4 is more than the 3 clients"),
    bad(run("--stragglers", "1.1"), "stragglers = 1.1"),
    bad(run("--seed", "-1"), "seed = -1"),
    bad(run("--seed", str(2**64)), f"seed = {2**64}"),
    bad(run("--init-seed", "-1"), "init_seed = -1"),
    bad(run("--data-seed", "-1"), "seed = -1"),
    bad(run("--lr", "-0.1"), "lr = -0.1"),
    bad(run("--lr", "nan"), "lr = nan"),
    bad(run("--lr", "fast"), "lr = 'fast'"),
    bad(run("--momentum", "1"), "momentum = 1"),
    bad(run("--nesterov", "true"), "nesterov = True"),
    bad(run("--nesterov", "yes"), "nesterov = 'yes'"),
    bad(run("--clip", "0"), "clip = 0"),
    bad(run("--weight-decay", "-1"), "weight_decay = -1"),
    bad(run("--optimizer", "adma"), "optimizer = 'adma'"),
    bad(run("--optimizer", "adam", "--beta1", "1"), "beta1 = 1"),
    bad(run("--optimizer", "adam", "--eps", "0"), "eps = 0"),
    bad(run("--lr-schedule", "cosin"), "lr_schedule = 'cosin'"),
    bad(run("--lr-decay", "-1"), "lr_decay = -1"),
    bad(run("--alpha", "0"), "alpha = 0"),
    bad(run("--alpha", "-1"), "alpha = -1"),
    bad(run("--alpha", "x"), "alpha = 'x'"),
    bad(run("--clients", "0"), "clients = 0"),
    bad(run("--clients", "1000"), "clients = 1000 is more than the 120 training examples"),
    bad(run("--min-examples", "50"), "lower min_examples"),
    bad(run("--validation", "1"), "validation = 1"),
    bad(run("--new-clients", "1"), "new_clients = 1"),
    bad(run("--partition", "dirichlett"), "partition = 'dirichlett'"),
    bad(run("--partition", "natural"), "needs data with owners"),
    bad(run("--partition", "domain"), "needs data with domains"),
    bad(run("--partition", "pathological", "--labels-per-client", "9"), "labels_per_client = 9"),
    bad(run("--protocol", "best"), "protocol = 'best'"),
    bad(run("--model", "cnnn"), "model = 'cnnn'"),
    bad(run("--model", "cnn"), "model = 'cnn' takes image examples"),
    bad(run("--model", "logistic,mlp"), "fedavg needs one architecture"),
    bad(["run", "local", *OTHER, "--model", ",".join(["mlp"] * 5)], "5 architectures for 4 clients"),
    bad(["run", "fedproto", *OTHER, "--model", "logistic,mlp"], "prototypes"),
    bad(run("--device", "abacus"), "device = 'abacus'"),
    bad(run("--device", "meta"), "device = 'meta'"),
    bad(run("--precision", "fp8"), "precision = 'fp8'"),
    bad(run("--precision", "tf32", "--device", "cpu"), "precision = 'tf32' needs a GPU"),
    bad(run("--executor", "flour"), "executor = 'flour'"),
    bad(run("--threads", "0"), "threads = 0"),
    bad(run("--threads", "-1"), "threads = -1"),
    bad(run("--threads", "all"), "'all'"),
    bad(run("--buffers", "lost"), "buffers = 'lost'"),
    bad(["run", "local", *OTHER, "--buffers", "recalibrate"], "buffers = 'recalibrate' needs a whole model"),
    bad(["run", "fedper", *OTHER, "--buffers", "recalibrate"], "buffers = 'recalibrate' needs a whole model"),
    bad(run("--on-nan", "hope"), "on_nan = 'hope'"),
    bad(run("--compress", "zip"), "compress = 'zip'"),
    bad(run("--compress", "topk:much"), "compress = 'topk:much'"),
    bad(run("--compress", "topk:2"), "share = 2"),
    bad(["run", "local", *OTHER, "--compress", "sign"], "local has no channel 'model'"),
    bad(run("--aggregate", "best"), "aggregate = 'best'"),
    bad(run("--aggregate", "keep-all"), "aggregate = 'keep-all'"),
    bad(run("--aggregate", "trimmed:0.5"), "share = 0.5"),
    bad(["run", "central", *OTHER, "--cohort", "0.5"], "cohort = 0.5 has no meaning for central"),
    bad(["run", "ditto", *OTHER, "--personal", "adma"], "personal = 'adma'"),
    bad(["run", "ditto", *OTHER, "--personal-epochs", "-1"], "epochs = -1"),
    bad(["run", "fedper", *OTHER, "--keep", "head |"], "'head |' selects nothing"),
    bad(run("--tracker", "abacus"), "tracker = 'abacus'"),
    bad(run("--tracker", "mlflow"), "tracker = 'mlflow' needs its package"),
    bad(run("--data", "npz:missing.npz"), "missing.npz"),
    bad(run("--data", "npz:torn.npz"), "torn.npz"),
    bad(run("--data", "npz:empty.npz"), "empty.npz"),
    bad(run("--data", "npz:short.npz"), "y needs one entry for each example"),
    bad(run("--data", "npz:nan.npz"), "4 NaN"),
    bad(run("--data", "npz:infinite.npz"), "4 infinite"),
    bad(run("--data", "npz:flat.npz"), "x is float32 [180]"),
    bad(run("--data", "npz:fractions.npz"), "y holds fractions"),
    bad(run("--data", "npz:no-labels.npz"), "y"),
    bad(run("--data", "mnits"), "did you mean mnist"),
    bad(run("--out", "file"), "out = file"),
    bad(run("--out", "file/below"), "out = file/below cannot be written"),
    bad(run("--out", "used"), "out = used is not an empty folder"),
    bad([*RUN[:-2], "--resume"], "--out"),
    bad(run("--config", "missing.yaml"), "missing.yaml"),
    bad(run("--config", "null.yaml"), "section run of null.yaml"),
    bad(run("--config", "list.yaml"), "list.yaml holds no settings"),
    bad(run("--config", "section.yaml"), "'rnu'"),
    bad(run("--config", "setting.yaml"), "did you mean rounds"),
    bad(run("--config", "torn.yaml"), "torn.yaml is not YAML"),
    bad(run("--config", "method.yaml"), "fedavg has no option --mu"),
    bad(run("--plugin", "missing.py"), "plugin = missing.py"),
    bad(run("--plugin", "plugin.py"), "division by zero"),
    bad(["compare", "fedavg", "fedvag", *OTHER], "did you mean fedavg"),
    bad(["compare", "fedavg", "fedavg:lr=x", *OTHER], "lr = 'x'"),
    bad(["compare", "fedavg", "local", *OTHER, "--compress", "sign"], "local has no channel 'model'"),
    bad(["compare", "fedavg", *OTHER, "--seeds", "0"], "seeds = 0"),
    bad(["compare", *OTHER], "METHOD"),
    bad(["sweep", "fedavg", *OTHER, "--grid", "lr"], "grid = 'lr'"),
    bad(["sweep", "fedavg", *OTHER, "--grid", "mu=1,2"], "fedavg has no option --mu"),
    bad(["sweep", "fedavg", *OTHER, "--grid", "epochs=0,2"], "epochs = 0"),
    bad(["sweep", "fedavg", *OTHER, "--grid", "alpha=1,2"], "alpha"),
    bad(["sweep", "fedavg", *OTHER, "--grid", "lr=0.1", "--validation", "0"], "validation = 0"),
    bad(["sweep", "fedavg", *OTHER, "--grid", "lr=0.1", "--seeds", "0"], "seeds = 0"),
    bad(["explain", "fedvag"], "did you mean fedavg"),
    bad(["explain", "fedavg", "--mu", "1"], "fedavg has no option --mu"),
    bad(["report", "nowhere"], "nowhere"),
    bad(["report", "used"], "used"),
    bad(["partition", "verify", "--out", "used"], "used holds no partition"),
    bad(["partition", "make", "--out", "file", "--data", "npz:good.npz"], "out = file cannot be written"),
    bad(["partition", "make", "--out", "part", "--alpha", "0", "--data", "npz:good.npz"], "alpha = 0"),
    bad(["methods", "--x", "1"], "no option --x"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "part"), BAD)
def test_one_sentence(words: list[str], part: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, folders = snapshot(here), sorted(here.rglob("*"))
    status = weft(*words)
    out, said = capfd.readouterr()
    assert (status, out) == (2, ""), said
    assert said.startswith("weft: ") and said.count("\n") == 1 and part in said, said
    assert snapshot(here) == before and sorted(here.rglob("*")) == folders


def test_another_run_is_not_written_over(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert weft(*RUN, "--quiet") == 0
    before = snapshot(here)
    for words in (RUN, ["run", "local", *RUN[2:]], ["run", "local", *RUN[2:], "--resume"]):
        capfd.readouterr()
        assert weft(*words) == 2
        out, said = capfd.readouterr()
        assert out == "" and said.count("\n") == 1 and "run" in said and snapshot(here) == before
    (here / "run" / "settings.yaml").write_text("{torn: [")
    assert weft(*RUN, "--resume") == 2
    assert "settings.yaml is damaged" in capfd.readouterr().err


def test_a_plain_typo_in_a_python_keyword_is_refused_too() -> None:
    import weft as api

    data = api.federate(source(), clients=4)
    for settings, part in (({"ruonds": 3}, "did you mean rounds"), ({"lr_schedule": "cosin"}, "lr_schedule = 'cosin'")):
        with pytest.raises(api.SettingError, match=part):
            api.run("fedavg", data, model="logistic", **settings)
