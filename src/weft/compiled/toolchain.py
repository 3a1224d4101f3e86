"""The machine's C compiler, and what it makes of a text."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import weakref
from _ctypes import dlclose
from pathlib import Path
from typing import Any

from weft.compiled.operations import Uncompiled


@functools.cache
def compiler() -> str | None:
    """The compiler that the environment names as CC, else cc, gcc or clang; None if there is none."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)


FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
    "-fwrapv", "-ffp-contract=fast", "-w",
)  # fmt: skip
"""Sums keep their order but where a text says otherwise, and what is not finite stays so."""
_WIDE = "-mprefer-vector-width=512"  # else compilers leave half of a register of AVX-512 unused


def compiled(text: str, wide: bool) -> ctypes.CDLL:
    """The library that a C text makes; it goes when nobody holds it.

    Args:
        text: in C.
        wide: the processor has vectors of 64 bytes.

    Raises:
        Uncompiled: it cannot be made here.
    """
    command = compiler()
    if command is None:
        raise Uncompiled("no C compiler was found")
    with tempfile.TemporaryDirectory(prefix="weft-") as folder:
        source, library = Path(folder, "turns.c"), Path(folder, "turns.so")
        source.write_text(text)
        flags = [*FLAGS, *([_WIDE] if wide else [])]
        try:
            subprocess.run(
                [command, *flags, str(source), "-o", str(library), "-lm"], check=True, capture_output=True, timeout=120
            )
            made = ctypes.CDLL(str(library))
        except (OSError, subprocess.SubprocessError) as error:
            raise Uncompiled(getattr(error, "stderr", None) or str(error)) from error
    weakref.finalize(made, dlclose, made._handle)
    return made


def function(library: Any, name: str, *types: Any) -> Any:
    """A function of a library that takes such arguments and returns nothing; while it runs, Python's lock is free."""
    found = getattr(library, name)
    found.argtypes, found.restype = types, None
    return found
