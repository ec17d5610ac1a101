"""Files and tables as records and back, and the labels in them.

`records.py` reads any of them as a stream of records (`streams.py` and `text_files.py`, `parquet.py`, `tables.py`), and
`writers.py` writes them with more columns. `annotations.py` reads the labels, `labels.py` says what they mean, and
`bad_rows.py` sets aside what cannot be used.
"""
