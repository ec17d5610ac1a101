"""`flaxsent bench --profile`: every kind of work is found, the parts are measured, and what is not known is said."""

import itertools
import json

import jax
import jax.numpy as jnp
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.bench import machine, profile
from flaxsent.bench.profile import ATTENTION_KERNEL, ATTENTION_PRODUCTS, COPIES, KINDS, OTHER, UNKNOWN
from flaxsent.bench.texts import Workload, like_imdb, like_sst2, make_texts
from flaxsent.cli import main
from flaxsent.engine import Engine
from flaxsent.parity.random_checkpoints import random_checkpoint

# Which instructions there are, and what each was made of, is asked of the programs that users run.
pytestmark = pytest.mark.compiled_as_for_users

HOST = {"tokenizing", "packing", "transfer", "launching", "waiting for results", "waiting for texts"}


@pytest.fixture(scope="module")
def engine(small_model):
    """With rows of two lengths, so that two programs run; they share names of instructions."""
    with Engine(flaxsent.load(small_model), row_lengths=(32, 64), tokens_per_step=256) as engine:
        yield engine


@pytest.fixture(scope="module")
def profiled(engine):
    workload = Workload("mixed", [*make_texts(like_sst2, 30), *make_texts(like_imdb, 20)])
    return profile.profile(engine, workload, rounds=2)


def test_every_kind_of_work_is_found_and_little_is_unknown(profiled):
    assert [*profiled.devices] == [*KINDS]
    assert {kind for kind, taken in profiled.devices.items() if not taken} <= {ATTENTION_KERNEL, COPIES, UNKNOWN}
    busy = sum(profiled.devices.values())
    # 0 today: what the compiler makes of its own accord has the name of what it reads.
    assert profiled.devices[UNKNOWN] <= 0.05 * busy
    assert profiled.devices[OTHER] <= 0.2 * busy, "the scores, which a model so small computes in no time either"


def test_the_parts_and_what_is_left_are_the_wall_time(profiled):
    """The parts are sums of traced instructions: they can only be less, unless time was counted twice."""
    busy = sum(profiled.devices.values())
    assert 0 < busy < profiled.wall
    assert busy + profiled.idle == pytest.approx(profiled.wall)
    assert {*profiled.host} == HOST
    assert all(0 < taken <= profiled.wall for taken in profiled.host.values())
    assert profiled.num_devices == len(jax.local_devices())


def test_work_takes_as_long_as_it_takes():
    """A product of known size, beside one 64 times as large: the trace agrees with the clock on which is which."""

    @jax.jit
    def two(x, y):
        with jax.named_scope("dense"):
            large = x @ x
        with jax.named_scope("head"):
            return large.sum() + (y @ y).sum()

    x, y = jnp.ones((512, 512)), jnp.ones((128, 128))
    module, kinds = profile._kinds_of_program(two.lower(x, y).compile().as_text())
    two(x, y).block_until_ready()
    taken, events = profile._traced(lambda: two(x, y).block_until_ready())
    by_kind = dict.fromkeys(KINDS, 0.0)
    for instruction, seconds in profile._by_instruction(events).items():
        assert instruction.module == module
        by_kind[kinds[instruction.name]] += seconds
    dense, head = by_kind["matrix products, biases"], by_kind["head"]
    assert 0 < head < dense < taken


def test_scopes_are_found_from_outside_and_work_without_one_is_other():
    def kind(place, *, is_product=False):
        return profile._kind(profile._Written(f"jit(step_8x128)/{place}", is_product))

    assert kind("vmap(attention)/QNH,TNH->NQT/dot_general", is_product=True) == ATTENTION_PRODUCTS
    assert kind("vmap(attention)/pallas_call") == ATTENTION_KERNEL
    assert kind("vmap(attention)/exp") == "attention: softmax, mask, layout"
    assert kind("vmap(head)/dense/...d,df->...f/dot_general", is_product=True) == "head"
    assert kind("vmap(embeddings)/layer_norm/mul") == "embeddings"
    assert kind("while/body/vmap(layer_norm)/layer_norm/rsqrt") == "LayerNorm, residual sums"
    assert kind("exp") == OTHER
    assert profile._kind(None) == UNKNOWN


