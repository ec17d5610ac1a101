"""Where the time of the engine's steps goes, by a trace of them: `flaxsent bench --profile`.

XLA traces each instruction that it runs; the compiled program says in which `jax.named_scope` of `models/` an
instruction was written. A device's time is that of the instruction which started last, so that the parts cannot add up
to more than the whole; what is left of the wall time is a device without work.
"""

import collections
import contextlib
import os
import re
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax

from flaxsent.base import FlaxsentError
from flaxsent.bench import machine
from flaxsent.bench.machine import is_on_cpu, seconds
from flaxsent.bench.texts import Workload, open_model, workloads
from flaxsent.engine import HOST_WORK, Engine

ROUNDS = 3

_KINDS = {
    "embeddings": "embeddings",
    "head": "head",
    "attention": "attention: softmax, mask, layout",
    "layer_norm": "LayerNorm, residual sums",
    "activation": "activation",
    "dense": "matrix products, biases",
}
"""By the outermost scope of `models/` that an instruction stands in."""
ATTENTION_PRODUCTS, ATTENTION_KERNEL = "attention: products", "attention: kernel"
COPIES, OTHER, UNKNOWN, IDLE = "copies of params and rows", "other", "unknown", "no work"
KINDS = (*_KINDS.values(), ATTENTION_PRODUCTS, ATTENTION_KERNEL, COPIES, OTHER, UNKNOWN)
"""`COPIES` are the compiler's, to faster memory or another layout; `OTHER` is work outside those scopes; of `UNKNOWN`
work the program does not say where it was written."""


class Profile(NamedTuple):
    """Of one workload; the seconds are those of a call, on average."""

    workload: str
    num_texts: int
    num_tokens: int
    wall: float
    untraced: float
    """The same without a trace, in turns with it: what tracing adds can be seen."""
    num_devices: int
    devices: dict[str, float]
    """By kind, the mean of the devices."""
    unknown: dict[str, float]
    """The largest instructions of that kind, by name."""
    host: dict[str, float]
    """What the engine's threads did meanwhile."""
    products_per_second: float | None
    """Operations that the real tokens need, a second of the products; None where they are not known."""

    @property
    def idle(self) -> float:
        """The wall time that no kind accounts for."""
        return self.wall - sum(self.devices.values())


class Figures(NamedTuple):
    """Of a run."""

    model: str
    machine: str
    versions: dict[str, str]
    dtype: str
    peak: float
    """Operations a second of the fastest matrix product."""
    profiles: list[Profile]


