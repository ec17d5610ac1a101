"""What is said of chips, and which of them, and which libtpu, are refused in one line."""

import sys

import pytest

from flaxsent.base import FlaxsentError
from flaxsent.bench.chips import CHIPS, topology
from flaxsent.cli import main
from flaxsent.files import MissingPackageError


@pytest.mark.parametrize(("name", "gigahertz"), [("v4", 1.05), ("v5e", 1.5), ("v5p", 1.75), ("v6e", 1.75)])
def test_the_clock_is_the_published_one(name, gigahertz):
    # By the published peak, which has three digits.
    assert CHIPS[name].clock / 1e9 == pytest.approx(gigahertz, rel=5e-3)


@pytest.mark.parametrize(
    "name",
    ["", "v6e", "v9:1x1", "v6e:", "v6e:0x1", "v6e:-1x1", "v6e:1x", "v6e:axb", "tpu v6e:1x1", "v6e:1x1\n", "V6E:1x1"],
)
def test_what_is_no_topology_is_refused_with_examples(name):
    with pytest.raises(FlaxsentError, match=r"expected one of v4, v5e, v5p, v6e with .* such as v5e:1x1, v6e:2x2"):
        topology(name)


@pytest.mark.parametrize("name", ["v6e:2x2x1", "v4:2x2", "v5e:4", "v5e:32x32", "v6e:1000x1000", "v5p:99999x99999x9"])
def test_a_mesh_that_no_pod_has_is_refused(name):
    # libtpu would divide by zero, or take all memory.
    with pytest.raises(FlaxsentError, match=rf"expected [23] sizes for a {name[:3].strip(':')}, of at most \d+ chips"):
        topology(name)


def test_without_libtpu_the_command_that_installs_it_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(MissingPackageError, match=r'a plan needs libtpu, .*: pip install "flaxsent\[tpu\]"'):
        topology("v5e:1x1")
    assert main(["plan", "--topology", "v5e:1x1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_libtpu_of_another_version_is_refused(tmp_path, monkeypatch):
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu" / "__init__.py").touch()
    (tmp_path / "libtpu-0.0.1.dist-info").mkdir()
    (tmp_path / "libtpu-0.0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: libtpu\nVersion: 0.0.1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "libtpu", raising=False)
    with pytest.raises(
        FlaxsentError, match=r"libtpu 0\.0\.1 is installed, and jax \S+ wants 0\.0\.\d+\.\*: pip install"
    ):
        topology("v5e:1x1")
    monkeypatch.delitem(sys.modules, "libtpu", raising=False)
