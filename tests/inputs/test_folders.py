import numpy as np
import PIL.Image
import pytest

from tests.inputs import image_files
from tl_tf.inputs import folders

PIXELS = image_files.smooth(5, 7)


def make(folder, names: list[str]):
    """Files "<split>/<class>/<file>" of the data set "toy"."""
    for name in names:
        image_files.write(folder / "toy" / name, PIXELS)
    return folder


def test_classes_and_files_are_sorted_and_other_files_counted(tmp_path):
    names = ["b/2.PNG", "b/10.jpeg", "B/x.JPG", "a/1.Jpg", "c/1.jpg"]
    make(tmp_path, [f"train/{name}" for name in names])
    (tmp_path / "toy/train/b/notes.txt").touch()
    (tmp_path / "toy/train/b/.hidden.jpg").touch()
    folder = folders.Folder.scan(tmp_path, "toy", "train")
    assert folder.classes == ["B", "a", "b", "c"]
    assert folder.examples == ["B/x.JPG", "a/1.Jpg", "b/10.jpeg", "b/2.PNG", "c/1.jpg"]
    assert folder.labels.tolist() == [[0], [1], [2], [2], [3]]
    want = "JPEG AND PNG; 5 x 7 px; 1 files of other suffixes left out"
    assert folder.facts == want


def test_classes_are_those_of_the_training_split(tmp_path):
    make(tmp_path, ["train/a/1.png", "train/b/1.png", "val/b/1.png"])
    folder = folders.Folder.scan(tmp_path, "toy", "val")
    assert (folder.classes, folder.labels.tolist()) == (["a", "b"], [[1]])
    make(tmp_path, ["val/d/1.png"])
    with pytest.raises(
        ValueError, match="val: wanted classes of .*train, got d. Rename"
    ):
        folders.Folder.scan(tmp_path, "toy", "val")


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_parts_are_cut_from_every_class(tmp_path, count):
    make(tmp_path, [f"train/{k}/{n}.png" for k in "ab" for n in range(count)])
    parts = [
        folders.Folder.scan(tmp_path, "toy", split).examples
        for split in ("train[:25%]", "train[25%:80%]", "train[80%:]")
        if round(count * 0.25) or split == "train[25%:80%]"
    ]
    whole = folders.Folder.scan(tmp_path, "toy", "train").examples
    if count == 9:
        assert sorted(sum(parts, [])) == whole
        assert [len(part) for part in parts] == [2 * 2, 5 * 2, 2 * 2]
    assert len(set(sum(parts, []))) == len(sum(parts, []))


@pytest.mark.parametrize(
    "split", ["", "train[:50]", "train[50%:50%]", "train[60%:50%]", "train[:101%]"]
)
def test_splits_that_mean_nothing_are_refused(tmp_path, split):
    with pytest.raises(ValueError, match="split must be a folder's name, or a part"):
        folders.Folder.scan(make(tmp_path, ["train/a/1.png"]), "toy", split)


@pytest.mark.parametrize(
    "dataset, split, message",
    [
        ("none", "train", "none: wanted a folder 'train' of class folders, no folder"),
        (
            "toy",
            "test",
            "toy: wanted a folder 'test' of class folders, got flat, train",
        ),
        ("toy", "flat", "flat: wanted a folder for each class, got none. Put each"),
        (
            "toy",
            "train[:10%]",
            "train: split 'train.:10%.' has no images; wanted files",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path, dataset, split, message):
    make(tmp_path, ["train/a/1.png", "flat/1.png"])
    with pytest.raises(ValueError, match=message):
        folders.Folder.scan(tmp_path, dataset, split)


def test_files_that_are_no_images_are_named_or_left_out(tmp_path):
    make(tmp_path, [f"train/a/{n}.png" for n in range(6)])
    root = tmp_path / "toy/train/a"
    (root / "1.png").write_bytes(b"")
    (root / "3.png").write_bytes(b"text")
    PIL.Image.fromarray(PIXELS).save(root / "5.png", "BMP")
    message = (
        "3 of 6 files are no images: a/1.png .empty.; a/3.png .no image.; a/5.png"
        " .wanted JPEG or PNG, got BMP.. Replace or remove them, or raise"
        " image_dataset.max_broken_share .here 0.4."
    )
    with pytest.raises(ValueError, match=message):
        folders.Folder.scan(tmp_path, "toy", "train", max_broken_share=0.4)
    folder = folders.Folder.scan(tmp_path, "toy", "train", max_broken_share=0.5)
    assert folder.examples == ["a/0.png", "a/2.png", "a/4.png"]
    assert folder.rows == [0, 2, 4]
    assert [one["row"] for one in folder.skipped] == [1, 3, 5]


def test_an_image_that_claims_too_many_pixels_is_not_decoded(tmp_path):
    make(tmp_path, ["train/a/1.jpg", "train/a/2.jpg"])
    for claimed in (8193, 8193), (65500, 65500):
        image_files.claim(tmp_path / "toy/train/a/2.jpg", *claimed)
        message = (
            "1 of 2 files are no images: a/2.jpg .(wanted at most 67,108,864|Image)"
        )
        with pytest.raises(ValueError, match=message):
            folders.Folder.scan(tmp_path, "toy", "train")


def test_headers_tell_size_and_orientation(tmp_path):
    for orientation, size in (3, (5, 7)), (6, (7, 5)):
        for name in "a.jpg", "a.png":
            image_files.write(tmp_path / name, PIXELS, orientation=orientation)
            header = folders.read_header(tmp_path / name)
            assert header == folders.Header(
                {"a.jpg": "jpeg", "a.png": "png"}[name], orientation, size
            )


def test_an_orientation_that_means_nothing_is_upright(tmp_path):
    image_files.write(tmp_path / "a.jpg", PIXELS, orientation=9)
    assert folders.read_header(tmp_path / "a.jpg").orientation == 1


def test_every_host_reads_its_files(tmp_path):
    make(tmp_path, [f"train/a/{n}.png" for n in range(5)])
    seen = []
    for host in range(2):
        folder = folders.Folder.scan(tmp_path, "toy", "train", num_hosts=2, host=host)
        assert folder.images_by_host == [3, 2]
        seen += [int(image["index"]) for image in folder.read(None)]
    assert seen == [0, 2, 4, 1, 3]


def test_shuffling_keeps_every_file():
    folder = folders.Folder(
        *[None] * 3,
        examples=[str(n) for n in range(50)],
        **dict.fromkeys(
            ["rows", "labels", "orientations", "stored", "skipped", "num_others"]
        ),
        num_hosts=1,
        host=0,
    )
    order = [int(image["index"]) for image in folder.read([1, 2])]
    assert sorted(order) == list(range(50)) and np.diff(order).tolist() != [1] * 49
