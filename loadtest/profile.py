#!/usr/bin/env python3
"""Where the daemon's CPU time goes, by thread, and how much of it is spent on locks. `make profile` calls it.

    loadtest/profile.py --binaries FOLDER SCENARIO [OPTION …]

runs `fanfare-load SCENARIO OPTION …` under `perf record` and prints shares of the daemon's CPU time, that of all its threads
together being 100. It fails if a lock costs more than `--limit`.

A sample counts for a lock where the function that runs, or the one that called the kernel, takes or gives back a mutex, a read-write
lock or a spin lock. Who waits sleeps, which costs no CPU but the calls of `futex` for falling asleep and waking: their column holds
those of contended locks and those of handing over work between threads. The two columns together are what locks can cost at most.

perf samples the clock, which needs no hardware counters: good for shares, not for counts.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import takewhile
from pathlib import Path

LOCK = re.compile(
    r"pthread_(mutex|rwlock)|lll_(un)?lock|sync::(poison::)?(mutex|rwlock)|futex::(Mutex|RwLock)|parking_lot"
    r"|port::(Mutex|RWMutex)|InstrumentedMutex|malloc_mutex|_spin_lock"
)
FUTEX = re.compile(r"\bdo_futex\b|_sys_futex\b")
# Text of the kernel. Programs without frame pointers have no chains of callers, but noise of any value.
KERNEL = 0xFFFF_FFFF_8000_0000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binaries", type=Path, required=True, help="the folder of fanfare-load")
    parser.add_argument("--limit", type=float, default=2.0, help="per cent of the daemon's CPU time that a lock may cost")
    parser.add_argument("scenario", nargs=argparse.REMAINDER, help="what fanfare-load is to do, and its options")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = f"{folder}/perf.data"
        record = ["perf", "record", "--quiet", "--event=cpu-clock", "--freq=997", "-g", f"--output={samples}", "--"]
        done = subprocess.run([*record, arguments.binaries / "fanfare-load", *arguments.scenario])
        if done.returncode:
            return done.returncode
        script = ["perf", "script", f"--input={samples}", "--fields=comm,pid,tid,ip,sym", "--no-inline"]
        text = subprocess.run(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True).stdout
    return report(text, arguments.limit)


def report(text: str, limit: float) -> int:
    """Prints the shares. 1 if a lock costs more than `limit` per cent."""
    threads, locked, asleep, kernel, locks = Counter(), Counter(), Counter(), Counter(), Counter()
    for thread, frames in daemon(text):
        threads[thread] += 1
        in_kernel = [symbol for _, symbol in takewhile(lambda frame: frame[0] >= KERNEL, frames)]
        kernel[thread] += bool(in_kernel)
        asleep[thread] += any(FUTEX.search(symbol) for symbol in in_kernel)
        # The function that runs, and where that is one of the kernel, who called the kernel.
        own = [symbol for _, symbol in frames[len(in_kernel) :][:1]]
        lock = next((symbol for symbol in in_kernel[:1] + own if LOCK.search(symbol)), None)
        if lock:
            locked[thread] += 1
            locks[lock] += 1
    whole = threads.total()
    if not whole:
        print("no sample of the daemon: does perf work here?", file=sys.stderr)
        return 1

    def share(count: int) -> str:
        return f"{100 * count / whole:.2f}"

    print(f"\n{'thread':<18}{'CPU, %':>8}{'kernel, %':>11}{'futex, %':>10}{'locks, %':>10}")
    for thread, count in threads.most_common():
        print(f"{thread:<18}{share(count):>8}{share(kernel[thread]):>11}{share(asleep[thread]):>10}{share(locked[thread]):>10}")
    print(f"{'all':<18}{share(whole):>8}{share(kernel.total()):>11}{share(asleep.total()):>10}{share(locked.total()):>10}")
    for lock, count in locks.most_common(6):
        print(f"  {share(count):>6} %  {lock}")
    print(f"all locks together: {share(locked.total() + asleep.total())} % at most ({whole:,} samples)")
    worst = max(locks.values(), default=0)
    if 100 * worst > limit * whole:
        print(f"a lock costs more than {limit} % of the daemon's CPU time", file=sys.stderr)
        return 1
    return 0


def daemon(text: str):
    """The samples of the daemon: the thread, and address and symbol of each frame, innermost first."""
    samples = []
    for sample in text.strip().split("\n\n"):
        head, *lines = sample.splitlines()
        fields = re.match(r"(.*?)\s+(\d+)/(\d+)\s*$", head)
        frames = [line.split(None, 1) for line in lines]
        samples.append((fields[1].strip(), fields[2], [(int(frame[0], 16), frame[1]) for frame in frames if len(frame) == 2]))
    # The generator and the mock have other names for their threads.
    processes = {process for thread, process, _ in samples if thread == "fanfare-writer"}
    for thread, process, frames in samples:
        if process in processes:
            yield thread, frames


sys.exit(main())
