"""`flaxsent classify`: what it prints, and that mistakes are one line."""

def command(capsys, *arguments):
    code = main(["classify", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_writes_the_file_and_is_quiet(folder, capsys, tiny_folder):
    (folder / "in.txt").write_text("so good\n" + "word " * 99 + "\n")
    options = ["--model", tiny_folder("bert"), "--input", folder / "in.txt", "--text-column", "line"]
    code, out, err = command(capsys, *options, "--output", folder / "out.csv")
    assert (code, out, err) == (0, "", "flaxsent: 1 texts were truncated to 40 tokens\n")
    assert [*read_csv(folder / "out.csv")[0]] == ["line", "label", "score"]
    code, out, err = command(capsys, *options, "--output", folder / "out.csv", "--resume")
    assert (code, out) == (0, "")
    assert err.endswith("out.csv is there already; nothing to resume\n")


def test_standard_input_is_read_as_lines(tmp_path, tiny_folder):
    options = ["--model", str(tiny_folder("bert")), "--input", "-", "--output", str(tmp_path / "out.jsonl")]
    done = subprocess.run(
        [*COMMAND, *options, "--bad-rows", str(tmp_path / "bad.jsonl")],
        input=b"so good\n\xff\nbad",
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode() == f"flaxsent: 1 rows were set aside in {tmp_path / 'bad.jsonl'}\n"
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        "so good",
        "bad",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["so good", "--output", "out.csv"],
        ["so good", "--resume"],
        ["--input", "in.csv"],
        ["--input", "in.csv", "--output", "out.csv", "--top-k", "0"],
        ["--input", "in.csv", "--output", "out.csv", "--format", "tsv"],
        ["so good", "--input", "in.csv", "--output", "out.csv"],
        ["--input", "none.csv", "--output", "out.csv"],
        ["--input", "in.csv", "--output", "/proc/out.csv"],
        ["--input", "in.csv", "--output", "none/out.csv"],
        ["--input", "in.csv", "--output", "out.csv", "--text-column", "none"],
        ["--input", "in.csv", "--output", "out.csv", "--model", "/nowhere"],
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line_and_exit_code_2(folder, capsys, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("flaxsent: error: ")
    assert err.count("\n") == 1
    assert names(folder) == ["in.csv"]


