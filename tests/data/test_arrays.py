import numpy as np
import pytest
import torch
from pictures import pixels

from selftaught.data import open_data
from selftaught.errors import UserError

RGB = np.stack([pixels(i) for i in range(5)])  # [5, 12, 12, 3]


def all_pixels(source):
    return source.fetch(np.arange(len(source)))["pixels"].numpy()


@pytest.mark.parametrize(
    "x",
    [
        RGB,
        RGB.transpose(0, 3, 1, 2),
        RGB / 255,
        (RGB / 255).astype(np.float16),
        torch.from_numpy(RGB),
        RGB[:, ::-1][:, ::-1],
    ],
    ids=["NHWC", "NCHW", "float64", "float16", "tensor", "strided"],
)
def test_layouts_and_types_give_the_same_pictures(x):
    source = open_data(x)
    np.testing.assert_array_equal(all_pixels(source), RGB.transpose(0, 3, 1, 2))
    assert source.fingerprint == open_data(RGB).fingerprint
    assert source.sizes.tolist() == [[12, 12]] * 5


def test_grey_and_bool():
    assert open_data(RGB[..., 0]).channels == 1
    assert open_data(RGB[..., :1]).channels == 1
    assert set(np.unique(all_pixels(open_data(RGB[..., 0] > 128)))) == {0, 255}


def test_equal_pictures_have_equal_hashes():
    hashes = open_data(RGB[[0, 1, 0, 2]]).hashes
    assert hashes[0] == hashes[2]
    assert len(np.unique(hashes)) == 3


def test_labels_beside_an_array():
    source = open_data((RGB, np.array([3, -1, 1, 3, 20])))
    assert source.classes == ["1", "3", "20"]
    assert source.labels.tolist() == [1, -1, 0, 1, 2]
    with pytest.raises(UserError, match="use 5 integers"):
        open_data((RGB, np.zeros((5, 10))))


def test_npy_and_npz(tmp_path):
    np.save(tmp_path / "a.npy", RGB)
    np.savez(tmp_path / "b.npz", images=RGB, labels=np.arange(5))
    np.savez(tmp_path / "c.npz", one=RGB, two=RGB)
    assert open_data(tmp_path / "a.npy").fingerprint == open_data(RGB).fingerprint
    assert open_data(tmp_path / "b.npz").labels.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="holds one, two; call the pictures 'images'"):
        open_data(tmp_path / "c.npz")


def test_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.save(tmp_path / "a.npy", np.array([Bomb(), Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", images=np.array([Bomb()], dtype=object))
    for name in ("a.npy", "b.npz"):
        with pytest.raises(UserError, match="Python objects, which are never unpickled"):
            open_data(tmp_path / name)


def test_damaged_files(tmp_path):
    np.save(tmp_path / "a.npy", RGB)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    (tmp_path / "no.npz").write_bytes(b"PK\3\4nonsense")
    for name in ("cut.npy", "no.npz"):
        with pytest.raises(UserError, match="cannot be read"):
            open_data(tmp_path / name)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (RGB.astype(np.float32), r"from 0 to 255, outside \[0, 1\]; divide by 255"),
        (RGB / 255 - 0.5, "undo the normalisation"),
        (np.where(np.arange(5)[:, None, None, None] == 3, np.nan, RGB / 255), "NaN or infinity, first in picture 3"),
        (RGB.astype(np.int64), r"type int64; use uint8"),
        (RGB.astype(object), "type object"),
        (RGB[0], r"12x12x3 looks like one picture"),
        (np.zeros((4, 3, 9, 3), np.uint8), "axis 1 or axis 3"),
        (np.zeros((4, 9, 9, 4), np.uint8), "drop the alpha channel"),
        (np.zeros((4, 9, 9, 2), np.uint8), "neither 1 nor 3 channels"),
        (np.zeros((4, 9), np.uint8), "4x9 is not"),
        (np.zeros((4, 0, 9, 3), np.uint8), "no pixel"),
        (np.zeros((4, 2, 9, 3), np.uint8), "9 x 2 pixels"),
        (RGB[:1], "one image only"),
    ],
)
def test_what_is_refused_and_why(x, message):
    with pytest.raises(UserError, match=message):
        open_data(x)
