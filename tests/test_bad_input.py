"""Bad input: what it raises, what the message says (argument, value given, value expected), and that nothing has changed.

A row is (id, error, words of the message, call). Every call gets a model of float32 with a pending backward; after the error its
parameters, gradients, configuration and optimizer are what they were and the pending backward gives what it would have given.
"""
import math
import operator
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest

import fastbp as fb
from fastbp import kernels as K

ROWS, IN, OUT = 6, 4, 3


def make():
    rng = np.random.default_rng(0)
    model = fb.Sequential(fb.Linear(IN, 5), fb.ReLU(), fb.Linear(5, OUT), seed=1)
    c = SimpleNamespace(
        model=model, loss=fb.CrossEntropyLoss(), optimizer=fb.Adam(lr=0.01), x=rng.standard_normal((ROWS, IN)).astype(np.float32),
        y=np.array([0, 1, 2, 0, 1, 2]), s=rng.standard_normal((ROWS, OUT)).astype(np.float32), state=model.state_dict())
    model.fit(c.x, c.y, loss=c.loss, optimizer=c.optimizer, batch_size=2, seed=0, progress=False)
    c.state = model.state_dict()
    model.backward(c.loss.value_and_grad(model.forward(c.x), c.y)[1])  # gradients that are not zero
    c.dout = c.loss.value_and_grad(model.forward(c.x), c.y)[1]  # a backward that is pending
    return c


def fit(**changes):
    """A call of fit with one argument wrong; a function changes the good value"""

    def call(c):
        good = dict(x=c.x, y=c.y, loss=c.loss, optimizer=c.optimizer, epochs=2, batch_size=2, seed=0, progress=False)
        for name, value in changes.items():
            good[name] = value(c) if isinstance(value, FunctionType) else value
        return c.model.fit(**good)

    return call


def put(array, index, value, dtype=None):
    array = array.astype(dtype or array.dtype)
    array[index] = value
    return array


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def state(**changes):
    return lambda c: c.model.load_state_dict({**c.state, **{name.replace("_", "."): value for name, value in changes.items()}})


def without(name):
    return lambda c: c.model.load_state_dict({key: value for key, value in c.state.items() if key != name})


def named(name):
    def metric(target, prediction):
        return 0.0

    metric.__name__ = name
    return metric


F32 = np.float32
V, T, M = ValueError, TypeError, MemoryError
NAN, INF = math.nan, math.inf

# --- arrays given to a model ----------------------------------------------------------------------------------------

X = [  # id, error, words, value of x
    ("0-d", V, ["()", f"{IN}"], lambda c: np.float32(1)),
    ("1-d", V, [f"({IN},)", f"{IN}"], lambda c: c.x[0]),
    ("3-d", V, [f"(1, {ROWS}, {IN})", f"{IN}"], lambda c: c.x[None]),
    ("too narrow", V, [f"({ROWS}, {IN - 1})", f"{IN}"], lambda c: c.x[:, 1:]),
    ("too wide", V, [f"({ROWS}, {2 * IN})", f"{IN}"], lambda c: np.hstack([c.x, c.x])),
    ("transposed", V, [f"({IN}, {ROWS})", f"{IN}"], lambda c: c.x.T),
    ("no columns", V, [f"({ROWS}, 0)", f"{IN}"], lambda c: c.x[:, :0]),
    ("object", T, ["object", "real numbers"], lambda c: c.x.astype(object)),
    ("complex", T, ["complex64", "real numbers"], lambda c: c.x.astype(np.complex64)),
    ("text", T, ["real numbers"], lambda c: c.x.astype(str)),
    ("dates", T, ["datetime64", "real numbers"], lambda c: c.x.astype("M8[s]")),
    ("structured", T, ["real numbers"], lambda c: np.zeros((ROWS, IN), [("a", F32)])),
    ("None", T, ["None", "real numbers"], lambda c: None),
    ("str", T, ["'abc'", "real numbers"], lambda c: "abc"),
    ("dict", T, ["dict", "real numbers"], lambda c: {"a": 1}),
    ("ragged", V, ["rectangular"], lambda c: [[1, 2, 3, 4], [1, 2]]),
]
TABLE = [
    (f"{method} x {name}", error, ["x", *words], lambda c, method=method, value=value: getattr(c.model, method)(value(c)))
    for method in ("predict", "forward") for name, error, words, value in X
] + [
    (f"fit x {name}", error, ["x", *words], fit(x=value)) for name, error, words, value in X
]

