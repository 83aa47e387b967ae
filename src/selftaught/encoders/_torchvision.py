"""Import torchvision (and timm, which imports it) beside a CPU-only torch.

torchvision's wheel on PyPI is built against CUDA. Beside a CPU build of torch its compiled operators do not load, and
the import then fails on operators that nothing here uses, because it attaches shape functions to their schemas. So the
missing schemas are declared before the second try; calling such an operator still fails, as it should.
"""

import importlib

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a Library takes its schemas away when it is collected


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS.values():
            library.define(schema)
        _declared.append(library)
        importlib.import_module("torchvision")


_import_torchvision()
