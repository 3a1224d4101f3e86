"""The nouns: trees, nets, tasks, channels, methods, and the round that they meet in."""

from weft.core.channel import Channel, Codec, Transform, keep_all, mean
from weft.core.errors import SettingError
from weft.core.method import Method, Model, Nothing, Phase, Predict, Round, Stacked, View, tune
from weft.core.net import Fit, Input, Net, Out, cross_entropy, masked_mean
from weft.core.registry import method
from weft.core.select import Select, everything, nothing, role
from weft.core.task import Batch, Data, Examples, Reply, Task, Turn
from weft.core.tree import Tree, add, delta, dot, each, mix, scale, sq_norm, sub, where, zeros

__all__ = [
    "Batch",
    "Channel",
    "Codec",
    "Data",
    "Examples",
    "Fit",
    "Input",
    "Method",
    "Model",
    "Net",
    "Nothing",
    "Out",
    "Phase",
    "Predict",
    "Reply",
    "Round",
    "Select",
    "SettingError",
    "Stacked",
    "Task",
    "Transform",
    "Tree",
    "Turn",
    "View",
    "add",
    "cross_entropy",
    "delta",
    "dot",
    "each",
    "everything",
    "keep_all",
    "masked_mean",
    "mean",
    "method",
    "mix",
    "nothing",
    "role",
    "scale",
    "sq_norm",
    "sub",
    "tune",
    "where",
    "zeros",
]
