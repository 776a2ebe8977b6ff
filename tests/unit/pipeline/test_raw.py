import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from pipeline import raw
from pipeline.errors import InvalidInput, NotFound
from pipeline.raw import LabelRow
from pipeline.store import Store

NFC = "é"
NFD = "e\u0301"


def _store(*keys: str, table: str | bytes | None = None) -> Store:
    store = Store(MemoryStore(), "memory://", patience_s=0)
    for key in keys:
        store.put(key, key.encode())
    if table is not None:
        store.put("pets/labels.csv", table if isinstance(table, bytes) else table.encode())
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


@pytest.mark.parametrize(
    "table",
    [
        "key,label,split\r\na.png,cat,test\r\n",
        "\ufeffkey,label,split\na.png,cat,test",
        "\ufeffsplit,KEY , Label\r\ntest,a.png,cat\r\n",
        "key;label;split\na.png;cat;test\n",
        "key\tlabel\tsplit\n\na.png\tcat\ttest\n\n",
        'key,label,split,remark\n"a.png","cat",test,"a, b"\n',
        "key,label,split\ra.png,cat,test\r",
        "label,split,key\n cat , Test , ./a.png \n",
        "key,label,split\n\\a.png,cat,test\na.png,cat,test\n",
    ],
)
def test_labels_csv_is_read_as_people_save_it(table: str) -> None:
    """Byte order mark, any line end, order, delimiter, quotes, case, blanks and repeated rows change nothing."""
    listing = raw.list_raw(_store("pets/a.png", table=table), "pets")
    assert _labels(listing) == {"pets/a.png": ("cat", "test")}
    assert listing.problems == []


@pytest.mark.parametrize("split", ["val", "valid", "Validation"])
def test_all_names_of_the_validation_split_are_one(split: str) -> None:
    """What people call the validation split is understood."""
    listing = raw.list_raw(_store("pets/a.png", table=f"key,label,split\na.png,cat,{split}\n"), "pets")
    assert _labels(listing) == {"pets/a.png": ("cat", "validation")}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("a.png,cat\na.png,dog", "labels.csv contradicts itself: 'cat' and 'dog'"),
        ("a.png,cat,train\na.png,cat,test", "labels.csv contradicts itself: 'cat' in train and 'cat' in test"),
        ("a.png,", "labels.csv gives it no label"),
        ("a.png", "labels.csv gives it no label"),
        ("a.png,cat,dev", "labels.csv gives it the split 'dev', which is none of train, validation, test"),
        ('a.png,"c\x07at"', "labels.csv gives it a label with control characters"),
    ],
)
def test_a_row_that_cannot_count_is_a_problem_of_its_key(rows: str, reason: str) -> None:
    """The image is left out, named with the reason, and not counted as unnamed as well."""
    table = f"key,label,split\nb.png,dog\n{rows}\n"
    listing = raw.list_raw(_store("pets/a.png", "pets/b.png", table=table), "pets")
    assert _labels(listing) == {"pets/b.png": ("dog", None)}
    assert listing.problems == [("pets/a.png", reason)]
    assert not listing.skipped


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


def test_labels_in_a_table_may_be_anything_printable() -> None:
    """A label is text, not a path: dots, slashes and commas are kept."""
    table = 'key,label\na.png,..\nb.png,"T-shirt/top, red"\n'
    listing = raw.list_raw(_store("pets/a.png", "pets/b.png", table=table), "pets")
    assert {image.label for image in listing.images} == {"..", "T-shirt/top, red"}


def test_keys_match_whatever_their_unicode_form() -> None:
    """A table in one Unicode form names an object stored in the other."""
    listing = raw.list_raw(_store(f"pets/{NFD}.png", table=f"key,label\n{NFC}.png,{NFD}\n"), "pets")
    assert _labels(listing) == {f"pets/{NFD}.png": (NFC, None)}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"", "has no column 'key'"),
        (b"filename,label\na.png,cat\n", "has no column 'key'.* it is 'filename,label'"),
        (b"key,class\na.png,cat\n", "has no column 'label'"),
        ("key,label\na.png,caf\u00e9\n".encode("latin-1"), "is not UTF-8 text: save it as CSV in UTF-8"),
        ("key,label\na.png,cat\n".encode("utf-16"), "is not UTF-8 text"),
        (b"key,label\na.png," + b"x" * 200_000, "line 2: field larger than field limit"),
        (b'key,label\na.png,cat\n"b.png,dog\nc.png,cat\n', r"line 3: a quote \(\"\) is opened there and not closed"),
        (b'key,label\na.png,"cat\nb.png,dog\nc.png,"cat"\n', "line 2: a quote"),
        (b'key,label,note\na.png,cat,"nice\n' + b"b.png,dog,\n" * 20_000, "line 2: a quote"),
        (b'key,label\r\na.png,cat\r\n"b\r\nc.png",dog\r\n', "line 3: a quote"),
        (b'key,label\n"5" nail.png,cat\n', "line 2: a quote"),
    ],
)
def test_an_unreadable_labels_csv_is_one_sentence(table: bytes, message: str) -> None:
    """What is wrong with the file is said with its name, and with the column or line."""
    with pytest.raises(InvalidInput, match=rf"^pets/labels\.csv.*{message}"):
        raw.list_raw(_store("pets/a.png", table=table), "pets")


@given(
    st.lists(
        st.builds(
            LabelRow,
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(raw._tidy),  # noqa: SLF001
            st.text(st.characters(exclude_categories=["Cs", "Cc"])).map(
                lambda text: unicodedata.normalize("NFC", text)
            ),
            st.sampled_from(["", "train", "test"]),
        )
    )
)
def test_written_labels_are_read_back(rows: list[LabelRow]) -> None:
    """Commas, quotes and any letters survive writing and reading."""
    stripped = [LabelRow(row.key.strip(), row.label.strip(), row.split) for row in rows]
    kept = [row for row in stripped if row.key == raw._tidy(row.key) and (row.key or row.label or row.split)]  # noqa: SLF001
    assert list(raw.read_labels(raw.write_labels(kept))) == kept


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


def test_a_note_may_have_several_lines() -> None:
    """A quoted cell of another column may hold line ends: the rows around it are read as they are."""
    table = b'key,note,label\na.png,"one\ntwo",cat\nb.png,"say ""hi""",dog\n'
    assert [(row.key, row.label) for row in raw.read_labels(table)] == [("a.png", "cat"), ("b.png", "dog")]
