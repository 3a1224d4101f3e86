"""Rows of stacks."""

from __future__ import annotations

import pytest
import torch

from weft.core.tree import taken


def test_all_rows_in_order_are_not_copied_and_others_are() -> None:
    stack = ({"a": torch.arange(6.0).reshape(3, 2)}, torch.tensor([7, 8, 9]))
    assert taken(stack, torch.arange(3)) is stack
    assert taken((), torch.arange(3)) == ()
    for places in ([2, 0], [1, 0, 2], [], [0, 1]):
        found, numbers = taken(stack, torch.tensor(places, dtype=torch.int64))
        assert numbers.tolist() == [7 + i for i in places]
        assert found["a"].tolist() == [[2.0 * i, 2.0 * i + 1] for i in places]
        assert found["a"].data_ptr() != stack[0]["a"].data_ptr()
    with pytest.raises(IndexError):
        taken(stack, torch.tensor([3]))
