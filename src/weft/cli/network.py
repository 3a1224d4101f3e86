"""The command of real networks: deploy."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from weft.cli.chosen import made, prepared
from weft.cli.words import named
from weft.core.errors import SettingError


def deploy(args: argparse.Namespace, own: dict[str, str]) -> None:
    """Write a federation, or run one of its nodes."""
    from weft.data.optional import optional

    optional("flwr", extra="flower", use="weft deploy")
    place = Path(args.place)
    if args.action == "node":
        from weft.deploy.supernode import run_node

        return run_node(place)
    from weft.deploy.app import init

    data, settings, method = prepared(args)
    name, written = named(args.method or method.get("name", ""))
    if not name:
        raise SettingError("no method is named: write `weft deploy init DIR fedavg`")
    wanted = made(name, {k: v for k, v in method.items() if k != "name"} | own | written)
    if not hasattr(args, "on_nan"):  # one node must not stop the others
        settings = dataclasses.replace(settings, on_nan="skip")
    how = {"nodes": args.nodes, "own_data": args.own_data, "port": args.port, "plugins": args.plugin}
    hosts = (*args.host, "localhost", "127.0.0.1") if args.host else ("127.0.0.1", "localhost")
    init(place, wanted, data, settings, hosts=hosts, deadline=args.deadline, min_clients=args.min_clients, **how)
    print(f"{place}: {name} for {args.nodes} nodes; {place / 'README.md'} says how to start it")
