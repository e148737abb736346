"""Programs judged a second: `tallow bench sandbox` beside fresh `python -c` processes and beside a
fork server without limits, on the same programs, in turns.

    python3 benches/peers/sandbox.py --tallow target/release/tallow [--rounds 5]

Needs Python alone. Prints medians, and the ratio of each round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

PROGRAMS = [
    (
        "def has_close(numbers, threshold):\n    for i, a in enumerate(numbers):\n        for j, b in enumerate(numbers):\n"
        "            if i != j and abs(a - b) < threshold:\n                return True\n    return False\n",
        ["has_close([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True", "has_close([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.05) == False",
         "has_close([1.0, 2.0, 5.9, 4.0, 5.0], 0.95) == True", "has_close([1.0, 2.0, 5.9, 4.0, 5.0], 0.8) == False",
         "has_close([1.1, 2.2, 3.1, 4.1, 5.1], 1.0) == True", "has_close([], 0.5) == False", "has_close([1.0], 0.5) == False",
         "has_close([1.0, 1.0], 0.5) == True", "has_close([3.0, 1.0], 0.5) == False",
         "has_close([float(i) for i in range(60)], 0.5) == False"],
    ),
    (
        "import heapq\nfrom collections import defaultdict\ndef dijkstra(n, edges, s):\n    g = defaultdict(list)\n"
        "    for a, b, w in edges:\n        g[a].append((b, w)); g[b].append((a, w))\n    d = [float('inf')] * n; d[s] = 0; q = [(0, s)]\n"
        "    while q:\n        c, u = heapq.heappop(q)\n        if c > d[u]: continue\n        for v, w in g[u]:\n"
        "            if c + w < d[v]:\n                d[v] = c + w; heapq.heappush(q, (d[v], v))\n    return d\n",
        ["dijkstra(1, [], 0) == [0]", "dijkstra(2, [(0, 1, 5)], 0) == [0, 5]", "dijkstra(3, [(0, 1, 5), (1, 2, 1), (0, 2, 9)], 0) == [0, 5, 6]",
         "dijkstra(3, [(0, 1, 5)], 0)[2] == float('inf')", "dijkstra(50, [(i, i + 1, 1) for i in range(49)], 0)[49] == 49",
         "dijkstra(50, [(i, i + 1, 1) for i in range(49)], 49)[0] == 49", "dijkstra(4, [(0, 1, 1), (0, 2, 1), (1, 3, 1)], 0) == [0, 1, 1, 2]",
         "dijkstra(4, [(0, 1, 1), (0, 2, 1), (1, 3, 1), (2, 3, 5)], 3) == [2, 1, 3, 0]", "dijkstra(5, [], 2)[2] == 0",
         "len(dijkstra(100, [(i, (i * 7) % 100, i % 5 + 1) for i in range(100)], 0)) == 100"],
    ),
    (
        "import re\ndef words(s):\n    c = {}\n    for w in re.findall(r'[a-z]+', s.lower()):\n        c[w] = c.get(w, 0) + 1\n"
        "    return sorted(c.items(), key=lambda p: (-p[1], p[0]))\n",
        ["words('') == []", "words('a b a') == [('a', 2), ('b', 1)]", "words('The the THE') == [('the', 3)]",
         "words('b a') == [('a', 1), ('b', 1)]", "words('x1y') == [('x', 1), ('y', 1)]", "words('one, two; two. three! three three?')[0] == ('three', 3)",
         "words('...') == []", "words('z z y y x x') == [('x', 2), ('y', 2), ('z', 2)]", "words('A') == [('a', 1)]", "len(words('a b c d')) == 4"],
    ),
    (
        "from functools import lru_cache\ndef edit(a, b):\n    @lru_cache(None)\n    def d(i, j):\n        if not i or not j: return i + j\n"
        "        return min(d(i - 1, j) + 1, d(i, j - 1) + 1, d(i - 1, j - 1) + (a[i - 1] != b[j - 1]))\n    return d(len(a), len(b))\n",
        ["edit('', '') == 0", "edit('a', '') == 1", "edit('kitten', 'sitting') == 3", "edit('flaw', 'lawn') == 2", "edit('abc', 'abc') == 0",
         "edit('intention', 'execution') == 5", "edit('saturday', 'sunday') == 3", "edit('x' * 20, 'y' * 20) == 20", "edit('ab', 'ba') == 2",
         "edit('a' * 10, 'a' * 15) == 5"],
    ),
    (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()\n"
        "def rpn(text):\n    s = Stack()\n    for t in text.split():\n        if t in '+-*':\n            b, a = s.pop(), s.pop()\n"
        "            s.push(a + b if t == '+' else a - b if t == '-' else a * b)\n        else: s.push(int(t))\n    return s.pop()\n",
        ["rpn('1') == 1", "rpn('1 2 +') == 3", "rpn('3 4 * 5 -') == 7", "rpn('2 3 4 * +') == 14", "rpn('5 1 2 + 4 * + 3 -') == 14",
         "rpn('1 1 -') == 0", "rpn('10 2 -') == 8", "rpn('7 7 *') == 49", "rpn('0 5 -') == -5", "rpn('1 2 3 4 + + +') == 10"],
    ),
]


def sources(tests):
    """The program and its first `tests` tests, apart."""
    return [(program, "".join(f"assert {test}\n" for test in all_tests[:tests])) for program, all_tests in PROGRAMS]


def tallow(binary, tests, threads, repeat):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for number in range(20):
            for program, asserts in sources(tests):
                file.write(json.dumps({"id": number, "program": program, "tests": {"asserts": asserts}}) + "\n")
        file.flush()
        command = [binary, "bench", "sandbox", "--cases", file.name, "--threads", str(threads), "--repeat", str(repeat)]
        line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert line["correct"] == line["programs"], line
    return line


def repeated(work, threads, seconds):
    """Calls of `work(i)` a second, from so many threads."""
    done, end = [0] * threads, time.time() + seconds

    def loop(thread):
        while time.time() < end:
            work(done[thread])
            done[thread] += 1

    workers = [threading.Thread(target=loop, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / seconds


def processes(tests, threads, seconds):
    whole = [program + asserts for program, asserts in sources(tests)]
    return repeated(
        lambda i: subprocess.run([sys.executable, "-c", whole[i % len(whole)]], check=True), threads, seconds
    )


def fork_servers(tests, servers, seconds):
    """Forks from a parent that has imported what the programs need; no limits of any kind."""
    import collections, functools, heapq, itertools, json, math, random, re, string, typing  # noqa: F401, E401

    whole = [program + asserts for program, asserts in sources(tests)]
    ends = []
    for _ in range(servers):
        read, write = os.pipe()
        if os.fork() == 0:
            end, count = time.time() + seconds, 0
            while time.time() < end:
                inner_read, inner_write = os.pipe()
                child = os.fork()
                if child == 0:
                    exec(compile(whole[count % len(whole)], "<program>", "exec"), {"__name__": "__main__"})
                    os.write(inner_write, b"ok")
                    os._exit(0)
                os.close(inner_write)
                assert os.read(inner_read, 9) == b"ok"
                os.close(inner_read)
                os.waitpid(child, 0)
                count += 1
            os.write(write, str(count).encode())
            os._exit(0)
        ends.append(read)
    total = sum(int(os.read(end, 99)) for end in ends)
    for _ in range(servers):
        os.wait()
    return total / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tallow", default="target/release/tallow")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    for tests in (1, 10):
        rows = []
        for number in range(args.rounds):
            measured = {
                "tallow_1": lambda: tallow(args.tallow, tests, 1, 5),
                "tallow_2": lambda: tallow(args.tallow, tests, 2, 5),
                "process_1": lambda: processes(tests, 1, args.seconds),
                "fork_1": lambda: fork_servers(tests, 1, args.seconds),
                "fork_2": lambda: fork_servers(tests, 2, args.seconds),
            }
            order = list(measured) if number % 2 == 0 else list(measured)[::-1]
            row = {name: measured[name]() for name in order}
            for name in ("tallow_1", "tallow_2"):
                line = row[name]
                row[name] = line["programs_s"]
                row[name + "_ms"] = f"{line['p50_ms']:.2f}/{line['p99_ms']:.2f}"
            rows.append(row)
            print(tests, {key: value if isinstance(value, str) else round(value) for key, value in row.items()}, flush=True)
        for name, over in (("tallow_1", "process_1"), ("tallow_2", "tallow_1"), ("tallow_1", "fork_1"), ("tallow_2", "fork_2")):
            ratios = [row[name] / row[over] for row in rows]
            print(f"{tests} tests: {name} / {over}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
