"""The README.md of a folder, as `huggingface_hub.ModelCard` reads it, and `flaxsent push` to a Hub on this machine."""

import base64
import hashlib
import http.server
import json
import threading
from pathlib import Path

import huggingface_hub
import pytest

import flaxsent
from flaxsent.checkpoint.card import model_card
from flaxsent.models.config import read_config
from flaxsent.parity.random_checkpoints import CONFIGS
from tests.checkpoint.test_hub import start

HOSTILE = 'a: b\n---\n- "x" | `y` ``z`` <script>alert(1)</script> {[*_#'


def config_of(*labels, **changes):
    named = {"id2label": {str(index): label for index, label in enumerate(labels)}}
    return read_config(json.dumps({"model_type": "bert", **CONFIGS["bert"], **named, **changes}))


def read(card):
    """As the Hub reads it; validated as far as that is possible without a network."""
    return huggingface_hub.ModelCard(card, ignore_metadata_errors=False)


def test_the_head_has_the_figures_as_the_hub_reads_them():
    card = model_card(
        config_of("no", "yes"),
        name="mine",
        base_model="acme/encoder",
        data={"training": "train.csv, 3 texts"},
        measured_on="my dev.csv",
        figures={"accuracy": 0.75, "macro_f1": 0.5, "log_loss": 0.25, "pearson": float("nan")},
        options={"epochs": 3, "text": "a|b"},
    )
    data = read(card).data
    told = (data.model_name, data.base_model, data.pipeline_tag, data.library_name)
    assert told == ("mine", "acme/encoder", "text-classification", "transformers")
    assert [(one.metric_type, one.metric_name, one.metric_value) for one in data.eval_results] == [
        ("accuracy", "accuracy", 0.75),
        ("f1", "macro F1", 0.5),
        ("log_loss", "log loss", 0.25),
    ]
    assert {(one.dataset_name, one.dataset_type, one.task_type) for one in data.eval_results} == {
        ("my dev.csv", "my-dev", "text-classification")
    }
    for part in (
        "| accuracy | 0.7500 |",
        "| `epochs` | `3` |",
        '| `text` | `"a\\|b"` |',
        "train.csv, 3 texts",
        "`no`, `yes`",
    ):
        assert part in card
    assert "nan" not in card


def test_the_card_of_an_adapter_names_peft():
    card = read(model_card(config_of("no", "yes"), name="mine", base_model="acme/encoder", is_adapter=True))
    assert (card.data.library_name, card.data.tags) == ("peft", ["flaxsent", "lora"])
    assert "PEFT reads it, too: `AutoPeftModelForSequenceClassification.from_pretrained`" in card.text


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_whatever_labels_and_names_hold_the_card_is_read(kind):
    labels = [HOSTILE] if kind == "regression" else [HOSTILE, "`", "\x00\u202e", "b"]
    card = model_card(
        config_of(*labels, problem_type=kind),
        name=HOSTILE,
        data={HOSTILE: HOSTILE},
        measured_on=HOSTILE,
        figures={"accuracy": 1.0},
        options={HOSTILE: HOSTILE},
    )
    found = read(card)
    assert found.data.eval_results[0].dataset_name == HOSTILE.replace("\n", " ").replace("`", "'")
    assert "\n# " in found.text
    assert "<script>" not in "".join(part for index, part in enumerate(found.text.split("`")) if index % 2 == 0)
    assert not set(card) & set("\x00\u202e")