TABLE += [
    # --- fit: data --------------------------------------------------------------------------------------------------
    ("fit no rows", V, ["x", f"(0, {IN})", "at least one row"], fit(x=lambda c: c.x[:0], y=lambda c: c.y[:0])),
    ("fit x NaN", V, ["x", "nan", "row 4", "column 1", "finite"], fit(x=lambda c: put(c.x, (4, 1), NAN))),
    ("fit x inf", V, ["x", "inf", "row 5", "column 3", "finite"], fit(x=lambda c: put(c.x, (5, 3), -INF))),
    ("fit x too large for float32", V, ["x", "row 2", "column 0", "finite"], fit(x=lambda c: put(c.x, (2, 0), 1e300, np.float64))),
    ("fit y too short", V, ["y", f"({ROWS - 1},)", f"{ROWS}"], fit(y=lambda c: c.y[1:])),
    ("fit y too long", V, ["y", f"({ROWS + 1},)", f"{ROWS}"], fit(y=lambda c: np.append(c.y, 0))),
    ("fit y 0-d", V, ["y", "()", f"{ROWS}"], fit(y=1)),
    ("fit y 3-d", V, ["y", f"({ROWS}, 1, 1)"], fit(y=lambda c: c.y[:, None, None])),
    ("fit y None", T, ["y", "None", "real numbers"], fit(y=None)),
    ("fit y object", T, ["y", "object", "real numbers"], fit(y=lambda c: c.y.astype(object))),
    ("fit y complex", T, ["y", "complex128", "real numbers"], fit(y=lambda c: c.y + 0j)),
    ("fit label too large", V, ["y", "3", "row 2", "0 to 2"], fit(y=lambda c: put(c.y, 2, OUT))),
    ("fit label negative", V, ["y", "-1", "row 5", "0 to 2"], fit(y=lambda c: put(c.y, 5, -1))),
    ("fit label huge", V, ["y", str(2**63), "row 0", "0 to 2"], fit(y=lambda c: put(c.y, 0, 2**63, np.uint64))),
    ("fit labels float", T, ["y", "float64", "integer"], fit(y=lambda c: c.y.astype(float))),
    ("fit probabilities too few", V, ["y", f"({ROWS}, {OUT - 1})", f"({ROWS}, {OUT})"], fit(y=lambda c: c.s[:, 1:])),
    ("fit probabilities negative", V, ["y", "-1.0", "row 1", "column 2", "negative"], fit(y=lambda c: put(np.abs(c.s), (1, 2), -1.0))),
    ("fit probabilities NaN", V, ["y", "nan", "row 1", "column 2", "finite"], fit(y=lambda c: put(np.abs(c.s), (1, 2), NAN))),
    ("fit targets do not broadcast", V, ["y", f"({ROWS}, 1)", f"({ROWS}, {OUT})"], fit(loss=fb.MSELoss(), y=lambda c: c.s[:, :1])),
    ("fit targets flat", V, ["y", f"({ROWS},)", f"({ROWS}, {OUT})"], fit(loss=fb.MSELoss(), y=lambda c: c.s[:, 0])),
    ("fit targets inf", V, ["y", "inf", "row 3", "column 0", "finite"], fit(loss=fb.MSELoss(), y=lambda c: put(c.s, (3, 0), INF))),
    ("fit binary target 2", V, ["y", "2.0", "row 1", "column 1", "0 and 1"],
     fit(loss=fb.BCEWithLogitsLoss(), y=lambda c: put(np.zeros_like(c.s), (1, 1), 2))),
    ("fit weights too few", V, ["sample_weight", f"({ROWS - 1},)", f"({ROWS},)"], fit(sample_weight=np.ones(ROWS - 1))),
    ("fit weights 2-d", V, ["sample_weight", f"({ROWS}, 1)", f"({ROWS},)"], fit(sample_weight=np.ones((ROWS, 1)))),
    ("fit weight negative", V, ["sample_weight", "-0.5", "row 3", "not negative"], fit(sample_weight=lambda c: put(np.ones(ROWS), 3, -0.5))),
    ("fit weight NaN", V, ["sample_weight", "nan", "row 2", "finite"], fit(sample_weight=lambda c: put(np.ones(ROWS), 2, NAN))),
    ("fit weights all zero", V, ["sample_weight", "zeros", "positive"], fit(sample_weight=np.zeros(ROWS))),
    ("fit weights text", T, ["sample_weight", "'heavy'", "real numbers"], fit(sample_weight="heavy")),
    ("fit validation not a pair", T, ["validation_data", "(x, y)"], fit(validation_data=lambda c: c.x)),
    ("fit validation of one", (T, V), ["validation_data", "(x, y)"], fit(validation_data=lambda c: (c.x,))),
    ("fit validation too narrow", V, ["validation_data", f"({ROWS}, {IN - 1})", f"{IN}"], fit(validation_data=lambda c: (c.x[:, 1:], c.y))),
    ("fit validation rows differ", V, ["validation_data", f"({ROWS - 1},)", f"{ROWS}"], fit(validation_data=lambda c: (c.x, c.y[1:]))),
    ("fit validation label", V, ["validation_data", "9", "row 0", "0 to 2"], fit(validation_data=lambda c: (c.x, put(c.y, 0, 9)))),
    ("fit validation NaN", V, ["validation_data", "nan", "row 1", "column 1"], fit(validation_data=lambda c: (put(c.x, (1, 1), NAN), c.y))),
    ("fit validation empty", V, ["validation_data", "at least one row"], fit(validation_data=lambda c: (c.x[:0], c.y[:0]))),
    # --- fit: options -----------------------------------------------------------------------------------------------
    ("fit epochs -1", V, ["epochs", "-1"], fit(epochs=-1)),
    ("fit epochs 1.5", T, ["epochs", "1.5", "integer"], fit(epochs=1.5)),
    ("fit batch_size 0", V, ["batch_size", "0", "at least 1"], fit(batch_size=0)),
    ("fit batch_size -3", V, ["batch_size", "-3", "at least 1"], fit(batch_size=-3)),
    ("fit batch_size 2.0", T, ["batch_size", "2.0", "integer"], fit(batch_size=2.0)),
    ("fit batch_size True", T, ["batch_size", "True", "integer"], fit(batch_size=True)),
    ("fit shuffle text", T, ["shuffle", "'yes'", "True or False"], fit(shuffle="yes")),
    ("fit seed negative", V, ["seed", "-1", "at least 0"], fit(seed=-1)),
    ("fit seed text", T, ["seed", "'a'", "integer"], fit(seed="a")),
    ("fit seed 1.5", T, ["seed", "1.5", "integer"], fit(seed=1.5)),
    ("fit loss text", T, ["loss", "'mse'", "value_and_grad"], fit(loss="mse")),
    ("fit loss None", T, ["loss", "None", "value_and_grad"], fit(loss=None)),
    ("fit loss class", T, ["loss", "CrossEntropyLoss"], fit(loss=lambda c: fb.CrossEntropyLoss)),
    ("fit optimizer text", T, ["optimizer", "'adam'", "SGD"], fit(optimizer="adam")),
    ("fit optimizer class", T, ["optimizer", "Adam"], fit(optimizer=lambda c: fb.Adam)),
    ("fit metric unknown", V, ["metrics", "'f1'", "'accuracy'"], fit(metrics=("f1",))),
    ("fit metric number", T, ["metrics", "3"], fit(metrics=(3,))),
    ("fit metrics of one name", V, ["metrics", "'score'"], fit(metrics=(named("score"), named("score")))),
    ("fit metric named loss", V, ["metrics", "'loss'"], fit(metrics=(named("loss"),))),
    ("fit metrics text", T, ["metrics", "'accuracy'"], fit(metrics="accuracy")),
    ("fit metric without meaning", V, ["accuracy", "MSELoss"], fit(loss=fb.MSELoss(), y=lambda c: c.s, metrics=("accuracy",))),
    ("fit callback without hooks", T, ["callbacks", "3", "on_epoch_end"], fit(callbacks=(3,))),
    ("fit callback class", T, ["callbacks", "EarlyStopping"], fit(callbacks=(fb.EarlyStopping,))),
    ("fit callbacks not a sequence", T, ["callbacks", "3"], fit(callbacks=3)),
    ("fit clip_norm 0", V, ["clip_norm", "0", "(0, inf)"], fit(clip_norm=0)),
    ("fit clip_norm -1", V, ["clip_norm", "-1", "(0, inf)"], fit(clip_norm=-1.0)),
    ("fit clip_norm NaN", V, ["clip_norm", "nan", "finite"], fit(clip_norm=NAN)),
    ("fit clip_norm text", T, ["clip_norm", "'1'", "number"], fit(clip_norm="1")),
    ("fit progress", (T, V), ["progress", "'loud'", "auto"], fit(progress="loud")),
    ("fit unknown option", T, ["learning_rate"], fit(learning_rate=0.1)),
    # --- backward, evaluate, minibatches, gradient check ------------------------------------------------------------
    ("backward too narrow", V, ["dout", f"({ROWS}, {OUT - 1})", f"({ROWS}, {OUT})"], lambda c: c.model.backward(c.dout[:, 1:])),
    ("backward too short", V, ["dout", f"({ROWS - 1}, {OUT})", f"({ROWS}, {OUT})"], lambda c: c.model.backward(c.dout[1:])),
    ("backward 1-d", V, ["dout", f"({OUT},)", f"({ROWS}, {OUT})"], lambda c: c.model.backward(c.dout[0])),
    ("backward complex", T, ["dout", "complex64", "real numbers"], lambda c: c.model.backward(c.dout.astype(np.complex64))),
    ("backward None", T, ["dout", "None", "real numbers"], lambda c: c.model.backward(None)),
    ("evaluate no rows", V, ["x", f"(0, {IN})", "at least one row"], lambda c: c.model.evaluate(c.x[:0], c.y[:0], loss=c.loss)),
    ("evaluate label", V, ["y", "7", "row 1", "0 to 2"], lambda c: c.model.evaluate(c.x, put(c.y, 1, 7), loss=c.loss)),
    ("evaluate loss", T, ["loss", "3"], lambda c: c.model.evaluate(c.x, c.y, loss=3)),
    ("minibatches batch_size", V, ["batch_size", "0", "at least 1"], lambda c: list(fb.minibatches(c.x, c.y, batch_size=0))),
    ("minibatches rows", V, ["y", f"{ROWS - 1}", f"{ROWS}"], lambda c: list(fb.minibatches(c.x, c.y[1:], batch_size=2))),
    ("minibatches seed", T, ["seed", "'a'"], lambda c: list(fb.minibatches(c.x, c.y, batch_size=2, shuffle=True, seed="a"))),
    ("gradient check step", V, ["step", "0", "(0, inf)"], lambda c: fb.check_gradients(c.model, c.loss, c.x, c.y, step=0)),
    ("gradient check tolerance", V, ["tolerance", "nan", "(0, inf)"], lambda c: fb.check_gradients(c.model, c.loss, c.x, c.y, tolerance=NAN)),
    ("gradient check loss", T, ["loss", "3", "value_and_grad"], lambda c: fb.check_gradients(c.model, 3, c.x, c.y)),
    ("gradient check x", V, ["x", f"({ROWS}, {IN - 1})", f"{IN}"], lambda c: fb.check_gradients(c.model, c.loss, c.x[:, 1:], c.y)),
    # --- losses by themselves ---------------------------------------------------------------------------------------
    ("loss shapes differ", V, ["target", f"({ROWS}, 1)", f"({ROWS}, {OUT})"], lambda c: fb.MSELoss()(c.s, c.s[:, :1])),
    ("loss empty", V, ["prediction", f"(0, {OUT})", "at least one row"], lambda c: fb.MSELoss()(c.s[:0], c.s[:0])),
    ("loss 1-d prediction", V, ["prediction", f"({OUT},)"], lambda c: fb.MSELoss()(c.s[0], c.s[0])),
    ("loss object prediction", T, ["prediction", "object"], lambda c: fb.MSELoss()(c.s.astype(object), c.s)),
    ("loss label", V, ["target", "3", "row 0", "0 to 2"], lambda c: c.loss.value_and_grad(c.s, put(c.y, 0, 3))),
    ("loss weight", V, ["sample_weight", "-1.0", "row 0"], lambda c: c.loss.value_and_grad(c.s, c.y, -np.ones(ROWS))),
    ("loss binary target", V, ["target", "-1.0", "0 and 1"], lambda c: fb.BCELoss()(np.full((2, 1), 0.5), [[1.0], [-1.0]])),
    ("smoothing", V, ["label_smoothing", "1.5", "[0, 1]"], lambda c: fb.CrossEntropyLoss(label_smoothing=1.5)),
    ("reduction", V, ["reduction", "'avg'", "'mean'", "'batchmean'", "'sum'"], lambda c: fb.MSELoss(reduction="avg")),
    ("scale", V, ["scale", "nan", "finite"], lambda c: fb.MSELoss(scale=NAN)),
    ("delta", V, ["delta", "0", "(0, inf)"], lambda c: fb.HuberLoss(delta=0)),
    ("quantile", V, ["quantile", "1", "(0, 1)"], lambda c: fb.QuantileLoss(quantile=1)),
    ("loss negative count", V, ["target", "-1.0", "row 1", "negative"], lambda c: fb.PoissonLoss()(np.zeros((2, 1)), [[1.0], [-1.0]])),
    # --- optimizers -------------------------------------------------------------------------------------------------
    ("lr NaN", V, ["lr", "nan", "finite"], lambda c: fb.SGD(lr=NAN)),
    ("lr negative", V, ["lr", "-0.1", "[0, inf)"], lambda c: fb.Adam(lr=-0.1)),
    ("lr inf", V, ["lr", "inf", "finite"], lambda c: fb.AdamW(lr=INF)),
    ("lr text", T, ["lr", "'fast'", "number"], lambda c: fb.SGD(lr="fast")),
    ("lr set to NaN", V, ["lr", "nan", "finite"], lambda c: setattr(c.optimizer, "lr", NAN)),
    ("schedule gives NaN", V, ["lr", "step=0", "nan"], lambda c: fb.SGD(lr=lambda step: NAN).step(c.model)),
    ("schedule gives text", T, ["lr", "step=0", "'x'"], lambda c: fb.SGD(lr=lambda step: "x").step(c.model)),
    ("momentum", V, ["momentum", "-0.1", "[0, 1)"], lambda c: fb.SGD(lr=0.1, momentum=-0.1)),
    ("nesterov without momentum", V, ["nesterov", "momentum"], lambda c: fb.SGD(lr=0.1, nesterov=True)),
    ("weight_decay", V, ["weight_decay", "-1", "[0, inf)"], lambda c: fb.SGD(lr=0.1, weight_decay=-1)),
    ("betas out of range", V, ["betas", "1.0", "[0, 1)"], lambda c: fb.Adam(betas=(1.0, 0.999))),
    ("betas of one", (T, V), ["betas", "(0.9,)", "pair"], lambda c: fb.Adam(betas=(0.9,))),
    ("eps", V, ["eps", "-1e-08"], lambda c: fb.Adam(eps=-1e-8)),
    ("optimizer state misshaped", V, ["m.0.bias", "(5,)", "(2,)"],
     lambda c: c.optimizer.load_state_dict({**c.optimizer.state_dict(), "m.0.bias": np.zeros(2)})),
    ("optimizer state missing", V, ["v.2.weight"],
     lambda c: c.optimizer.load_state_dict({k: v for k, v in c.optimizer.state_dict().items() if k != "v.2.weight"})),
    ("optimizer state no mapping", T, ["state", "3", "mapping"], lambda c: c.optimizer.load_state_dict(3)),
    # --- layers and models ------------------------------------------------------------------------------------------
    ("in_features 0", V, ["in_features", "0", "at least 1"], lambda c: fb.Linear(0, 3)),
    ("out_features -1", V, ["out_features", "-1", "at least 1"], lambda c: fb.Linear(3, -1)),
    ("in_features 2.5", T, ["in_features", "2.5", "integer"], lambda c: fb.Linear(2.5, 3)),
    ("out_features text", T, ["out_features", "'3'", "integer"], lambda c: fb.Linear(3, "3")),
    ("bias None", T, ["bias", "None", "True or False"], lambda c: fb.Linear(3, 4, bias=None)),
    ("init unknown", V, ["init", "'he'", "'kaiming_uniform'"], lambda c: fb.Linear(3, 4, init="he")),
    ("init number", T, ["init", "0.1", "callable"], lambda c: fb.Linear(3, 4, init=0.1)),
    ("init of wrong shape", V, ["init", "(3, 4)", "(4, 3)"], lambda c: fb.Sequential(fb.Linear(3, 4, init=lambda r, s: np.ones((3, 4))))),
    ("init not finite", V, ["init", "nan", "finite"], lambda c: fb.Sequential(fb.Linear(3, 4, init=lambda r, s: np.full(s, NAN)))),
    ("dropout p", V, ["p", "1.5", "[0, 1]"], lambda c: fb.Dropout(1.5)),
    ("negative_slope", V, ["negative_slope", "nan", "finite"], lambda c: fb.LeakyReLU(NAN)),
    ("layers mismatched", V, ["5", "6", "Linear"], lambda c: fb.Sequential(fb.Linear(4, 5), fb.ReLU(), fb.Linear(6, 3))),
    ("no layers", V, ["layer"], lambda c: fb.Sequential()),
    ("no layer", T, ["layer", "3"], lambda c: fb.Sequential(fb.Linear(4, 5), 3)),
    ("layer class", T, ["layer", "ReLU"], lambda c: fb.Sequential(fb.Linear(4, 5), fb.ReLU)),
    ("dtype float16", (T, V), ["dtype", "float16", "float32", "float64"], lambda c: fb.Sequential(fb.Linear(4, 5), dtype="float16")),
    ("dtype nonsense", (T, V), ["dtype", "'quick'", "float32", "float64"], lambda c: fb.Sequential(fb.Linear(4, 5), dtype="quick")),
    ("model seed", (T, V), ["seed", "-1"], lambda c: fb.Sequential(fb.Linear(4, 5), seed=-1)),
    ("model seed beyond uint64", V, ["seed", str(2**64)], lambda c: fb.Sequential(fb.Linear(4, 5), seed=2**64).forward(c.x)),
    ("final softmax with cross-entropy", V, ["Softmax", "CrossEntropyLoss"],
     lambda c: fb.Sequential(fb.Linear(IN, OUT), fb.Softmax()).fit(c.x, c.y, loss=c.loss, optimizer=fb.SGD(0.1), progress=False)),
    # --- sizes that cannot be had -----------------------------------------------------------------------------------
    ("model of 4 EiB", M, [], lambda c: fb.Sequential(fb.Linear(2**30, 2**30))),
    ("model beyond size_t", M, [], lambda c: fb.Sequential(fb.Linear(2**40, 2**40))),
    ("model wrapping around to 0", M, [], lambda c: fb.Sequential(fb.Linear(2**32, 2**32))),
    ("model beyond int64", (M, V), [], lambda c: fb.Sequential(fb.Linear(2**70, 1))),
    ("model of two that add up", M, [], lambda c: fb.Sequential(fb.Linear(2**31, 2**29), fb.Linear(2**29, 2**31))),
    # --- state and files --------------------------------------------------------------------------------------------
    ("state missing", V, ["2.bias"], without("2.bias")),
    ("state extra", V, ["9.bias"], state(**{"9.bias": np.zeros(3)})),
    ("state misshaped", V, ["2.weight", "(5, 3)", "(3, 5)"], state(**{"2.weight": np.zeros((5, 3))})),
    ("state flat", V, ["0.weight", "(20,)", "(5, 4)"], state(**{"0.weight": np.zeros(20)})),
    ("state does not broadcast", V, ["0.bias", "(1,)", "(5,)"], state(**{"0.bias": np.zeros(1)})),
    ("state complex", T, ["2.bias", "complex128"], state(**{"2.bias": np.zeros(3, complex)})),
    ("state text", T, ["2.bias"], state(**{"2.bias": "zeros"})),
    ("state None", T, ["None", "mapping"], lambda c: c.model.load_state_dict(None)),
    ("parameters replaced", T, [], lambda c: operator.setitem(c.model.parameters, "0.bias", np.zeros(5))),
    ("save to a number", T, ["path", "3", "PathLike"], lambda c: c.model.save(3)),
    ("load a number", T, ["path", "3", "PathLike"], lambda c: fb.load(3)),
    ("load a foreign file", V, ["path", __file__, "expected"], lambda c: fb.load(__file__)),
    # --- threads ----------------------------------------------------------------------------------------------------
    ("threads 0", V, ["0", "at least 1"], lambda c: fb.set_num_threads(0)),
    ("threads -1", V, ["-1", "at least 1"], lambda c: fb.set_num_threads(-1)),
    ("threads 1.5", T, ["1.5", "integer"], lambda c: fb.set_num_threads(1.5)),
    ("threads 2**40", V, [str(2**40), "at most"], lambda c: fb.set_num_threads(2**40)),
    ("threads in a block", V, ["0", "at least 1"], lambda c: fb.num_threads(0).__enter__()),
    # --- kernels ----------------------------------------------------------------------------------------------------
    ("matmul inner sizes", V, ["b", "(6, 3)", "(4, 3)"], lambda c: K.matmul(c.x, c.s)),
    ("matmul 1-d", V, ["a", "(4,)"], lambda c: K.matmul(c.x[0], c.x.T)),
    ("matmul mixed dtypes", T, ["b", "float64", "float32"], lambda c: K.matmul(c.x, c.x.T.astype(np.float64))),
    ("matmul integers", T, ["a", "int64", "float32"], lambda c: K.matmul(c.x.astype(np.int64), c.x.T)),
    ("matmul out read-only", V, ["out", "read-only", "writable"], lambda c: K.matmul(c.x, c.x.T, out=frozen(np.zeros((6, 6), F32)))),
    ("matmul out overlaps", V, ["out", "overlap"], lambda c: K.matmul(c.x[:4], c.x[:4], out=c.x[:4])),
    ("matmul out misshaped", V, ["out", "(6, 5)", "(6, 6)"], lambda c: K.matmul(c.x, c.x.T, out=np.zeros((6, 5), F32))),
    ("matmul out dtype", T, ["out", "float64", "float32"], lambda c: K.matmul(c.x, c.x.T, out=np.zeros((6, 6)))),
    ("matmul out strided", V, ["out", "contiguous"], lambda c: K.matmul(c.x, c.x.T, out=np.zeros((6, 12), F32)[:, ::2])),
    ("matmul out a list", T, ["out", "list", "array"], lambda c: K.matmul(c.x, c.x.T, out=[[0.0] * 6] * 6)),
    ("linear_forward bias", V, ["b", "(4,)", "(5,)"], lambda c: K.linear_forward(c.x, c.state["0.weight"], np.zeros(4, F32))),
    ("linear_forward width", V, ["w", "(5, 4)"], lambda c: K.linear_forward(c.s, c.state["0.weight"], None)),
    ("linear_forward activation", V, ["activation", "'swish'", "'relu'"],
     lambda c: K.linear_forward(c.x, c.state["0.weight"], None, activation="swish")),
    ("linear_backward dy", V, ["dy", "(6, 4)", "(6, 5)"], lambda c: K.linear_backward(c.x, c.state["0.weight"], c.x)),
    ("weight_gradient rows", V, ["delta", "(5, 3)", "6"], lambda c: K.weight_gradient(c.x, c.s[1:])),
    ("bias_gradient 1-d", V, ["delta", "(3,)", "2 dimensions"], lambda c: K.bias_gradient(c.s[0])),
    ("relu_backward shapes", V, ["dy", "(6, 3)", "(6, 4)"], lambda c: K.relu_backward(c.x, c.s)),
    ("relu None", T, ["x", "None"], lambda c: K.relu_forward(None)),
    ("softmax 0 columns", V, ["s", "(6, 0)", "at least one column"], lambda c: K.softmax(c.s[:, :0])),
    ("softmax cross-entropy label", V, ["labels", "-1", "row 3", "0 to 2"], lambda c: K.softmax_cross_entropy(c.s, put(c.y, 3, -1))),
    ("softmax cross-entropy float labels", T, ["labels", "float64", "integer"], lambda c: K.softmax_cross_entropy(c.s, c.y * 1.0)),
    ("sgd_update read-only", V, ["param", "writable", "read-only"], lambda c: K.sgd_update(frozen(c.s), c.s, 0.1)),
    ("sgd_update shapes", V, ["grad", "(6, 4)", "(6, 3)"], lambda c: K.sgd_update(c.s, c.x, 0.1)),
    ("sgd_update lr", V, ["lr", "nan", "finite"], lambda c: K.sgd_update(c.s, c.s.copy(), NAN)),
    ("sgd_update aliased", V, ["param", "grad", "overlap"], lambda c: K.sgd_update(c.s, c.s, 0.1)),
    ("sgd_update without velocity", V, ["velocity", "None", "0.9"], lambda c: K.sgd_update(c.s, c.s.copy(), 0.1, momentum=0.9)),
    ("adam_update step", V, ["step", "0", "at least 1"], lambda c: K.adam_update(*(c.s.copy() for _ in range(4)), 0, 0.1)),
    ("adam_update dtype", T, ["m", "float64", "float32"], lambda c: K.adam_update(c.s, c.s.copy(), c.s.astype(float), c.s.copy(), 1, 0.1)),
]


