import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import labels_table
from pipeline.artifacts import Split
from pipeline.errors import InvalidInput
from pipeline.labels_table import LabelRow


def _settled(table: str) -> tuple[dict[str, tuple[str, Split | None]], dict[str, str]]:
    return labels_table.settle_labels(labels_table.read_labels(table.encode()))


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
    assert _settled(table) == ({"a.png": ("cat", "test")}, {})


@pytest.mark.parametrize("split", ["val", "valid", "Validation"])
def test_all_names_of_the_validation_split_are_one(split: str) -> None:
    """What people call the validation split is understood."""
    assert _settled(f"key,label,split\na.png,cat,{split}\n") == ({"a.png": ("cat", "validation")}, {})


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
def test_a_row_that_cannot_count_is_refused_by_its_key(rows: str, reason: str) -> None:
    """The key has no label, but the reason why; other rows count."""
    assert _settled(f"key,label,split\nb.png,dog\n{rows}\n") == ({"b.png": ("dog", None)}, {"a.png": reason})


def test_labels_in_a_table_may_be_anything_printable() -> None:
    """A label is text, not a path: dots, slashes and commas are kept."""
    table = 'key,label\na.png,..\nb.png,"T-shirt/top, red"\n'
    assert _settled(table) == ({"a.png": ("..", None), "b.png": ("T-shirt/top, red", None)}, {})


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
        list(labels_table.read_labels(table, "pets/labels.csv"))


@given(
    st.lists(
        st.builds(
            LabelRow,
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(labels_table._tidy),  # noqa: SLF001
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
    kept = [row for row in stripped if row.key == labels_table._tidy(row.key) and (row.key or row.label or row.split)]  # noqa: SLF001
    assert list(labels_table.read_labels(labels_table.write_labels(kept))) == kept


def test_a_note_may_have_several_lines() -> None:
    """A quoted cell of another column may hold line ends: the rows around it are read as they are."""
    table = b'key,note,label\na.png,"one\ntwo",cat\nb.png,"say ""hi""",dog\n'
    assert [(row.key, row.label) for row in labels_table.read_labels(table)] == [("a.png", "cat"), ("b.png", "dog")]
