import io
import pickle
import zipfile

import numpy as np
import pytest

from tl_tf import npz


def test_what_is_written_is_read(tmp_path):
    arrays = {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3), "c": np.int32(4)}
    npz.write(tmp_path / "x.npz", {"old": np.zeros(1)})
    npz.write(tmp_path / "x.npz", arrays)
    got = npz.read(tmp_path / "x.npz")
    assert got.keys() == arrays.keys()
    np.testing.assert_array_equal(got["a/b"], arrays["a/b"])
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    values = np.array([[1.0, -2.5], [0.15625, 3e38]], np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16).view("V2")
    np.savez(tmp_path / "x.npz", x=halves)
    got = npz.read(tmp_path / "x.npz")["x"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, values, rtol=2**-7)
    assert got[0, 0] == 1 and got[0, 1] == -2.5 and got[1, 0] == 0.15625


def test_objects_and_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    (tmp_path / "text.npz").write_text("not an archive")
    np.save(tmp_path / "single.npy", np.zeros(2))
    for name in ("objects.npz", "text.npz", "missing.npz", "single.npy"):
        with pytest.raises(ValueError, match=f"{name}: wanted an .npz file of arrays"):
            npz.read(tmp_path / name)


def test_an_unfit_name_or_value_leaves_the_older_file(tmp_path):
    npz.write(tmp_path / "x.npz", {"x": np.ones(2)})
    with pytest.raises(ValueError, match="x.npz: y/z holds values that are not finite"):
        npz.write(tmp_path / "x.npz", {"y/z": np.array([1, np.inf])})
    with pytest.raises(ValueError, match="x.ckpt: wanted a name that ends in .npz"):
        npz.write(tmp_path / "x.ckpt", {"x": np.ones(2)})
    assert list(npz.read(tmp_path / "x.npz")) == ["x"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def claiming(shape: tuple[int, ...]) -> bytes:
    """The bytes of an array whose header claims a shape, with 8 bytes of content."""
    file = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(8)


@pytest.mark.parametrize("shape", [(10**12,), (-1,), (10**6, 10**6), (10**30,)])
def test_a_shape_is_not_believed_before_its_bytes_are_there(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", claiming(shape))
    with pytest.raises(ValueError, match="'a.npy' claims more than it holds"):
        npz.read(tmp_path / "x.npz")


def test_a_file_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1_000_000))
    assert npz.read(tmp_path / "x.npz")["x"].nbytes == 8_000_000
    monkeypatch.setattr(npz, "SPARE_BYTES", 1_000_000)
    with pytest.raises(ValueError, match=r"unpacks to 8,000,128 bytes, more than 1,"):
        npz.read(tmp_path / "x.npz")


class Pickled:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_unpickled(tmp_path):
    trace = tmp_path / "trace"
    np.savez(tmp_path / "x.npz", x=np.array([Pickled(trace)], object))
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Pickled(trace)))
    for name in ("x.npz", "y.npz"):
        with pytest.raises(ValueError, match=f"{name}: wanted an .npz file of arrays"):
            npz.read(tmp_path / name)
    assert not trace.exists()
