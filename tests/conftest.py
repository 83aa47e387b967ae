import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

# Shapes and types of every annotated function are checked while the tests run; users pay nothing for it.
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  # the hook names it and expects it to be loaded

install_import_hook("selftaught", "tests.typecheck.check")

import selftaught.encoders  # noqa: E402, F401  # makes torchvision importable beside a CPU-only torch, for tests too
