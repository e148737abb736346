"""How far `tallow verify python` agrees with native CPython on HumanEval and MBPP: the reference
solutions, the same with `return None` for a body, and simple mutants (numbers off by one, operators
swapped, returns too early).

    python3 benches/peers/verify_python.py --tallow target/release/tallow --data DIR [--mutants 8]

DIR holds humaneval/HumanEval.jsonl.gz, mbpp/sanitized-mbpp.json.gz and mbpp/MbppPlus.jsonl.gz.
Native verdicts come from a forked child per program, ended after 5 s of processor time.
"""

import argparse
import ast
import collections
import copy
import gzip
import json
import multiprocessing
import os
import random
import resource
import subprocess
import tempfile

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And,
}


def tasks(folder):
    """Id, prefix, solution, function, and tests as the verifier takes them."""
    with gzip.open(os.path.join(folder, "humaneval/HumanEval.jsonl.gz"), "rt") as file:
        for row in map(json.loads, file):
            prelude = row["prompt"] + "    pass\n"
            tests = {"asserts": row["test"], "prelude": prelude, "entry": row["entry_point"]}
            yield row["task_id"], row["prompt"] + row["canonical_solution"], row["entry_point"], tests
    with gzip.open(os.path.join(folder, "mbpp/sanitized-mbpp.json.gz"), "rt") as file:
        for row in json.load(file):
            source = "\n".join(row["test_imports"] + row["test_list"])
            defined = [node.name for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef)]
            called = [name for name in defined if name + "(" in source.replace(" (", "(")]
            yield f"mbpp/{row['task_id']}", row["code"], (called or defined)[-1], {"asserts": source}
    with gzip.open(os.path.join(folder, "mbpp/MbppPlus.jsonl.gz"), "rt") as file:
        for row in map(json.loads, file):
            name, source = row["entry_point"], row["assertion"]
            # The inputs added by MBPP+ have no outputs of their own: those of the reference are.
            namespace = {}
            exec(compile("import math\n" + row["canonical_solution"], "<reference>", "exec"), namespace)
            lines = []
            more = row["plus_input"] if isinstance(row["plus_input"], list) else []
            for inputs in more[:20]:
                try:
                    args = copy.deepcopy(inputs)
                    expected = namespace[name](*args)
                    line = f"assert {name}(*{inputs!r}) == {expected!r}"
                    if len(line) < 2000 and eval(f"{inputs!r}") == inputs and eval(repr(expected)) == expected:
                        lines.append(line)
                except Exception:
                    continue
            # One reference fails its own tests where `math` is missing, natively too.
            yield row["task_id"], row["canonical_solution"], name, {"asserts": "import math\n" + source + "\n".join(lines), "entry": name}


def without_body(program, function):
    tree = ast.parse(program)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            node.body = [ast.Return(ast.Constant(None))]
    return ast.unparse(ast.fix_missing_locations(tree))


def mutants(program, function, count, rng):
    """So many different programs, one change each."""
    tree = ast.parse(program)
    places = []
    for index, node in enumerate(ast.walk(tree)):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            places += [(index, "up"), (index, "down")]
        elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
            places.append((index, "swap"))
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            places.append((index, "swap"))
        elif isinstance(node, ast.FunctionDef) and node.name == function and node.args.args:
            places.append((index, "early"))
    rng.shuffle(places)
    seen = {ast.unparse(tree)}
    for index, change in places:
        if len(seen) > count:
            break
        mutant = copy.deepcopy(tree)
        node = list(ast.walk(mutant))[index]
        if change in ("up", "down"):
            node.value += 1 if change == "up" else -1
        elif change == "early":
            node.body.insert(0, ast.Return(ast.Name(node.args.args[0].arg, ast.Load())))
        elif isinstance(node, ast.Compare):
            node.ops[0] = SWAPS[type(node.ops[0])]()
        else:
            node.op = SWAPS[type(node.op)]()
        source = ast.unparse(ast.fix_missing_locations(mutant))
        if source not in seen:
            seen.add(source)
            yield source


def native(row):
    """Whether CPython finds the tests met."""
    tests = row["tests"]
    source = row["program"] + "\n" + tests["asserts"]
    if "def check(" in tests["asserts"]:
        source += f"\ncheck({tests['entry']})"
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            random.seed(0)
            exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tallow", default="target/release/tallow")
    parser.add_argument("--data", required=True)
    parser.add_argument("--mutants", type=int, default=8)
    args = parser.parse_args()
    rng = random.Random(0)
    rows = []
    for name, program, function, tests in tasks(args.data):
        family = name.split("/")[0]
        kinds = [("reference", program), ("none", without_body(program, function))]
        kinds += [("mutant", mutant) for mutant in mutants(program, function, args.mutants, rng)]
        for kind, source in kinds:
            rows.append({"id": f"{name} {kind} {len(rows)}", "family": family, "kind": kind, "program": source, "tests": tests})
    print(len(rows), "programs", flush=True)
    with multiprocessing.Pool() as pool:
        for row, right in zip(rows, pool.imap(native, rows, chunksize=8)):
            row["native"] = right
    with tempfile.TemporaryDirectory() as folder:
        cases, out = os.path.join(folder, "cases.jsonl"), os.path.join(folder, "out.jsonl")
        with open(cases, "w") as file:
            for row in rows:
                file.write(json.dumps({key: row[key] for key in ("id", "program", "tests")}) + "\n")
        subprocess.run([args.tallow, "verify", "python", "--cases", cases, "--out", out], check=True)
        with open(out) as file:
            verdicts = [json.loads(line) for line in file]
    counts = collections.Counter()
    for row, verdict in zip(rows, verdicts):
        counts[row["family"], row["kind"], "native right" if row["native"] else "native wrong", verdict["outcome"]] += 1
        if row["native"] != verdict["verdict"]:
            print("differs:", row["id"], "native", row["native"], verdict["outcome"], (verdict["reason"] or "")[:120])
    for key, count in sorted(counts.items()):
        print(*key, count)
    same = sum(row["native"] == verdict["verdict"] for row, verdict in zip(rows, verdicts))
    print(f"the same verdict: {same} of {len(rows)} ({100 * same / len(rows):.2f} %)")
    wrong = [verdict for row, verdict in zip(rows, verdicts) if row["kind"] == "mutant" and not row["native"]]
    caught = sum(verdict["verdict"] is False for verdict in wrong)
    print(f"mutants that CPython judges wrong, judged wrong: {caught} of {len(wrong)}")


if __name__ == "__main__":
    main()
