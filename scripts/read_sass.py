"""Reads what nvcc and cuobjdump told of compiled kernels, and compares it with benches/record/sass.tsv or writes that; see compile_kernels.sh."""

import collections
import pathlib
import re
import sys

RECORD = pathlib.Path("benches/record/sass.tsv")
# calls: subroutines in the kernel, such as the slow path of a division or an emulated instruction.
COLUMNS = ["arch", "kernel", "registers", "shared", "spilled", "local", "calls", "instructions", "mma"]
# What the record is kept for; instruction counts move with every version of the compiler and are there to be read.
FIXED = ["registers", "shared"]


def usage(log):
    """Registers, static shared memory and spilled bytes of each kernel, from `-Xptxas -v`."""
    kernels, kernel = {}, None
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = kernels.setdefault(found[1], {"registers": 0, "shared": 0, "spilled": 0})
        elif kernel is not None and (found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)):
            kernel["spilled"] = int(found[1]) + int(found[2])
        elif kernel is not None and (found := re.search(r"Used (\d+) registers", line)):
            kernel["registers"] = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernel["shared"] = int(shared[1]) if shared else 0
    return kernels


def instructions(sass):
    """Counts of the instructions of each kernel, by their names with all modifiers."""
    kernels, kernel = {}, None
    for line in sass.splitlines():
        if found := re.search(r"Function : (\w+)", line):
            kernel = kernels.setdefault(found[1], collections.Counter())
        elif kernel is not None and (found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line)):
            kernel[found[1]] += 1
    return kernels


def rows(folder):
    """All kernels of all architectures as rows of the table."""
    table = []
    for log in folder.glob("*.log"):
        arch = log.name.split(".")[-2]
        counts = instructions(log.with_suffix(".sass").read_text())
        for kernel, used in usage(log.read_text()).items():
            count = counts[kernel]
            base = collections.Counter()
            for name, n in count.items():
                base[name.split(".")[0]] += n
            mma = {name: n for name, n in count.items() if re.match(r"[A-Z]*MMA\.", name) and name[0] != "U"}
            table.append({
                "arch": arch,
                "kernel": kernel,
                **used,
                "local": base["LDL"] + base["STL"],
                "calls": base["RET"],
                "instructions": sum(count.values()) - base["NOP"],
                "mma": ", ".join(f"{name} x {n}" for name, n in sorted(mma.items())) or "-",
            })
    return sorted(({k: str(v) for k, v in row.items()} for row in table), key=lambda row: (int(row["arch"]), row["kernel"]))


def complaints(row):
    """What is wrong with a kernel whatever the record says."""
    if row["spilled"] != "0" or row["local"] != "0":
        yield f"{row['spilled']} bytes spilled, {row['local']} accesses of local memory"
    if row["kernel"].startswith("tcq4_mul_mat"):
        native = int(row["arch"]) < 90
        of_int4 = row["kernel"].endswith(("int4", "block4"))
        if ("S4.S4" in row["mma"]) != (native and of_int4):
            yield f"INT4 instructions wanted: {native and of_int4}; found: {row['mma']}"
        if row["calls"] != "0":
            yield f"{row['calls']} subroutines: an instruction is emulated"
        if row["mma"] == "-":
            yield "no tensor core instructions"


def read_record():
    """The rows of the record, and its first line."""
    if not RECORD.exists():
        return [], ""
    first, _, *lines = RECORD.read_text().splitlines()
    return [dict(zip(COLUMNS, line.split("\t"))) for line in lines], first


def silent(folder):
    """Compiled files of which nothing was read: the tools then speak in a way that is not understood here."""
    logs = sorted(folder.glob("*.log"))
    if not logs:
        yield f"{folder}: nothing was compiled"
    for log in logs:
        if not usage(log.read_text()):
            yield f"{log.name}: names no kernel"
        elif not instructions(log.with_suffix(".sass").read_text()):
            yield f"{log.with_suffix('.sass').name}: has no instructions"


def main():
    mode, version, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    table = rows(folder)
    problems = [*silent(folder)]
    problems += [f"sm_{row['arch']} {row['kernel']}: {text}" for row in table for text in complaints(row)]
    archs = {log.name.split(".")[-2] for log in folder.glob("*.log")}
    recorded, head = read_record()
    if mode == "record" and not problems:
        kept = [row for row in recorded if row["arch"] not in archs]
        table = sorted(table + kept, key=lambda row: (int(row["arch"]), row["kernel"]))
        lines = ["\t".join(row[column] for column in COLUMNS) for row in table]
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text("\n".join([f"# nvcc {version}", "\t".join(COLUMNS), *lines]) + "\n")
    elif mode != "record":
        known = {(row["arch"], row["kernel"]): row for row in recorded if row["arch"] in archs}
        found = {(row["arch"], row["kernel"]): row for row in table}
        for arch, kernel in sorted(known.keys() ^ found.keys()):
            problems.append(f"sm_{arch} {kernel}: {'is not in the record' if (arch, kernel) in found else 'is in the record but not there'}")
        same = head == f"# nvcc {version}"
        if not same:
            print(f"{' and '.join(FIXED)} were not compared: the record is of {head[2:] or 'no compiler'}, this is nvcc {version}")
        for key in sorted(known.keys() & found.keys()) if same else []:
            for column in FIXED:
                if known[key][column] != found[key][column]:
                    problems.append(f"sm_{key[0]} {key[1]}: {column} {found[key][column]}, recorded {known[key][column]}")
    for arch in sorted(archs, key=int):
        print(f"sm_{arch}: {sum(row['arch'] == arch for row in table)} kernels")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
