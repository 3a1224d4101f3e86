"""The machine's C compiler, and what it makes of a text."""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch

from weft.compiled.operations import Uncompiled

FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
    "-fwrapv", "-ffp-contract=fast", "-w",
)  # fmt: skip
"""Sums keep their order but where a text says otherwise, and what is not finite stays so."""
WIDE = "-mprefer-vector-width=512"
"""Where there is AVX-512, of whose registers compilers leave half unused otherwise."""
_SECONDS = 120
_CLOSE: Any = getattr(_ctypes, "dlclose", None)  # not on Windows


@functools.cache
def compiler() -> str | None:
    """The compiler that the environment names as CC, else cc, gcc or clang; None if there is none."""
    names = filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")) if _CLOSE else ()
    return next(filter(None, map(shutil.which, names)), None)


def compiled(text: str) -> ctypes.CDLL:
    """The library that a C text makes; it goes when nobody holds it.

    Raises:
        Uncompiled: it cannot be made here.
    """
    command = compiler()
    if command is None:
        raise Uncompiled("no C compiler was found")
    flags = [*FLAGS, *([WIDE] if torch.backends.cpu.get_cpu_capability() == "AVX512" else [])]
    with tempfile.TemporaryDirectory(prefix="weft-") as folder:
        source, library = Path(folder, "turns.c"), Path(folder, "turns.so")
        source.write_text(text, encoding="utf-8")
        try:
            run = [command, *flags, str(source), "-o", str(library), "-lm"]
            subprocess.run(run, check=True, capture_output=True, timeout=_SECONDS)
            made = ctypes.CDLL(str(library))
        except (OSError, subprocess.SubprocessError) as error:
            raise Uncompiled(f"{command}: {getattr(error, 'stderr', None) or error}") from error
    weakref.finalize(made, _CLOSE, made._handle)
    return made
