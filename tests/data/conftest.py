import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """The default cache of every test is a folder of its own."""
    root = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SELFTAUGHT_CACHE", str(root))
    return root
