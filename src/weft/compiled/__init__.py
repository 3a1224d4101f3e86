"""Turns of small networks as machine code: one client after the other, whose weights stay in a core's cache."""

from weft.compiled.operations import WAYS, Uncompiled
from weft.compiled.program import Program, written
from weft.compiled.toolchain import compiler

__all__ = ["WAYS", "Program", "Uncompiled", "compiler", "written"]
