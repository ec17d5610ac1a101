"""What XLA's compiler for TPUs says of a step: the text of an optimised module → its cycles, and what goes to memory.

An instruction in the body of a loop counts as often as the loop runs. What stands within a fusion stays on the chip.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    shape: str
    """With its layout: `bf16[8,128]{1,0:T(8,128)(2,1)S(1)}`, or a tuple of such."""
    opcode: str
    arguments: str
    """What stands in the parentheses: names of operands, the value of a constant, the number of a parameter."""
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return _NAME.findall(self.arguments)

    def called(self, *attributes: str) -> list[str]:
        """The computations that these attributes name."""
        found = [re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes) for attribute in attributes]
        return [name for one in found if one is not None for name in _NAME.findall(one[1])]

    @property
    def config(self) -> dict[str, Any]:
        """What the compiler has decided."""
        _, is_there, text = self.attributes.partition("backend_config=")
        return json.JSONDecoder().raw_decode(text)[0] if is_there and text.startswith("{") else {}


class Module(NamedTuple):
    """The computations by name, and the one that runs first."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


class Kernels(NamedTuple):
    """Pallas kernels of one name; sums over all that a device executes."""

    numbers: int = 0
    """That they work through, scores or elements of what is normalised, as they say ("transcendentals")."""
    operations: int = 0
    """Of their products, as they say ("flops")."""
    bytes: int = 0
    """What they read from and write to the memory off the chip."""


class Figures(NamedTuple):
    """Of one device in one step; sums over all that it executes."""

    cycles: int
    """The compiler's estimate. It makes none for kernels, nor for what goes over the network."""
    kernels: dict[str, Kernels]
    silent_kernels: int
    """How many say nothing of themselves."""
    memory_bytes: int
    """Read from and written to the memory off the chip."""
    scores_bytes: int
    """Written to the memory off the chip as arrays whose last two axes are as long as a row: attention's scores."""
    collectives: dict[str, int]
    """Bytes that each kind of collective gives."""
    uncounted_loops: int
    """Loops of which the text does not tell how often they run; they count once."""


