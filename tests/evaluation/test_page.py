"""`evaluate --report`, `--by` and `--compare`: one page in which nothing of a file is more than text."""

import html.parser
import json
import re
import shutil

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.evaluation import comparison, intervals, page
from flaxsent.evaluation.report import Data, Group, measure, measure_scores
from flaxsent.evaluation.suspects import Suspect
from tests.evaluation.conftest import MULTI, REGRESSION, TEXTS, config_of, figures, mostly_right, run, write_csv

HOSTILE = '</p><script>alert("1")</script><img src=x onerror=alert(1)>&amp;\x00\u202e\ud800\'"'


@pytest.fixture
def few_draws(monkeypatch):
    """Of intervals, which their own tests look at."""
    monkeypatch.setattr(intervals, "_MOST", 20)


class Page(html.parser.HTMLParser):
    """Refuses what is not one of the page's own tags and attributes; keeps the text."""

    OWN = frozenset(
        {
            *(
                "html",
                "meta",
                "title",
                "style",
                "h1",
                "h2",
                "h3",
                "section",
                "p",
                "b",
                "span",
                "div",
                "table",
                "tr",
                "th",
            ),
            *("td", "svg", "g", "rect", "circle", "path", "small"),
        }
    )
    UNCLOSED = frozenset({"meta", "html"})

    def __init__(self, content):
        super().__init__()
        self.open, self.text = [], []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag in self.OWN, tag
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href", "data")], attrs
        if tag not in self.UNCLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in self.OWN, tag

    def handle_endtag(self, tag):
        if tag not in self.UNCLOSED:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({}, id="one label"),
        pytest.param(MULTI, id="several labels", marks=pytest.mark.slow),
        pytest.param(REGRESSION, id="regression", marks=pytest.mark.slow),
    ],
)
def test_a_page_has_all_that_is_found(few_draws, capsys, model, tmp_path, kind):
    folder, classifier, scores = model(**kind)
    names = classifier.config.labels
    if kind == MULTI:
        cells = [json.dumps([names[c] for c in np.flatnonzero(row > np.median(scores, axis=0))]) for row in scores]
    else:
        cells = scores[:, 0] + 0.5 if kind else [names[index] for index in mostly_right(scores)]
    rows = [(text, cell, "ab<"[index % 3]) for index, (text, cell) in enumerate(zip(TEXTS, cells, strict=True))]
    file = write_csv(tmp_path / "data.csv", rows, ("text", "label", "part"))
    options = ["--by", "part", "--report", tmp_path / "report.html"]
    told = figures(capsys, folder, file, *options)
    content = (tmp_path / "report.html").read_text()
    shown = "\n".join(Page(content).text)
    assert "prefers-color-scheme: dark" in content
    assert f"{len(TEXTS)} texts" in shown
    for name in ("accuracy", "micro_f1", "matthews") if kind != REGRESSION else ("pearson", "mean_squared_error"):
        if name in told:
            assert f"{told[name]:.4f}" in shown
    expected = [
        "Figures",
        "By length in tokens",
        "By part",
        "Furthest off" if kind == REGRESSION else "Surest mistakes",
    ]
    expected += [] if kind == REGRESSION else ["By label", "Reliability"]
    expected += ["Confusion", "Labels that may be wrong"] if not kind else []
    assert set(expected) == set(re.findall("<h2>(.*?)</h2>", content))
    assert '<span class="' in content, "words are coloured"
    assert [one["num_texts"] for one in told["by"]["groups"]] == [20, 20, 20]


def test_nothing_of_a_file_is_more_than_text(few_draws, capsys, tiny_folder, tmp_path):
    names = {"0": HOSTILE.replace("\x00", "").replace("\ud800", ""), "1": "STYLE BODY TITLE", "2": "{c}"}
    folder = tiny_folder("bert", num_hidden_layers=1, id2label=names)
    texts = [HOSTILE.replace("\x00", "").replace("\ud800", "") + f" {index} so good" for index in range(8)]
    column = "<script>col</script>"
    file = tmp_path / "BODY<script>&.jsonl"
    lines = [json.dumps({"text": one, "label": names["1"], column: one[:20]}) for one in texts]
    file.write_text("\n".join(lines) + "\n")
    other = shutil.copytree(folder, tmp_path / "<img src=x>")
    options = ["--by", column, "--compare", other, "--report", tmp_path / "report.html"]
    code, _, err = run(capsys, "evaluate", "--model", folder, "--data", file, *options)
    assert (code, err.count("truncated")) == (0, 2), "by each of the models"
    content = (tmp_path / "report.html").read_text()
    shown = "".join(Page(content).text)
    for hostile in ("<script>alert", "<img src=x", column, "BODY<script>&.jsonl", "STYLE BODY TITLE"):
        assert hostile in shown
    assert not set(content) & set("\x00\u202e\ud800")


