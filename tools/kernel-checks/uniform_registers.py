"""Find reads of a uniform register that some path through the machine code leaves unwritten.

ptxas 12.8 moves the computation of an address behind a branch although both sides need it. The read then returns whatever is
in the register: a wrong result, an illegal address, or for years no symptom at all. In CUDA's machine code (SASS, printed by
`cuobjdump -sass`) the addresses of warpgroup products are in uniform registers, UR0 to UR62.

From every product the check follows the additions and moves that made its address back to the first value that changes
within a loop (the stage of a pipeline); each register on the way must have one writer. R2UR, which restores a value that had
left the uniform registers, is not counted as one.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import triton

LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z0-9_.]+)\s*(.*?)\s*;")
UNIFORM = re.compile(r"(?<![A-Z])UR(\d+)")
ENDS = ("EXIT", "BRA", "RET", "BRX", "JMX", "JMP", "BREAK")  # without a predicate nothing follows


@dataclass
class Instruction:
    """One line of SASS, with the uniform registers that it reads and writes."""

    address: int
    op: str
    text: str
    is_certain: bool  # has no predicate
    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)
    next: list[int] = field(default_factory=list)  # addresses


def operands(op: str, rest: str) -> tuple[set[int], set[int]]:
    """Uniform registers that an instruction reads and writes."""
    parts = [part.strip() for part in rest.split(",")]
    wide = 2 if op.startswith("U") and (".64" in op or ".WIDE" in op) else 1
    reads: set[int] = set()
    writes: set[int] = set()
    for place, part in enumerate(parts):
        for found in map(int, UNIFORM.findall(part)):
            is_result = part == f"UR{found}" and all(
                re.fullmatch(r"!?U?P[T\d]", other) for other in parts[:place]
            )
            if is_result and not op.startswith(("UISETP", "USETP")):
                writes |= set(range(found, found + wide))
            elif "gdesc[" in part:  # of a, and of b; a may be in registers
                of_a = any(re.match(r"R\d", other) for other in parts[1:place])
                reads |= set(range(found + 2 * of_a, found + 4))
            elif "desc[" in part or (wide == 2 and ".64" in op):
                reads |= {found, found + 1}
            else:
                reads.add(found)
    return reads, writes


def functions(sass: str) -> dict[str, list[Instruction]]:
    """The instructions of every function."""
    found: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in sass.splitlines():
        if "Function :" in line:
            code = found[line.split("Function :")[1].strip()] = []
        match = LINE.match(line)
        if match is None:
            continue
        at, predicate, op, rest = match.groups()
        name = op.split(".")[0]
        made = Instruction(int(at, 16), name, f"/*{at}*/ {op} {rest}", predicate is None)
        made.reads, made.writes = operands(op, rest)
        if name == "BRA":
            made.next.append(int(rest.split(",")[-1].strip().strip("`()"), 16))
        if not made.is_certain or name not in ENDS:
            made.next.append(made.address + 16)
        code.append(made)
    for instructions in found.values():
        add_jumps(instructions)
    return found


def add_jumps(code: list[Instruction]) -> None:
    """Add jumps through a table (BRX, to the partition of each warp): to all code to which nothing else leads."""
    at = {instruction.address: instruction for instruction in code}
    tables = [instruction for instruction in code if instruction.op == "BRX"]
    reached: set[int] = set()

    def reach(address: int) -> None:
        waiting = [address]
        while waiting:
            address = waiting.pop()
            if address in at and address not in reached:
                reached.add(address)
                waiting += at[address].next

    for before, instruction in zip([None, *code], code, strict=False):
        if before is None:
            reach(instruction.address)
        elif instruction.address not in before.next and instruction.address not in reached:
            for table in tables:
                table.next.append(instruction.address)
            if tables:
                reach(instruction.address)


NOBODY = -1  # the writer of a register that nothing has written yet


@dataclass
class Writers:
    """Which instructions may have written a register last, before each instruction that can be reached.

    `before` holds a set per instruction as the bits of an int, one bit per (writer, register) of `writes`: a kernel has
    thousands of instructions, and what is known of each changes many times.
    """

    writes: list[tuple[int, int]]
    of_register: dict[int, int]
    before: dict[int, int]

    def of(self, address: int, register: int) -> set[int]:
        """The addresses of the writers, or NOBODY."""
        bits, found = self.before[address] & self.of_register[register], set()
        while bits:
            lowest = bits & -bits
            found.add(self.writes[lowest.bit_length() - 1][0])
            bits ^= lowest
        return found


def reaching(code: list[Instruction]) -> Writers:
    """Follow every path through the code until nothing new is found."""
    at = {instruction.address: instruction for instruction in code}
    writes = [(NOBODY, register) for register in range(64)]
    writes += [(each.address, register) for each in code for register in each.writes]
    of_register, made = dict.fromkeys(range(64), 0), dict.fromkeys(at, 0)
    for place, (writer, register) in enumerate(writes):
        of_register[register] |= 1 << place
        if writer != NOBODY:
            made[writer] |= 1 << place
    gone = {
        each.address: sum(of_register[register] for register in each.writes) if each.is_certain else 0
        for each in code
    }
    before = {code[0].address: (1 << 64) - 1}
    waiting = [code[0].address]
    while waiting:
        address = waiting.pop()
        after = (before[address] & ~gone[address]) | made[address]
        for following in at[address].next:
            if following not in at:
                continue
            known = before.get(following)
            merged = after if known is None else known | after
            if merged != known:
                before[following] = merged
                waiting.append(following)
    return Writers(writes, of_register, before)


def ambiguous(code: list[Instruction]) -> list[str]:
    """The instructions that read part of an address of a product which more than one instruction may have written."""
    if not code:
        return []
    at = {instruction.address: instruction for instruction in code}
    known = reaching(code)
    lost = [i.text for i in code if i.op == "HGMMA" and i.address not in known.before]
    if lost:
        raise ValueError(f"no way was found to {len(lost)} products, the first of them {lost[0]}")
    wanted = [(i.address, register) for i in code if i.op == "HGMMA" for register in i.reads]
    seen, found = set(wanted), []
    while wanted:
        address, register = wanted.pop()
        # R2UR restores a value that had left the uniform registers
        writers = {w for w in known.of(address, register) if w == NOBODY or at[w].op != "R2UR"}
        if not writers:
            continue
        if len(writers) > 1 or NOBODY in writers:
            found.append(f"UR{register}: {at[address].text}, {sorted(map(hex, writers))}")
            continue
        writer = at[next(iter(writers))]
        if writer.op not in ("UIADD3", "UMOV"):
            continue  # an address computed from the stage of a pipeline, which changes
        for source in writer.reads:
            if (writer.address, source) not in seen:
                seen.add((writer.address, source))
                wanted.append((writer.address, source))
    return found


def faults(cubin: bytes) -> list[str]:
    """For every function of a compiled kernel, the instructions that may read an unwritten register."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(tool), "-sass", file.name], capture_output=True, text=True, check=True)
    found = functions(done.stdout)
    if not any(found.values()):
        raise ValueError(f"no instruction was read in what cuobjdump prints: {done.stdout[:200]!r}")
    return [text for code in found.values() for text in ambiguous(code)]