def parse(text: str) -> Module:
    """Reads the text of an optimised module, `compiled.as_text()`."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if (found := _COMPUTATION.match(line)) is not None:
            current = computations[found["name"]] = {}
            entry = found["name"] if found["entry"] else entry
        elif (found := _INSTRUCTION.match(line)) is not None:
            shape, rest = _shape_and_rest(line[found.end() :])
            opcode, _, rest = rest.partition("(")
            end = _closing(rest)
            is_root = found["root"] is not None
            current[found["name"]] = Instruction(
                found["name"], shape, opcode.strip(), rest[:end], rest[end + 1 :], is_root
            )
    return Module(computations, entry)


def figures(text: str, *, row_length: int) -> Figures:
    """The sums over what a device executes of an optimised module."""
    module = parse(text)
    runs, uncounted = executions(module)
    cycles = silent = memory = scores = 0
    kernels: dict[str, Kernels] = {}
    collectives: dict[str, int] = {}
    for name, times in runs.items():
        computation = module.computations[name]
        for instruction in computation.values():
            if instruction.opcode in _MOVE_NOTHING | _RUN_OTHERS or instruction.opcode.endswith(("-start", "-update")):
                continue
            config = instruction.config
            cycles += times * _cycles(config)
            read, written = _bytes(instruction, computation, module)
            memory += times * (read + written)
            scores += times * _scores(instruction, row_length)
            if "tpu_custom_call" in instruction.attributes.partition("backend_config=")[0]:
                cost = config.get("custom_call_config", {}).get("cost_estimate", {})
                silent += not cost
                own = Kernels(int(cost.get("transcendentals", 0)), int(cost.get("flops", 0)), read + written)
                kind = instruction.name.removeprefix("%").partition(".")[0]
                so_far = kernels.get(kind, Kernels())
                kernels[kind] = Kernels(*(total + times * one for total, one in zip(so_far, own, strict=True)))
            kind = instruction.opcode.removesuffix("-done")
            if kind in _COLLECTIVES:
                collectives[kind] = collectives.get(kind, 0) + times * sum(map(_size, _arrays(instruction.shape)))
    return Figures(cycles, kernels, silent, memory, scores, collectives, uncounted)


def executions(module: Module) -> tuple[dict[str, int], int]:
    """How often each computation runs, those within fusions left out; and the number of loops that may run oftener."""
    runs: dict[str, int] = {}
    uncounted = 0

    def run(name: str, times: int) -> None:
        nonlocal uncounted
        runs[name] = runs.get(name, 0) + times
        for instruction in module.computations[name].values():
            if instruction.opcode == "while":
                trips = _trips(instruction, module.computations[name], module)
                uncounted += trips is None
                for body in instruction.called("body"):
                    run(body, times * (1 if trips is None else trips))
            elif instruction.opcode in _RUN_OTHERS:
                called = ("to_apply", "calls", "branch_computations", "true_computation", "false_computation")
                for other in instruction.called(*called):
                    run(other, times)

    run(module.entry, 1)
    return runs, uncounted


def _trips(loop: Instruction, around: dict[str, Instruction], module: Module) -> int | None:
    """How often a loop runs: as the compiler knows, or as its condition, its start and its increment say."""
    known = loop.config.get("known_trip_count")
    if known is not None:
        return int(known["n"])
    body, condition = (module.computations[name] for name in loop.called("body", "condition"))
    root = next(instruction for instruction in condition.values() if instruction.is_root)
    direction = re.search(r"direction=(LT|NE|LE)", root.attributes)
    if root.opcode != "compare" or direction is None:
        return None
    counter, bound = (condition[name] for name in root.operands)
    index = re.search(r"index=(\d+)", counter.attributes)
    if index is None or counter.opcode != "get-tuple-element":
        return None
    place = int(index[1])
    start = _constant(_element(around[loop.operands[0]], place, around), around)
    step = _step(_element(next(one for one in body.values() if one.is_root), place, body), body)
    end = _constant(bound, condition)
    if bound.opcode == "get-tuple-element":  # the bound is carried through the loop
        carried = re.search(r"index=(\d+)", bound.attributes)
        end = carried and _constant(_element(around[loop.operands[0]], int(carried[1]), around), around)
    if start is None or end is None or not step:
        return None
    return max(math.ceil((end + (direction[1] == "LE") - start) / step), 0)


def _element(instruction: Instruction | None, place: int, around: dict[str, Instruction]) -> Instruction | None:
    """What stands at a place of a tuple."""
    if instruction is None or instruction.opcode != "tuple":
        return None
    return around.get(instruction.operands[place])


def _constant(instruction: Instruction | None, around: dict[str, Instruction]) -> int | None:
    while instruction is not None and instruction.opcode in ("copy", "bitcast"):
        instruction = around.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant" or re.fullmatch(r"-?\d+", instruction.arguments) is None:
        return None
    return int(instruction.arguments)


def _step(instruction: Instruction | None, around: dict[str, Instruction]) -> int | None:
    """What is added to the counter of a loop each time."""
    if instruction is None or instruction.opcode != "add":
        return None
    return next((step for name in instruction.operands if (step := _constant(around.get(name), around))), None)


def _cycles(config: dict[str, Any]) -> int:
    """The compiler's estimate of an instruction, 0 where it makes none: the largest number stands for that, too."""
    cycles = int(config.get("window_config", {}).get("estimated_cycles", 0))
    return cycles if cycles < 2**62 else 0


