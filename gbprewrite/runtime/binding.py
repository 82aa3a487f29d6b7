"""Inputs and outputs that keep their places on the device, which CUDA graphs need.

Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview. With
enable_cuda_graph the first run of some shapes is captured and later ones replay it, without the cost of launching each
kernel: from the same addresses, with the same shapes, by kernels of CUDA alone (no If, Loop or copy to the host).
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KEPT = 4  # sets of shapes, each with its buffers and its graph
NO_GRAPH = -1  # onnxruntime's number for a run that is neither captured nor replayed


class Bound:
    """A session with its inputs and outputs in fixed places, for one set of shapes."""

    def __init__(
        self, ort: Any, session: Any, feeds: Mapping[str, Any], outputs: Sequence[str], device: str, graph: int | None
    ) -> None:
        """Put the inputs on the device ("cuda" or "cpu"), and find out where the outputs go by a first run.

        `graph` is the number of the CUDA graph, None without one.
        """
        self._session = session
        self._options = _options(ort, graph)
        # Buffers of their own: on the CPU a value made from an array is that array, which update_inplace overwrites.
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(np.shape(a), np.asarray(a).dtype.type, device, 0)
            for name, a in feeds.items()
        }
        self._fill(feeds)
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in outputs:
            self._binding.bind_output(name, device)
        session.run_with_iobinding(self._binding, _options(ort, None if graph is None else NO_GRAPH))
        self._outputs = tuple(outputs)
        for name, value in zip(outputs, self._binding.get_outputs(), strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Name -> value of the outputs: copies, that the next run leaves as they are."""
        self._fill(feeds)
        self._session.run_with_iobinding(self._binding, self._options)
        return dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))

    def _fill(self, feeds: Mapping[str, Any]) -> None:
        for name, value in self._inputs.items():
            value.update_inplace(_dense(feeds[name]))


class Bindings:
    """What is bound of a session, by the shapes of its inputs; the sets used last are kept.

    Threads wait for each other, since they share the buffers. (onnxruntime captures a graph for each thread.)
    """

    def __init__(self, ort: Any, session: Any, device: str, graphs: bool) -> None:
        self._ort, self._session, self._device, self._graphs = ort, session, device, graphs
        self._known: OrderedDict[Any, Bound] = OrderedDict()
        self._made = 0
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """As `Session.run`."""
        key = tuple(outputs), tuple((name, np.shape(a)) for name, a in sorted(feeds.items()))
        with self._lock:
            if key not in self._known:
                self._made += 1
                graph = self._made if self._graphs else None
                self._known[key] = Bound(self._ort, self._session, feeds, outputs, self._device, graph)
                if len(self._known) > KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key].run(feeds)


def _dense(array: Any) -> Any:
    return np.ascontiguousarray(array).reshape(np.shape(array))


def _options(ort: Any, graph: int | None) -> Any:
    """Run options that name a CUDA graph."""
    if graph is None:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
