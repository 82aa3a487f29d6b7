"""gbprewrite: any exported CNN's .onnx file, with guided backpropagation, deconvnet and gradient maps as outputs."""

from gbprewrite.checks.verify import Check, Verification, verify
from gbprewrite.convert import convert
from gbprewrite.errors import (
    DataError,
    GbprewriteError,
    ModelError,
    NotFinite,
    OutputError,
    RuntimeUnavailable,
    UnsupportedOperators,
    UsageError,
)
from gbprewrite.inspect import Inspection, inspect
from gbprewrite.layers import Layer, layers
from gbprewrite.methods.asked import GradCAM, GuidedGradCAM, IntegratedGradients, RectGrad, SmoothGrad
from gbprewrite.methods.work import Method
from gbprewrite.runtime.explainer import Explainer, Explanation
from gbprewrite.version import __version__

__all__ = [
    "Check",
    "DataError",
    "Explainer",
    "Explanation",
    "GbprewriteError",
    "GradCAM",
    "GuidedGradCAM",
    "Inspection",
    "IntegratedGradients",
    "Layer",
    "Method",
    "ModelError",
    "NotFinite",
    "OutputError",
    "RectGrad",
    "RuntimeUnavailable",
    "SmoothGrad",
    "UnsupportedOperators",
    "UsageError",
    "Verification",
    "__version__",
    "convert",
    "inspect",
    "layers",
    "verify",
]
