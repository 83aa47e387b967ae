from tests.contracts.conftest import batch, digits

__all__ = ["batch", "digits"]
