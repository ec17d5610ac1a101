"""Modules are read: loops count as often as they run, and what stays on the chip is told from what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxsent.bench.hlo import Kernels, executions, figures, parse

ON_CHIP, OFF_CHIP = "{1,0:T(8,128)(2,1)S(1)}", "{1,0:T(8,128)(2,1)}"
NONE_ESTIMATED = 2**63 - 1


def estimated(cycles: int) -> str:
    return f'backend_config={{"flag_configs":[],"window_config":{{"estimated_cycles":"{cycles}"}}}}'


def entry(*instructions: str, before: str = "") -> str:
    lines = "\n".join(f"  {instruction}" for instruction in instructions)
    return f"HloModule jit_step\n\n{before}\nENTRY %main.1 (x.1: bf16[8,128]) -> bf16[8,128] {{\n{lines}\n}}\n"


def loop(*, start: str = "0", end: str = "6", step: str = "1", direction: str = "LT", config: str = "") -> str:
    """As the compiler for TPUs writes a `lax.scan` over stacked layers `bf16[6,128,128]`."""
    fusion = (
        f"%fusion.2 = bf16[8,128]{ON_CHIP} fusion(%get-tuple-element.36, %get-tuple-element.41, %copy.2), "
        f"kind=kOutput, calls=%fused_computation.1, {estimated(100)}"
    )
    carry = f"(s32[]{{:T(128)}}, bf16[8,128]{ON_CHIP}, bf16[6,128,128]{{2,1,0:T(8,128)(2,1)}})"
    return entry(
        f"%start = s32[]{{:T(128)}} constant({start})",
        f"%x.1 = bf16[8,128]{OFF_CHIP} parameter(0)",
        "%w.1 = bf16[6,128,128]{2,1,0:T(8,128)(2,1)} parameter(1)",
        f"%copy.9 = bf16[8,128]{ON_CHIP} copy(%x.1), {estimated(7)}",
        "%copy.10 = s32[]{:T(128)} copy(%start)",
        f"%tuple.9 = {carry} tuple(%copy.10, %copy.9, %w.1)",
        f"%while = {carry} while(%tuple.9), condition=%region_1.3, body=%region_0.2.sunk{config}",
        f"%get-tuple-element.43 = bf16[8,128]{ON_CHIP} get-tuple-element(%while), index=1",
        f"%copy-start = (bf16[8,128]{OFF_CHIP}, bf16[8,128]{ON_CHIP}, u32[]{{:S(2)}}) "
        f"copy-start(%get-tuple-element.43), {estimated(NONE_ESTIMATED)}",
        f"ROOT %copy-done = bf16[8,128]{OFF_CHIP} copy-done(%copy-start)",
        before=f"""
%fused_computation.1 (param_0.9: bf16[8,128], param_1.9: bf16[6,128,128], param_2.5: s32[]) -> bf16[8,128] {{
  %param_0.9 = bf16[8,128]{ON_CHIP} parameter(0)
  %param_1.9 = bf16[6,128,128]{{2,1,0:T(8,128)(2,1)}} parameter(1)
  %param_2.5 = s32[]{{:T(128)S(6)}} parameter(2)
  %slice.7 = bf16[1,128,128]{{2,1,0}} dynamic-slice(%param_1.9, %param_2.5), dynamic_slice_sizes={{1,128,128}}
  %bitcast.6 = bf16[128,128]{OFF_CHIP} bitcast(%slice.7)
  ROOT %convolution.3 = bf16[8,128]{OFF_CHIP} convolution(%param_0.9, %bitcast.6), dim_labels=bf_io->bf
}}

%region_0.2.sunk (arg_tuple.0: (s32[], bf16[8,128], bf16[6,128,128])) -> (s32[], bf16[8,128], bf16[6,128,128]) {{
  %constant.11 = s32[]{{:T(128)}} constant({step})
  %arg_tuple.0 = {carry} parameter(0)
  %get-tuple-element.35 = s32[]{{:T(128)}} get-tuple-element(%arg_tuple.0), index=0
  %copy.2 = s32[]{{:T(128)S(6)}} copy(%get-tuple-element.35)
  %add.2 = s32[]{{:T(128)}} add(%copy.2, %constant.11)
  %get-tuple-element.36 = bf16[8,128]{ON_CHIP} get-tuple-element(%arg_tuple.0), index=1
  %get-tuple-element.41 = bf16[6,128,128]{{2,1,0:T(8,128)(2,1)}} get-tuple-element(%arg_tuple.0), index=2
  {fusion}
  ROOT %tuple.11 = {carry} tuple(%add.2, %fusion.2, %get-tuple-element.41)
}}