def test_what_is_fused_is_its_product_or_what_is_in_a_scope_and_what_the_compiler_made_is_what_it_reads():
    text = """HloModule jit_step, is_scheduled=true

%inside (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0), metadata={op_name="params['head']"}
  %cast = f32[4]{0} bitcast(%p), metadata={op_name="jit(step)/vmap(dense)/dot_general"}
  %sum = f32[4]{0} add(%cast, %p), metadata={op_name="jit(step)/vmap(activation)/add"}
  ROOT %gated = f32[4]{0} multiply(%sum, %p), metadata={op_name="jit(step)/vmap()/mul"}
}

%with_product (q: f32[4]) -> f32[] {
  %q = f32[4]{0} parameter(0)
  %dot = f32[] dot(%q, %q), metadata={op_name="jit(step)/vmap(dense)/dot_general"}
  ROOT %max = f32[] maximum(%dot, %dot), metadata={op_name="jit(step)/vmap(layer_norm)/max"}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0), metadata={op_name="x"}
  %fusion = f32[4]{0} fusion(%x), kind=kLoop, calls=%inside, metadata={op_name="jit(step)/vmap()/mul"}
  %product = f32[] fusion(%x), kind=kCustom, calls=%with_product, metadata={op_name="jit(step)/vmap(layer_norm)/max"}
  %wide = f32[4]{0} reduce-window(%fusion, %x), window={size=2}, to_apply=%none
  %start = (f32[4]{0:S(1)}, f32[4]{0}, u32[]) copy-start(%x)
  %done = f32[4]{0:S(1)} copy-done(%start)
  ROOT %tuple = (f32[4]{0}) tuple(%x)
}
"""
    module, kinds = profile._kinds_of_program(text)
    assert module == "jit_step"
    assert (kinds["fusion"], kinds["wide"]) == ("activation", "activation")
    assert (kinds["start"], kinds["done"], kinds["tuple"]) == (COPIES, COPIES, UNKNOWN)
    assert kinds["product"] == "matrix products, biases"


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2"])
def test_other_families_have_the_same_kinds(family, tmp_path):
    random_checkpoint(tmp_path, family)
    with Engine(flaxsent.load(tmp_path, backend="native"), row_lengths=(64,), tokens_per_step=256) as engine:
        found = profile.profile(engine, Workload("w", ["a b c d e f", "d e"]), rounds=1)
    assert {kind for kind, taken in found.devices.items() if not taken} <= {ATTENTION_KERNEL, COPIES, UNKNOWN}
    assert found.devices[UNKNOWN] <= 0.05 * sum(found.devices.values())


def test_the_table_adds_up(profiled):
    figures = profile.Figures("m", "a machine", {"jax": "1"}, "float32", 1e11, [profiled])
    lines = profile.table(figures).splitlines()
    shares = {line.rsplit(maxsplit=2)[0]: float(line.split()[-1][:-1]) for line in lines if line.endswith("%")}
    assert shares["all"] == 100
    assert sum(shares.get(kind, 0) for kind in (*KINDS, profile.IDLE)) == pytest.approx(100, abs=0.6)  # of rounding
    assert json.loads(json.dumps(profile.to_json(figures)))["profiles"][0]["idle"] == profiled.idle


def test_unknown_work_is_named(engine, monkeypatch):
    """Of programs of which nothing is known: another name, as if a trace had them from elsewhere."""
    names = map("jit_other{}".format, itertools.count())
    monkeypatch.setattr(profile, "_kinds_of_program", lambda text: (next(names), {}))
    found = profile.profile(engine, Workload("w", ["a b", "c"]), rounds=1)
    assert found.devices[UNKNOWN] == sum(found.devices.values()) > 0
    assert 0 < sum(found.unknown.values()) <= found.devices[UNKNOWN]
    table = profile.table(profile.Figures("m", "a machine", {}, "float32", 1e11, [found]))
    assert f"unknown are {', '.join(found.unknown)}" in table.splitlines()
    assert len(found.unknown) == 5, "the largest"


def test_programs_of_one_name_are_told_apart_or_nothing_is_told(engine, monkeypatch):
    monkeypatch.setattr(profile, "_kinds_of_program", lambda text: ("jit_step", {}))
    with pytest.raises(AssertionError, match=r"2 programs have the names \['jit_step'\]"):
        profile.profile(engine, Workload("w", ["a b", "c"]), rounds=1)


def test_command_line(small_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "_SIZES", (64,))
    (tmp_path / "texts.txt").write_text("so good\nso bad\nfine\n")
    command = ["bench", "--profile", "--model", str(small_model), "--texts", str(tmp_path / "texts.txt")]
    assert main([*command, "--rounds", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["workload"] for one in told["profiles"]] == ["texts.txt"]
    assert not jax.config.jax_compilation_cache_include_metadata_in_key, "as before"
    assert main([*command, "--peers", "torch-f32"]) == 2
    assert "bench --profile takes no --peers" in capsys.readouterr().err


def test_nothing_to_average_and_nothing_to_see_are_refused(engine, monkeypatch):
    with pytest.raises(FlaxsentError, match="rounds=0"):
        profile.profile(engine, Workload("w", ["a"]), rounds=0)
    monkeypatch.setattr(profile, "_events", lambda data: [])
    with pytest.raises(FlaxsentError, match="names no instructions"):
        profile.profile(engine, Workload("w", ["a"]), rounds=1)
