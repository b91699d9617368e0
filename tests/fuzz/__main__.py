"""Run the fuzzers: ``python -m tests.fuzz [files | calls | kills] [--count N] [--seed N] [--megabytes N]``."""

import argparse
import sys
import time

from tests.fuzz import calls, files, kills

FUZZERS = {"files": (files.attack, 100_000), "calls": (calls.attack, 40_000), "kills": (kills.attack, 1_000)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fuzzer", nargs="*", choices=[*FUZZERS, []], help="default: all")
    parser.add_argument("--count", type=int, help="inputs for each (default: 100,000 files, 40,000 calls, 1,000 kills)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--megabytes", type=int, help="limit the memory beyond what is in use at the start (Linux)")
    options = parser.parse_args()
    if options.megabytes:
        limit(options.megabytes)
    fallen = 0
    for name in options.fuzzer or FUZZERS:
        attack, count = FUZZERS[name]
        begin = time.monotonic()
        done, falls = attack(options.count or count, options.seed)
        print(f"{done:,} {name}, {len(falls)} fell, {time.monotonic() - begin:.0f} s", flush=True)
        for fall in falls[:40]:
            print(f"  {fall}")
        fallen += len(falls)
    return int(fallen > 0)


def limit(megabytes):
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)


if __name__ == "__main__":
    sys.exit(main())
