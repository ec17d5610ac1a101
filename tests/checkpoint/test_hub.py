"""Loading from the Hub, against a small server on this machine that answers as the Hub does.

huggingface_hub reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when it is imported, so flaxsent runs in new processes
here, each of which does a list of jobs.
"""

import dataclasses
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent.checkpoint.folder import save_adapter
from flaxsent.transforms import lora
from tests.conftest import others_slow

TEXTS = ["i hate this so much !", "the film is not bad"]
FIRST, SECOND = "a" * 40, "b" * 40

CHILD = """
import contextlib, io, json, sys
import flaxsent, flaxsent.cli
from flaxsent.checkpoint import hub

def logits(model, revision=None):
    classifier = flaxsent.load(model, backend="native", revision=revision)
    return classifier.forward(classifier.params, classifier.tokenize(json.loads(sys.argv[1]))).tolist()

def adapted(model, adapter):
    return flaxsent.load(model, adapter=adapter, backend="native").params["classifier"]["bias"].tolist()

def find(model, revision=None):
    folder = hub.find(model, revision=revision)
    return {"commit": folder.name, "files": sorted(file.name for file in folder.iterdir())}

def pools_mean(model):
    return hub.pools_mean(model)

def cli(*arguments):
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        return {"code": flaxsent.cli.main(arguments), "stderr": stderr.getvalue()}

def answer(function, *arguments):
    try:
        return function(*arguments)
    except Exception as err:
        return {"error": type(err).__name__, "message": str(err)}

json.dump([answer(globals()[function], *arguments) for function, *arguments in json.load(sys.stdin)], sys.stdout)
"""