def test_a_page_escapes_what_no_file_can_hold():
    config = config_of(id2label={"0": HOSTILE, "1": "b"})
    scores, targets = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32), np.array([1, 1])
    report = measure_scores(scores, targets, config)
    data = Data("x", [2, 3], [HOSTILE, (HOSTILE, HOSTILE)], targets)
    content = page.Content(
        model=HOSTILE,
        file=HOSTILE,
        report=report,
        intervals={},
        mistakes=page.mistakes(scores, data, config),
        explanations={},
        unexplained=HOSTILE,
        groups=[Group(HOSTILE, 2, report.figures)],
        by=HOSTILE,
        suspects=[Suspect(2, HOSTILE, HOSTILE, -0.5, HOSTILE)],
        num_suspects=1,
        compared=page.Compared(
            HOSTILE,
            report,
            comparison.compare(np.array([True, False]), np.array([True, True])),
            [comparison.Difference(2, HOSTILE, HOSTILE, HOSTILE, (HOSTILE, HOSTILE))],
        ),
    )
    rendered = page.render(content)
    assert "".join(Page(rendered).text).count("<script>alert") == rendered.count("&lt;script&gt;alert") > 15
    assert "<script" not in rendered
    assert not set(rendered) & set("\x00\u202e\ud800")


def test_words_that_cannot_be_coloured_are_told_why(few_draws, capsys, model, tmp_path, symbolic_sizes):
    _, classifier, scores = model()
    flaxsent.export(classifier, tmp_path / "exported", platforms=["cpu"])
    labels = [classifier.config.labels[index] for index in mostly_right(scores)]
    file = write_csv(tmp_path / "data.csv", zip(TEXTS, labels, strict=True))
    figures(capsys, tmp_path / "exported", file, "--report", tmp_path / "report.html")
    assert "Words are not coloured: " in (tmp_path / "report.html").read_text()


def test_many_labels_have_their_most_frequent_mistakes_listed():
    config = config_of(id2label={str(index): f"L{index}" for index in range(40)})
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(40), 300).astype(np.float32)
    report = measure_scores(scores, rng.integers(0, 40, 300), config)
    shown = "".join(Page(page.render(page.Content("m", "f", report, {}, [], {}))).text)
    assert "Of 40 labels, the most frequent mistakes:" in shown
    assert "label \\ predicted" not in shown


# Mistakes


def test_the_surest_mistakes_come_first():
    config = config_of(id2label={"0": "a", "1": "b"})
    scores = np.array([[0.9, 0.1], [0.3, 0.7], [0.05, 0.95], [0.6, 0.4]], np.float32)
    found = page.mistakes(scores, Data("x", [2, 3, 4, 5], ["p", "q", "r", "s"], np.array([1, 0, 1, 0])), config)
    assert [(one.record, one.own, one.said, one.label) for one in found] == [(2, "b", "a", "a"), (3, "a", "b", "b")]
    config = config_of(**MULTI, id2label={"0": "a", "1": "b"}, id2threshold={"0": 0.5, "1": 0.2})
    targets = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], np.float32)
    found = page.mistakes(scores, Data("x", [2, 3, 4, 5], ["p", "q", "r", "s"], targets), config)
    assert [(one.record, one.own, one.said, one.label) for one in found] == [
        (2, "a, b", "a", None),  # 0.1 is below 0.2: it is 0.9 sure that b is not one
        (3, "a", "b", None),
        (5, "–", "a, b", "a"),
    ]
    np.testing.assert_allclose([one.score for one in found], [0.9, 0.7, 0.6])


# Intervals


def test_intervals_are_those_of_a_plain_loop():
    rng = np.random.default_rng(3)
    config = config_of(id2label={"0": "a", "1": "b", "2": "c"})
    logits = rng.standard_normal((80, 3)).astype(np.float32)
    labels = mostly_right(logits, share=0.6)
    scores = scipy.special.softmax(logits.astype(np.float64), axis=1)
    found = intervals.intervals(scores, labels, config, abstain_below=0.6, seed=5)
    again, drawn = np.random.default_rng(5), []
    for _ in range(1000):
        chosen = again.integers(80, size=80)
        best, own = scores[chosen].argmax(axis=1), labels[chosen]
        loss = sklearn.metrics.log_loss(own, scores[chosen], labels=[0, 1, 2])
        f1 = sklearn.metrics.f1_score(own, best, average="macro")
        drawn.append((np.mean(best == own), f1, loss, np.mean(scores[chosen].max(axis=1) >= 0.6)))
    for name, values in zip(("accuracy", "macro_f1", "log_loss", "coverage"), np.array(drawn).T, strict=True):
        assert found[name] == pytest.approx(np.percentile(values, (2.5, 97.5)), abs=1e-6), name
    right = (scores.argmax(axis=1) == labels).astype(float)
    theirs = scipy.stats.bootstrap((right,), np.mean, method="percentile", n_resamples=2000, rng=0).confidence_interval
    # A step of one text of 80 is 0.0125; two runs of draws differ by one at most.
    assert found["accuracy"] == pytest.approx(tuple(theirs), abs=0.0126)


def test_figures_that_no_draw_has_have_no_interval():
    config = config_of(**REGRESSION)
    found = intervals.intervals(np.ones((3, 1), np.float32), np.zeros((3, 1), np.float32), config)
    assert np.isnan(found["pearson"]).all()
    assert found["mean_squared_error"] == (1, 1)


