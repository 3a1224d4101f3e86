"""The steps of small networks as machine code: one client after the other, whose weights stay in a core's cache."""

from weft.compiled.compiler import compiler
from weft.compiled.operations import WAYS, Uncompiled
from weft.compiled.program import Program, written

__all__ = ["WAYS", "Program", "Uncompiled", "compiler", "written"]
