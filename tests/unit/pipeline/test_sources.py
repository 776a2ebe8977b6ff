import os
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from pipeline import quarantine, raw, sources
from pipeline.errors import InvalidInput
from pipeline.labels_table import LABELS
from pipeline.raw import RawListing, list_raw
from pipeline.sources import ImportReport, dataset_name, import_folder, summary
from pipeline.store import Store
from pipeline.zones import Zones

NFC = "é"
NFD = "e\u0301"


@pytest.fixture
def memory_zones() -> Zones:
    """Zones in memory."""
    return Zones(*(Store(MemoryStore(), "memory://") for _ in range(5)))


def _folder(folder: Path, *paths: str) -> Path:
    """Files below ``folder``, each of its own path's bytes."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(os.fsencode(path))
    folder.mkdir(exist_ok=True)
    return folder


def _imported(zones: Zones, folder: Path) -> tuple[ImportReport, RawListing]:
    report = import_folder(zones, folder, "pets")
    assert report.found == report.uploaded + report.already_there + sum(report.skipped.values())
    return report, list_raw(zones.images, "pets")


def _labels(listing: RawListing) -> dict[str, tuple[str, str | None]]:
    return {image.key.removeprefix("pets/"): (image.label, image.split) for image in listing.images}


def test_class_folders_become_keys_with_the_very_bytes(memory_zones: Zones, tmp_path: Path) -> None:
    """Nested folders, spaces, accents and upper-case suffixes arrive; what is no image is counted."""
    _folder(tmp_path, "cat/a.png", "cat/x y/b.JPG", f"chi{NFD}n/c.heic", "cat/notes.txt", "cat/.DS_Store", "top.png")
    report, listing = _imported(memory_zones, tmp_path)
    assert _labels(listing) == {
        "cat/a.png": ("cat", None),
        "cat/x y/b.JPG": ("cat", None),
        f"chi{NFC}n/c.heic": (f"chi{NFC}n", None),
    }
    assert memory_zones.images.get("pets/cat/x y/b.JPG") == b"cat/x y/b.JPG"
    assert report.skipped == {raw.NOT_AN_IMAGE: 1, raw.HIDDEN: 1, raw.NO_CLASS: 1}
    assert (report.uploaded, report.bytes) == (3, 9 + 13 + len(f"chi{NFD}n/c.heic".encode()))
    assert report.notes == ("top.png: in no class folder",)


def test_bytes_that_are_no_image_are_uploaded_too(memory_zones: Zones, tmp_path: Path) -> None:
    """Judging an image is preparation's work: empty and broken files with an image's name arrive as they are."""
    _folder(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "cat/empty.jpg").write_bytes(b"")
    _imported(memory_zones, tmp_path)
    assert memory_zones.images.get("pets/cat/empty.jpg") == b""


def test_given_splits_are_kept(memory_zones: Zones, tmp_path: Path) -> None:
    """Folders called train, val and test with class folders in them give splits, and the classes below them."""
    _folder(tmp_path, "train/cat/a.png", "train/dog/b.png", "Val/cat/c.png", "test/dog/n/d.png", "train/stray.png")
    report, listing = _imported(memory_zones, tmp_path)
    assert _labels(listing) == {
        "train/cat/a.png": ("cat", "train"),
        "train/dog/b.png": ("dog", "train"),
        "Val/cat/c.png": ("cat", "validation"),
        "test/dog/n/d.png": ("dog", "test"),
    }
    assert report.skipped == {raw.NO_CLASS: 1}
    assert memory_zones.images.get(f"pets/{LABELS}").startswith(b"key,label,split\nVal/cat/c.png,cat,validation\n")


def test_a_folder_of_other_names_beside_train_is_a_class(memory_zones: Zones, tmp_path: Path) -> None:
    """Only if all folders are splits are they splits; locomotives can be a class."""
    _folder(tmp_path, "train/a.png", "bus/b.png")
    _, listing = _imported(memory_zones, tmp_path)
    assert _labels(listing) == {"train/a.png": ("train", None), "bus/b.png": ("bus", None)}


def test_labels_csv_decides_what_is_uploaded(memory_zones: Zones, tmp_path: Path) -> None:
    """Files that it names arrive, whatever their names; others are counted; the table arrives tidied."""
    _folder(tmp_path, "x/1.png", "x/2", "x/3.png", "x/notes.txt", f"{NFD}.png")
    (tmp_path / LABELS).write_bytes(
        f"\ufefflabel;key;split\r\n..;x\\1.png;val\r\ncat;x/2;\r\ncat;{NFC}.png;\r\ncat;gone.png;\r\n".encode()
    )
    report, listing = _imported(memory_zones, tmp_path)
    assert _labels(listing) == {"x/1.png": ("..", "validation"), "x/2": ("cat", None), f"{NFC}.png": ("cat", None)}
    assert report.skipped == {raw.NOT_NAMED: 1, raw.NOT_AN_IMAGE: 1}
    assert report.notes == ("pets/gone.png: named in labels.csv, but neither here nor stored",)
    assert listing.problems == [("pets/gone.png", "labels.csv names it, but it is not stored")]
    assert memory_zones.images.get(f"pets/{LABELS}").startswith(b"key,label,split\nx/1.png,..,val\n")


def test_labels_csv_is_written_after_the_images(memory_zones: Zones, tmp_path: Path) -> None:
    """An import that breaks off leaves no table behind that names images which are not there."""
    _folder(tmp_path, "train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "test/dog/d.png")

    def stop(progress: object) -> None:
        if "importing" in str(progress):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_folder(memory_zones, tmp_path, "pets", on_progress=stop)  # type: ignore[arg-type]
    assert memory_zones.images.head(f"pets/{LABELS}") is None


def test_an_earlier_table_is_pointed_out(memory_zones: Zones, tmp_path: Path) -> None:
    """Class folders imported over a dataset with a table do not decide, and the report says so."""
    _folder(tmp_path, "cat/a.png", "dog/b.png")
    memory_zones.images.put(f"pets/{LABELS}", b"key,label\ncat/a.png,x\n")
    report, _ = _imported(memory_zones, tmp_path)
    assert report.notes == (sources.STILL_DECIDES.format(f"pets/{LABELS}"),)


def test_an_exact_import_leaves_out_what_left_the_folder(memory_zones: Zones, tmp_path: Path) -> None:
    """Removed and moved images follow the folder, nothing stored is deleted, and what comes back counts again."""
    _folder(tmp_path, " cat/a.png", " cat/b.png", "dog/c.png", "dog/d.png")
    first = import_folder(memory_zones, tmp_path, "pets", exact=True)
    assert (first.notes, memory_zones.images.head(f"pets/{LABELS}")) == ((), None)
    (tmp_path / " cat/b.png").rename(tmp_path / "dog/b.png")
    (tmp_path / "dog/c.png").unlink()
    second = import_folder(memory_zones, tmp_path, "pets", exact=True)
    assert second.notes == (f"2 stored images are not in {tmp_path}: they stay stored, but are left out.",)
    listing = list_raw(memory_zones.images, "pets")
    assert _labels(listing) == {
        " cat/a.png": ("cat", None),
        "dog/b.png": ("dog", None),
        "dog/d.png": ("dog", None),
    }
    assert (dict(listing.skipped), listing.problems) == ({raw.NOT_NAMED: 2}, [])
    assert memory_zones.images.head("pets/dog/c.png") is not None
    _folder(tmp_path, "dog/c.png")
    import_folder(memory_zones, tmp_path, "pets", exact=True)
    assert "dog/c.png" in _labels(list_raw(memory_zones.images, "pets"))


def test_all_that_was_left_out_is_listed(memory_zones: Zones, tmp_path: Path) -> None:
    """Of what was left out the first are named, and the list that the report points at names every one."""
    _folder(tmp_path, "a.png", "b.png")
    rows = "".join(f"gone{number}.png,cat\n" for number in range(sources.MOST_NOTES + 5))
    (tmp_path / LABELS).write_text(f"key,label\na.png,cat\nb.png,dog\n{rows}")
    (tmp_path / "c.png").symlink_to("nowhere")
    report, _ = _imported(memory_zones, tmp_path)
    assert len(report.notes) == sources.MOST_NOTES + 1
    assert report.notes[0] == "c.png: broken link"
    assert report.notes[-1] == "6 more files were left out."
    lines = quarantine.read(memory_zones.datasets, str(report.left_out))
    gone = {f"pets/gone{number}.png" for number in range(sources.MOST_NOTES + 5)}
    assert {line["key"] for line in lines} == {"c.png", *gone}
    assert summary(report)[-1] == f"what was left out, and why: safelight quarantine {report.left_out}"


def test_a_table_that_matches_no_file_is_an_error(memory_zones: Zones, tmp_path: Path) -> None:
    """Where labels.csv names nothing that is there or stored, the sentence says so, and nothing is written."""
    _folder(tmp_path, "a.png", "b.png")
    (tmp_path / LABELS).write_text("key,label\nimages/a.png,cat\nimages/b.png,dog\n")
    with pytest.raises(InvalidInput, match=r"labels\.csv names no image that is there.*one is 'images/a\.png'"):
        import_folder(memory_zones, tmp_path, "pets")
    assert not list(memory_zones.images.listing())


def test_a_table_alone_relabels_what_is_stored(memory_zones: Zones, tmp_path: Path) -> None:
    """A folder that holds nothing but labels.csv is fine where the images that it names are stored already."""
    import_folder(memory_zones, _folder(tmp_path / "first", "cat/a.png", "dog/b.png"), "pets")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / LABELS).write_text("key,label\ncat/a.png,dog\ndog/b.png,cat\n")
    import_folder(memory_zones, tmp_path / "second", "pets")
    assert _labels(list_raw(memory_zones.images, "pets")) == {"cat/a.png": ("dog", None), "dog/b.png": ("cat", None)}


def test_two_files_of_one_key_are_an_error_that_names_both(memory_zones: Zones, tmp_path: Path) -> None:
    """Names that differ only in Unicode form would overwrite each other; nothing is uploaded."""
    _folder(tmp_path, f"cat/{NFC}.png", f"cat/{NFD}.png", "dog/a.png")
    if len(list((tmp_path / "cat").iterdir())) == 1:
        pytest.skip("this file system makes one file of both")
    with pytest.raises(InvalidInput, match=rf"cat/{NFC}\.png.*would be stored under one key.*rename one") as refused:
        import_folder(memory_zones, tmp_path, "pets")
    assert f"cat/{NFD}.png" in str(refused.value)
    assert not list(memory_zones.images.listing())


def test_names_that_stores_cannot_carry_arrive_escaped(memory_zones: Zones, tmp_path: Path) -> None:
    """Backslashes, line ends and bytes that are not UTF-8 do not stop an import, nor lose an image."""
    _folder(tmp_path, "cat/a\\b.png", "cat/c\nd.png", "dog/a.png", os.fsdecode(b"dog/\xff.png"))
    report, listing = _imported(memory_zones, tmp_path)
    assert sorted(_labels(listing)) == ["cat/a%5Cb.png", "cat/c%0Ad.png", "dog/%FF.png", "dog/a.png"]
    assert report.uploaded == 4
    assert memory_zones.images.get("pets/dog/%FF.png") == b"dog/\xff.png"


def test_classes_called_strangely(memory_zones: Zones, tmp_path: Path) -> None:
    """A class folder may be called labels.csv; case makes two classes, which the report points out."""
    _folder(tmp_path, "labels.csv/a.png", "Cat/b.png", "cat/c.png")
    (tmp_path / "empty one").mkdir()
    report, listing = _imported(memory_zones, tmp_path)
    assert {label for label, _ in _labels(listing).values()} == {"labels.csv", "Cat", "cat"}
    assert report.notes == (
        "Classes that differ only in case: Cat, cat.",
        "The class folder 'empty one' holds no image.",
    )


def test_a_huge_file_is_left_by_name(memory_zones: Zones, tmp_path: Path) -> None:
    """A 200 MB TIFF is not read, is counted, and is named in the report."""
    _folder(tmp_path, "cat/a.png", "dog/b.png")
    with (tmp_path / "cat/huge.tif").open("wb") as huge:
        huge.truncate(200_000_000)
    report, _ = _imported(memory_zones, tmp_path)
    assert report.skipped == {sources.TOO_LARGE: 1}
    assert report.notes == ("cat/huge.tif: larger than 100 MiB",)


def test_a_name_too_long_for_a_key_is_left_by_name(memory_zones: Zones, tmp_path: Path) -> None:
    """A path that no store would take is counted and named, and the others arrive."""
    deep = "/".join(["n" * 200] * 6)
    _folder(tmp_path, f"cat/{deep}/a.png", "cat/b.png", "dog/c.png")
    report, _ = _imported(memory_zones, tmp_path)
    assert report.skipped == {raw.TOO_LONG: 1}
    assert report.uploaded == 2


def test_links_are_followed(memory_zones: Zones, tmp_path: Path) -> None:
    """A class may be a link to a folder, an image a link to a file; broken and endless links are named."""
    _folder(tmp_path, "elsewhere/a.png", "in/dog/b.png")
    (tmp_path / "in/cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/dog/c.png").symlink_to(tmp_path / "elsewhere/a.png")
    (tmp_path / "in/dog/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "in/dog/up").symlink_to(tmp_path / "in")
    report, listing = _imported(memory_zones, tmp_path / "in")
    assert sorted(_labels(listing)) == ["cat/a.png", "dog/b.png", "dog/c.png"]
    assert sorted(report.notes) == ["dog/gone.png: broken link", "dog/up: link to a folder that it lies in"]


def test_a_file_that_vanishes_meanwhile_is_counted(memory_zones: Zones, tmp_path: Path) -> None:
    """A file deleted between looking and reading is unreadable, by name; the import goes on."""
    _folder(tmp_path, "cat/a.png", "dog/b.png", "dog/c.png")

    def delete(progress: object) -> None:
        if "importing" in str(progress):
            (tmp_path / "dog/b.png").unlink(missing_ok=True)

    report = import_folder(memory_zones, tmp_path, "pets", on_progress=delete)  # type: ignore[arg-type]
    assert (report.uploaded, report.skipped, report.notes) == (2, {"unreadable": 1}, ("dog/b.png: unreadable",))


def test_five_hundred_classes(memory_zones: Zones, tmp_path: Path) -> None:
    """Five hundred classes of one image each arrive as five hundred labels."""
    _folder(tmp_path, *(f"class {number}/a.png" for number in range(500)))
    report, listing = _imported(memory_zones, tmp_path)
    assert report.uploaded == 500
    assert len({image.label for image in listing.images}) == 500


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], r"holds no image of any class \(it is empty\): put the images of each class into a folder of its own"),
        (["a.png", "b.png"], r"holds no image of any class \(2 in no class folder\)"),
        (["x/a.txt", "y/b.txt"], r"holds no image of any class \(2 not an image by its name\)"),
        (["cat/a.png"], "holds only one class, 'cat', where two are needed: put the images"),
        (["pets/cat/a.png", "pets/dog/b.png"], "holds only one class, 'pets', .* did you mean .*/pets"),
        (["train/cat/a.png", "val/dog/b.png"], r"holds given splits \(train, val\), but none of them is 'test'"),
        (["train/a.png", "test/b.png"], r"holds no image of any class \(2 in no class folder\)"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_sentence(
    memory_zones: Zones, tmp_path: Path, paths: list[str], message: str
) -> None:
    """What the folder holds, what it lacks and what to do is one sentence, and nothing is uploaded."""
    _folder(tmp_path, *paths)
    with pytest.raises(InvalidInput, match=message):
        import_folder(memory_zones, tmp_path, "pets")
    assert not list(memory_zones.images.listing())


def test_the_whole_file_system_is_not_walked(memory_zones: Zones) -> None:
    """The root of the file system is refused before anything is looked at."""
    with pytest.raises(InvalidInput, match="is the whole file system"):
        import_folder(memory_zones, Path("/"), "pets")


def test_no_folder_at_all_is_one_sentence(memory_zones: Zones, tmp_path: Path) -> None:
    """A path that does not exist, or that is a file, is named."""
    with pytest.raises(InvalidInput, match="nowhere cannot be read: No such file or directory"):
        import_folder(memory_zones, tmp_path / "nowhere", "pets")
    with pytest.raises(InvalidInput, match=r"a\.png is a file: give the folder"):
        import_folder(memory_zones, _folder(tmp_path, "a.png") / "a.png", "pets")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("key,label\na.png,cat\n", r"holds only one class, 'cat'"),
        ("key,label\n", "holds no image of any class"),
        ("path,label\na.png,cat\n", r"labels\.csv has no column 'key'"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(
    memory_zones: Zones, tmp_path: Path, table: str, message: str
) -> None:
    """A table of one class, none, or without a column is refused before anything is uploaded."""
    _folder(tmp_path, "a.png")
    (tmp_path / LABELS).write_text(table, encoding="utf-8")
    with pytest.raises(InvalidInput, match=message):
        import_folder(memory_zones, tmp_path, "pets")
    assert not list(memory_zones.images.listing())


def test_a_wrong_dataset_name_is_refused_first(memory_zones: Zones, tmp_path: Path) -> None:
    """The name is checked before the folder is looked at."""
    with pytest.raises(InvalidInput, match="'My Pets' cannot name a dataset"):
        import_folder(memory_zones, tmp_path / "nowhere", "My Pets")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/data/Cats & Dogs", "cats-dogs"),
        ("/data/Chiens été/", "chiens-ete"),
        ("/data/2024_birds", "2024_birds"),
        ("/data/图片", "images"),
        ("/", "images"),
        ("/data/--x--", "x"),
        ("/data/" + "long name " * 20, ("long-name-" * 7)[:63].strip("-")),
    ],
)
def test_a_folder_suggests_a_name(folder: str, name: str) -> None:
    """Whatever a folder is called, the name made of it is one that a dataset can have."""
    assert dataset_name(Path(folder)) == name
    assert raw.check_dataset_name(name) == name


def test_fashion_mnist_is_lacking_until_its_labels_are_there(memory_zones: Zones) -> None:
    """Nothing stored, or what a killed import left: it is to be imported; labels.csv is the last thing written."""
    images = memory_zones.images
    assert sources.lacks_fashion_mnist(images)
    images.put("fashion-mnist/Bag/train-00001.png", b"x")
    images.put("fashion-mnist/Coat/test-00002.png", b"x")
    assert sources.lacks_fashion_mnist(images)
    images.put("fashion-mnist/labels.csv", b"x")
    assert not sources.lacks_fashion_mnist(images)


def test_images_of_ones_own_are_not_mixed_with_fashion_mnist(memory_zones: Zones) -> None:
    """Whoever stored other images under that name keeps a dataset of these alone."""
    memory_zones.images.put("fashion-mnist/Bag/train-00001.png", b"x")
    memory_zones.images.put("fashion-mnist/Bag/holiday.png", b"x")
    assert not sources.lacks_fashion_mnist(memory_zones.images)
