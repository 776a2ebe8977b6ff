import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from pipeline import raw
from pipeline.errors import InvalidInput, NotFound
from pipeline.store import Store

NFC = "é"
NFD = "e\u0301"


def _store(*keys: str, table: str | None = None) -> Store:
    store = Store(MemoryStore(), "memory://")
    for key in keys:
        store.put(key, key.encode())
    if table is not None:
        store.put("pets/labels.csv", table.encode())
    return store


def _labels(listing: raw.RawListing) -> dict[str, tuple[str, str | None]]:
    return {image.key: (image.label, image.split) for image in listing.images}


def test_the_first_folder_is_the_label_however_deep_the_image_lies() -> None:
    """Nested folders, spaces and accents are fine; size and etag are the listing's."""
    listing = raw.list_raw(_store("pets/cat/a.png", "pets/cat/x/y/b c.JPG", f"pets/chiot {NFC}/1.webp"), "pets")
    assert _labels(listing) == {
        "pets/cat/a.png": ("cat", None),
        "pets/cat/x/y/b c.JPG": ("cat", None),
        f"pets/chiot {NFC}/1.webp": (f"chiot {NFC}", None),
    }
    assert [image.size for image in listing.images] == [len(image.key.encode()) for image in listing.images]
    assert all(image.etag for image in listing.images)
    assert (dict(listing.skipped), listing.problems) == ({}, [])


def test_what_is_no_candidate_is_counted_by_reason() -> None:
    """System files, hidden folders and texts are counted; an image in no class folder is a problem with its key."""
    keys = ["cat/a.png", "cat/Thumbs.db", "cat/.DS_Store", ".cache/b.png", "__MACOSX/._a.png", "notes.txt", "c.png"]
    listing = raw.list_raw(_store(*(f"pets/{key}" for key in keys)), "pets")
    assert list(_labels(listing)) == ["pets/cat/a.png"]
    assert listing.skipped == {raw.HIDDEN: 4, raw.NOT_AN_IMAGE: 1}
    assert listing.problems == [("pets/c.png", "in no class folder: move it into pets/<class>/")]


def test_other_datasets_are_not_listed() -> None:
    """A dataset whose name begins alike stays out, and a dataset without a single object is not found."""
    store = _store("pets/cat/a.png", "pets2/cat/b.png")
    assert list(_labels(raw.list_raw(store, "pets"))) == ["pets/cat/a.png"]
    with pytest.raises(NotFound, match="No images are stored for the dataset 'pet'"):
        raw.list_raw(store, "pet")


def test_unicode_forms_of_one_name_are_one_class_and_cases_are_two() -> None:
    """Folders that look alike because of Unicode forms give one label; Cat and cat give two."""
    listing = raw.list_raw(_store(f"p/{NFC}/a.png", f"p/{NFD}/b.png", "p/Cat/c.png", "p/cat/d.png"), "p")
    assert sorted({image.label for image in listing.images}) == ["Cat", "cat", NFC]


def test_a_class_may_be_called_labels_csv() -> None:
    """A folder named labels.csv is a class like any other."""
    listing = raw.list_raw(_store("pets/labels.csv/a.png", "pets/cat/b.png"), "pets")
    assert {image.label for image in listing.images} == {"labels.csv", "cat"}


def test_labels_csv_decides_alone() -> None:
    """With labels.csv the folders' names count for nothing, and images that it does not name are counted."""
    table = "key,label,split\ncat/a.png,dog,train\nx.png,bird,\n"
    listing = raw.list_raw(_store("pets/cat/a.png", "pets/x.png", "pets/cat/b.png", "pets/n.txt", table=table), "pets")
    assert _labels(listing) == {"pets/cat/a.png": ("dog", "train"), "pets/x.png": ("bird", None)}
    assert listing.skipped == {raw.NOT_NAMED: 1, raw.NOT_AN_IMAGE: 1}
    assert listing.problems == []