def test_save_writes_a_card_and_keeps_one_that_is_there(tiny_folder, tmp_path):
    classifier = flaxsent.load(tiny_folder("bert", num_hidden_layers=1), backend="native")
    flaxsent.save(classifier, tmp_path / "model")
    card = read((tmp_path / "model" / "README.md").read_text())
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.eval_results is None
    assert "# Text classifier\n" in card.text
    flaxsent.save(classifier, tmp_path / "bare", card=False)
    assert not (tmp_path / "bare" / "README.md").exists()
    (tmp_path / "model" / "README.md").write_text("mine")
    flaxsent.save(classifier, tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == "mine"


# push


class Hub(http.server.ThreadingHTTPServer):
    """Takes what is pushed: `commits[repo]` holds files by name; weights go by LFS."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.commits, self.private, self.stored, self.status, self.tokens = {}, {}, {}, None, set()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_PUT(self):
        content = self.body()
        self.server.stored[hashlib.sha256(content).hexdigest()] = content
        self.send(200, {})

    def do_GET(self):
        self.send(404, {"error": "no such page"})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self):
        hub, content = self.server, self.body()
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.status is not None:
            return self.send(hub.status, {"error": "you may not"})
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if repo in hub.commits:
                return self.send(409, {"url": f"{hub.endpoint}/{repo}", "error": "is there"})
            hub.commits[repo], hub.private[repo] = {}, asked.get("private") or asked.get("visibility") == "private"
            return self.send(200, {"url": f"{hub.endpoint}/{repo}"})
        if "/preupload/" in self.path:
            files = [
                {
                    "path": one["path"],
                    "shouldIgnore": False,
                    "uploadMode": "lfs" if "safetensors" in one["path"] else "regular",
                }
                for one in json.loads(content)["files"]
            ]
            return self.send(200, {"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{one['oid']}"}}}
                for one in json.loads(content)["objects"]
            ]
            return self.send(200, {"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                match line["key"]:
                    case "file":
                        hub.commits[repo][value["path"]] = base64.b64decode(value["content"])
                    case "lfsFile":
                        hub.commits[repo][value["path"]] = hub.stored[value["oid"]]
            url = f"{hub.endpoint}/{repo}/commit/{'c' * 40}"
            return self.send(200, {"commitUrl": url, "commitOid": "c" * 40, "success": True})
        return self.send(200, {})  # whether the card is valid

    def send(self, status, answer):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """With files of all kinds; those of the first three lines are pushed."""
    folder = tmp_path_factory.mktemp("pushed") / "model"
    flaxsent.save(flaxsent.load(tiny_folder("bert", num_hidden_layers=1), backend="native"), folder)
    (folder / "log.jsonl").write_text("{}\n")
    (folder / "a[b]*.txt").write_text("odd")
    (folder / ".secret").write_text("hidden")
    (folder / "x.0123456789abcdef.tmp").write_text("unfinished")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "a.txt").write_text("deep")
    return folder


def push(hub, folder, home, *arguments, **environment):
    process = start(
        ["-m", "flaxsent", "push", str(folder), *arguments],
        home,
        hub.endpoint,
        **{"HF_TOKEN": "hf_mine", **environment},
    )
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_push_uploads_the_folder_as_it_is(hub, folder, tmp_path):
    code, out, err = push(hub, folder, tmp_path, "acme/tiny", "--private")
    assert (code, out) == (0, f"{hub.endpoint}/acme/tiny/commit/{'c' * 40}\n"), err
    expected = {
        path.name: path.read_bytes()
        for path in Path(folder).iterdir()
        if path.is_file() and path.name not in (".secret", "x.0123456789abcdef.tmp")
    }
    assert {"README.md", "config.json", "model.safetensors", "a[b]*.txt", "log.jsonl"} <= expected.keys()
    assert hub.commits["acme/tiny"] == expected
    assert hub.private["acme/tiny"] is True
    assert hub.tokens == {"Bearer hf_mine", None} or hub.tokens == {"Bearer hf_mine"}
    code, _, err = push(hub, folder, tmp_path, "acme/tiny")
    assert code == 0, f"again: {err}"


def test_push_takes_adapters(hub, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    code, _, err = push(hub, folder, tmp_path, "acme/adapter")
    assert code == 0, err
    assert hub.commits["acme/adapter"] == {"adapter_config.json": b"{}"}


MISTAKES = {
    "no folder": ({}, None, ["./nowhere", "acme/tiny"], "./nowhere has no config.json"),
    "no owner": ({}, None, ["FOLDER", "tiny"], "'tiny' is no Hub id to push to; expected owner/name"),
    "no id": ({}, None, ["FOLDER", "../x"], "'../x' is no Hub id"),
    "no token": ({"HF_TOKEN": ""}, 401, ["FOLDER", "acme/tiny"], "set HF_TOKEN"),
    "not allowed": ({}, 403, ["FOLDER", "acme/tiny"], "does not let you write acme/tiny (HTTP status 403)"),
    "refused": ({}, 400, ["FOLDER", "acme/tiny"], "the Hub refuses acme/tiny"),
    "offline": ({"HF_HUB_OFFLINE": "1"}, None, ["FOLDER", "acme/tiny"], "HF_HUB_OFFLINE is set: unset it to push"),
    "no answer": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, None, ["FOLDER", "acme/tiny"], "gives no answer"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(hub, folder, tmp_path, name):
    environment, hub.status, arguments, message = MISTAKES[name]
    arguments = [str(folder) if one == "FOLDER" else one for one in arguments]
    code, out, err = push(hub, *arguments[:1], tmp_path, *arguments[1:], **environment)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert hub.commits == {}
