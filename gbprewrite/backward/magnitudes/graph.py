"""How large the values of a tensor can be: whether a product with a mask of zeros and ones may stand for a selection.

0 · ∞ is NaN, so a product is a selection only where the other factor is finite. Two bounds are kept. The *interval*
holds for every finite input: by interval arithmetic (Moore 1966), with the weights' own sums. Over many layers it grows
far beyond what values do, so there the *usual* size decides as well: the root mean square under random signs (He et al.
2015, "Delving deep into rectifiers", section 2.2), which is near 1 in any network that could be trained.
"""

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from gbprewrite.backward.magnitudes.formulas import FORMULAS, unknown
from gbprewrite.backward.magnitudes.magnitude import ANY, INF, ORDINARY, SHARE, Magnitude, of_array, unread
from gbprewrite.model.tensors import HALF, Tensor, elements_of, numpy_dtype, onnx_type

DEEP = 20  # nodes between score and inputs, from which on a network is deep: AlexNet has 21, LeNet 9
ROOM = 2.0**2  # what float rounding, and the order of a sum, may add to a bound
USUAL = 2.0**100  # the largest usual size in a deep network; 2^28 times that is still a float32
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class _Missing(Exception):
    """Tensors whose magnitudes have to be known first."""


class Magnitudes:
    """The magnitudes of the tensors of a growing graph; each is worked out once, without recursion."""

    def __init__(self, weights: Mapping[str, TensorProto], forward: set[int], deep: bool = False) -> None:
        """`weights` are constants whose values the graph leaves out; `forward` holds id() of the source's own nodes;
        in a `deep` network usual sizes count as well."""
        self.weights, self.forward, self.deep = weights, forward, deep
        self._found: dict[int, Magnitude] = {}
        self._from_weights: dict[int, bool] = {}  # id() of a tensor → whether constants alone decide it

    def of(self, tensor: Tensor) -> Magnitude:
        """The magnitude of a tensor."""
        todo = [tensor]
        while todo:
            if id(todo[-1]) in self._found:
                todo.pop()
                continue
            try:
                self._found[id(todo[-1])] = self._work_out(todo[-1])
            except _Missing as missing:
                todo += missing.args
        return self._found[id(tensor)]

    def bound(self, tensor: Tensor, most: float) -> None:
        """Take |tensor| <= most as known."""
        self._found[id(tensor)] = Magnitude(-most, most, min(most, ORDINARY))

    def finite(self, v: Tensor) -> bool:
        """Whether v can't be infinite or NaN: for any finite input, or, in a deep network, for any usual one.

        A bound for any input grows with each layer, up to 2^300 in networks whose cotangents stay near 1.
        """
        found = self.of(v)
        limit = float(np.finfo(numpy_dtype(v)).max) if onnx_type(v) not in HALF else 65504.0
        return found.most * ROOM < limit or (self.deep and limit > USUAL > found.usual)

    def is_weight(self, v: Tensor) -> bool:
        """Whether a value is a constant of the model, or computed from constants alone; worked out once for each."""
        todo = [v]
        while todo:
            current = todo[-1]
            if isinstance(current, gs.Constant) or current.name in self.weights:
                self._from_weights[id(current)] = True
            elif not current.inputs:
                self._from_weights[id(current)] = False
            else:
                read = [t for t in current.inputs[0].inputs if t.name]
                answers = [self._from_weights.get(id(t)) for t in read]
                if None in answers and False not in answers:
                    todo.append(read[answers.index(None)])
                    continue
                self._from_weights[id(current)] = False not in answers
            todo.pop()
        return self._from_weights[id(v)]

    def _known(self, *tensors: Tensor) -> list[Magnitude]:
        missing = [t for t in tensors if id(t) not in self._found]
        if missing:
            raise _Missing(*missing)
        return [self._found[id(t)] for t in tensors]

    def _work_out(self, tensor: Tensor) -> Magnitude:
        if isinstance(tensor, gs.Constant):
            return of_array(tensor.values) if elements_of(tensor) else SHARE
        stored = self.weights.get(tensor.name)
        if stored is not None:
            return unread(stored) if uses_external_data(stored) else of_array(numpy_helper.to_array(stored))
        if not tensor.inputs:
            return ANY
        node = tensor.inputs[0]
        if id(node) in self.forward and node.op in LAYERS and self._known(node.inputs[0])[0].most == INF:
            return ANY  # whatever its weights are
        with np.errstate(all="ignore"):
            found = FORMULAS.get(node.op, unknown)(node, self._known)
        if id(node) in self.forward and not found.constant:
            return found._replace(usual=min(ORDINARY, found.most))
        return found
