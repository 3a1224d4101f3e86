"""What happens to the running statistics of batch norm: a setting, for any method.

Averaged (they travel with the model, and take the weighted mean), local (they stay at home and are on no channel), or
recalibrated (averaged, then estimated anew by forward passes of the new model in a second turn of the round).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from weft.core.channel import Channel
from weft.core.errors import SettingError
from weft.core.method import Method, Model, Phase, Predict, View
from weft.core.net import Net
from weft.core.task import Batch, Reply, Task
from weft.core.tree import Tree, add, delta
from weft.local.scan import scan

Policy = Literal["average", "local", "recalibrate"]


def with_buffers(method: Method, policy: Policy) -> Method:
    """The same method under another policy for running statistics."""
    if policy == "average":
        return method
    if policy == "recalibrate":
        return _recalibrating(method)
    return replace(
        method,
        server=lambda net, first: method.server(net, net.learnable(first)),
        client=lambda net, first: Own(method.client(net, first), _running(net, first)),
        work=_at_home(method.work, method.name),
        views={name: _viewed(view) for name, view in method.views.items()},
        opening=method.opening and with_buffers(method.opening, policy),
        next=method.next and with_buffers(method.next, policy),
    )


class Own(NamedTuple):
    """The method's state, and the client's own running statistics."""

    mine: Any
    buffers: Tree


def _running(net: Net, tree: Tree) -> Tree:
    return {k: v for k, v in tree.items() if k in net.buffers}


def _with(down: Any, buffers: Tree) -> Any:
    """The download with these statistics in its model, if it has one."""
    return down._replace(model={**down.model, **buffers}) if "model" in getattr(down, "_fields", ()) else down


def _at_home(
    work: Callable[[Net, Task[Any, Any]], Reply[Any, Any]], name: str
) -> Callable[[Net, Any], Reply[Any, Any]]:
    def at_home(net: Net, task: Task[Any, Own]) -> Reply[Any, Own]:
        mine, buffers = task.mine
        got, other = getattr(task.down, "model", {}), net.common
        if other is not None and got and got.keys() | other.buffers == other.roles.keys():
            raise SettingError(
                f"buffers = 'local' would give a model of the server's architecture the statistics of a client's own, "
                f"since {name} sends it to unlike clients: use 'average', or one model"
            )
        reply = work(net, task._replace(down=_with(task.down, buffers), mine=mine))
        if "model" not in reply.up._fields:
            return Reply(reply.up, Own(reply.mine, buffers), reply.weight)
        moved = _running(net, reply.up.model)
        sent = {k: v for k, v in reply.up.model.items() if k not in moved}
        return Reply(reply.up._replace(model=sent), Own(reply.mine, {**buffers, **_sum(buffers, moved)}), reply.weight)

    return at_home


def _sum(buffers: Tree, moved: Tree) -> Tree:
    return {k: buffers[k] + v for k, v in moved.items()}


def _viewed(view: View) -> View:
    def own(predict: Callable[[Net, Task[Any, Any]], Predict]) -> Callable[[Net, Task[Any, Any]], Predict]:
        return lambda net, task: predict(
            net, task._replace(down=_with(task.down, task.mine.buffers), mine=task.mine.mine)
        )

    return View(own(view.predict), newcomer=view.newcomer and own(view.newcomer), data=view.data and not view.shared)


def _recalibrating(method: Method) -> Method:
    if method.next is not None:
        raise SettingError(f"buffers = 'recalibrate' needs a turn of its own, and {method.name} has two: use 'average'")
    if method.private_send:
        raise SettingError(
            f"buffers = 'recalibrate' needs one model for all, and {method.name} sends several: use 'average'"
        )
    name = method.name  # all that `work` closes over, so that it can be told what is alike

    def work(net: Net, task: Task[Any, Any]) -> Reply[Model, Any]:
        got = getattr(task.down, "model", {})
        if set(got) != set(net.roles):
            raise SettingError(f"buffers = 'recalibrate' needs a whole model at the server, and {name} has none")

        def forward(buffers: Tree, batch: Batch, model: Tree) -> Tree:
            return {**buffers, **net.train({**model, **buffers}, batch)[1]}

        end = scan(forward, _running(net, got), task.data, given=(got,))
        return Reply(Model(delta(end, got)), task.mine, task.data.count)

    def advance(state: Any, up: Model, r: Any) -> Any:
        return state._replace(model={**state.model, **add(up.model, state.model)})

    second = replace(method, work=work, advance=advance, up={"model": Channel()}, phases={"local": Phase(epochs=1)})
    return replace(method, next=second)
