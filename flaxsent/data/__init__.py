"""Files as records and back, and the labels in them.

`records.py` reads any format as a stream of records (`text_files.py`, `parquet.py`), `writers.py` writes them with more
columns, and `labels.py` says what the labels of a file mean.
"""
