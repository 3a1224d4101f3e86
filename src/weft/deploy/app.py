"""``weft deploy init``: a folder with all that a federation over a network needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from weft.core.errors import SettingError
from weft.core.method import Method
from weft.data.federated import FederatedData
from weft.data.source import Source
from weft.deploy.certificates import write_authority, write_node, write_server
from weft.deploy.server import stand_in
from weft.deploy.settings import OWN, source
from weft.experiment.protection import protection, with_parts
from weft.experiment.settings import DataSettings, RunSettings, plain

HOSTS = ("127.0.0.1", "localhost")
TEMPLATES = Path(__file__).parent / "templates"


def init(
    folder: Path,
    method: Method,
    data: DataSettings,
    run: RunSettings,
    *,
    nodes: int = 3,
    own_data: bool = False,
    hosts: Sequence[str] = HOSTS,
    port: int = 8000,
    deadline: float = 60.0,
    min_clients: int = 0,
    plugins: Sequence[str] = (),
    known: FederatedData | None = None,
) -> Path:
    """Write a Flower app for a method, with settings, development certificates and a settings file for each node.

    Args:
        folder: a new or empty folder.
        method: what is run; its name and arguments are written.
        data: what nodes train on. Data by name are divided among them; with `own_data` each node names its own later,
            and this is an example of it, from which shapes and classes are taken.
        run: settings of the run.
        nodes: so many nodes; clients are divided among them in turn, or are one each with `own_data`.
        own_data: whether nodes bring their own data.
        hosts: names and addresses of the server, for its certificate; the first is where nodes look for it.
        port: of the server.
        deadline: seconds that a round waits for answers.
        min_clients: fewest clients of a round; 0: half of all.
        plugins: files that register methods.
        known: the data, if the server will have them; by default it knows their form only.

    Raises:
        SettingError: the folder holds something, or the settings cannot be met.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder} is not an empty folder: give a new one to `weft deploy init`")
    clients = nodes if own_data or data.clients is None else data.clients
    if not 1 <= nodes <= clients:
        raise SettingError(f"nodes = {nodes} for {clients} clients: give each node at least one client")
    if min_clients > clients:
        raise SettingError(f"min_clients = {min_clients} is more than the {clients} clients: use at most that")
    if not deadline > 0:
        raise SettingError(f"deadline = {deadline} is no time to answer in: use seconds, such as 60")
    facts = facts_of(source(data.data))
    planned = known or stand_in(facts, clients)
    with_parts(method, planned, run, protection(method, planned, run))  # what cannot be protected is refused before
    settings = {
        "method": {"name": method.name, **{k: plain(v) for k, v in method.args.items()}},
        "run": {k: v for k, v in vars(run).items() if k != "executor"},
        "deploy": {
            "clients": clients,
            "deadline": deadline,
            "min_clients": min_clients,
            "plugins": list(plugins),
            "examples": facts,
        },
    }
    keys, homes = folder / "certificates", folder / "nodes"
    for place in (keys, homes, folder / "weft_app", folder / "flower"):
        place.mkdir(parents=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    words = {"METHOD": method.name, "HOST": hosts[0], "PORT": str(port), "FOLDER": str(folder.resolve())}
    for name, template in FILES.items():
        text = (TEMPLATES / template).read_text()
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        (folder / name).write_text(text)
    write_authority(keys)
    write_server(keys, hosts)
    told = {k: v for k, v in vars(data).items() if v != getattr(DataSettings(), k) or k == "data"}
    told = (
        {k: v for k, v in told.items() if k in OWN_FIELDS} | {"partition": OWN}
        if own_data
        else told | {"clients": clients}
    )
    for i in range(nodes):
        name = f"node-{i}"
        write_node(homes, name)
        mine: dict[str, Any] = {
            "name": name,
            "superlink": f"{hosts[0]}:{port}",
            "certificate": "../certificates/ca.pem",
            "key": f"{name}.key",
            "state": f"{name}-state",
            "clients": list(range(i, clients, nodes)),
            "data": told,
            "device": run.device,
            "plugins": list(plugins),
        }
        (homes / f"{name}.yaml").write_text(yaml.safe_dump(mine, sort_keys=False))
    return folder


FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    ".gitignore": "gitignore.txt",
    "weft_app/__init__.py": "init.py.txt",
    "weft_app/server_app.py": "server_app.py.txt",
    "weft_app/client_app.py": "client_app.py.txt",
    "flower/config.toml": "config.toml.txt",
}
OWN_FIELDS = ("data", "validation", "min_examples", "protocol", "data_seed")


def facts_of(example: Source) -> dict[str, Any]:
    """What the server must know of examples that it never sees."""
    return {
        "kind": example.kind,
        "shape": list(example.x.shape[1:]),
        "type": str(example.x.dtype),
        "classes": example.classes,
        "vocabulary": example.vocabulary,
    }
