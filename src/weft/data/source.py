"""A source: examples as arrays, before anybody has divided them among clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from weft.core.errors import SettingError
from weft.data.scaling import chunks

Kind = Literal["image", "tabular", "series", "text", "characters"]
Array = np.ndarray[Any, np.dtype[Any]]

KINDS: tuple[Kind, ...] = get_args(Kind)
SHAPES = {
    "image": "[examples, channels, height, width]",
    "tabular": "[examples, features]",
    "series": "[examples, channels, time]",
    "text": "[examples, length]",
    "characters": "[examples, length]",
}


@dataclass(frozen=True, eq=False)
class Source:
    """Examples with labels, and what is known about who made them.

    The constructor checks that shapes agree, that labels and tokens are in range and that every number is
    finite, and raises `SettingError` with the name of the set otherwise. Arrays are kept, not copied, except
    that labels, owners and domains become int64.
    """

    name: str
    kind: Kind
    x: Array
    """image uint8 or float32 [n, channels, height, width]; tabular float32 [n, features];
    series float32 or int16 [n, channels, time]; text and characters: int32 tokens [n, length], 0 =
    padding."""
    y: Array
    """int64 [n]; characters: int64 [n, length], the next character, -1 = not judged."""
    classes: int
    """Number of labels; for characters the size of the vocabulary."""
    test: Array | None
    """bool [n], True for the official test split; None where there is none."""
    owner: Array | None
    """int64 [n], the natural client of each example (person, hospital, role); None where there is none."""
    domain: Array | None
    """int64 [n], the domain of each example, for feature shift; None where there is none."""
    shift: Array
    """float32, broadcast against x[0]: the model sees (x - shift) * scale. Unused for text and characters."""
    scale: Array
    vocabulary: int = 0
    """Number of tokens, padding included, for text and characters."""
    note: str = ""
    """Provenance and licence, one or two sentences."""

    def __post_init__(self) -> None:
        """Check everything that a partitioner or a model relies on."""
        name, x, n = self.name, self.x, len(self.x)
        if self.kind not in KINDS:
            raise SettingError(f"kind = {self.kind!r} of data set {name!r} is not one of {', '.join(KINDS)}")
        if x.ndim != SHAPES[self.kind].count(",") + 1 or 0 in x.shape:
            raise SettingError(
                f"data set {name!r}: x has shape {list(x.shape)}, but {self.kind} data is a filled array "
                f"{SHAPES[self.kind]}"
            )
        dtypes = {"image": "uint8 float32", "series": "float32 int16", "tabular": "float32"}
        if str(x.dtype) not in (allowed := dtypes.get(self.kind, "int32").split()):
            raise SettingError(f"data set {name!r}: x is {x.dtype}, but {self.kind} data is {' or '.join(allowed)}")

        object.__setattr__(self, "x", np.asarray(x))  # of a memory map the plain view, which processes can share
        shape = x.shape if self.kind == "characters" else (n,)
        for field in ("y", "owner", "domain"):
            value: Array | None = getattr(self, field)
            if value is None and field != "y":
                continue
            wanted = shape if field == "y" else (n,)
            if value is None or value.dtype.kind not in "iu" or value.shape != wanted:
                found = "missing" if value is None else f"{value.dtype} {list(value.shape)}"
                raise SettingError(
                    f"data set {name!r}: {field} is {found}, but x asks for whole numbers {list(wanted)}"
                )
            object.__setattr__(self, field, np.asarray(value, np.int64))
        if self.test is not None:
            if self.test.dtype != bool or self.test.shape != (n,):
                raise SettingError(
                    f"data set {name!r}: test is {self.test.dtype} {list(self.test.shape)}, but x asks for bool [{n}]"
                )
            if self.test.all():
                raise SettingError(
                    f"data set {name!r}: test marks every example, so nothing is left to train on; mark some False"
                )

        lowest = -1 if self.kind == "characters" else 0
        if self.y.min() < lowest or self.y.max() >= self.classes:
            raise SettingError(
                f"data set {name!r}: labels run from {self.y.min()} to {self.y.max()}, but classes = "
                f"{self.classes} asks for {lowest} to {self.classes - 1}"
            )
        if self.kind in ("text", "characters"):
            if x.min() < 0 or x.max() >= self.vocabulary:
                raise SettingError(
                    f"data set {name!r}: tokens run from {x.min()} to {x.max()}, but vocabulary = "
                    f"{self.vocabulary} asks for 0 to {self.vocabulary - 1}"
                )
            return
        if x.dtype.kind == "f":
            counts = [(int(np.isnan(x[s]).sum()), int(np.isinf(x[s]).sum())) for s in chunks(x)]
            nan, infinite = map(sum, zip(*counts, strict=True))
            if nan or infinite:
                raise SettingError(
                    f"data set {name!r}: x holds {nan} NaN and {infinite} infinite values; fill them in (the "
                    "mean of the column over the training examples is the usual choice) or drop those "
                    "examples"
                )
        for field in ("shift", "scale"):
            value = getattr(self, field)
            try:
                fits = np.broadcast_shapes(value.shape, x.shape[1:]) == x.shape[1:]
            except ValueError:
                fits = False
            if not fits or value.dtype != np.float32 or not np.isfinite(value).all():
                raise SettingError(
                    f"data set {name!r}: {field} is {value.dtype} {list(value.shape)}, but must be finite "
                    f"float32 that broadcasts against one example {list(x.shape[1:])}"
                )
