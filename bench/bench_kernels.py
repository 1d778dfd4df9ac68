"""Every public kernel beside its best expression in NumPy and PyTorch, verified before it is timed."""

from .harness import race
from .report import Table, figure, percent, verdict

TURN_SECONDS = 0.005
# How a case's unit of work is shown: (title, conversion of seconds and units of work per call).
FIGURES = {"flop": ("GFLOP/s", lambda seconds, work: work / seconds / 1e9),
           "byte": ("GB/s", lambda seconds, work: work / seconds / 1e9),
           "element": ("ns/element", lambda seconds, work: seconds / work * 1e9)}
PROBES = {"flop": "fma_rate", "byte": "bandwidth", "element": None}


def run(seats, cases, rounds):
    """Race the cases, print a line per case and number of threads; (rows, whether all results were right)."""
    seats = [seat for seat in seats if seat.ask("has_kernels")]
    peers = list(dict.fromkeys(seat.peer for seat in seats))
    print(f"best of {rounds} turns; ratio: best rival / fastbp in time, median of rounds; share: of the FMA peak or "
          "the\nmemory bandwidth; error: the worst contestant's, 1 is what rounding allows\n")
    table = Table(kernel=-16, shape=-9, dtype=-8, T=1, **{peer: 9 for peer in peers}, unit=-10, best=-8, ratio=6,
                  share=5, error=5)
    rows, right = [], True
    for case in cases:
        errors = {seat: seat.ask("kernel", case) for seat in seats}
        playing = [seat for seat in seats if errors[seat] is not None]
        worst = max(errors[seat] for seat in playing)
        if worst <= 1:
            result = race(playing, rounds, TURN_SECONDS, PROBES[case.kernel.unit], case.dtype)
            for threads in sorted({seat.threads for seat in playing}):
                row = _row(case, playing[0].peer, threads, result)
                rows.append(row)
                table.row(case.label, case.shape, case.dtype, threads,
                          *(figure(row["figures"].get(peer)) for peer in peers), row["unit"],
                          *verdict(row["ratios"]), percent(row["share"]), f"{worst:.2f}")
        else:
            right = False
            print(f"    WRONG, not timed: {case.label} {case.shape} {case.dtype}: "
                  + ", ".join(f"{seat.peer} {errors[seat]:.3g}" for seat in playing))
        for seat in seats:
            seat.ask("leave")
    return rows, right


def _row(case, base, threads, result):
    """What is kept of a case on a number of threads; seconds are those of each contestant's better seat."""
    seat, rivals = (base, threads), result.rivals(base, threads)
    title, convert = FIGURES[case.kernel.unit]
    seats = {base: seat} | rivals
    return {
        "label": f"{case.label} {case.shape}", "variant": case.dtype, "threads": threads, "unit": title,
        "figures": {peer: convert(result.minimum(place), case.work) for peer, place in seats.items()},
        "threads of": {peer: place[1] for peer, place in seats.items()},
        "ratios": {peer: result.ratio(place, seat) for peer, place in rivals.items()},
        "share": result.share(seat, case.work),
    }