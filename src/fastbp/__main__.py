"""``python -m fastbp``: a network learns real handwritten digits; how well, and how fast beside the same in NumPy."""

import argparse
import sys
import time
from contextlib import nullcontext

import numpy as np
from tqdm import tqdm

import fastbp as fb
from fastbp import runtime
from fastbp._numpy_trainer import NumpyTrainer
from fastbp.datasets import load_digits

LR = 0.005
SPLITS, HELD_OUT, FLOOR = 5, 0.2, 0.97
SPEED_EPOCHS, ROUNDS = 3, 9


def main(argv=None):
    """Run the demonstration; 0 if the mean held-out accuracy of five splits reaches the floor, else 1."""
    options = _parser().parse_args(argv)
    if options.threads:
        fb.set_num_threads(options.threads)
    x, y = load_digits()
    widths = (x.shape[1], *options.hidden, 10)
    print(_engine())
    print(f"{len(x):,} handwritten digits of 8 x 8 pixels, {HELD_OUT:.0%} held out in each of {SPLITS} splits")
    print(f"{'-'.join(map(str, widths))}, ReLU, cross-entropy, Adam, batches of {options.batch_size}, "
          f"epochs {options.epochs}\n")
    model, mean = _learn(x, y, widths, options)
    if options.save:
        model.save(options.save)
        print(f"the last split's network is in {options.save}\n")
    if not options.no_compare:
        _compare(x, y, widths, options)
    print(f"mean held-out accuracy {mean:.2%}: {'reaches' if mean >= FLOOR else 'BELOW'} the floor of {FLOOR:.0%}")
    return 0 if mean >= FLOOR else 1


def _learn(x, y, widths, options):
    """Train on each split, print the accuracies, show a few answers; the last network and the mean accuracy."""
    accuracies = []
    with tqdm(total=SPLITS * options.epochs, desc="training", unit="epoch", disable=None, leave=False, ncols=79) as bar:
        for split in range(SPLITS):
            order = np.random.default_rng((options.seed, split)).permutation(len(x))
            held_out, train = np.split(order, [round(HELD_OUT * len(x))])
            model = _network(widths, options.seed + split)
            _fit(model, x[train], y[train], options.epochs, options, callbacks=(_Progress(bar),))
            answers = model.predict(x[held_out]).argmax(axis=1)
            accuracies.append(np.mean(answers == y[held_out]))
    mean = float(np.mean(accuracies))
    print("held-out accuracy  " + "  ".join(f"{value:.2%}" for value in accuracies) + f"  mean {mean:.2%}\n")
    print("images the last network never saw, and its answers")
    print(_gallery(x[held_out], y[held_out], answers) + "\n")
    return model, mean


def _compare(x, y, widths, options):
    """Train from one start, on the same batches, in turns with NumPy; print images/s and both final losses."""
    arrays = list(_network(widths, options.seed).state_dict().values())
    weights = list(zip(arrays[::2], arrays[1::2]))

    def fastbp():
        model = _network(widths, options.seed)  # the same seed, the same weights
        begin = time.perf_counter()
        _fit(model, x, y, SPEED_EPOCHS, options)
        return time.perf_counter() - begin, model.evaluate(x, y, loss=fb.CrossEntropyLoss())["loss"]

    def numpy():
        trainer = NumpyTrainer(weights, activation="relu", loss="ce", optimizer="adam", lr=LR)
        begin = time.perf_counter()
        trainer.fit(x, y, epochs=SPEED_EPOCHS, batch_size=options.batch_size, seed=options.seed)
        return time.perf_counter() - begin, trainer.loss(x, y)

    times = {"fastbp": [], "NumPy": []}
    losses = {}
    limit = _best_blas_limit(numpy)
    for _ in range(ROUNDS):
        for name, turn, context in (("fastbp", fastbp, nullcontext), ("NumPy", numpy, limit)):
            time.sleep(0.02)  # waiting threads of the other one stop spinning
            with context():
                seconds, losses[name] = turn()
            times[name].append(seconds)

    ratio = np.median(np.divide(times["NumPy"], times["fastbp"]))
    difference = abs(losses["fastbp"] / losses["NumPy"] - 1)
    print(f"{SPEED_EPOCHS} epochs over all images in float32, in turns; median of {ROUNDS} rounds")
    print("          images/s   final loss")
    for name, seconds in times.items():
        print(f"{name:8}{SPEED_EPOCHS * len(x) / np.median(seconds):10,.0f}   {losses[name]:.6f}")
    verdict = "agree" if difference < 1e-3 else "DIFFER"
    print(f"{ratio:.1f} times the speed of NumPy; the losses {verdict} ({difference:.0e} relative)\n")


