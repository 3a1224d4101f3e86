"""A graph of one client's turn as a C program, which runs the turns of many clients, one client after the other.

So the weights of a client stay in a core's cache through all its steps, and nothing stands between two operations.
Consecutive operations in place are one loop, and a weight meets all that is added to it row by row.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.resources import files

import torch
from torch import Tensor
from torch.fx import GraphModule

from weft.compiled.loops import Place, Value
from weft.compiled.products import MOST
from weft.compiled.toolchain import compiled
from weft.compiled.work import Work, like


class Program:
    """The turns of many clients."""

    def __init__(
        self, text: str, own: int, constants: list[Tensor], stacked: Sequence[bool], made: list[Tensor]
    ) -> None:
        """Compile.

        Args:
            text: the C text.
            own: bytes that it needs for itself.
            constants: its last inputs.
            stacked: which of the others have a part for each client.
            made: what one client's results are like.
        """
        self._library = compiled(text)
        self._run = self._library.turns  # while it runs, Python's lock is free
        self._run.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * 3]
        self._own, self._constants, self._stacked, self._made = own, constants, stacked, made

    def results(self, clients: int) -> list[Tensor]:
        """Memory for the results of so many clients."""
        return [torch.empty(clients, *x.shape, dtype=x.dtype) for x in self._made]

    def __call__(self, inputs: Sequence[Tensor], results: Sequence[Tensor], first: int, clients: int) -> None:
        """Write the results of so many clients from a first one on.

        Args:
            inputs: contiguous; those that have a part for each client with the axis of clients first.
            results: memory for those of all clients.
            first: the place of the first client.
            clients: how many.

        Raises:
            IndexError: an operation picks what is not there.
        """
        tensors = [*inputs, *self._constants, *results]
        stacked = [*self._stacked, *(False for _ in self._constants), *(True for _ in results)]
        apart = [x.stride(0) * x.itemsize if s else 0 for x, s in zip(tensors, stacked, strict=True)]
        starts = [x.data_ptr() + first * a for x, a in zip(tensors, apart, strict=True)]
        own, many = torch.empty(self._own, dtype=torch.uint8), len(tensors)
        if self._run(clients, (ctypes.c_void_p * many)(*starts), (ctypes.c_long * many)(*apart), own.data_ptr()):
            raise IndexError("a number that picks is out of range: are all labels below the number of classes?")


def written(
    turn: GraphModule,
    loops: Sequence[tuple[GraphModule, GraphModule | None]],
    sample: Sequence[Tensor],
    stacked: Sequence[bool],
) -> Program:
    """The program of a turn.

    Args:
        turn: one client's turn: a graph in which `weft::scan` stands for a loop over steps.
        loops: of each a step, which takes the carry, which it may overwrite, what is given, the tables, a key, the rows
            of a batch and its number, and returns the new carry; and what tells from the carry and what is given
            whether no further step can change anything, or None.
        sample: what the turn takes.
        stacked: which of it has a part for each client.

    Raises:
        Uncompiled: an operation has no C here, there is no compiler, or it does not take the text.
    """
    work = Work(loops)
    results = work.through(turn, [Value(Place(f"in{i}"), like(x)) for i, x in enumerate(sample)])
    made = work.ended(results)
    own, lines = work.laid(), [line for piece in work.pieces for line in piece.lines()]
    names = [f"in{i}" for i in range(len(sample))] + [f"constant{i}" for i in range(len(work.constants))]
    names += [f"out{i}" for i in range(len(made))]
    products = files("weft.compiled").joinpath("products.h").read_text(encoding="utf-8")
    text = _TEXT.format(
        most=MOST,
        products=f"#define REAL float\n{products}\n#undef REAL\n#define REAL double\n{products}",
        inputs="\n".join(f"char *{name} = tensors[{i}] + client * apart[{i}];" for i, name in enumerate(names)),
        turn="\n".join(lines),
    )
    return Program(text, own, work.constants, tuple(stacked), made)


_TEXT = """
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")
#define MOST {most}
{products}

int turns(long clients, char *const *tensors, const long *apart, char *own) {{
    for (long client = 0; client < clients; client++) {{
        {inputs}
        {turn}
    }}
    return 0;
}}
"""
