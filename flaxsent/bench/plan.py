"""What a step takes on a chip that is not here: `flaxsent plan`, compiled by libtpu, which needs no chip.

`topology` → `inference` or `training` → `plan` → `table` or `to_json`; `host.py` adds what the machine around the chips
must do, and what a corpus takes.
"""

import math
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from flaxsent.base import FlaxsentError
from flaxsent.bench import hlo
from flaxsent.bench.chips import Chip, Topology
from flaxsent.bench.host import CHUNKS, Corpus, Host, Job, job, limits
from flaxsent.bench.products import Products
from flaxsent.bench.work import Work
from flaxsent.packing import StepShape


class Step(NamedTuple):
    """A compiled step; bytes, operations and cycles are those of one chip."""

    asked: StepShape
    shape: StepShape
    """Of all chips; the largest that fits, where what was asked for does not."""
    params: int
    """Bytes of what the step is given besides its rows: of training, the state of the run."""
    temporaries: int
    code: int
    seconds_to_compile: float
    products: Products | None
    """None for an exported folder, which does not show them."""
    figures: hlo.Figures


class Largest(NamedTuple):
    """The largest step that fits, of the one that was asked for doubled again and again."""

    shape: StepShape
    is_end: bool
    """Whether twice as much was too much; else it was not tried."""


class Plan(NamedTuple):
    """What was found."""

    topology: str
    chip: Chip
    num_chips: int
    chips_per_host: int
    work: str
    dtype: str
    steps: list[Step]
    largest: Largest | None
    """Of the longest rows, which take most memory for a token; None if it was not looked for."""


class Outlook(NamedTuple):
    """What a step and a host do for texts of a length."""

    step: Step
    limits: dict[str, float]
    """Texts a second of a host, by each of its parts alone."""
    bound: str
    """What is full first: "matrix", "memory" or "host"."""
    job: Job


def plan(
    work: Work, topology: Topology, *, finds_largest: bool = True, report: Callable[[str], None] = lambda line: None
) -> Plan:
    """Compiles the steps; `report` is called with a line on what goes on.

    Raises:
        FlaxsentError: a step of one row a chip does not fit, or the chips cannot share its rows evenly.
    """
    steps = [_fitting(work, shape, report) for shape in work.shapes]
    largest = _largest(work, topology.chip, steps[-1], report) if finds_largest else None
    return Plan(
        topology=topology.name,
        chip=topology.chip,
        num_chips=len(topology.devices),
        chips_per_host=topology.chips_per_host,
        work=work.name,
        dtype=work.dtype,
        steps=steps,
        largest=largest,
    )


class DoesNotFitError(Exception):
    """What the compiler says of a step that takes more memory than the chip has."""


