"""selftaught: self-supervised learning that says what it was worth."""

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "demo",
    "embed",
    "evaluate",
    "export",
    "fill",
    "finetune",
    "generate",
    "inspect",
    "load",
    "predict",
    "pretrain",
    "preview",
    "recommend",
    "report",
    "surprise",
    "tasks",
]


def __getattr__(name: str) -> Any:
    """The public functions, imported when first used: `import selftaught` alone is instant."""
    if name in __all__:
        from selftaught import api

        return getattr(api, name)
    raise AttributeError(f"module 'selftaught' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