def _best_blas_limit(turn):
    """Context in which NumPy's products run on the number of threads that is faster here, one or as given.

    threadpoolctl, where it is installed, can tell them apart; without it NumPy keeps its default.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        turn()
        return nullcontext

    def one_thread():
        return threadpool_limits(1, user_api="blas")

    def best_of_three(context):
        with context():
            return min(turn()[0] for _ in range(3))

    return min((one_thread, nullcontext), key=best_of_three)


class _Progress:
    """Callback that moves the bar by an epoch."""

    def __init__(self, bar):
        self.bar = bar

    def on_epoch_end(self, model, epoch, logs):
        self.bar.set_postfix_str(f"loss {logs['loss']:.4f}", refresh=False)
        self.bar.update()


def _network(widths, seed):
    layers = []
    for inputs, outputs in zip(widths, widths[1:]):
        layers += [fb.Linear(inputs, outputs), fb.ReLU()]
    return fb.Sequential(*layers[:-1], seed=seed)


def _fit(model, x, y, epochs, options, callbacks=()):
    model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.Adam(lr=LR), epochs=epochs,
              batch_size=options.batch_size, seed=options.seed, callbacks=callbacks, progress=False)


def _gallery(images, labels, answers, right=6, wrong=2):
    """A few held-out images, the network's answer below each; images (n, 64), two pixel rows a line of text."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    glyphs = np.array(list(" ▄▀█" if unicode else " .'#"))  # index: 2 · upper pixel + lower pixel
    correct = answers == labels
    chosen = [*np.flatnonzero(correct)[:right], *np.flatnonzero(~correct)[:wrong]]
    ink = (images[chosen].reshape(-1, 4, 2, 8) > 0.4).astype(int)
    rows = glyphs[2 * ink[:, :, 0] + ink[:, :, 1]]
    lines = [" ".join("".join(row) for row in rows[:, line]) for line in range(4)]
    captions = [f"{answers[i]}" if correct[i] else f"{labels[i]} as {answers[i]}" for i in chosen]
    return "\n".join(line.rstrip() for line in [*lines, " ".join(caption.center(8) for caption in captions)])


def _engine():
    """One line: version, instruction set in use and those it could use, threads, OpenMP, compiler."""
    facts = runtime.config()
    others = ", ".join(name for name in facts["instruction sets available"] if name != facts["instruction set"])
    return (f"fastbp {facts['version']} | {facts['instruction set']}{f' (also {others})' if others else ''} | "
            f"threads {facts['threads']} | OpenMP {facts['OpenMP']} | {facts['compiler']}")


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m fastbp",
        description="Train a network on the 1,797 handwritten digits that fastbp ships, five times with other images "
                    "held out, then measure the speed beside the same training in NumPy. Exit status 0 if the mean "
                    f"held-out accuracy is at least {FLOOR:.0%}, else 1.")
    parser.add_argument("--epochs", type=_positive, default=30, metavar="N",
                        help="passes over the training images (30)")
    parser.add_argument("--hidden", type=_widths, default="256,128", metavar="WIDTHS",
                        help="widths of the hidden layers (256,128)")
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="images per update (64)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads that fastbp may use (all cores)")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="seed of splits, initial weights and batches (0)")
    parser.add_argument("--save", metavar="FILE", help="write the last network to FILE (safetensors)")
    parser.add_argument("--no-compare", action="store_true", help="leave out the comparison with NumPy")
    return parser


def _positive(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _widths(text):
    return tuple(_positive(width) for width in text.split(",")) if text else ()


if __name__ == "__main__":
    sys.exit(main())
