"""`flaxsent bench --training` on a tiny random model: the figures, not the speed."""

import pytest

from flaxsent.cli import main


@pytest.mark.slow
@pytest.mark.torch
def test_both_train_an_epoch_of_the_same_texts(tiny_folder, tmp_path):
    pytest.importorskip("accelerate")
    from flaxsent.bench import training

    (tmp_path / "texts.txt").write_text("".join(f"so good {n}\nnot so bad {n}, is it\n" for n in range(40)))
    model = tiny_folder("bert", num_hidden_layers=1)
    figures = training.run(model, texts=tmp_path / "texts.txt", rounds=2)
    assert (figures.num_texts, len(figures.theirs), len(figures.flaxsent)) == (80, 2, 2)
    assert figures.num_steps[1] == 3
    assert min(*figures.theirs, *figures.flaxsent) > 0
    assert training.to_json(figures)["ratio"] == figures.ratio
    assert f"flaxsent is {figures.ratio:.2f} times as fast" in training.table(figures)
    assert main(["bench", "--training", "--model", str(model), "--rounds", "0"]) == 2