# Comparison


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (0, 7), (5, 5), (12, 30), (400, 460)])
def test_mcnemars_test_is_scipys_and_statsmodels(only_first, only_second):
    first = np.repeat([True, True, False, False], [9, only_first, only_second, 4])
    second = np.repeat([True, False, True, False], [9, only_first, only_second, 4])
    found = comparison.compare(first, second)
    assert found[:4] == (9, only_first, only_second, 4)
    # statsmodels.stats.contingency_tables.mcnemar, written out: exact, and with its correction for continuity.
    differing = only_first + only_second
    if not differing:
        assert (found.exact_p, found.p) == (1, 1)
        assert np.isnan(found.statistic)
        return
    exact = min(1, 2 * scipy.stats.binom.cdf(min(only_first, only_second), differing, 0.5))
    assert found.exact_p == pytest.approx(exact)
    assert found.statistic == pytest.approx((abs(only_first - only_second) - 1) ** 2 / differing)
    assert found.p == pytest.approx(scipy.stats.chi2.sf(found.statistic, 1))


@pytest.mark.parametrize("kind", [{}, MULTI], ids=["one label", "several labels"])
def test_two_models_are_compared_whatever_the_order_of_their_labels(capsys, model, tiny_folder, tmp_path, kind):
    folder, classifier, scores = model(**kind)
    turned = tiny_folder(
        "bert", num_hidden_layers=1, **kind, id2label={str(index): f"LABEL_{2 - index}" for index in range(3)}
    )
    names = classifier.config.labels
    if kind:
        cells = [json.dumps([names[c] for c in np.flatnonzero(row > 0.5)]) for row in scores]
    else:
        cells = [names[index] for index in mostly_right(scores)]
    file = write_csv(tmp_path / "data.csv", zip(TEXTS, cells, strict=True))
    told = figures(capsys, folder, file, "--compare", turned)["compare"]
    alone = {one: figures(capsys, one, file) for one in (folder, turned)}
    num_right = {one: round(alone[one]["accuracy"] * len(TEXTS)) for one in alone}
    assert told["both"] + told["only_first"] == num_right[folder]
    assert told["both"] + told["only_second"] == num_right[turned]
    assert len(told["differences"]) == told["only_first"] + told["only_second"] > 0
    assert told["figures"]["log_loss"] == pytest.approx(alone[turned]["log_loss"])
    first = told["differences"][0]
    assert first["text"] == TEXTS[first["record"] - 2]
    assert (first["label"] == first["first"]) != (first["label"] == first["second"])
    code, out, _ = run(capsys, "evaluate", "--model", folder, "--data", file, "--compare", turned)
    assert code == 0
    assert f"only this model {told['only_first']:,}, only {turned} {told['only_second']:,}" in out
    assert f"McNemar: exact p {told['exact_p']:.4g}; " in out
    same = figures(capsys, folder, file, "--compare", folder)["compare"]
    assert (same["only_first"], same["exact_p"], same["statistic"], same["differences"]) == (0, 1, None, [])


def test_by_a_column_each_value_has_the_figures_of_its_texts_alone(capsys, model, tmp_path):
    folder, classifier, scores = model()
    labels = mostly_right(scores)
    parts = np.where(np.arange(len(TEXTS)) < 45, "long", "")
    rows = zip(TEXTS, labels, parts, strict=True)
    file = write_csv(tmp_path / "data.csv", rows, ("text", "label", "part"))
    told = figures(capsys, folder, file, "--by", "part")["by"]
    assert told["column"] == "part"
    assert [(one["value"], one["num_texts"]) for one in told["groups"]] == [("long", 45), ("", 15)]
    alone = measure(np.log(scores[:45]), labels[:45], classifier.config).figures
    for name, value in alone.items():
        assert told["groups"][0]["figures"][name] == pytest.approx(value, abs=1e-5)
    code, out, _ = run(capsys, "evaluate", "--model", folder, "--data", file, "--by", "text")
    assert code == 0
    assert re.search(r"\nand \d+ more values of fewer texts\n", out) or len({*TEXTS}) <= 50


MISTAKES = {
    "no such column": (["--by", "part"], "expected part"),
    "no such model": (["--compare", "./nowhere"], "./nowhere is no folder"),
    "report of no kind": (["--report", "report.pdf"], "--report report.pdf: expected a file name that ends in .html"),
    "report in no folder": (["--report", "no/report.html"], "there is no folder no"),
    "other labels": (["--compare", "OTHER"], "expected LABEL_0, LABEL_1, LABEL_2 (single_label_classification)"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(capsys, model, tiny_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    other = tiny_folder("bert", num_hidden_layers=1, id2label={"0": "a", "1": "b"})
    arguments = [other if one == "OTHER" else one for one in arguments]
    file = write_csv(tmp_path / "data.csv", [("a", 0)])
    code, out, err = run(capsys, "evaluate", "--model", model()[0], "--data", file, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_values_are_not_compared():
    with pytest.raises(FlaxsentError, match="a model of regression has values"):
        comparison.check(config_of(**REGRESSION), config_of(**REGRESSION))
