"""Whole training steps: every contestant from the same weights over the same batches, in turns."""

import numpy as np

from .harness import race
from .report import Table, figure, percent, verdict

TURN_SECONDS = 0.055
CHECKED_STEPS = 4  # at least so many from the common start before the losses are compared
LOSS_TOLERANCE = 1e-3


def run(seats, nets, rounds):
    """Race the nets, print a line per net and number of threads; (rows, whether all losses agreed)."""
    peers = list(dict.fromkeys(seat.peer for seat in seats))
    print(f"µs per step, minimum of {rounds} turns; ratio: best rival / fastbp, median of rounds; "
          "share: of the FMA peak; ±: spread of the losses\n")
    table = Table(net=-8, widths=-21, batch=5, **{"": -24}, T=1, **{peer: 9 for peer in peers},
                  best=-8, ratio=6, share=5, loss=9, **{"±": 6})
    rows = []
    for net in nets:
        losses = {(seat.peer, seat.threads): _train(seat, net) for seat in seats}
        spread = float(np.ptp(list(losses.values())) / abs(np.median(list(losses.values()))))
        result = race(seats, rounds, TURN_SECONDS, "fma_rate", net.dtype)
        for threads in sorted({seat.threads for seat in seats}):
            row = _row(net, peers[0], threads, result, losses, spread)
            rows.append(row)
            table.row(net.name, net.layout, net.batch, _recipe(net), threads,
                      *(figure(row["µs"].get(peer)) for peer in peers), *verdict(row["ratios"]),
                      percent(row["share"]), f"{row['loss']:.5f}", f"{spread:.0e}")
        if spread > LOSS_TOLERANCE:
            print("    losses DIFFER: " + ", ".join(f"{peer} {loss:.6f}" for (peer, _), loss in losses.items()))
    return rows, all(row["spread"] <= LOSS_TOLERANCE for row in rows)


def _train(seat, net):
    """The loss after whole epochs of at least CHECKED_STEPS steps from the common start."""
    seat.ask("train", net)
    seat.ask("run", -(-CHECKED_STEPS // net.batches))
    return seat.ask("loss")


def _recipe(net):
    return f"{net.activation} {net.optimizer} {net.loss}" + " f64" * (net.dtype == "float64")


def _row(net, base, threads, result, losses, spread):
    """What is kept of a net on a number of threads; figures are those of each contestant's better seat."""
    seat, rivals = (base, threads), result.rivals(base, threads)
    seats = {base: seat} | rivals
    scale = 1e6 / net.batches
    return {
        "label": net.name, "variant": "", "threads": threads, "widths": net.widths, "batch": net.batch,
        "activation": net.activation, "optimizer": net.optimizer, "objective": net.loss, "dtype": net.dtype,
        "µs": {peer: scale * result.minimum(place) for peer, place in seats.items()},
        "threads of": {peer: place[1] for peer, place in seats.items()},
        "turns µs": {peer: (scale * result.times[place]).tolist() for peer, place in seats.items()},
        "ratios": {peer: result.ratio(place, seat) for peer, place in rivals.items()},
        "share": result.share(seat, net.batches * net.flops),
        "loss": losses[seat], "spread": spread,
    }

