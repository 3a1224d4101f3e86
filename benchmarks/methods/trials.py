"""Runs of the comparison, each a small file, so that they may be interrupted and divided among processes."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from benchmarks.methods import search
from benchmarks.methods.settings import SETTINGS, Setting, data, network

import weft
from weft.core.errors import SettingError
from weft.core.registry import REGISTRY, find
from weft.data.federated import FederatedData
from weft.experiment.plugins import load_methods
from weft.experiment.settings import make

Trial = dict[str, Any]
Pair = tuple[str, str]  # (setting, method)
FIGURES = ("accuracy", "accuracy.mean", "accuracy.std", "accuracy.worst_decile", "loss")


def pairs(settings: Sequence[str] = (), methods: Sequence[str] = (), part: tuple[int, int] = (1, 1)) -> list[Pair]:
    """(setting, method) pairs in the order of settings, of which `part` (i, n) takes every n-th from the i-th on.

    Raises:
        SettingError: there is no such setting, method or part.
    """
    load_methods()
    for name in settings:
        if name not in SETTINGS:
            raise SettingError(f"setting = {name!r} is not known: use {', '.join(SETTINGS)}")
    for name in methods:
        find(name)
    i, n = part
    if not 1 <= i <= n:
        raise SettingError(f"part = {i}/{n} is no part: use 1/{max(n, 1)} to {max(n, 1)}/{max(n, 1)}")
    every = [(s, m) for s in settings or SETTINGS for m in methods or sorted(REGISTRY)]
    return every[i - 1 :: n]


def go(chosen: Sequence[Pair], out: Path, until: float = float("inf"), longer: bool = False) -> None:
    """Run on one core until all is done, or begin nothing more after the time `until` (seconds since 1970)."""
    load_methods()  # in a process of its own
    torch.set_num_threads(1)
    steps = work(chosen, out, longer)
    while time.time() < until and (line := next(steps, None)):
        print(line, flush=True)


def work(chosen: Sequence[Pair], out: Path, longer: bool = False) -> Iterator[str]:
    """Run what is missing, and say a line after each run; results are under ``out/SETTING/METHOD/``.

    `longer`: also the run of `search.LONGER` rounds.
    """
    for name in dict.fromkeys(s for s, _ in chosen):
        _same(out / name, SETTINGS[name])
    for name, method in chosen:
        while trial := following(SETTINGS[name], method, read(out / name / method), longer):
            found = run(SETTINGS[name], method, trial)
            _write(out / name / method / f"{label(trial)}.json", found)
            said = found.get("error") or f"validation {found['validation']:.4f}"
            yield f"{name} {method} {label(trial)}: {said}"


def following(setting: Setting, method: str, done: Mapping[str, Trial], longer: bool = False) -> Trial | None:
    """The next trial of a method on a setting, given those done; None when there is none."""
    half = max(1, setting.rounds // 2)
    stages = search.rates(setting)
    for options in stages:
        trial = {"options": options, "seed": search.SEARCH_SEED, "rounds": half}
        if label(trial) not in done:
            return trial
    first = search.best([done[label({"options": o, "seed": search.SEARCH_SEED})] for o in stages])
    if first is None:
        return None
    for options in search.neighbours(method, setting, first["options"]["lr"]):
        trial = {"options": options, "seed": search.SEARCH_SEED, "rounds": half}
        if label(trial) not in done:
            return trial
    options = chosen(done)
    for seed in search.SEEDS:
        trial = {"options": options, "seed": seed, "rounds": setting.rounds}
        if f"seed={seed}" not in done:
            return trial
    last = {"options": options, "seed": search.SEEDS[0], "rounds": search.LONGER}
    return last if longer and label(last) not in done else None


def chosen(done: Mapping[str, Trial]) -> dict[str, Any]:
    """The options that the search has chosen; empty if it has none."""
    found = search.best([t for t in done.values() if t["seed"] == search.SEARCH_SEED])
    return dict(found["options"]) if found else {}


def label(trial: Mapping[str, Any]) -> str:
    """The name of a trial's file."""
    if trial.get("rounds") == search.LONGER:
        return f"rounds={search.LONGER}"
    if trial["seed"] != search.SEARCH_SEED:
        return f"seed={trial['seed']}"
    return ",".join(f"{k}={v}" for k, v in trial["options"].items())


def read(place: Path) -> dict[str, Trial]:
    """Label -> trial, of a method on a setting."""
    return {p.stem: json.loads(p.read_text()) for p in sorted(place.glob("*.json"))}


def run(setting: Setting, method: str, trial: Trial, examples: FederatedData | None = None) -> Trial:
    """One run: the trial with its figures, or with why it failed; `examples` replace the setting's."""
    found = dict(trial) | {"setting": setting.name, "method": method, "source": source_of(method)}
    told = search.fixed(method, max(trial["rounds"], setting.rounds))
    made = make(method, told | trial["options"])
    examples, net = examples or data(setting.name), network(setting.name)
    began = time.process_time()
    try:
        result = weft.run(
            made,
            examples,
            model=net,
            rounds=trial["rounds"],
            seed=trial["seed"],
            init_seed=trial["seed"],
            batch_size=setting.batch_size,
            workers=1,
            **setting.run,
        )
    except Exception as error:  # of one method, such as a model that is not finite: it stands in the table
        return found | {"error": f"{type(error).__name__}: {error}"}
    summary = result.summary
    view = summary["headline"]["view"]
    return found | {
        "validation": _validation(result.history, view),
        "view": view,
        "views": {
            name: {
                when: {k: figures[when]["test"][k] for k in FIGURES if k in figures[when]["test"]}
                | {"round": figures[when]["round"]}
                for when in ("chosen", "last")
            }
            for name, figures in summary["results"].items()
        },
        "cost": {k: summary["cost"][k] for k in ("bytes_up", "bytes_down", "steps", "flops")}
        | {"seconds": time.process_time() - began},  # of the processor: other programs run beside
        "parameters": summary["model"]["parameters"],
        "manifest": summary["data"]["manifest"],
        "machine": summary["machine"],
    }


def _validation(history: Any, view: str) -> float:
    """The best validation accuracy of a view; test figures are not read."""
    rows = history
    for column, value in (
        ("split", "validation"), ("view", view), ("group", "all"), ("client", -1), ("metric", "accuracy"),
    ):  # fmt: skip
        rows = rows.filter(pc.equal(rows[column], value))
    return float(pc.max(rows["value"]).as_py())


@functools.cache
def source_of(method: str) -> str:
    """A digest of the method's file, by which a figure can be told to be of an older one."""
    file = inspect.getsourcefile(inspect.unwrap(find(method).make))
    return hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()[:12]


def _same(place: Path, setting: Setting) -> None:
    """Refuse to add to results of other settings."""
    mark, said = place / "setting.json", json.loads(json.dumps(setting.said()))
    if not mark.exists():
        _write(mark, said)
    elif json.loads(mark.read_text()) != said:
        raise SettingError(f"out = {place.parent} holds results of {place.name} as it was before: use another folder")


def _write(place: Path, value: Any) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, place)