def test_a_row_that_cannot_count_is_a_problem_of_its_key() -> None:
    """The image is left out, named with the reason, and not counted as unnamed as well."""
    table = "key,label,split\nb.png,dog\na.png,cat\na.png,dog\n"
    listing = raw.list_raw(_store("pets/a.png", "pets/b.png", table=table), "pets")
    assert _labels(listing) == {"pets/b.png": ("dog", None)}
    assert listing.problems == [("pets/a.png", "labels.csv contradicts itself: 'cat' and 'dog'")]
    assert not listing.skipped


def test_an_unreadable_labels_csv_is_named_with_its_dataset() -> None:
    """A person learns which dataset's table cannot be read, and why."""
    with pytest.raises(InvalidInput, match=r"^pets/labels\.csv has no column 'key'"):
        raw.list_raw(_store("pets/a.png", table="filename,label\na.png,cat\n"), "pets")


def test_rows_without_an_image_are_problems() -> None:
    """A key that is not stored, leads out of the dataset, or is empty is named with its reason."""
    table = "key,label\na.png,cat\ngone.png,cat\n../other/x.png,cat\n,dog\n"
    listing = raw.list_raw(_store("pets/a.png", "other/x.png", table=table), "pets")
    missing = "labels.csv names it, but it is not stored"
    assert dict(listing.problems) == {
        "pets/": "labels.csv has a row without a key",
        "pets/gone.png": missing,
        "pets/../other/x.png": missing,
    }
    assert list(_labels(listing)) == ["pets/a.png"]


def test_keys_match_whatever_their_unicode_form() -> None:
    """A table in one Unicode form names an object stored in the other."""
    listing = raw.list_raw(_store(f"pets/{NFD}.png", table=f"key,label\n{NFC}.png,{NFD}\n"), "pets")
    assert _labels(listing) == {f"pets/{NFD}.png": (NFC, None)}


@given(
    st.text(st.characters(exclude_characters="/"), min_size=1),
    st.text(st.characters(exclude_characters="/"), min_size=1),
)
def test_different_names_get_different_keys(one: str, other: str) -> None:
    """Escaping never makes one key of two names, but Unicode forms of one name do share it."""
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert (raw.raw_key("d", one) == raw.raw_key("d", other)) == same


@given(st.binary(min_size=1, max_size=20).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_every_file_name_makes_a_key_that_a_store_takes(name: bytes) -> None:
    """Whatever bytes a file name is made of, its key can be put, listed and read."""
    key = raw.raw_key("pets", name.decode(errors="surrogateescape"))
    store = _store(key)
    assert [item.key for item in store.listing("pets")] == [key]
    assert store.get(key) == key.encode()


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("cat/a b.png", "d/cat/a b.png"),
        (f"{NFD}.png", f"d/{NFC}.png"),
        ("a\\b.png", "d/a%5Cb.png"),
        ("a%5Cb.png", "d/a%255Cb.png"),
        ("100%.png", "d/100%.png"),
        ("a\nb.png", "d/a%0Ab.png"),
        ("../x.png", "d/%2E%2E/x.png"),
        (b"\xff.png".decode(errors="surrogateescape"), "d/%FF.png"),
    ],
)
def test_keys_are_the_names_where_a_store_can_carry_them(path: str, key: str) -> None:
    """Names stay as they are but for Unicode form and what stores cannot carry."""
    assert raw.raw_key("d", path) == key


def test_lengths_that_stores_refuse_are_known() -> None:
    """A key of 1,024 bytes in parts of 255 fits; a byte more in either does not."""
    assert raw.fits_store("/".join(["a" * 255] * 4))
    assert not raw.fits_store("/".join(["a" * 255] * 4) + "/b")
    assert not raw.fits_store("d/" + "é" * 128)


@pytest.mark.parametrize("name", ["Cats", "", "a/b", "-a", "ä", "a" * 64])
def test_a_name_that_no_dataset_can_have_is_one_sentence(name: str) -> None:
    """The sentence says what a name is made of."""
    with pytest.raises(InvalidInput, match="cannot name a dataset: use 1 to 63 of a-z, 0-9, - and _"):
        raw.check_dataset_name(name)