def run(
    model: str | os.PathLike | None = None,
    *,
    texts: str | os.PathLike | None = None,
    num_texts: int | None = None,
    rounds: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Traces the engine on the texts of `flaxsent bench`, in float32 on a CPU and in bfloat16 elsewhere.

    Raises:
        FlaxsentError: a number that is not positive.
        Whatever `load` raises.
    """
    dtype = "float32" if is_on_cpu() else "bfloat16"
    measured = workloads(texts, num_texts)
    with TemporaryDirectory() as scratch, _named_by_this_source():
        report("opening the model")
        opened = open_model(model, Path(scratch), dtype=dtype)
        profiles = []
        with Engine(opened.classifier) as engine:
            report("compiling")
            engine.warmup()
            for workload in measured:
                report(f"{workload.name}: tracing")
                profiles.append(profile(engine, workload, rounds=ROUNDS if rounds is None else rounds))
    report("measuring the fastest matrix product")
    return Figures(opened.name, machine.describe(), machine.versions(), dtype, machine.matrix_peak(dtype), profiles)


@contextlib.contextmanager
def _named_by_this_source() -> Iterator[None]:
    """Programs come from the compilation cache only if the names in them are those of this source."""
    name = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


def profile(engine: Engine, workload: Workload, *, rounds: int = ROUNDS) -> Profile:
    """Calls a warm engine with the texts, `rounds` times with a trace and as often without.

    Raises:
        FlaxsentError: `rounds` is not positive, or the trace of this platform has no instructions.
    """
    if rounds < 1:
        raise FlaxsentError(f"rounds={rounds}: expected a positive number.")
    engine(workload.texts)
    compiled = [engine._executable(shape)[1].as_text() for shape in engine.shapes]
    kinds = dict(map(_kinds_of_program, compiled))
    if len(kinds) < len(compiled):
        raise AssertionError(f"{len(compiled)} programs have the names {[*kinds]}: what a trace names is not certain.")
    wall, untraced = [], []
    by_kind, unknown, host = (collections.defaultdict[str, float](float) for _ in range(3))
    for _ in range(rounds):
        untraced.append(seconds(lambda: engine(workload.texts)))
        taken, events = _traced(lambda: engine(workload.texts))
        wall.append(taken)
        for event in events:
            if event.name.startswith(HOST_WORK):
                host[event.name.removeprefix(HOST_WORK)] += event.end - event.start
        for instruction, taken in _by_instruction(events).items():
            kind = kinds.get(instruction.module, {}).get(instruction.name, UNKNOWN)
            by_kind[kind] += taken
            if kind == UNKNOWN:
                unknown[instruction.name] += taken
    if not by_kind:
        raise FlaxsentError(f"the trace of {jax.default_backend()} names no instructions; nothing can be told of it.")
    lengths = engine.classifier.tokenizer.encode(workload.texts).lengths
    operations = machine.operations(lengths, engine.classifier.config)
    num_devices = len(engine._placement.devices)
    devices = {kind: by_kind[kind] / rounds / num_devices for kind in KINDS}
    products = devices[_KINDS["dense"]] + devices[ATTENTION_PRODUCTS] + devices[ATTENTION_KERNEL]
    return Profile(
        workload=workload.name,
        num_texts=len(workload.texts),
        num_tokens=sum(lengths),
        wall=statistics.mean(wall),
        untraced=statistics.mean(untraced),
        num_devices=num_devices,
        devices=devices,
        unknown={name: taken / rounds / num_devices for name, taken in _largest_first(unknown)[:5]},
        host={work: taken / rounds for work, taken in _largest_first(host)},
        products_per_second=None if operations is None or not products else operations / products,
    )


def _largest_first(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(((name, taken) for name, taken in seconds.items() if taken), key=lambda part: -part[1])


class _Instruction(NamedTuple):
    device: str
    module: str
    name: str


class _Event(NamedTuple):
    name: str
    start: float
    end: float
    instruction: _Instruction | None


def _traced(call: Callable[[], object]) -> tuple[float, list[_Event]]:
    """How long a call takes, and what happened in it, in seconds."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would slow the call down
    with TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            taken = seconds(call)
        (file,) = Path(folder).rglob("*.xplane.pb")
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # jaxlib's own, on Python 3.13
            return taken, [*_events(jax.profiler.ProfileData.from_file(str(file)))]


def _events(data: Any) -> Iterator[_Event]:
    """Those of the host's work and of instructions.

    A CPU's instruction may go on in other threads after it was started: then it lasts until the event that is called
    its end.
    """
    started, ends = [], {}
    for plane in data.planes:
        is_device = plane.name.startswith("/device:")
        for line in plane.lines:
            for event in line.events:
                if event.name.startswith("end: "):
                    ends[dict(event.stats).get("_c"), event.name[5:]] = event.start_ns
                elif event.name.startswith(HOST_WORK):
                    yield _Event(event.name, event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9, None)
                elif "hlo_op" in (stats := dict(event.stats)) or (is_device and _is_work(line.name)):
                    started.append((plane.name, event, stats))
    for plane, event, stats in started:
        name = stats.get("hlo_op") or re.sub(r"^%?([\w.\-]+).*", r"\1", event.name, flags=re.DOTALL)
        end = max(event.start_ns + event.duration_ns, ends.get((stats.get("_p"), name), 0))
        instruction = _Instruction(
            f"{plane} {stats.get('device_ordinal', '')}", re.sub(r"\(\d+\)$", "", stats.get("hlo_module", "")), name
        )
        yield _Event(name, event.start_ns / 1e9, end / 1e9, instruction)


def _is_work(line: str) -> bool:
    """Whether a line of an accelerator's plane is what it does, not steps or modules that hold the same again."""
    return line.startswith("Stream") or line == "XLA Ops"


def _by_instruction(events: Iterable[_Event]) -> Mapping[_Instruction, float]:
    """Seconds in which each was the one of its device that had started last: a loop's are those of its body.

    >>> a, b = (_Instruction("cpu", "step", name) for name in "ab")
    >>> events = [_Event("a", 0, 4, a), _Event("b", 1, 3, b), _Event("a", 9, 10, a)]
    >>> [_by_instruction(events)[instruction] for instruction in (a, b)]
    [3.0, 2.0]
    """
    by_device = collections.defaultdict(list)
    for event in events:
        if event.instruction is not None:
            by_device[event.instruction.device].append(event)
    found = collections.defaultdict(float)
    for each in by_device.values():
        each = [event for event in each if event.end > event.start]  # else the end would come before the start
        starts = [(event.start, True, index) for index, event in enumerate(each)]
        ends = [(event.end, False, index) for index, event in enumerate(each)]
        running: list[int] = []
        before = 0.0
        for time, is_start, index in sorted(starts + ends):
            if running:
                found[each[running[-1]].instruction] += time - before
            before = time
            if is_start:
                running.append(index)
            else:
                running.remove(index)
    return found


_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")


def _kinds_of_program(text: str) -> tuple[str, dict[str, str]]:
    """The name of a compiled program, and the kind of each instruction in it.

    A fusion is what the product in it is, else its last part in a scope; an instruction that the compiler made is what
    the first operand is that was written.
    """
    module = re.match(r"HloModule ([\w.\-]+)", text)
    written: dict[str, _Written] = {}
    calls, operands, copies = {}, {}, set()
    inside: dict[str, list[str]] = collections.defaultdict(list)
    computation = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            computation = header[1]
        elif found := _INSTRUCTION.match(line):
            name, (body, _, rest) = found[1], line[found.end() :].partition("metadata=")
            inside[computation].append(name)
            if at := re.search(r'op_name="(jit\([^"]*)"', rest):  # those of params are their names
                is_product = re.search(r"[ )](dot|convolution)\(", body) is not None
                is_library_call = " custom-call(" in body and at[1].endswith("/dot_general")
                written[name] = _Written(at[1], is_product or is_library_call)
            if re.search(r" copy(-start|-done)?\(", body):
                copies.add(name)
            calls[name] = re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", body)
            operands[name] = re.findall(r"[(, ]%([\w.\-]+)", body.partition("calls=")[0])

    def main(name: str, depth: int = 0) -> _Written | None:
        parts = [one for computation in calls.get(name, ()) for one in inside[computation]]
        each = [written[one] for one in (*parts, name) if one in written][::-1]
        if each:
            return next((one for one in each if one.is_product), next((one for one in each if one.scope), each[0]))
        read = (main(one, depth + 1) for one in operands.get(name, ()) if depth < _DEPTH)
        return next(filter(None, read), None)

    return module[1] if module else "", {name: _kind(main(name), name in copies) for name in operands}


_DEPTH = 4
"""So far an instruction may stand behind the one that it gets its name from."""


class _Written(NamedTuple):
    """An instruction that is in the source."""

    place: str
    """Such as "jit(step)/vmap(attention)/QNH,TNH->NQT/dot_general"."""
    is_product: bool

    @property
    def scope(self) -> str | None:
        return next((scope for scope in re.split(r"[/()]", self.place) if scope in _KINDS), None)


def _kind(written: _Written | None, is_copy: bool = False) -> str:
    if written is None:
        return COPIES if is_copy else UNKNOWN
    if written.scope == "attention" and written.is_product:
        return ATTENTION_PRODUCTS
    if written.scope == "attention" and written.place.endswith("/pallas_call"):
        return ATTENTION_KERNEL
    return _KINDS[written.scope] if written.scope else OTHER


def table(figures: Figures) -> str:
    """The shares of each workload, line by line."""
    versions = ", ".join(f"{package} {version}" for package, version in figures.versions.items())
    lines = [figures.model, figures.machine, versions]
    return "\n".join([*lines, *(line for one in figures.profiles for line in _lines(one, figures))])


def _lines(one: Profile, figures: Figures) -> Iterator[str]:
    mean = one.num_tokens / one.num_texts
    yield ""
    yield f"{one.workload}: {one.num_texts:,} texts of {mean:.1f} tokens on average in {figures.dtype}"
    more = one.wall / one.untraced - 1
    yield f"a call takes {one.wall:.3f} s with a trace, {one.untraced:.3f} s without ({more:+.1%})"
    yield f"{f'{one.num_devices} devices, mean' if one.num_devices > 1 else 'the device':36}{'seconds':>9}{'share':>8}"
    for kind, taken in [*_largest_first(one.devices), (IDLE, one.idle), ("all", one.wall)]:
        yield f"{kind:36}{taken:9.3f}{taken / one.wall:8.1%}"
    if one.unknown:
        yield f"unknown are {', '.join(one.unknown)}"
    if one.products_per_second is not None:
        speed = f"{one.products_per_second / 1e9:,.0f} GFLOP/s for real tokens"
        share = one.products_per_second / figures.peak
        yield f"the products run at {speed}, {share:.1%} of the fastest, {figures.peak / 1e9:,.0f}"
    yield f"{'threads of the host, meanwhile':36}{'seconds':>9}{'of wall':>8}"
    for work, taken in one.host.items():
        yield f"{work:36}{taken:9.3f}{taken / one.wall:8.1%}"


def to_json(figures: Figures) -> dict[str, Any]:
    """Every figure."""
    profiles = [one._asdict() | {"idle": one.idle} for one in figures.profiles]
    return figures._asdict() | {"profiles": profiles}
