"""The steps of small networks as machine code: one client after the other, whose weights stay in a core's cache."""

from weft.compiled.compiler import compiler
from weft.compiled.operations import Uncompiled
from weft.compiled.program import Program, written

__all__ = ["Program", "Uncompiled", "compiler", "written"]
