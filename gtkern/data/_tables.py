"""Tables of users and publishers as columns of strings: CSV, gzipped CSV, Parquet; needs pandas."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["TABLES", "import_pandas", "read_columns"]

TABLES = (".csv", ".csv.gz", ".parquet")
"""What the name of a table may end in."""

_NEEDED = "tables need pandas and pyarrow: pip install 'gtkern[language]'"


def import_pandas() -> Any:
    """The library.

    Raises:
        ImportError: pandas is missing; says which extra has it.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(_NEEDED) from error
    return pandas


def read_columns(
    path: pathlib.Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Columns of a table; a missing value is the empty string.

    Args:
        path: of a file in UTF-8 whose name ends in one of TABLES.
        columns: that must be there; None: all of them.
        optional: left out where they are not there.

    Returns:
        By the name of a column its values: str [rows].

    Raises:
        FileNotFoundError: there is no such file. ValueError: the name ends in something else, the
            file cannot be read, or a column is not there; lists those that are. ImportError:
            pandas or pyarrow is missing.
    """
    if not path.name.endswith(TABLES):
        raise ValueError(f"a table's name must end in {', '.join(TABLES)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"expected the table {path}, and it is not there")
    pandas = import_pandas()
    try:
        if path.suffix == ".parquet":
            # whole numbers stay whole beside missing values
            frame = pandas.read_parquet(path, dtype_backend="numpy_nullable")
        else:
            frame = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except ImportError as error:
        raise ImportError(_NEEDED) from error
    except (ValueError, EOFError) as error:
        raise ValueError(f"cannot read the table {path}: {error}") from error
    there = [str(name) for name in frame.columns]
    wanted = there if columns is None else list(columns)
    for name in wanted:
        if name not in there:
            raise ValueError(f"{path} must have the column {name!r}, got {', '.join(there)}")
    wanted += [name for name in optional if name in there and name not in wanted]
    return {
        name: frame.iloc[:, there.index(name)].astype("string").fillna("").to_numpy(dtype=object)
        for name in wanted
    }
