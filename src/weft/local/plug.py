"""Plug-ins: what stands between a client and a method, whatever the method.

A plug-in keeps something of its own at the client, changes the model that the method's work starts from, and takes back
from the upload what is not to be sent. The server's side of the method stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from weft.core.errors import SettingError
from weft.core.method import Method, Predict, View
from weft.core.net import Net
from weft.core.task import Reply, Task
from weft.core.tree import Tree


class Own(NamedTuple):
    """What a client keeps: the method's state, and that of the plug-in."""

    mine: Any
    beside: Any


@dataclass(frozen=True)
class Plug:
    """The four functions of a plug-in. A task holds the method's own `mine`, and a download with a field `model`."""

    first: Callable[[Net, Tree], Any]  # what it keeps at a client, at first
    enter: Callable[[Net, Task[Any, Any], Any], tuple[Task[Any, Any], Any]]  # (net, task, kept) -> the method's, kept
    leave: Callable[[Tree, Tree, Tree, Any], tuple[Tree, Any]]  # (received, start, change, kept) -> what is sent, kept
    look: Callable[[Net, Task[Any, Any], Any], Task[Any, Any]]  # the task of a view; kept is None if the view is shared
    net: Callable[[Net], Net] = lambda net: net  # the network as the method sees it at clients ...
    model: Callable[[Net, Tree], Tree] = lambda net, first: first  # ... and the first model


def received(method: Method, down: Any) -> Tree:
    """The model in a download. Raises `SettingError` if there is none."""
    if "model" not in getattr(down, "_fields", ()):
        raise SettingError(f"a plug-in needs a model that is received, and {method.name} sends none to its clients")
    model: Tree = down.model
    return model


def plugged(method: Method, plug: Plug) -> Method:
    """The method with a plug-in.

    Raises:
        SettingError: the method sends no model, or takes two turns in a round.
    """
    if "model" not in method.up or method.next is not None:
        raise SettingError(f"a plug-in needs one turn a round that sends a model, which {method.name} has not")

    def work(net: Net, task: Task[Any, Own]) -> Reply[Any, Own]:
        inner, got = task._replace(mine=task.mine.mine), received(method, task.down)
        start, kept = plug.enter(net, inner, task.mine.beside)
        reply = method.work(plug.net(net), start)
        sent, kept = plug.leave(got, start.down.model, reply.up.model, kept)
        return Reply(reply.up._replace(model=sent), Own(reply.mine, kept), reply.weight)

    def viewed(view: View, shared: bool) -> View:
        def plugged(predict: Callable[[Net, Task[Any, Any]], Predict]) -> Callable[[Net, Task[Any, Any]], Predict]:
            def answers(net: Net, task: Task[Any, Any]) -> Predict:
                inner, kept = (task, None) if shared else (task._replace(mine=task.mine.mine), task.mine.beside)
                return predict(plug.net(net), plug.look(net, inner, kept))

            return answers

        return View(plugged(view.predict), shared, view.newcomer and plugged(view.newcomer))

    def before(opening: Method) -> Method:
        """The method's own opening, which has nothing to do with the plug-in."""

        def inner(net: Net, task: Task[Any, Own]) -> Reply[Any, Own]:
            return opening.work(plug.net(net), task._replace(mine=task.mine.mine))

        return replace(opening, work=inner)

    views = {name: viewed(view, view.shared) for name, view in method.views.items()}
    if "personal" not in views:
        views["personal"] = viewed(next(iter(method.views.values())), False)
    return replace(
        method,
        client=lambda net, first: Own(method.client(plug.net(net), plug.model(net, first)), plug.first(net, first)),
        work=work,
        views=views,
        opening=method.opening and before(method.opening),
    )
