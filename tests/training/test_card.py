"""The model card that `flaxsent train` writes: data, options, and the figures of what is written."""

from pathlib import Path

import huggingface_hub
import pytest

from tests.training.runs import ROWS, arguments_of, run, write_tsv


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    files = write_tsv(folder / "train.tsv", ROWS), write_tsv(folder / "dev.tsv", ROWS[:20])
    return arguments_of(tiny_folder("bert", num_hidden_layers=1), files, folder / "my model", "--epochs", "1")


@pytest.mark.slow
def test_the_card_tells_data_options_and_figures_and_one_taken_over_is_kept(trained, capsys, tmp_path):
    output = trained[trained.index("--output") + 1]
    assert run(capsys, *trained)[0] == 0
    file = Path(output, "README.md")
    content = file.read_text(encoding="utf-8")
    card = huggingface_hub.ModelCard(content, ignore_metadata_errors=False)
    assert card.data.model_name == "my model"
    assert card.data.base_model is None, "a folder is not on the Hub"
    (accuracy, loss) = card.data.eval_results
    assert (accuracy.metric_type, accuracy.dataset_name, loss.metric_name) == ("accuracy", "dev.tsv", "loss")
    assert 0 <= accuracy.metric_value <= 1
    assert "- training: train.tsv, 60 texts, 2 labels: NEGATIVE 40, POSITIVE 20; one label per text" in content
    assert "| `num_epochs` | `1` |" in content
    assert str(tmp_path.parent) not in content, "no folder of this machine"
    again = [*trained, "--overwrite", "--seed", "7"]
    assert run(capsys, *again)[0] == 0
    assert "| `seed` | `7` |" in file.read_text(encoding="utf-8"), "it is written anew"
    file.write_text("mine")
    assert run(capsys, *trained, "--overwrite")[0] == 0
    assert file.read_text(encoding="utf-8") == "mine"