def test_table_has_unique_names_and_is_long():
    assert len({name for name, *_ in TABLE}) == len(TABLE) >= 45


@pytest.mark.parametrize("error, words, call", [pytest.param(*row, id=name) for name, *row in TABLE])
def test_bad_input_is_explained_and_changes_nothing(error, words, call, fingerprint):
    given, twin = make(), make()
    threads = fb.get_num_threads()
    with pytest.raises(error) as caught:
        call(given)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert fingerprint(given.model.state_dict()) == fingerprint(twin.model.state_dict())
    assert fingerprint(dict(given.model.gradients)) == fingerprint(dict(twin.model.gradients))
    assert fingerprint(given.optimizer.state_dict(), given.optimizer.lr) == fingerprint(twin.optimizer.state_dict(), twin.optimizer.lr)
    assert given.model.config() == twin.model.config()
    assert fingerprint(given.x, given.y, given.s) == fingerprint(twin.x, twin.y, twin.s)
    assert fb.get_num_threads() == threads
    assert np.array_equal(given.model.backward(given.dout), twin.model.backward(twin.dout))
    assert fingerprint(dict(given.model.gradients)) == fingerprint(dict(twin.model.gradients))


@pytest.mark.parametrize("call", [
    fit(x=lambda c: c.x[:, 1:]), fit(y=lambda c: put(c.y, 0, 9)), fit(batch_size=0), fit(x=lambda c: put(c.x, (0, 0), NAN)), without("2.bias"),
])
def test_training_goes_on_after_bad_input(call, fingerprint):
    """With the same bits as if nothing had happened, the optimizer's state and step included"""
    given, twin = make(), make()
    with pytest.raises((ValueError, TypeError)):
        call(given)
    for c in (given, twin):
        fit()(c)
    assert fingerprint(given.model.state_dict(), given.optimizer.state_dict()) == fingerprint(twin.model.state_dict(), twin.optimizer.state_dict())


