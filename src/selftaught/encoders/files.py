"""Files of weights, read without executing anything that is in them."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from selftaught.errors import UserError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pth that holds nothing but tensors.

    Raises UserError where the file is missing, broken, or would have to execute code to be read.
    """
    if path.is_dir():
        raise UserError(
            f"weights '{path}' is a folder; --encoder goes on from a folder, --weights from a file of weights"
        )
    if not path.is_file():
        raise UserError(f"weights '{path}' is not a file")
    if path.suffix != ".safetensors":
        with path.open("rb") as stream:
            begin = stream.read(2)
        if not begin.startswith((b"PK", b"\x80")):  # torch's archive, or what it wrote before there was one
            raise UserError(f"weights '{path}' is no file of weights; is it a Git-LFS pointer, or a web page?")
    try:
        if path.suffix == ".safetensors":
            return _present_day(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError) as error:
        why = (str(error).splitlines() or ["it ends too early"])[0]
        raise UserError(f"weights '{path}' cannot be read: {why}") from error
    except Exception as error:  # the unpickler's error class is private to torch's weights_only reader
        raise UserError(
            f"weights '{path}' is a pickle that holds more than tensors; refused, because reading it could execute code. "
            "Save it as .safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"weights '{path}' holds no flat dictionary of tensors")
    return _present_day(loaded)


def _present_day(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first BERTs, and what was made from TensorFlow's, call a layer norm's weight gamma and its bias beta."""
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    return {
        next((n.removesuffix(o) + new for o, new in old.items() if n.endswith(o)), n): t for n, t in tensors.items()
    }