def compiled(work: Work, shape: StepShape) -> Step:
    """A step of exactly this shape.

    Raises:
        DoesNotFitError: it takes more memory than the chip has.
        FlaxsentError: the chips cannot share its rows evenly.
    """
    if shape.num_rows % work.multiple_of:
        raise FlaxsentError(
            f"num_rows={shape.num_rows} cannot be shared evenly by {work.multiple_of} chips; expected a multiple of "
            f"{work.multiple_of}."
        )
    begin = time.perf_counter()
    try:
        executable = work.lower(shape).compile()
    except jax.errors.JaxRuntimeError as err:
        if "RESOURCE_EXHAUSTED" not in str(err) or "hbm" not in str(err).lower():
            raise  # a kernel that asks for too much of the memory on the chip does so in any step
        # "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of … (26.62G) … (15.75G). HLO module: jit__step."
        said = re.sub(r"^[A-Z_]+: (E\d+: \w+: )?|\.? HLO module: .*$", "", str(err).splitlines()[0])
        raise DoesNotFitError(said) from err
    seconds = time.perf_counter() - begin
    memory: Any = executable.memory_analysis()
    rows = _ARRAYS_OF_TOKENS * 4 * shape.num_rows * shape.row_length // work.multiple_of
    products = work.products(shape)
    return Step(
        asked=shape,
        shape=shape,
        params=max(memory.argument_size_in_bytes - rows, 0),
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        seconds_to_compile=seconds,
        products=products and Products(*(number // work.num_devices for number in products)),
        figures=hlo.figures(executable.as_text() or "", row_length=shape.row_length),
    )


_ARRAYS_OF_TOKENS = 4


def _fitting(work: Work, asked: StepShape, report: Callable[[str], None]) -> Step:
    """A step of the shape, or of half as many rows, again and again, until it fits."""
    shape = asked
    while True:
        report(f"compiling {_told(shape)}")
        try:
            return compiled(work, shape)._replace(asked=asked)
        except DoesNotFitError as err:
            fewer = _halved(shape, work.multiple_of)
            if fewer == shape:
                raise FlaxsentError(
                    f"{_told(shape)}, the fewest, do not fit: {err}; choose a chip with more memory, shorter rows or "
                    "a smaller dtype."
                ) from err
            shape = fewer


def _largest(work: Work, chip: Chip, step: Step, report: Callable[[str], None]) -> Largest:
    """Doubles a step as often as its temporaries foretell, then by trial."""
    if step.shape != step.asked:
        return Largest(step.shape, is_end=True)
    room = (chip.memory - step.params - step.code) / max(step.temporaries, 1)
    tokens = step.shape.num_rows * step.shape.row_length // work.num_devices
    most = max(math.floor(math.log2(max(_MOST_TOKENS / tokens, 1))), 0)
    doublings = min(max(math.floor(math.log2(max(room, 1))), 0), most)
    best, failed = 0, most + 1
    while best + 1 < failed:
        doublings = min(max(doublings, best + 1), failed - 1)
        shape = step.shape._replace(num_rows=step.shape.num_rows << doublings)
        report(f"trying {_told(shape)}")
        try:
            compiled(work, shape)
            best, doublings = doublings, doublings + 1
        except DoesNotFitError:
            failed, doublings = doublings, doublings - 1
    return Largest(step.shape._replace(num_rows=step.shape.num_rows << best), is_end=failed <= most)


_MOST_TOKENS = 1 << 20
"""On a chip; a step of more would be of no use."""


def _halved(shape: StepShape, multiple_of: int) -> StepShape:
    return shape._replace(num_rows=max(shape.num_rows // 2 // multiple_of, 1) * multiple_of)


def _told(shape: StepShape) -> str:
    return f"{_counted(shape.num_rows, 'row')} of {shape.row_length:,} tokens"


def cycles(step: Step, chip: Chip) -> float:
    """The compiler's estimate; of kernels, of which it makes none, that of `Chip.kernel_cycles` or what they move.

    Kernels that say nothing of themselves count as what they move alone.
    """
    total = float(step.figures.cycles)
    for name, kernels in step.figures.kernels.items():
        computed = kernels.operations / chip.operations_per_cycle + kernels.numbers / 1024 * chip.kernel_cycles.of(name)
        total += max(computed, kernels.bytes / chip.bytes_per_second * chip.clock)
    return total


def matrix_use(step: Step, chip: Chip) -> float | None:
    """Share of the matrix units' peak in bfloat16 that the step's products are, by the compiler's estimate."""
    if step.products is None:
        return None
    return step.products.operations / (max(cycles(step, chip), 1) * chip.operations_per_cycle)


ESTIMATE, MATRIX, MEMORY = "chips, by the compiler's estimate", "matrix units, if full", "memory of the chips, if full"
"""Limits of a host's chips; the first is what they do, the others are the most that they could."""


def outlook(plan: Plan, host: Host, corpus: Corpus) -> Outlook:
    """What bounds the texts of a corpus, and what they take: by the step of the shortest rows that such texts fit.

    Raises:
        FlaxsentError: no row takes such a text.
    """
    fitting = [step for step in plan.steps if step.shape.row_length >= host.tokens_per_text]
    if not fitting:
        raise FlaxsentError(f"tokens_per_text={host.tokens_per_text:g} is more than the longest row has.")
    step, chip = fitting[0], plan.chip
    texts = texts_per_step(step.shape, host.tokens_per_text) / plan.num_chips * plan.chips_per_host
    by_chips = {ESTIMATE: texts / max(cycles(step, chip) / chip.clock, 1e-12)}
    if step.products is not None:
        by_chips[MATRIX] = texts / (step.products.passes / chip.operations_per_second)
    by_chips[MEMORY] = texts / (max(step.figures.memory_bytes, 1) / chip.bytes_per_second)
    # Training encodes its texts once, before its steps.
    by_host = limits(host, corpus.cores_per_host) if plan.work == "inference" else {}
    bound = "matrix" if by_chips.get(MATRIX, math.inf) <= by_chips[MEMORY] else "memory"
    if by_host and min(by_host.values()) < by_chips[ESTIMATE]:
        bound = "host"
    found = by_chips | by_host
    return Outlook(step, found, bound, job(corpus, host, found, devices_per_host=plan.chips_per_host))


def texts_per_step(shape: StepShape, tokens_per_text: float) -> float:
    """Where texts of a length fill the rows; a row that is not packed holds one."""
    return float(shape.num_rows * min(shape.row_length / tokens_per_text, shape.num_segments))


def table(plan: Plan, host: Host, corpus: Corpus, outlook: Outlook) -> str:
    """All the figures, line by line."""
    chip, found = plan.chip, outlook.job
    chips = f"{_counted(plan.num_chips, f'{chip.name} chip')}, {plan.chips_per_host} a host"
    groups = {
        "compiled for": [
            f"{plan.topology}: {chips}; {plan.work} in {plan.dtype}",
            f"a chip has {_binary(chip.memory)}, {chip.operations_per_second / 1e12:,.0f} Tops/s in bfloat16, "
            f"{chip.bytes_per_second / 1e9:,.0f} GB/s, {chip.clock / 1e9:.2f} GHz",
        ],
        **{f"rows of {step.shape.row_length:,}": _step_lines(step, plan) for step in plan.steps},
    }
    if plan.largest is not None:
        shape, is_end = plan.largest
        more = "twice as many do not fit" if is_end else "more were not tried"
        groups["the largest step"] = [f"{_of_chip(shape, plan)}; {more}"]
    limits = sorted((limit, name) for name, limit in outlook.limits.items())
    groups |= {
        "a text": [f"{host.tokens_per_text:g} tokens, or {host.bytes_per_text:.0f} bytes of the texts made up here"],
        "a core here": [
            f"tokenizes {host.tokenized_per_second:,.0f} texts/s, "
            f"{host.tokenized_per_second * host.tokens_per_text:,.0f} tokens/s",
            f"reads, packs and writes {host.handled_per_second:,.0f} texts/s",
        ],
        f"a host of {plan.chips_per_host}": [f"{limit:,.0f} texts/s: {name}" for limit, name in limits],
        "it is bound by": [_BOUNDS[outlook.bound]],
        "the corpus": [
            f"{corpus.documents:,.0f} texts within {corpus.hours:g} hours",
            f"{_counted(found.num_hosts, 'host')}, {_counted(found.num_devices, 'chip')}, {found.hours:.1f} hours: "
            f"{found.num_devices * found.hours:,.1f} chip hours",
        ],
    }
    if plan.work == "inference":
        groups["a host then"] = [
            f"reads {found.input_bytes / 1e6:,.1f} MB/s of texts, {found.network_bytes * 8 / 1e9:.2f} Gbit/s with "
            "parts and outputs",
            f"holds {found.memory / 1e9:.1f} GB: {host.memory / 1e9:.1f} GB as this process, and {CHUNKS} chunks",
            f"has at most {found.spread.equal:.4f} of the mean share of the work, {found.spread.lognormal:.4f} if "
            "files differ much",
        ]
    return "\n".join(
        f"{'' if index else name:<18} {figure}"
        for name, figures in groups.items()
        for index, figure in enumerate(figures)
    )


_BOUNDS = {
    "matrix": "the matrix units: products at their peak take longer than the memory does",
    "memory": "the memory of the chips: it takes longer than the products at their peak do",
    "host": "the host: its chips would do more",
}


def _step_lines(step: Step, plan: Plan) -> list[str]:
    chip, figures = plan.chip, step.figures
    seconds = cycles(step, chip) / chip.clock
    use = matrix_use(step, chip)
    tokens = step.shape.num_rows * step.shape.row_length / plan.num_chips
    fits = "fits" if step.shape == step.asked else f"fits; {_of_chip(step.asked, plan)} do not"
    lines = [
        f"{_of_chip(step.shape, plan)}: {fits}; compiled in {step.seconds_to_compile:.1f} s",
        f"{_bytes(step.params)} of {'state' if plan.work == 'training' else 'parameters'}, "
        f"{_bytes(step.temporaries)} of temporaries, {_bytes(step.code)} of code",
        f"{_bytes(figures.memory_bytes)} to and from memory, {_bytes(figures.scores_bytes)} of them attention scores",
        f"{cycles(step, chip):,.0f} cycles or {seconds * 1e3:,.2f} ms, by the compiler's estimate: "
        f"{tokens / max(seconds, 1e-12):,.0f} tokens/s"
        + ("" if use is None else f", {use:.0%} of the matrix units' peak"),
    ]
    if figures.kernels:
        counted = ", ".join(f"{name} {chip.kernel_cycles.of(name):g}" for name in sorted(figures.kernels))
        silent = f"; {figures.silent_kernels} of them what they move alone" if figures.silent_kernels else ""
        lines.append(f"kernels, which have no estimate, count their products and for 1,024 numbers {counted}{silent}")
    if figures.collectives:
        moved = ", ".join(f"{kind} {_bytes(size)}" for kind, size in sorted(figures.collectives.items()))
        lines.append(f"between chips, which no estimate counts: {moved}")
    if figures.uncounted_loops:
        lines.append(f"{figures.uncounted_loops} loops may run oftener than once, which is how often they are counted")
    return lines


def _of_chip(shape: StepShape, plan: Plan) -> str:
    rows = shape.num_rows // plan.num_chips
    return f"{_counted(rows, 'row')} a chip, {rows * shape.row_length:,} tokens"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _bytes(number: int) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def _binary(number: int) -> str:
    return f"{number >> 30} GiB"


def to_json(plan: Plan, host: Host, corpus: Corpus, outlook: Outlook) -> dict[str, Any]:
    """All the figures as plain dicts and lists."""
    chip = plan.chip
    return {
        **plan._asdict(),
        "chip": chip._asdict() | {"clock": chip.clock},
        "steps": [_step_json(step, chip) for step in plan.steps],
        "largest": plan.largest and {"shape": plan.largest.shape._asdict(), "is_end": plan.largest.is_end},
        "host": host._asdict(),
        "corpus": corpus._asdict(),
        "limits": outlook.limits,
        "bound": outlook.bound,
        "job": outlook.job._asdict() | {"spread": outlook.job.spread._asdict()},
    }


def _step_json(step: Step, chip: Chip) -> dict[str, Any]:
    return {
        **step._asdict(),
        "asked": step.asked._asdict(),
        "shape": step.shape._asdict(),
        "products": step.products and step.products._asdict(),
        "figures": step.figures._asdict()
        | {"kernels": {name: kernels._asdict() for name, kernels in step.figures.kernels.items()}},
        "cycles": cycles(step, chip),
        "seconds": cycles(step, chip) / chip.clock,
        "matrix_use": matrix_use(step, chip),
    }
