"""Tables in memory: of pandas, pyarrow, polars and `datasets`, and the names of classes that they hold."""

import json
import sys

import jaxtyping
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.data.annotations import read_annotations
from flaxsent.data.labels import Task, read_examples, resolve, to_examples
from flaxsent.data.records import read_texts, texts_of
from flaxsent.data.tables import elements, is_table
from flaxsent.evaluation.report import logits_of, measure, read_data
from flaxsent.files import MissingPackageError

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
COLUMNS = {"id": [7, 8, 9], "text": ["so good", "so bad", "이 영화 😀"], "label": ["POSITIVE", "NEGATIVE", "POSITIVE"]}


def arrow():
    return pa.table(COLUMNS)


def reader():
    return pa.RecordBatchReader.from_batches(arrow().schema, arrow().to_batches(max_chunksize=2))


def large():
    kinds = {"id": pa.int64(), "text": pa.large_string(), "label": pa.dictionary(pa.int8(), pa.string())}
    return pa.table({name: pa.array(values, kinds[name]) for name, values in COLUMNS.items()})


def views():
    return pa.table({"text": pa.array(COLUMNS["text"], pa.string_view()), "label": COLUMNS["label"]})


class Capsule:
    """Nothing but the interface."""

    def __arrow_c_stream__(self, requested_schema=None):
        return arrow().__arrow_c_stream__(requested_schema)


def pandas():
    return pytest.importorskip("pandas").DataFrame(COLUMNS, index=[5, 3, 4])