class Hub(http.server.ThreadingHTTPServer):
    """`commits[repo][commit]` holds files by name, `refs[repo][branch or tag]` a commit."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.commits, self.refs, self.requests = {}, {}, []
        self.pushed = {}  # repo -> the commit to which main moves once a file of it is fetched
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def add(self, repo, *commits, **refs):
        self.commits[repo], self.refs[repo] = dict(zip((FIRST, SECOND), commits, strict=False)), {"main": FIRST} | refs

    def stop(self):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        hub = self.server
        repo, _, rest = self.path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        hub.requests.append((self.command, repo, revision, file))
        if repo == "acme/gated":
            return self.send(403, {"X-Error-Code": "GatedRepo"})
        if repo not in hub.commits:
            return self.send(401, {"X-Error-Code": "RepoNotFound"})
        commit = hub.refs[repo].get(revision, revision)
        if commit not in hub.commits[repo]:
            return self.send(404, {"X-Error-Code": "RevisionNotFound"})
        content = hub.commits[repo][commit].get(file)
        if content is None:
            return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if self.command == "GET" and repo in hub.pushed:
            hub.refs[repo]["main"] = hub.pushed[repo]
        etag = hashlib.sha256(content).hexdigest()
        return self.send(200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, content)

    do_HEAD = do_GET  # noqa: N815

    def send(self, status, headers, content=b""):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            is_torn = "torn" in self.path and self.path.endswith(".safetensors")
            self.wfile.write(content[: len(content) // 2] if is_torn else content)

    def log_message(self, *arguments):
        pass


def start(arguments, home, endpoint, **more):
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    hub["TF_CPP_MIN_LOG_LEVEL"] = "3"  # of what flaxsent alone sets, where the process is its own
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *arguments], env=plain | hub | more, cwd=home, text=True, **pipes)


def run(jobs, home, endpoint, **more):
    """The answers of a new process to `(function, *arguments)` jobs, by job."""
    child = start(["-c", CHILD, json.dumps(TEXTS)], home, endpoint, **more)
    answers, errors = child.communicate(json.dumps(jobs), timeout=120)
    assert (child.returncode, errors) == (0, ""), errors
    return dict(zip(jobs, json.loads(answers), strict=True))


LOGITS = [
    ("logits", "acme/tiny"),
    ("logits", "acme/tiny", "v1"),
    ("logits", "acme/tiny", SECOND),
    ("logits", "acme/sharded"),
]
FIND = [
    ("find", "acme/tiny"),
    ("find", "acme/tiny", "v1"),
    ("find", "acme/sharded"),
    ("find", "acme/vocabulary"),
    ("find", "acme/msgpack"),
    ("find", "acme/pickle"),
    ("find", "acme/pickles"),
    ("find", "acme/moving"),
    ("find", "gpt0"),
]
POOLS = {("pools_mean", "acme/encoder"): True, ("pools_mean", "gpt0"): False}
NOT_ASKED = ("pools_mean", "acme/sharded")
ADAPTED = [("adapted", "acme/tiny", "acme/adapter")]
BAD = {
    ("find", "acme/none"): ("FileNotFoundError", "the Hub shows no acme/none: check the name, or set HF_TOKEN"),
    ("find", "none"): ("FileNotFoundError", "the Hub shows no none"),
    ("find", "acme/gated"): ("FileNotFoundError", "gated"),
    ("find", "acme/tiny", "v9"): ("FileNotFoundError", "the Hub has no acme/tiny at revision v9; expected a branch"),
    ("find", "acme/tiny", "f" * 40): ("FileNotFoundError", f"at revision {'f' * 40}"),
    ("find", "acme/empty"): ("FileNotFoundError", "acme/empty has no config.json on the Hub"),
    ("find", "acme/hostile-index"): ("FlaxsentError", "names the shard '../../evil.safetensors'"),
    ("find", "acme/torn"): ("ConnectionError", "the Hub broke off while acme/torn was fetched"),
    ("find", "a..b/c"): ("FileNotFoundError", "a..b/c"),
    ("find", "a/b/c"): ("FileNotFoundError", "a/b/c is no folder"),
    ("find", "https://127.0.0.1/a/b"): ("FileNotFoundError", "is no folder"),
}
CLI = ("cli", "classify", "--model", "acme/none", "hi")
# What is asked of the dead server, and of the cache alone, besides what was fetched before.
ABSENT = [("logits", "acme/absent"), ("cli", "classify", "--model", "acme/absent", "hi")]


def adapter_files(folder, base):
    """Of an adapter with a head whose bias is 0, 1, 2."""
    classifier = lora.adapt(flaxsent.load(base, backend="native"))
    head = classifier.params["classifier"] | {"bias": jnp.arange(3.0)}
    params = {**classifier.params, "classifier": head}
    save_adapter(dataclasses.replace(classifier, params=params), folder, base="acme/tiny")
    return {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}


@pytest.fixture(scope="module")
def visit(tiny_folder, tmp_path_factory):
    """All jobs in one process against the server, then without the server, then with HF_HUB_OFFLINE besides."""
    home = tmp_path_factory.mktemp("hub")
    folder = tiny_folder("bert")
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    files = {name: (folder / name).read_bytes() for name in names}
    decoys = dict.fromkeys(("pytorch_model.bin", "flax_model.msgpack", "onnx/model.onnx", "README.md"), b"-")
    tensors = safetensors.numpy.load(files["model.safetensors"])
    older = {name: -tensor if name == "classifier.weight" else tensor for name, tensor in tensors.items()}
    halves = dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])
    shards = {f"model-0000{number}-of-00002.safetensors": half for number, half in enumerate(halves, start=1)}
    index = {"weight_map": {name: shard for shard, half in shards.items() for name in half}}
    hostile = {"weight_map": {"classifier.bias": "../../evil.safetensors"}}
    bare = {name: files[name] for name in ("config.json", "tokenizer.json")}

    hub = Hub()
    hub.add("acme/tiny", files | decoys, files | {"model.safetensors": safetensors.numpy.save(older)}, v1=SECOND)
    hub.add(
        "acme/sharded",
        bare
        | {"model.safetensors.index.json": json.dumps(index).encode()}
        | {name: safetensors.numpy.save(half) for name, half in shards.items()}
        | decoys,
    )
    hub.add("acme/vocabulary", {name: content for name, content in files.items() if name != "tokenizer.json"})
    hub.add("acme/msgpack", bare | {"flax_model.msgpack": b"+", "pytorch_model.bin": b"-"})
    hub.add("acme/pickle", bare | {"pytorch_model.bin": b"+", "tf_model.h5": b"-"})
    pickles = {"weight_map": dict.fromkeys(tensors, "pytorch_model-00001-of-00001.bin")}
    sharded = {"pytorch_model.bin.index.json": json.dumps(pickles).encode(), "pytorch_model-00001-of-00001.bin": b"+"}
    hub.add("acme/pickles", bare | sharded)
    hub.add("acme/moving", files, {"config.json": b"{}"})
    hub.pushed["acme/moving"] = SECOND
    hub.add("gpt0", files)
    hub.add("acme/adapter", adapter_files(tmp_path_factory.mktemp("adapter"), folder) | decoys)
    hub.add("acme/encoder", files | {"1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}'})
    hub.add("acme/empty", {"README.md": b"no checkpoint"})
    hub.add("acme/hostile-index", bare | {"model.safetensors.index.json": json.dumps(hostile).encode()})
    hub.add("acme/torn", files)
    try:
        online = run([("logits", str(folder)), *LOGITS, *ADAPTED, *FIND, *POOLS, *BAD, CLI], home, hub.endpoint)
        requests = list(hub.requests)
    finally:
        hub.stop()
    return SimpleNamespace(
        online=online,
        requests=requests,
        unplugged=run([*FIND, *POOLS, NOT_ASKED, *ABSENT], home, hub.endpoint),
        offline=run([*LOGITS, *ADAPTED, *FIND, *POOLS, NOT_ASKED, *ABSENT], home, hub.endpoint, HF_HUB_OFFLINE="1"),
        home=home,
        endpoint=hub.endpoint,
        folder=str(folder),
    )


def fetched(visit, repo):
    return sorted(file for method, asked, _, file in visit.requests if method == "GET" and asked == repo)


def test_an_adapter_comes_from_the_hub(visit):
    assert visit.online[ADAPTED[0]] == visit.offline[ADAPTED[0]] == [0, 1, 2]
    assert fetched(visit, "acme/adapter") == ["adapter_config.json", "adapter_model.safetensors"]


def test_hub_id_gives_the_logits_of_the_folder(visit):
    expected = visit.online["logits", visit.folder]
    assert np.shape(expected) == (2, 3)
    assert visit.online["logits", "acme/tiny"] == expected
    assert visit.online["logits", "acme/sharded"] == expected


@pytest.mark.parametrize(
    ("repo", "files"),
    {
        "acme/tiny": ["config.json", *2 * ["model.safetensors"], "tokenizer.json", "tokenizer_config.json"],
        "acme/sharded": [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
        ],
        "acme/vocabulary": ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"],
        "acme/msgpack": ["config.json", "flax_model.msgpack", "tokenizer.json"],
        "acme/pickle": ["config.json", "pytorch_model.bin", "tokenizer.json"],
        "acme/pickles": [
            "config.json",
            "pytorch_model-00001-of-00001.bin",
            "pytorch_model.bin.index.json",
            "tokenizer.json",
        ],
        "gpt0": ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
    }.items(),
)
def test_only_the_needed_files_are_fetched_and_each_once(visit, repo, files):
    """Two commits of acme/tiny were asked for, each several times; only the weights differ."""
    assert fetched(visit, repo) == sorted(files)


def test_files_that_can_be_done_without_are_not_even_asked_for(visit):
    asked = {file for _, repo, _, file in visit.requests if repo == "acme/tiny"}
    names = {"special_tokens_map.json", "added_tokens.json"}  # small, and asked for once
    assert asked == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} | names


def test_revision_picks_the_commit(visit):
    newest = np.asarray(visit.online["logits", "acme/tiny"])
    tagged = np.asarray(visit.online["logits", "acme/tiny", "v1"])
    assert np.abs(newest - tagged).max() > 0.1
    assert tagged.tolist() == visit.online["logits", "acme/tiny", SECOND]
    assert visit.online["find", "acme/tiny"]["commit"] == FIRST
    assert visit.online["find", "acme/tiny", "v1"]["commit"] == SECOND


def test_all_files_are_of_one_commit_though_main_moves_between(visit):
    assert visit.online["find", "acme/moving"]["commit"] == FIRST
    requests = [request[2:] for request in visit.requests if request[1] == "acme/moving"]
    assert {revision for revision, file in requests if file != "config.json"} == {FIRST}


@pytest.mark.parametrize("job", BAD, ids=lambda job: "-".join(job[1:]))
def test_what_the_hub_has_not_gives_one_clear_line(visit, job):
    answer, (kind, part) = visit.online[job], BAD[job]
    assert answer["error"] == kind, answer
    assert part in answer["message"]
    assert "\n" not in answer["message"]


def test_shard_name_that_leads_out_of_the_folder_is_not_asked_for(visit):
    assert not [request for request in visit.requests if "evil" in request[3]]


@pytest.mark.parametrize(
    ("state", "job"),
    [*((state, job) for state in ("unplugged", "offline") for job in FIND), *(("offline", job) for job in LOGITS)],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_was_fetched_once_needs_no_server(visit, state, job):
    assert getattr(visit, state)[job] == visit.online[job]


@pytest.mark.parametrize(
    ("state", "part"),
    [("unplugged", "gives no answer ([Errno 111] Connection refused)"), ("offline", "HF_HUB_OFFLINE is set")],
)
def test_what_is_not_cached_is_a_connection_error_without_server(visit, state, part):
    answer = getattr(visit, state)["logits", "acme/absent"]
    assert answer["error"] == "ConnectionError"
    assert "acme/absent is not in the local cache, and " in answer["message"]
    assert part in answer["message"]
    assert "\n" not in answer["message"]


@pytest.mark.parametrize("state", ["online", "unplugged", "offline"])
def test_how_a_checkpoint_pools_is_asked_for_once(visit, state):
    assert {job: getattr(visit, state)[job] for job in POOLS} == POOLS


@pytest.mark.parametrize(("state", "part"), [("unplugged", "gives no answer"), ("offline", "HF_HUB_OFFLINE is set")])
def test_how_a_checkpoint_pools_that_was_not_asked_is_a_connection_error(visit, state, part):
    answer = getattr(visit, state)[NOT_ASKED]
    assert answer["error"] == "ConnectionError", answer
    assert answer["message"].startswith("1_Pooling/config.json of acme/sharded is not in the local cache, and ")
    assert part in answer["message"]


@pytest.mark.parametrize(("state", "job"), [("online", CLI), ("unplugged", ABSENT[1]), ("offline", ABSENT[1])])
def test_command_line_tells_it_in_one_line_with_exit_code_2(visit, state, job):
    answer = getattr(visit, state)[job]
    assert answer["code"] == 2
    assert answer["stderr"].startswith("flaxsent: error: ")
    assert answer["stderr"].count("\n") == 1
    assert job[3] in answer["stderr"]


def flaxsent_process(home, endpoint, *arguments, **more):
    """The whole program, with whatever libraries write when they are imported and when it ends; and its seconds."""
    begin = time.monotonic()
    child = start(["-m", "flaxsent", *arguments], home, endpoint, **more)
    out, err = child.communicate(timeout=60)
    return child.returncode, out, err, time.monotonic() - begin


def test_process_ends_with_2_and_one_line_on_stderr(visit):
    code, out, err, _ = flaxsent_process(visit.home, visit.endpoint, *CLI[1:], HF_HUB_OFFLINE="1")
    assert (code, out, err.count("\n")) == (2, "", 1), err


class Broken(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.server.asked += self.path.startswith("/acme")  # not huggingface_hub's own, of statistics
        self.send_response(503)
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture
def endpoints():
    """By what is wrong with them, with a part of the message; the silent one takes connections and says nothing."""
    broken = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    broken.asked = 0
    threading.Thread(target=broken.serve_forever, args=(0.05,), daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        refusing = f"http://127.0.0.1:{closed.getsockname()[1]}"
        closed.close()
        yield {
            "refuses": (refusing, "[Errno 111] Connection refused"),
            "has no address": ("http://nowhere.invalid", "[Errno -"),
            "is broken": (f"http://127.0.0.1:{broken.server_port}", "HTTP status 503"),
            "is silent": (f"http://127.0.0.1:{silent.getsockname()[1]}", "within 5 seconds"),
        }
    broken.shutdown()
    broken.server_close()
    assert broken.asked <= 1


@pytest.mark.parametrize("what", others_slow(["refuses", "has no address"], ["is broken", "is silent"]))
def test_a_hub_that_does_not_answer_is_one_line_within_a_few_seconds(tmp_path, endpoints, what):
    endpoint, part = endpoints[what]
    code, out, err, seconds = flaxsent_process(tmp_path, endpoint, "classify", "--model", "acme/tiny", "hi")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("flaxsent: error: acme/tiny is not in the local cache, and ")
    assert endpoint in err
    assert part in err or (what == "has no address" and "within 5 seconds" in err)
    *_, least = flaxsent_process(tmp_path, endpoint, "classify", "--model", "acme/tiny", "hi", HF_HUB_OFFLINE="1")
    assert seconds - least < 8, "the rest is the start of Python and JAX, which takes long where the machine is busy"


@pytest.mark.slow
def test_a_silent_hub_delays_what_is_cached_by_a_few_seconds(visit, endpoints):
    endpoint, _ = endpoints["is silent"]
    arguments = ("info", "acme/tiny")
    code, out, err, seconds = flaxsent_process(visit.home, endpoint, *arguments, HF_HUB_ETAG_TIMEOUT="1")
    assert (code, err) == (0, "")
    *offline, least = flaxsent_process(visit.home, endpoint, *arguments, HF_HUB_OFFLINE="1")
    assert offline == [code, out, err]
    assert seconds - least < 4


def test_half_a_checkpoint_in_the_cache_is_not_one_without_weights(visit, tmp_path):
    """A fetch that was broken off after config.json."""
    cached = tmp_path / "hub" / "models--acme--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(FIRST)
    (cached / "snapshots" / FIRST).mkdir(parents=True)
    (cached / "snapshots" / FIRST / "config.json").write_bytes((Path(visit.folder) / "config.json").read_bytes())
    (answer,) = run([("find", "acme/tiny")], tmp_path, visit.endpoint).values()
    assert answer["error"] == "ConnectionError"
    assert "acme/tiny is not in the local cache" in answer["message"]