def _bytes(instruction: Instruction, around: dict[str, Instruction], module: Module) -> tuple[int, int]:
    """What an instruction reads from and writes to the memory off the chip."""
    operands = [around[name] for name in instruction.operands if name in around]
    if instruction.opcode.endswith("-done"):  # of a move that began as `-start`: what that reads is as large
        moved = sum(map(_size, _arrays(instruction.shape)))
        sources = [around[name] for start in operands for name in start.operands if name in around]
        is_read = any(_is_off_chip(array) for source in sources for array in _arrays(source.shape))
        return moved * is_read, _written(instruction, module)
    read = sum(_read(instruction, index, operand, module) for index, operand in enumerate(operands))
    return read, _written(instruction, module)


def _read(instruction: Instruction, index: int, operand: Instruction, module: Module) -> int:
    """Of a fusion that takes slices of an operand, as a loop over stacked layers does, it reads these alone."""
    whole = sum(_size(array) for array in _arrays(operand.shape) if _is_off_chip(array))
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        return min(whole, sum(map(_size, _arrays(instruction.shape)))) if index == 0 else whole
    if instruction.opcode != "fusion" or not whole:
        return whole
    inner = module.computations[instruction.called("calls")[0]]
    parameter = next((n for n, one in inner.items() if one.opcode == "parameter" and one.arguments == str(index)), None)
    users = [one for one in inner.values() if parameter in one.operands]
    sliced = 0
    for user in users:
        if user.opcode == "dynamic-update-slice" and user.operands[0] == parameter:
            continue
        if user.opcode == "fusion":
            sliced += _read(user, user.operands.index(str(parameter)), operand, module)
        elif user.opcode in ("dynamic-slice", "gather", "slice") and user.operands[0] == parameter:
            sliced += sum(map(_size, _arrays(user.shape)))
        else:
            return whole
    return min(whole, sliced)


def _written(instruction: Instruction, module: Module) -> int:
    """Where a slice of an array is replaced, the slice alone."""
    written = sum(_size(array) for array in _arrays(instruction.shape) if _is_off_chip(array))
    if instruction.opcode != "fusion" or not written:
        return written
    inner = module.computations[instruction.called("calls")[0]]
    updates = [one for one in inner.values() if one.opcode == "dynamic-update-slice"]
    for update in updates:
        replaced = inner[update.operands[1]]
        written -= sum(map(_size, _arrays(update.shape))) - sum(map(_size, _arrays(replaced.shape)))
    return max(written, 0)


def _scores(instruction: Instruction, row_length: int) -> int:
    return sum(
        _size(array)
        for array in _arrays(instruction.shape)
        if _is_off_chip(array) and _sizes(array)[-2:] == [row_length] * 2 and len(_sizes(array)) > 2
    )


class _Array(NamedTuple):
    dtype: str
    axes: str
    layout: str


def _arrays(shape: str) -> Iterator[_Array]:
    return (_Array(*found) for found in _ARRAY.findall(shape))


def _sizes(array: _Array) -> list[int]:
    return [int(axis) for axis in array.axes.split(",") if axis]


def _size(array: _Array) -> int:
    bits = re.search(r"\d+", array.dtype)
    return math.prod(_sizes(array)) * max(int(bits[0]) if bits else 8, 4) // 8


def _is_off_chip(array: _Array) -> bool:
    """S(1) is the chip's own memory, S(2) holds semaphores, S(6) scalars; without a mark it is the large one."""
    return re.search(r"S\(\d+\)", array.layout) is None


_NAME = re.compile(r"%[\w.\-]+")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?(?P<name>%[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?P<root>ROOT )?(?P<name>%[\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_MOVE_NOTHING = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota")
)
_RUN_OTHERS = frozenset(("while", "call", "conditional"))
_COLLECTIVES = frozenset(("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"))


def _shape_and_rest(text: str) -> tuple[str, str]:
    if text.startswith("("):
        end = _closing(text[1:]) + 2
        return text[:end], text[end:]
    shape, _, rest = text.partition(" ")
    return shape, rest


def _closing(text: str) -> int:
    """Where the parenthesis ends that stands before the text."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    return len(text)