%region_1.3 (arg_tuple.3: (s32[], bf16[8,128], bf16[6,128,128])) -> pred[] {{
  %constant.13 = s32[]{{:T(128)}} constant({end})
  %arg_tuple.3 = {carry} parameter(0)
  %get-tuple-element.15 = s32[]{{:T(128)}} get-tuple-element(%arg_tuple.3), index=0
  ROOT %lt.0 = pred[]{{:T(512)}} compare(%get-tuple-element.15, %constant.13), direction={direction}
}}
""",
    )


@pytest.mark.parametrize(
    ("changes", "trips"),
    [
        ({}, 6),
        ({"direction": "LE"}, 7),
        ({"direction": "NE", "step": "3"}, 2),
        ({"start": "2", "step": "2", "end": "7"}, 3),
        ({"start": "6"}, 0),
        ({"config": ', backend_config={"known_trip_count":{"n":"4"}}'}, 4),
    ],
)
def test_a_loop_counts_as_often_as_it_runs(changes, trips):
    found = figures(loop(**changes), row_length=128)
    assert found.cycles == 7 + 100 * trips
    assert found.uncounted_loops == 0


@pytest.mark.parametrize("changes", [{"end": "{...}"}, {"direction": "GT"}, {"step": "0"}])
def test_a_loop_that_does_not_say_how_often_it_runs_counts_once_and_is_told(changes):
    found = figures(loop(**changes), row_length=128)
    assert (found.cycles, found.uncounted_loops) == (107, 1)


def test_only_what_leaves_the_chip_is_memory_and_a_loop_reads_each_layer_once():
    rows, layers = 8 * 128 * 2, 6 * 128 * 128 * 2
    # What is read at first and written at last, the layers, and a counter of 4 bytes: once as it starts, then six times
    # as it goes on, read and written, as is its constant.
    counters = 2 * 4 + 6 * 4 + 6 * 8
    assert figures(loop(), row_length=128).memory_bytes == pytest.approx(2 * rows + layers, abs=counters)


def test_an_estimate_of_none_is_left_out():
    text = entry(f"ROOT %a = bf16[8,128]{ON_CHIP} copy(%x), {estimated(NONE_ESTIMATED)}")
    assert figures(text, row_length=128).cycles == 0


@pytest.mark.parametrize(
    ("shape", "scores"),
    [
        ("f32[4,12,256,256]{2,3,1,0:T(8,128)}", 4 * 12 * 256 * 256 * 4),
        ("bf16[4,12,256,256]{3,2,1,0:T(8,128)(2,1)}", 4 * 12 * 256 * 256 * 2),
        ("(f32[4,12,256]{2,1,0:S(1)}, f32[4,12,256,256]{2,3,1,0:T(8,128)})", 4 * 12 * 256 * 256 * 4),
        ("f32[4,12,256,256]{2,3,1,0:T(8,128)S(1)}", 0),
        ("f32[256,256]{1,0:T(8,128)}", 0),
        ("f32[4,256,768]{2,1,0:T(8,128)}", 0),
        ("f32[256,4,256]{2,1,0:T(8,128)}", 0),
    ],
)
def test_scores_are_as_long_as_a_row_in_both_last_axes_and_off_the_chip(shape, scores):
    text = entry(f"%fusion.1 = {shape} fusion(%x), kind=kLoop, calls=%f", before="%f (p: f32[]) -> f32[] {\n}\n")
    assert figures(text, row_length=256).scores_bytes == scores


def test_what_replaces_a_slice_writes_the_slice_alone():
    whole = "f32[6,8,128]{2,1,0:T(8,128)}"
    text = entry(
        f"%stack = {whole} parameter(0)",
        "%one = f32[1,8,128]{2,1,0:T(8,128)S(1)} parameter(1)",
        f"ROOT %fusion.1 = {whole} fusion(%stack, %one), kind=kLoop, calls=%fused.1",
        before=f"""%fused.1 (p0: f32[6,8,128], p1: f32[1,8,128]) -> f32[6,8,128] {{
  %p0 = {whole} parameter(0)
  %p1 = f32[1,8,128]{{2,1,0:T(8,128)S(1)}} parameter(1)
  %zero = s32[]{{:T(128)}} constant(0)
  ROOT %update = {whole} dynamic-update-slice(%p0, %p1, %zero, %zero, %zero)
}}
""",
    )
    assert figures(text, row_length=128).memory_bytes == 8 * 128 * 4


def kernel(cost: str) -> str:
    return entry(
        f"%q = bf16[8,128]{OFF_CHIP} parameter(0)",
        f"%k = bf16[8,128]{ON_CHIP} copy(%q)",
        f"ROOT %attend_512.12.refs_0_ = bf16[8,128]{ON_CHIP} custom-call(%q, %k), "
        'custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzvUg=="' + cost + "}}",
    )


def test_a_kernel_counts_as_what_it_says_of_itself():
    said = ',"cost_estimate":{"flops":"25769803776","transcendentals":"196608","bytes_accessed":"1024"}'
    found = figures(kernel(said), row_length=128)
    assert (found.cycles, found.kernels) == (0, {"attend_512": Kernels(196608, 25769803776, 8 * 128 * 2)})
    assert found.silent_kernels == 0
    assert figures(kernel(""), row_length=128).silent_kernels == 1


def test_collectives_are_told_by_kind():
    text = entry(
        "%all-reduce.1 = (f32[768]{0:T(1024)}, f32[768,768]{1,0:T(8,128)}) all-reduce(%a, %b), to_apply=%add",
        "%all-gather-start.1 = (f32[8]{0}, f32[64]{0}) all-gather-start(%c), dimensions={0}",
        "ROOT %all-gather-done.1 = f32[64]{0} all-gather-done(%all-gather-start.1)",
    )
    assert figures(text, row_length=128).collectives == {"all-reduce": 4 * (768 + 768**2), "all-gather": 4 * 64}


@pytest.mark.compiled_as_for_users
@pytest.mark.parametrize("is_backwards", [False, True])
def test_a_scan_that_xla_compiled_here_is_read(is_backwards):
    def scanned(w_LDD, x_RD):
        return jax.lax.scan(lambda x_RD, w_DD: (jnp.tanh(x_RD @ w_DD), None), x_RD, w_LDD)[0].sum()

    function = jax.grad(scanned) if is_backwards else scanned
    text = jax.jit(function).lower(np.ones((6, 32, 32), np.float32), np.ones((8, 32), np.float32)).compile().as_text()
    module = parse(text)
    runs, uncounted = executions(module)
    assert uncounted == 0
    assert [*runs.values()].count(6) == 1 + is_backwards
    assert runs[module.entry] == 1