@pytest.mark.parametrize("result, error, words", [
    (0.5, T, ["loss.value_and_grad", "0.5"]),
    (("low", np.zeros((2, OUT))), T, ["loss.value_and_grad", "'low'"]),
    ((0.5, np.zeros((2, OUT), complex)), T, ["loss.value_and_grad", "complex128"]),
    ((0.5, np.zeros((1, OUT))), V, ["loss.value_and_grad", "(2, 3)", "(1, 3)"]),
], ids=["no pair", "text", "complex", "misshaped"])
def test_custom_loss_of_bad_results_is_explained(result, error, words, fingerprint):
    """Found in the first step, which is not made"""
    given, twin = make(), make()
    with pytest.raises(error) as caught:
        fit(loss=SimpleNamespace(value_and_grad=lambda prediction, target: result))(given)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert fingerprint(given.model.state_dict(), given.optimizer.state_dict()) == fingerprint(twin.model.state_dict(), twin.optimizer.state_dict())
    assert given.model.optimizer is None
    fit()(given)


def test_backward_without_forward_is_a_runtime_error():
    model = fb.Sequential(fb.Linear(4, 3))
    with pytest.raises(RuntimeError, match="forward"):
        model.backward(np.zeros((2, 3)))


def test_optimizer_of_another_model_is_a_runtime_error():
    """Even of one of the same shape"""
    c, other = make(), make()
    with pytest.raises(RuntimeError, match="optimizer"):
        other.model.fit(c.x, c.y, loss=c.loss, optimizer=c.optimizer, progress=False)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_predict_propagates_what_is_not_finite(value):
    """To its own row and no other"""
    c = make()
    out = c.model.predict(put(c.x, (2, 1), value))
    assert not np.isfinite(out[2]).all()
    assert np.array_equal(np.delete(out, 2, 0), np.delete(c.model.predict(c.x), 2, 0))


def test_state_is_loaded_whole_or_not_at_all():
    """Also where the caller has made overflow an error: 1e300 is infinite in float32, in the last tensor of four"""
    c = make()
    before, new = c.model.state_dict(), {name: np.ones(value.shape) for name, value in c.state.items()}
    new["2.bias"][:] = 1e300
    try:
        with np.errstate(over="raise"):
            c.model.load_state_dict(new)
    except (FloatingPointError, ValueError):
        assert all(np.array_equal(c.model.parameters[name], before[name]) for name in before)
    else:
        assert c.model.parameters["0.weight"].all() and np.isinf(c.model.parameters["2.bias"]).all()
