"""At its neutral setting a method is the method it extends."""

from __future__ import annotations

import pytest
from torch.utils._pytree import tree_leaves

from tests.laws.toys import differ, groups, kept, make, subjects, train, trained
from weft.core.registry import REGISTRY


@pytest.mark.parametrize("name", subjects("neutral"))
def test_neutral_setting(name: str) -> None:
    neutral = REGISTRY[name].neutral
    assert neutral is not None
    other, theirs, ours = neutral
    alike = groups("fedavg")
    a, b = train(make(name, **ours), nets=alike), train(make(other, **theirs), nets=alike)
    model, like = getattr(a.server, "model", None), getattr(b.server, "model", None)
    if model is not None and like is not None and set(model) == set(like):
        assert max(float((model[k] - like[k]).abs().max()) for k in model) <= 1e-12
        return
    assert personal(a) and len(personal(a)) == len(personal(b))
    assert max(float((x - y).abs().max()) for x, y in zip(personal(a), personal(b), strict=True)) <= 1e-12


def personal(federation):  # type: ignore[no-untyped-def]
    """Everybody's own model, for methods without a common one."""
    return tree_leaves([mine.method for mine in kept(federation)])


@pytest.mark.parametrize("name", subjects("off"))
def test_the_default_is_not_off(name: str) -> None:
    """Who names a method without options gets the method."""
    assert differ(trained(name), train(make(name, **(REGISTRY[name].off or {}))))


def test_there_are_neutral_settings() -> None:
    assert len(subjects("neutral")) > 20 and len(subjects("off")) > 40
