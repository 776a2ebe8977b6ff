"""Reading a Parquet file that is in memory, by the thread that asks for it.

Not by ``pyarrow.parquet.read_table``: threads of its own are still at work for a moment after the table is there, and a
process that ends in that moment is aborted (https://github.com/apache/arrow/issues/34314), one in some forty commands.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def read_table(data: bytes, columns: Sequence[str] | None = None, *, verify: bool = False) -> pa.Table:
    """The rows of a file.

    Args:
        data: the whole file.
        columns: which ones; by default all.
        verify: compare each page with its checksum, where the file has them.

    Raises:
        ArrowInvalid: it is no Parquet file, or has no such column.
        OSError: a page is not what was written.
    """
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=verify) as file:
        return file.read(None if columns is None else list(columns), use_threads=False)
