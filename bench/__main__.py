"""``python -m bench train|predict|kernels``, from the repository's root."""

import argparse
import os
import sys

from . import bench_kernels, bench_predict, bench_train, machine, report
from .harness import take_seats
from .kernel_cases import select_cases
from .peers import PEERS
from .shapes import select_nets, select_predictions

COMMANDS = {"train": (select_nets, bench_train.run, "whole training steps"),
            "predict": (select_predictions, bench_predict.run, "predictions"),
            "kernels": (select_cases, bench_kernels.run, "single kernels")}


def main():
    """Run one command; 0 if every contestant computed the same, else 1."""
    parser = _parser()
    options = parser.parse_args()
    select, run, title = COMMANDS[options.command]
    try:
        workloads = select(options.shapes)
    except ValueError as error:
        parser.error(str(error))
    seats = take_seats(options.peers, options.threads)
    facts = machine.describe(seats)
    print(machine.header(facts) + "\n")
    rows, agreed = run(seats, workloads, options.rounds)
    print("\n" + report.summary(rows))
    if options.json:
        report.write_json(options.json, facts, rows)
    if options.plot:
        report.plot(options.plot, f"fastbp beside its rivals: {title}\n{facts['cpu']}", rows)
    for seat in seats:
        seat.close()
    return 0 if agreed else 1


def _parser():
    parser = argparse.ArgumentParser(prog="python -m bench", description="fastbp beside its rivals, in turns; see "
                                     "bench/README.md.")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--threads", type=_numbers, default=sorted({1, os.cpu_count()}), metavar="1,2",
                        help="numbers of threads (1 and all cores)")
    parser.add_argument("--shapes", type=_names, default=[], metavar="NAMES",
                        help="train: nets or the groups table, sweep, skips, linear, tall, random, random@SEED (table); predict: nets; kernels: kernels, functions, "
                             "shapes or types, whatever has any of the names (all)")
    parser.add_argument("--peers", type=_names, default=list(PEERS), metavar="NAMES",
                        help=f"contestants, where installed ({','.join(PEERS)})")
    parser.add_argument("--rounds", type=_number, default=15, metavar="N", help="turns of each contestant (15)")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios (needs matplotlib)")
    return parser


def _names(text):
    return text.split(",")


def _number(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _numbers(text):
    return [_number(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