def pandas_of_objects():
    """A column that nobody asks for has values of several kinds, and a name is there twice."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(COLUMNS | {"other": ["x", 1, None]}, dtype=object)
    return pd.concat([frame, frame[["other"]]], axis=1)


def polars():
    return pytest.importorskip("polars").DataFrame(COLUMNS)


def dataset():
    return pytest.importorskip("datasets").Dataset.from_dict(COLUMNS)


def streamed_dataset():
    return dataset().to_iterable_dataset(num_shards=2)


TABLES = (arrow, reader, large, views, Capsule, pandas, pandas_of_objects, polars, dataset, streamed_dataset)
EXAMPLES = (COLUMNS["text"], [1, 0, 1])


@pytest.mark.parametrize("make", TABLES)
def test_every_table_gives_the_same_examples(make):
    assert is_table(make())
    assert read_texts(make()) == COLUMNS["text"]
    assert [*texts_of(make())] == COLUMNS["text"]
    assert read_examples(make(), labels=("NEGATIVE", "POSITIVE"), problem_type=SINGLE) == EXAMPLES
    annotations = read_annotations(make())
    assert (annotations.file, annotations.numbers) == ("the table", [1, 2, 3])
    with pytest.raises(FlaxsentError, match=r"^the table has the columns .*; expected body\.$"):
        read_texts(make(), ("body",))


def columns():
    """Columns of texts, each of which is iterable by itself or not."""
    text = COLUMNS["text"]
    yield pa.chunked_array([text[:1], [], text[1:]])
    yield pa.array(text, pa.large_string())
    yield pa.array(text).dictionary_encode()
    yield arrow()["text"]
    for name, of in (("pandas", "Series"), ("polars", "Series")):
        if (module := sys.modules.get(name)) is not None:
            yield getattr(module, of)(text)
    if (module := sys.modules.get("datasets")) is not None:
        yield module.Dataset.from_dict(COLUMNS)["text"]


def test_a_column_is_a_list_of_texts():
    for name in ("pandas", "polars", "datasets"):
        try:
            __import__(name)
        except ImportError:
            continue
    for column in columns():
        assert not is_table(column), type(column)
        assert [*elements(column)] == COLUMNS["text"]


def test_classify_takes_lists_columns_and_tables(embedded):
    expected = flaxsent.classify(COLUMNS["text"], embedded)
    for texts in (*columns(), arrow(), Capsule()):
        assert flaxsent.classify(texts, embedded) == expected
    renamed = arrow().rename_columns(["id", "a", "b"])
    assert flaxsent.classify(renamed, embedded, text_columns=("a",)) == expected
    pairs = [*zip(COLUMNS["text"], COLUMNS["label"], strict=True)]
    assert flaxsent.classify(renamed, embedded, text_columns=("a", "b")) == flaxsent.classify(pairs, embedded)
    with pytest.raises(FlaxsentError, match="the table has the columns id, a, b; expected text"):
        flaxsent.classify(renamed, embedded)
    with pytest.raises(FlaxsentError, match="the table row 2 has no text in the column 'text'"):
        flaxsent.classify(pa.table({"text": ["a", None]}), embedded)


def test_the_engine_and_tokenize_take_columns_and_refuse_tables(embedded, monkeypatch):
    with flaxsent.Engine(embedded) as engine:
        expected = engine(COLUMNS["text"])
        assert (engine(arrow()["text"]) == expected).all()
        assert [scores.tolist() for scores in engine.stream(texts_of(arrow()))] == expected.tolist()
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or conftest's type checks would speak first
        with pytest.raises(TypeError, match=r"expected texts, got a table; pass its column, table\['text'\]"):
            engine(arrow())
    assert embedded.tokenize(arrow()["text"]).input_ids.shape[0] == 3
    with pytest.raises(TypeError, match="got a table"):
        embedded.tokenize(arrow())


def test_a_table_is_evaluated_as_a_file_is(embedded, tmp_path):
    pq.write_table(arrow(), tmp_path / "x.parquet")
    found = [read_data(source, embedded.config) for source in (arrow(), tmp_path / "x.parquet")]
    reports = [measure(logits_of(embedded, data), data.targets, embedded.config) for data in found]
    assert reports[0].figures == reports[1].figures


def test_what_is_no_table_of_texts_is_told():
    with pytest.raises(FlaxsentError, match="the table has values of type int64 in the column 'id'; expected text"):
        read_texts(arrow(), ("id",))
    with pytest.raises(
        FlaxsentError, match=r"expected one table, got several: train, test; pass one .* data\['train'\]"
    ):
        read_texts({"train": arrow(), "test": arrow()})
    with pytest.raises(FlaxsentError, match="the table has the column 'text' twice"):
        read_texts(pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]))
    with pytest.raises(FlaxsentError, match="the table has no rows; expected at least one"):
        read_texts(arrow().slice(0, 0))
    with pytest.raises(FlaxsentError, match="the table row 2 has no label in the column 'label'"):
        read_annotations(pa.table({"text": ["a", "b"], "label": ["x", None]}))


def test_a_str_is_no_list_of_names_and_a_list_no_table():
    with pytest.raises(TypeError, match=r"expected the names of columns, got one str: 'text'; pass \('text',\)"):
        read_texts(arrow(), "text")
    with pytest.raises(TypeError, match="got one str: 'label'"):
        read_annotations(arrow(), label_columns="label")
    with pytest.raises(TypeError, match="expected a file or a table, got one of type list"):
        read_texts(["so good"])


def test_a_column_of_several_kinds_of_values_is_told():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": ["a", "b"], "label": pd.Series(["x", 1], dtype=object)})
    with pytest.raises(FlaxsentError, match=r"the table cannot be read: .* such as table\[column\].astype\(str\)"):
        read_annotations(frame)


def test_without_pyarrow_a_table_names_the_command(monkeypatch):
    table = Capsule()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r'a table needs pyarrow, .*: pip install "flaxsent\[data\]"'):
        read_texts(table)


# names of classes


def with_classes(names, values, *, many=False):
    """A table as `datasets` writes it, made without it."""
    feature = {"names": names, "_type": "ClassLabel"}
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"feature": feature, "_type": "List"} if many else feature,
    }
    table = pa.table({"text": [f"text {index}" for index in range(len(values))], "label": values})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def test_classes_keep_their_names_in_their_order_in_tables_and_parquet(tmp_path):
    table = with_classes(["ham", "spam", "never"], [1, 0, 1])
    pq.write_table(table, tmp_path / "x.parquet")
    for source in (table, tmp_path / "x.parquet"):
        found = read_annotations(source)
        assert found.labels == ["spam", "ham", "spam"]
        task = resolve(found, known=Task(("NEGATIVE", "POSITIVE", "NEUTRAL"), SINGLE))
        assert task == (("ham", "spam", "never"), SINGLE)
        assert to_examples(found, **task._asdict()).labels == [1, 0, 1]
        assert resolve(found, known=Task(("spam", "never", "ham"), SINGLE)).labels == ("spam", "never", "ham")
        assert to_examples(found, labels=("spam", "never", "ham"), problem_type=SINGLE).labels == [0, 2, 0]
    several = read_annotations(with_classes(["a", "b"], [[0], [], [0, 1]], many=True))
    assert resolve(several) == (("a", "b"), MULTI)
    assert to_examples(several, labels=("b", "a"), problem_type=MULTI).labels == [(1,), (), (0, 1)]


def test_classes_of_datasets_itself_keep_their_names():
    datasets = pytest.importorskip("datasets")
    one, many = datasets.ClassLabel(names=["b", "a"]), datasets.Sequence(datasets.ClassLabel(names=["x", "y"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": one, "many": many})
    data = datasets.Dataset.from_dict({"text": ["t", "u"], "label": [1, 0], "many": [[1], []]}, features=features)
    for source in (data, data.to_iterable_dataset(), data.select([1, 0]).select([1, 0])):
        assert read_annotations(source).labels == ["a", "b"]
        assert resolve(read_annotations(source)).labels == ("b", "a")
        assert read_annotations(source, label_column="many").labels == [("y",), ()]


def test_classes_that_are_written_otherwise_are_the_models_by_name_or_else_in_order(caplog):
    found = read_annotations(with_classes(["positive", "negative"], [0, 1]))
    assert to_examples(found, labels=("NEGATIVE", "POSITIVE"), problem_type=SINGLE).labels == [1, 0]
    assert not caplog.records
    found = read_annotations(with_classes(["neg", "pos"], [0, 1]))
    assert to_examples(found, labels=("NEGATIVE", "POSITIVE"), problem_type=SINGLE).labels == [0, 1]
    assert "the classes neg, pos are taken for the labels NEGATIVE, POSITIVE, in this order" in caplog.text
    with pytest.raises(FlaxsentError, match="the table row 1 has the label 'neg': 'neg' is unknown"):
        to_examples(found, labels=("a", "b", "c"), problem_type=SINGLE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, -1], "the table row 2 has no label, but -1"),
        ([0, None], "the table row 2 has no label in the column 'label'"),
        ([0, 2], "the table row 2 has the class '2'; expected 0 to 1"),
        ([0.0, 0.5], r"the table row 2 has the class '0\.5'; expected 0 to 1"),
    ],
)
def test_numbers_that_are_no_class_are_told(values, message):
    with pytest.raises(FlaxsentError, match=message):
        read_annotations(with_classes(["a", "b"], values))


@pytest.mark.parametrize(
    "told",
    [
        "",
        "[]",
        "{",
        '{"info": {"features": {"label": {"names": "ab"}}}}',
        '{"info": {"features": {"label": []}}}',
        "[" * 99_999,
    ],
)
def test_metadata_that_names_no_classes_is_passed_over(told):
    table = pa.table({"text": ["a", "b"], "label": [0, 1]}).replace_schema_metadata({"huggingface": told})
    assert read_annotations(table).labels == ["0", "1"]
