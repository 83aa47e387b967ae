import fake_run
import numpy as np
import pytest

from selftaught.reporting import make_atlas


@pytest.fixture
def run(tmp_path):
    """A run folder with every file but the atlas."""
    return fake_run.write(tmp_path / "run", steps=2000)


@pytest.fixture(scope="session")
def atlas():
    thumbs, labels = fake_run.synthetic(80, 24, 4)
    names = [f"picture {i:03d}.png" for i in range(80)]
    return make_atlas(fake_run.embedding(labels), thumbs, names, labels, ["鳥", "cat", "<b>dog</b>", "ship"], seed=3)


@pytest.fixture(scope="session")
def noise():
    """Incompressible thumbnails: the worst case for the size of a page."""
    return np.random.default_rng(0).integers(0, 256, (1500, 3, 32, 32), dtype=np.uint8)
