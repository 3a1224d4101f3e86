"""The laws of codecs: exact on the wire, honest about size, the same for many clients at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from weft.core import Codec, SettingError, Tree
from weft.wire import Bits, Quantise, Sign, SVDEnergy, TopK
from weft.wire.low_rank import Crosses

CODECS: list[Codec] = [
    TopK(0.01),
    TopK(0.2),
    TopK(1.0),
    SVDEnergy(0.5),
    SVDEnergy(0.95),
    SVDEnergy(1.0),
    Quantise(1),
    Quantise(5),
    Quantise(127),
    Sign(),
    Sign(memory=False),
]
codecs = pytest.mark.parametrize("codec", CODECS, ids=str)
KEY = torch.tensor(7)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Trees as updates are: smooth, low-rank, sparse, tied, huge, tiny, all zero, empty."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    tree = {}
    for i in range(draw(st.integers(1, 4))):
        shape = draw(
            st.sampled_from([(), (1,), (5,), (33,), (1, 9), (9, 1), (12, 17), (4, 3, 3, 3), (20, 20), (0,), (0, 3)])
        )
        x = torch.randn(shape, generator=g, dtype=dtype)
        match draw(st.sampled_from(["plain", "low", "sparse", "tied", "zero", "huge", "tiny", "negative zero"])):
            case "low" if len(shape) == 2 and x.numel():
                x = x[:, :1] * x[:1] + 0.01 * (x[:, -1:] * x[-1:])
            case "sparse":
                x = x * (torch.rand(shape, generator=g) < 0.3)
            case "tied":
                x = x.sign() * 0.1
            case "zero":
                x = x * 0
            case "huge":
                x = x * 1e15
            case "tiny":
                x = x * 1e-15
            case "negative zero":
                x = torch.where(x > 0, x, -0.0)
        tree[f"t{i}"] = x
    return tree


def same_bits(a: Tree, b: Tree) -> bool:
    def raw(x: torch.Tensor) -> torch.Tensor:
        return x.flatten().contiguous().view(torch.uint8)

    return list(a) == list(b) and all(a[k].shape == b[k].shape and torch.equal(raw(a[k]), raw(b[k])) for k in a)


@codecs
@settings(max_examples=40, deadline=None)
@given(tree=trees(), key=st.integers(0, 2**32 - 1))
def test_exact_on_the_wire_and_honest_about_size(codec: Codec, tree: Tree, key: int) -> None:
    state = codec.init(tree)
    for turn in range(2):
        sent, state = codec.apply(tree, state, torch.tensor(key + turn))
        data = codec.pack(sent)
        assert codec.size(sent) == len(data)
        assert same_bits(codec.unpack(data, {k: torch.zeros_like(v) for k, v in sent.items()}), sent)
        assert all(sent[k].dtype == tree[k].dtype for k in tree)


def cohort(dtype: torch.dtype = torch.float64) -> Tree:
    g = torch.Generator().manual_seed(3)
    left, right = torch.randn(5, 14, 14, generator=g), torch.randn(5, 14, 20, generator=g)
    falling = (left * 0.5 ** torch.arange(14.0)) @ right
    tree = {"w": falling, "conv": torch.randn(5, 6, 4, 3, 3, generator=g), "b": torch.randn(5, 14, generator=g)}
    return {k: v.to(dtype) for k, v in tree.items()}


@codecs
def test_many_clients_at_once_equal_one_by_one(codec: Codec) -> None:
    tree, keys = cohort(), torch.arange(5) * 1000
    state: Any = tree_map(
        lambda *x: torch.stack(x), *[codec.init({k: v[i] for k, v in tree.items()}) for i in range(5)]
    )
    single = [tree_map(lambda x, i=i: x[i], state) for i in range(5)]
    for _ in range(3):
        sent, state = vmap(codec.apply)(tree, state, keys)
        for i in range(5):
            one, single[i] = codec.apply({k: v[i] for k, v in tree.items()}, single[i], keys[i])
            for k in tree:
                torch.testing.assert_close(sent[k][i], one[k], rtol=0, atol=1e-12)
            for a, b in zip(tree_leaves(state), tree_leaves(single[i]), strict=True):
                torch.testing.assert_close(a[i], b, rtol=0, atol=1e-12)
            stacked = {k: v[i] for k, v in sent.items()}
            assert same_bits(codec.unpack(codec.pack(stacked), stacked), stacked)
            assert codec.size(stacked) == len(codec.pack(stacked))
        keys = keys + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codec", [c for c in CODECS if not isinstance(c, SVDEnergy)], ids=str)
def test_short_types_are_exact_too(codec: Codec, dtype: torch.dtype) -> None:
    tree = {k: v[0] for k, v in cohort(dtype).items()} | {"one": torch.tensor([1.9, 0.03, 0.011]).to(dtype)}
    sent, _ = codec.apply(tree, codec.init(tree), KEY)
    data = codec.pack(sent)
    assert codec.size(sent) == len(data)
    assert same_bits(codec.unpack(data, tree), sent)


@codecs
@pytest.mark.parametrize("value", [-0.0, -1e-45])
def test_negative_zeros_and_underflow(codec: Codec, value: float) -> None:
    tree = {"w": torch.zeros(12, 17), "b": torch.zeros(7)}
    tree["w"][3, 4] = tree["b"][2] = value
    sent, _ = codec.apply(tree, codec.init(tree), KEY)
    assert same_bits(codec.unpack(codec.pack(sent), tree), sent)


@codecs
def test_a_number_that_is_none_is_not_hidden(codec: Codec) -> None:
    tree = {"a": torch.ones(6, 7), "b": torch.ones(4), "c": torch.tensor(torch.nan)}
    tree["a"][2, 3] = torch.nan
    tree["b"][1] = torch.inf
    sent, _ = codec.apply(tree, codec.init(tree), KEY)
    assert not any(v.isfinite().all() for v in sent.values())


@pytest.mark.parametrize("codec", [TopK(0.1), Sign()], ids=str)
def test_nothing_is_lost_with_memory(codec: Codec) -> None:
    tree = {k: v[0] for k, v in cohort().items()}
    state, total = codec.init(tree), {k: torch.zeros_like(v) for k, v in tree.items()}
    for turn in range(1, 8):
        sent, state = codec.apply(tree, state, KEY)
        total = {k: total[k] + sent[k] for k in tree}
        for k in tree:
            torch.testing.assert_close(total[k] + state[k], turn * tree[k])
    assert any(bool(v.any()) for v in state.values())


def test_topk_sends_so_many_and_prefers_the_lower_index() -> None:
    tree = {"a": torch.tensor([1.0, -3.0, 3.0, -3.0, 2.0]), "b": torch.ones(3), "c": torch.tensor([3.0, 5, 3, 3, 3])}
    sent, memory = TopK(0.4).apply(tree, {k: torch.zeros_like(v) for k, v in tree.items()}, KEY)
    assert sent["a"].tolist() == [0, -3, 3, 0, 0] and sent["b"].tolist() == [1, 0, 0]
    assert sent["c"].tolist() == [3, 5, 0, 0, 0]
    assert memory["a"].tolist() == [1, 0, 0, -3, 2]


@pytest.mark.parametrize(("share", "bytes_"), [(0.01, 10 * 4 + 13), (0.5, 500 * 4 + 125), (1.0, 4000 + 125)])
def test_topk_takes_the_shorter_way_to_say_where(share: float, bytes_: int) -> None:
    assert TopK(share).size({"a": torch.ones(1000)}) == bytes_


def test_rounding_is_unbiased_and_within_a_unit() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codec, keys = Quantise(4), torch.arange(4000)
    sent, _ = vmap(lambda key: codec.apply({"a": x}, (), key))(keys)
    unit = x.norm() / 4
    assert ((sent["a"] - x).abs() <= unit * (1 + 1e-9)).all()
    assert (sent["a"].mean(0) - x).abs().max() < 4 * unit / 2 / 4000**0.5
    assert len(sent["a"].unique()) > 3


def test_rounding_draws_for_each_tensor_and_key() -> None:
    tree = {"a": torch.full((64,), 0.3), "b": torch.full((64,), 0.3)}
    one, two = (Quantise(4).apply(tree, (), torch.tensor(k))[0] for k in (1, 2))
    assert not torch.equal(one["a"], one["b"]) and not torch.equal(one["a"], two["a"])


def test_bits_for_each_entry() -> None:
    tree = {"a": torch.ones(800)}
    assert Quantise(127).size(tree) == 4 + 800
    assert Quantise(7).size(tree) == 4 + 400
    assert Quantise(1).size(tree) == 4 + 200
    assert Sign().size(tree) == 4 + 1 + 100
    assert Sign().size({"a": torch.zeros(800)}) == 4 + 1 + 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_is_cheaper_than_its_factors(dtype: torch.dtype) -> None:
    tree = cohort(dtype)
    for i in range(5):
        x = {"w": tree["w"][i]}
        sent, _ = SVDEnergy(0.99).apply(x, (), KEY)
        rank = int(torch.linalg.matrix_rank(sent["w"], rtol=1e-5))
        assert 1 <= rank < 7
        assert SVDEnergy(0.99).size(sent) <= 4 + rank * (14 + 20) * dtype.itemsize
        left = ((sent["w"] - x["w"]) ** 2).sum() / (x["w"] ** 2).sum()
        assert 0 < left <= 0.01 * 1.001


def test_an_exact_rank_is_found_without_loss() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 1, generator=g, dtype=torch.float64) @ torch.randn(1, 30, generator=g, dtype=torch.float64)
    sent, _ = SVDEnergy(1 - 1e-12).apply({"w": x}, (), KEY)
    torch.testing.assert_close(sent["w"], x, rtol=0, atol=1e-12)
    assert SVDEnergy().size(sent) == 4 + 1 + 1 + 41 * 8
    ones, _ = SVDEnergy(1.0).apply({"w": torch.diag(torch.tensor([2.0, 1, *[0] * 10]))}, (), KEY)
    assert SVDEnergy().size(ones) == 4 + 1 + 1 + 2 * 22 * 4


def test_the_smallest_rank_that_reaches_the_share() -> None:
    sent, _ = SVDEnergy(0.5).apply({"w": torch.diag(torch.tensor([1.0, 1, *[0] * 10]))}, (), KEY)
    assert (sent["w"] != 0).sum() == 1


def test_low_rank_gives_no_negative_zeros() -> None:
    sent, _ = SVDEnergy(1.0).apply({"w": torch.eye(8) - 0.0 * torch.ones(8, 8)}, (), KEY)
    dense, _ = SVDEnergy(1.0).apply({"w": torch.where(torch.eye(8) > 0, 1.0, -0.0)}, (), KEY)
    assert same_bits(sent, dense)


def test_nothing_is_left_in_a_cross() -> None:
    rest = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    crosses = Crosses(rest)
    for _ in range(8):
        at = crosses.rest.abs().argmax()
        crosses.add(at // 30, at % 30, True)
    assert crosses.inside.sum() == 8 * 42
    assert not crosses.rest[crosses.inside].any()


def test_three_rows_are_no_three_factors() -> None:
    """What a message is stands in it, and is not guessed from how many parts it has."""
    tree = {"weight": torch.randn(3, 5), "bias": torch.randn(3), "low": torch.ones(3, 40)}
    assert same_bits(SVDEnergy().unpack(SVDEnergy().pack(tree), tree), tree)


def test_low_rank_leaves_what_would_not_be_smaller() -> None:
    x = {"w": torch.eye(8), "b": torch.randn(30), "wide": torch.randn(1, 40), "conv": torch.randn(4, 3, 3, 3)}
    sent, _ = SVDEnergy(1.0).apply(x, (), KEY)
    assert same_bits(sent, x)


@pytest.mark.parametrize(
    "make", [lambda: TopK(0), lambda: TopK(1.1), lambda: Quantise(0), lambda: SVDEnergy(0), lambda: SVDEnergy(1.5)]
)
def test_settings_that_make_no_sense(make: Any) -> None:
    with pytest.raises(SettingError, match="use "):
        make()


def test_too_fine_for_the_type() -> None:
    with pytest.raises(SettingError, match="bfloat16"):
        Quantise(2**9).apply({"a": torch.ones(3, dtype=torch.bfloat16)}, (), KEY)


@codecs
def test_a_message_cut_short(codec: Codec) -> None:
    tree = {k: v[0] for k, v in cohort().items()}
    sent, _ = codec.apply(tree, codec.init(tree), KEY)
    with pytest.raises(ValueError, match="ends at byte"):
        codec.unpack(codec.pack(sent)[:-1], sent)


@pytest.mark.parametrize("shapes", [[(3, 5), (8,), ()], [(0,), (17,)]])
def test_booleans_take_a_bit_each(shapes: list[tuple[int, ...]]) -> None:
    tree = {str(i): torch.rand(s, generator=torch.Generator().manual_seed(i)) < 0.4 for i, s in enumerate(shapes)}
    data = Bits().pack(Bits().apply(tree, (), KEY)[0])
    assert same_bits(Bits().unpack(data, tree), tree) and Bits().size(tree) == len(data)
    assert len(data) == sum(-(-x.numel() // 8) for x in tree.values())
