@pytest.fixture
def many(folder, monkeypatch):
    """A folder of inputs, with bad rows, that is many units."""
    monkeypatch.setattr(jobs, "_CHUNK_ROWS", 8)
    (folder / "in").mkdir()
    (folder / "in.csv").rename(folder / "in" / "a.csv")
    (folder / "in" / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "{}\n")
    pq.write_table(pa.table({"text": [*TEXTS, None]}), folder / "in" / "c.parquet", row_group_size=5)
    return folder


def take(engine, folder, name, place, **options):
    """One process's share."""
    job_options = JobOptions(bad_rows=str(folder / f"{name}.jsonl"), is_shared=True, **options)
    return run(plan([str(folder / "in")], str(folder / name), job_options), engine, meet=lambda _: place)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_last_of_several_processes_completes_the_folder(many, engine, monkeypatch, order):
    assert do(engine, many / "in", many / "one", bad_rows=str(many / "one.jsonl")) == 2
    scored = []
    monkeypatch.setattr(engine, "_on_window", lambda stats: scored.append(stats.num_texts))
    for index in order:
        assert not (many / "out.jsonl").exists()
        assert take(engine, many, "out", Place(index, 3), resume=index != order[0]) == (
            2 if index == order[2] else None
        )
    assert sum(scored) == 3 * len(TEXTS), "nothing is done twice"
    for name in names(many / "one"):
        assert (many / "out" / name).read_bytes() == (many / "one" / name).read_bytes()
    assert (many / "out.jsonl").read_bytes() == (many / "one.jsonl").read_bytes()
    assert names(many / "out") == names(many / "one") == ["a.csv", "b.jsonl", "c.parquet"]
    assert pq.read_table(many / "out" / "c.parquet")["row"].to_pylist() == [*range(1, len(TEXTS) + 1)]
    assert take(engine, many, "out", Place(0, 3), resume=True) == 0


def test_a_process_without_a_share_leaves_nothing_behind(many, engine):
    assert take(engine, many, "out", Place(99, 100)) is None
    assert names(many) == ["in"]


def test_all_processes_must_mean_the_same_job(many, engine):
    meant = set()

    def meet(job):
        meant.add(job)
        raise ConnectionError

    for options in ({}, {}, {"all_scores": True}):
        with pytest.raises(ConnectionError):
            run(plan([str(many / "in")], str(many / "out"), JobOptions(**options)), engine, meet=meet)
    assert len(meant) == 2
    assert names(many) == ["in"]


