"""Predictions beside the lines that one writes in NumPy and PyTorch, and JAX's compiled function: the same weights, the same rows, in turns."""

import numpy as np

from .harness import race
from .report import Table, figure, percent, verdict

TURN_SECONDS = 0.02
TOLERANCE = 1e-4  # of a prediction, beside 1 and itself


def run(seats, predictions, rounds):
    """Race the predictions, print a line per net, rows and number of threads; (rows, whether all contestants agreed)."""
    print(f"µs per call, minimum of {rounds} turns; ratio: best rival / fastbp, median of rounds; share: of the FMA peak\n")
    table, rows, agreed = None, [], True
    for prediction in predictions:
        results = {seat: seat.ask("predict", prediction) for seat in seats}
        playing = [seat for seat in seats if results[seat] is not None]
        expected = results[playing[0]]
        differ = [seat.peer for seat in playing if not np.allclose(results[seat], expected, TOLERANCE, TOLERANCE)]
        if differ:
            agreed = False
            print(f"    predictions DIFFER: {prediction.net.name}, {prediction.rows} rows: {', '.join(differ)}")
        result = race(playing, rounds, TURN_SECONDS, "fma_rate", prediction.net.dtype)
        peers = list(dict.fromkeys(seat.peer for seat in playing))
        table = table or Table(net=-8, widths=-21, rows=5, T=1, **{peer: 9 for peer in peers}, best=-8, ratio=6, share=5)
        for threads in sorted({seat.threads for seat in playing}):
            row = _row(prediction, peers[0], threads, result)
            rows.append(row)
            table.row(prediction.net.name, prediction.net.layout, prediction.rows, threads, *(figure(row["µs"].get(peer)) for peer in peers),
                      *verdict(row["ratios"]), percent(row["share"]))
        for seat in seats:
            seat.ask("leave")
    return rows, agreed


def _row(prediction, base, threads, result):
    """What is kept of a prediction on a number of threads; figures are those of each contestant's better seat."""
    seat, rivals = (base, threads), result.rivals(base, threads)
    seats = {base: seat} | rivals
    return {
        "label": f"{prediction.net.name} {prediction.rows}", "variant": "", "threads": threads,
        "µs": {peer: 1e6 * result.minimum(place) for peer, place in seats.items()},
        "threads of": {peer: place[1] for peer, place in seats.items()},
        "ratios": {peer: result.ratio(place, seat) for peer, place in rivals.items()},
        "share": result.share(seat, prediction.flops),
    }
