# cython: language_level=3, boundscheck=True, wraparound=False, initializedcheck=True
"""The only file that sees C. Memory safety ends here: every pointer that goes down comes from an array whose type, layout and size
have been checked in this file, and is held by a reference for as long as C runs without the GIL."""
from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.long cimport PyLong_CheckExact
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.pyport cimport PY_SSIZE_T_MAX
cimport numpy as cnp
from numpy.random cimport bitgen_t

cnp.import_array()

ACTIVATIONS = {"identity": FBP_IDENTITY, "relu": FBP_RELU, "leaky_relu": FBP_LEAKY_RELU, "sigmoid": FBP_SIGMOID, "tanh": FBP_TANH,
               "elu": FBP_ELU, "exp": FBP_EXP, "softplus": FBP_SOFTPLUS, "gelu": FBP_GELU, "silu": FBP_SILU, "sqrt": FBP_SQRT,
               "reciprocal": FBP_RECIPROCAL, "log": FBP_LOG, "sin": FBP_SIN, "cos": FBP_COS, "square": FBP_SQUARE}
LOSSES = {"mse": FBP_MSE, "l1": FBP_L1, "huber": FBP_HUBER, "quantile": FBP_QUANTILE, "poisson": FBP_POISSON, "bce": FBP_BCE, "bce_logits": FBP_BCE_LOGITS,
          "cross_entropy": FBP_CROSS_ENTROPY}
OPERATIONS = {"dense": FBP_DENSE, "activation": FBP_ACTIVATION, "softmax": FBP_SOFTMAX, "dropout": FBP_DROPOUT,
              "binary": FBP_BINARY, "affine": FBP_AFFINE, "sum": FBP_SUM, "expand": FBP_EXPAND, "place": FBP_PLACE, "pick": FBP_PICK,
              "parameter": FBP_PARAMETER, "layernorm": FBP_LAYERNORM, "batchnorm": FBP_BATCHNORM, "scale": FBP_SCALE, "embedding": FBP_EMBEDDING, "sparse": FBP_SPARSE}
UNWANTED, FIRST, MORE, SHARED = FBP_UNWANTED, FBP_FIRST, FBP_MORE, FBP_SHARED
LINE = FBP_LINE
RUNNING, DONE, LOSS_NOT_FINITE, PARAMETER_NOT_FINITE = FBP_RUNNING, FBP_DONE, FBP_LOSS_NOT_FINITE, FBP_PARAMETER_NOT_FINITE


# ---- the machine -------------------------------------------------------------------------------------------------------------------

def version(): return FASTBP_VERSION.decode()
def compiler(): return FASTBP_COMPILER.decode()
def openmp_version(): return fbp_openmp_version()
def forked(): return fbp_forked()
def isa(): return fbp_isa_selected().decode()


def isas():
    """[(name, supported here)], best first."""
    names, i = [], 0
    while fbp_isa_name(i) != NULL:
        names.append((fbp_isa_name(i).decode(), bool(fbp_isa_supported(i))))
        i += 1
    return names


def select_isa(str name=None):
    """Chooses an instruction set for everything compiled from now on; None: the best. 0 chosen, -1 unknown, -2 not supported here."""
    if name is None:
        return fbp_isa_select(NULL)
    encoded = name.encode()
    return fbp_isa_select(encoded)


def thread_limit(): return fbp_thread_limit()
def set_thread_limit(int threads): fbp_set_thread_limit(threads)
def set_own_thread_limit(int threads): return fbp_set_own_thread_limit(threads)
def _set_grain(double multiply_adds): return fbp_set_grain(multiply_adds)


def peak(dtype, double seconds):
    """Multiply-add rate of this thread's core in operations a second, in registers."""
    cdef const fbp_kernels *t = fbp_kernels_for(type_of(dtype))
    cdef double rate
    with nogil:
        rate = fbp_peak(t, seconds)
    return rate


# ---- arrays ------------------------------------------------------------------------------------------------------------------------

cdef int type_of(dtype) except -1:
    cdef cnp.dtype d = cnp.dtype(dtype)
    if d.type_num == cnp.NPY_FLOAT32 and d.isnative:
        return FBP_F32
    if d.type_num == cnp.NPY_FLOAT64 and d.isnative:
        return FBP_F64
    raise TypeError(f"dtype must be float32 or float64, got {dtype}")


cdef int type_of_array(cnp.ndarray a) except -1:
    cdef int number = cnp.PyArray_TYPE(a)
    if number == cnp.NPY_FLOAT32 and cnp.PyArray_ISNOTSWAPPED(a):
        return FBP_F32
    if number == cnp.NPY_FLOAT64 and cnp.PyArray_ISNOTSWAPPED(a):
        return FBP_F64
    raise TypeError(f"dtype must be float32 or float64, got {a.dtype}")


cdef inline int number(int type) noexcept nogil:
    return cnp.NPY_FLOAT32 if type == FBP_F32 else cnp.NPY_FLOAT64


cdef void *data(object array, int type, ptrdiff_t size, bint write=False) except NULL:
    """The memory of a C-contiguous array of this type with at least `size` elements."""
    if not isinstance(array, cnp.ndarray):
        raise TypeError(f"expected a NumPy array, got {type_name(array)}")
    cdef cnp.ndarray a = <cnp.ndarray>array
    if cnp.PyArray_TYPE(a) != number(type) or not cnp.PyArray_ISCARRAY_RO(a) or a.size < size:
        raise ValueError(f"expected a C-contiguous {'float32' if type == FBP_F32 else 'float64'} array of {size} elements, "
                         f"got {a.dtype} {(<object>a).shape}")
    if write and not cnp.PyArray_ISWRITEABLE(a):
        raise ValueError("expected a writable array")
    return cnp.PyArray_DATA(a)


cdef str type_name(object o):
    return o.__class__.__name__


cdef void *maybe(object array, int type, ptrdiff_t size, bint write=False) except? NULL:
    return NULL if array is None else data(array, type, size, write)


cdef const int64_t *labels_of(object array, ptrdiff_t size) except? NULL:
    if array is None:
        return NULL
    cdef cnp.ndarray a = <cnp.ndarray?>array
    if cnp.PyArray_TYPE(a) != cnp.NPY_INT64 or not cnp.PyArray_ISCARRAY_RO(a) or a.size < size:
        raise ValueError(f"expected a C-contiguous int64 array of {size} elements")
    return <const int64_t *>cnp.PyArray_DATA(a)


cdef void *allocate(size_t bytes) except NULL:
    cdef void *memory = fbp_allocate(bytes)
    if memory == NULL:
        raise MemoryError(f"could not allocate {bytes} bytes")
    return memory


# Memory of the last call, kept for the next unless it is large: fresh pages cost as much as a small product. Whoever takes it owns it,
# so calls that run at the same time never share it.
cdef struct Spare:
    void *memory
    size_t bytes


cdef void *take(Spare *spare, size_t wanted, size_t *bytes) except NULL:
    cdef void *memory = spare.memory
    if memory != NULL and wanted <= spare.bytes:
        spare.memory = NULL
        bytes[0] = spare.bytes
        return memory
    memory = allocate(wanted)
    bytes[0] = wanted
    return memory


cdef int give(Spare *spare, void *memory, size_t bytes) noexcept:
    if bytes > 32 << 20 or (spare.memory != NULL and spare.bytes >= bytes):
        free(memory)
        return 0
    free(spare.memory)
    spare.memory, spare.bytes = memory, bytes
    return 0


# Results that are large come in large pages, and the memory of the last few that were given back is kept: both because fresh pages cost as much as a
# few passes over them.
cdef enum: KEPT = 4
cdef Spare results_kept[KEPT]


cdef class Result:
    """Owns the memory of one."""
    cdef void *memory
    cdef size_t bytes

    def __dealloc__(self):
        cdef int i, least = 0
        if self.bytes > 16 << 20:
            free(self.memory)
            return
        for i in range(1, KEPT):
            if results_kept[i].memory == NULL or (results_kept[least].memory != NULL and results_kept[i].bytes < results_kept[least].bytes):
                least = i
        give(&results_kept[least], self.memory, self.bytes)


cdef cnp.ndarray empty(int type, ptrdiff_t rows, ptrdiff_t columns):
    """A new (rows, columns) array."""
    cdef cnp.npy_intp shape[2]
    cdef cnp.ndarray array
    cdef Result owner
    cdef size_t size = 4 if type == FBP_F32 else 8, bytes
    cdef int i
    shape[0] = rows
    shape[1] = columns
    if columns < 1 or <size_t>rows > <size_t>PY_SSIZE_T_MAX // size // <size_t>columns or rows * columns * size < FBP_LARGE:
        return cnp.PyArray_EMPTY(2, shape, number(type), 0)
    bytes = rows * columns * size
    owner = Result()
    for i in range(KEPT):
        if results_kept[i].memory != NULL and bytes <= results_kept[i].bytes <= 2 * bytes:
            owner.memory = take(&results_kept[i], bytes, &owner.bytes)
            break
    else:
        owner.memory, owner.bytes = allocate(bytes), bytes
    array = cnp.PyArray_SimpleNewFromData(2, shape, number(type), owner.memory)
    cnp.set_array_base(array, owner)
    return array


def first_nonfinite(array):
    """Index in the flattened array of the first NaN or infinity, or -1."""
    cdef int type = type_of(array.dtype)
    cdef ptrdiff_t n = array.size, at
    cdef const void *x = data(array, type, n)
    cdef const fbp_kernels *t = fbp_kernels_for(type)
    with nogil:
        at = fbp_first_nonfinite(t, n, x)
    return at


# ---- rules -------------------------------------------------------------------------------------------------------------------------

cdef class LossRule:
    """A loss in C's terms: L = factor * sum of w_i l_i, factor = scale / (sum of w * per_row), or scale when `sum`. limit, reported: see fbp_loss."""
    cdef fbp_loss c

    def __cinit__(self, int kind, bint sum, double per_row, double scale, double param, *, double limit=float("inf"), double reported=1):
        self.c = fbp_loss(kind, sum, per_row, scale, param, limit, reported)

    def value(self, cnp.ndarray p not None, t, label, w, dp):
        """Loss of p (B, O) against t (B, O) or label (B), weights w (B) or None; fills dp (B, O) unless None."""
        cdef int type = type_of_array(p), threads
        cdef ptrdiff_t B = p.shape[0], O = p.shape[1]
        cdef const void *p_data = data(p, type, B * O)
        cdef void *dp_data = maybe(dp, type, B * O, True)
        cdef fbp_target target = targets(type, B, O, t, label, w)
        cdef const fbp_kernels *table = fbp_kernels_for(type)
        cdef double *partial = <double *>allocate(fbp_partials(B, 1, 0, 0) * sizeof(double))
        cdef double value
        with nogil:
            threads = fbp_threads_for(20.0 * B * O)
            value = fbp_loss_value(table, &self.c, B, O, p_data, target, dp_data, partial, threads)
        free(partial)
        return value


cdef fbp_target targets(int type, ptrdiff_t B, ptrdiff_t O, t, label, w) except *:
    """Checks what would send C out of bounds: sizes, and labels outside [0, O)."""
    cdef fbp_target target
    target.t = maybe(t, type, B * O)
    target.label = labels_of(label, B)
    target.w = maybe(w, type, B)
    cdef ptrdiff_t i
    if target.t == NULL and target.label == NULL:
        raise ValueError("a target is needed")
    if target.label != NULL:
        for i in range(B):
            if target.label[i] < 0 or target.label[i] >= O:
                raise ValueError(f"target must hold labels from 0 to {O - 1}, got {target.label[i]} in row {i}")
    return target


cdef fbp_csr csr(object x, int type, ptrdiff_t columns) except *:
    """A sparse matrix with shape, indptr (int64), indices (int32) and data (of this type), read where it lies."""
    cdef fbp_csr m
    cdef ptrdiff_t rows = x.shape[0], i, k
    cdef cnp.ndarray indices = <cnp.ndarray?>x.indices
    m.start = labels_of(x.indptr, rows + 1)
    if x.shape[1] != columns or rows < 1 or cnp.PyArray_TYPE(indices) != cnp.NPY_INT32 or not cnp.PyArray_ISCARRAY_RO(indices) or m.start[0] != 0:
        raise ValueError("the sparse matrix does not fit the program")
    for i in range(rows):
        if m.start[i + 1] < m.start[i]:
            raise ValueError("indptr must not descend")
    m.column, m.value = <const int32_t *>cnp.PyArray_DATA(indices), data(x.data, type, m.start[rows])
    if indices.size < m.start[rows]:
        raise ValueError("indices must have as many elements as data")
    for k in range(m.start[rows]):
        if not 0 <= m.column[k] < columns:
            raise ValueError(f"indices must hold columns from 0 to {columns - 1}, got {m.column[k]}")
    return m


def hits(double threshold, p, t, label):
    """Sum over the rows of p (B, O) of right answers; threshold NaN: by argmax, else elementwise p > threshold against t > 1/2."""
    cdef int type = type_of(p.dtype)
    cdef ptrdiff_t B = p.shape[0], O = p.shape[1]
    cdef const void *p_data = data(p, type, B * O)
    cdef fbp_target target = targets(type, B, O, t, label, None)
    return fbp_hits(fbp_kernels_for(type), threshold, B, O, p_data, target)


cdef class UpdateRule:
    """An optimizer in C's terms, with a slot (offset, size, rate factor, decay factor) per parameter tensor."""
    cdef fbp_optimizer c
    cdef fbp_slot *slot
    cdef ptrdiff_t size

    def __cinit__(self, str kind, slots, *, double momentum=0, bint nesterov=False, bint rate_inside=False, betas=(0.9, 0.999),
                  double eps=1e-8, double weight_decay=0, bint decoupled=False, bint epsilon_hat=False, double penalty=0, double clip_norm=0):
        cdef int i
        self.slot = <fbp_slot *>allocate(len(slots) * sizeof(fbp_slot))
        for i, (offset, size, rate, decay) in enumerate(slots):
            if offset < self.size or size < 0:
                raise ValueError("slots must be in ascending order and must not overlap")
            self.slot[i] = fbp_slot(offset, size, rate, decay)
            self.size = offset + size
        self.c = fbp_optimizer({"sgd": FBP_SGD, "adam": FBP_ADAM, "gradient": FBP_GRADIENT}[kind], momentum, nesterov, rate_inside, betas[0], betas[1],
                               eps, weight_decay, decoupled, epsilon_hat, penalty, clip_norm, len(slots), self.slot)

    def __dealloc__(self):
        free(self.slot)

    cdef int check_state(self, void *state1, void *state2) except -1:
        if self.c.kind == FBP_ADAM and (state1 == NULL or state2 == NULL):
            raise ValueError("Adam needs two state arrays")
        return 0

    def step(self, double lr, int64_t step, grads, cnp.ndarray params not None, state1, state2):
        """One update in place; `step` counts from 1. True when a new parameter is not finite."""
        cdef int type = type_of_array(params), broken, threads
        cdef void *g = data(grads, type, self.size, self.c.clip_norm > 0)
        cdef void *p = data(params, type, self.size, True)
        cdef void *s1 = maybe(state1, type, self.size, True)
        cdef void *s2 = maybe(state2, type, self.size, True)
        self.check_state(s1, s2)
        cdef const fbp_kernels *table = fbp_kernels_for(type)
        cdef double *partial = <double *>allocate(fbp_partials(0, 1, self.size, 0) * sizeof(double))
        with nogil:
            threads = fbp_threads_for(8.0 * self.size)
            broken = fbp_optimizer_step(table, &self.c, lr, step, self.size, g, p, s1, s2, partial, threads)
        free(partial)
        return bool(broken)


# ---- programs ----------------------------------------------------------------------------------------------------------------------

cdef class Program:
    """A compiled graph over a flat parameter array of `parameters` elements. See compiler.py, which makes them, and program.h.

    values      (width, offset of the value, offset of its gradient; -1: none)
    outputs     (value, activation and its parameter that the loss' gradient passes through); where there are several, lists of arrays come and go
    operations  (kind, x, z, y, act, dact, zact, dx, dz, dw, db, last_w, last_b, closes, transposed, turns, weight, bias, sums, summed, at, alpha,
                beta, dalpha, zalpha, stream, room, stage)
    complete    whether the operations read all parameters
    nodes       node of the graph -> the value that holds it
    """
    cdef fbp_program c
    cdef fbp_value *value
    cdef fbp_op *op
    cdef void *memory          # of the frame that forward, backward and training use
    cdef fbp_frame frame
    cdef int frame_threads
    cdef int running           # 1 + fork generation while C runs on the frame
    cdef Spare spare           # memory of the last prediction
    cdef readonly int type
    cdef fbp_output *output
    cdef readonly ptrdiff_t capacity, parameters, inputs
    cdef readonly tuple widths     # of the outputs
    cdef readonly dict nodes
    cdef bint turns            # a weight does, while training

    def __cinit__(self, dtype, values, operations, int input, outputs, bint complete, ptrdiff_t capacity,
                  ptrdiff_t arena, double work_per_row, ptrdiff_t parameters, dict nodes):
        cdef int i, n = len(values)
        cdef ptrdiff_t width, most, most_bias, kept, X, Y, Z, extent = (parameters + 15) // 16 * 16
        cdef bint fits, statistics = False
        self.turns = False
        self.type = type_of(dtype)
        self.capacity = capacity
        self.parameters = parameters
        self.nodes = nodes
        self.value = <fbp_value *>allocate(n * sizeof(fbp_value))
        self.op = <fbp_op *>allocate(len(operations) * sizeof(fbp_op))
        for i, (width, offset, gradient) in enumerate(values):
            for at in (offset, gradient):
                if width < 1 or capacity < 1 or at < -1 or (at >= 0 and at + width * capacity > arena):
                    raise ValueError(f"value {i} lies outside the arena")
            self.value[i] = fbp_value(width, offset, gradient)
        for i, operation in enumerate(operations):
            (kind, x, z, y, act, dact, zact, dx, dz, dw, db, last_w, last_b, closes, transposed, turns, weight, bias, sums, summed, at, alpha, beta, dalpha,
             zalpha, stream, room, stage) = operation
            if not (0 <= x < n and 0 <= z < n and 0 <= y < n and 0 <= kind < FBP_OP_KINDS):
                raise ValueError(f"operation {i} is malformed")
            X, Z, Y = self.value[<int>x].width, self.value[<int>z].width, self.value[<int>y].width
            if kind == FBP_EMBEDDING and (at < 1 or Y % X):
                raise ValueError(f"operation {i} does not fit the widths of its values")
            most = X * Y if kind in (FBP_DENSE, FBP_SPARSE) else Y if kind in (FBP_PARAMETER, FBP_SCALE, FBP_BATCHNORM) else at * (Y // X) if kind == FBP_EMBEDDING else 0
            if most and (weight < 0 or weight + most > parameters or bias < -1 or bias + Y > parameters):
                raise ValueError(f"operation {i} reads outside the parameters")
            if sums >= 0 and (kind != FBP_DENSE or sums + X > parameters):
                raise ValueError(f"operation {i} sums up outside the parameters")
            kept = capacity if kind == FBP_LAYERNORM else 5 * Y + 1 if kind == FBP_BATCHNORM else 0
            if kept and (room < 0 or room + kept > arena or kind == FBP_BATCHNORM and (bias < 0 or not 0 <= at < parameters)):
                raise ValueError(f"operation {i} has no room")
            if kind == FBP_SUM: fits = Y == 1
            elif kind == FBP_EXPAND: fits = X == 1
            elif kind == FBP_PLACE: fits = 0 <= at <= Y - X
            elif kind == FBP_PICK: fits = 0 <= at <= X - Y
            elif kind == FBP_BINARY: fits = X == Y and Z == Y
            elif kind == FBP_SPARSE: fits = x == input and i == 0
            else: fits = kind in (FBP_DENSE, FBP_EMBEDDING) or X == Y
            if not fits:
                raise ValueError(f"operation {i} does not fit the widths of its values")
            parts = weight   # where its rows, turned, take whole lines already
            if turns:
                self.turns = True
                if weight % 16 or fbp_line_row(Y) != Y:
                    parts = extent
                    extent += X * fbp_line_row(Y)
            self.op[i] = fbp_op(kind, x, z, y, act, dact, zact, dx, dz, dw, db, last_w, last_b, closes, transposed, turns, parts, weight, bias, sums, summed, at,
                                room, alpha, beta, dalpha, zalpha, stream, stage)
            statistics |= kind == FBP_BATCHNORM
        self.output = <fbp_output *>allocate(len(outputs) * sizeof(fbp_output))
        for i, (v, act, alpha) in enumerate(outputs):
            if not 0 <= v < n:
                raise ValueError(f"output {i} is no value")
            self.output[i] = fbp_output(v, act, alpha)
        if not (0 <= input < n and outputs):
            raise ValueError("the program has no input or no output")
        self.c = fbp_program(fbp_kernels_for(self.type), n, len(operations), self.value, self.op, input, len(outputs), self.output, complete, statistics,
                             capacity, arena, extent, 0, 0, work_per_row)
        self.c.scratch = fbp_program_scratch(self.c.table, self.c.ops, self.op, self.value, capacity)
        self.c.half = fbp_program_half(self.c.table, self.c.ops, self.op, self.value, capacity)
        self.inputs = self.value[input].width
        self.widths = tuple(self.value[self.output[i].value].width for i in range(len(outputs)))

    def __dealloc__(self):
        free(self.value)
        free(self.op)
        free(self.output)
        free(self.memory)
        free(self.spare.memory)

    def predict(self, x, params):
        """f(x) as a new (B, O) array, one per output, or None when x is not a C-contiguous (B, I) array of this program's type."""
        self.require_dense()
        if not cnp.PyArray_Check(x):
            return None
        cdef cnp.ndarray a = <cnp.ndarray>x
        if (cnp.PyArray_TYPE(a) != number(self.type) or cnp.PyArray_NDIM(a) != 2 or not cnp.PyArray_ISCARRAY_RO(a)
                or cnp.PyArray_DIM(a, 1) != self.inputs):
            return None
        cdef ptrdiff_t n = cnp.PyArray_DIM(a, 0)
        cdef const void *p = data(params, self.type, self.parameters) if self.parameters else NULL
        cdef void *only
        cdef void **y = &only
        out = self.results(n, &y)
        cdef const void *x_data = cnp.PyArray_DATA(a)
        cdef double work = self.c.work_per_row * n
        cdef int threads = fbp_program_threads(&self.c, n, 1)
        cdef size_t bytes = threads * fbp_frame_bytes(&self.c, 1)
        cdef void *memory = take(&self.spare, bytes, &bytes)
        if work < 20000:   # shorter than handing the GIL over and back
            fbp_predict(&self.c, p, n, x_data, NULL, y, memory, threads)
        else:
            with nogil:
                fbp_predict(&self.c, p, n, x_data, NULL, y, memory, threads)
        give(&self.spare, memory, bytes)
        if y != &only:
            free(y)
        return out

    cdef object results(self, ptrdiff_t n, void ***y):
        """New arrays (n, O) for the outputs, one or a list, and their data: in *y, or where there are several in memory that *y is set to."""
        cdef int i
        if self.c.outputs == 1:
            only = empty(self.type, n, self.value[self.output[0].value].width)
            y[0][0] = cnp.PyArray_DATA(only)
            return only
        several = [empty(self.type, n, width) for width in self.widths]
        y[0] = <void **>allocate(self.c.outputs * sizeof(void *))
        for i in range(self.c.outputs):
            y[0][i] = cnp.PyArray_DATA(<cnp.ndarray>several[i])
        return several

    def predict_csr(self, x, params):
        """f(x) as a new (B, O) array for a sparse input, see `csr`."""
        cdef fbp_csr rows = csr(x, self.type, self.inputs)
        cdef ptrdiff_t n = x.shape[0]
        if not self.sparse:
            raise ValueError("the program's input is not sparse")
        cdef const void *p = data(params, self.type, self.parameters)
        cdef void *only
        cdef void **y = &only
        out = self.results(n, &y)
        cdef int threads = fbp_program_threads(&self.c, n, 1)
        cdef void *memory = allocate(threads * fbp_frame_bytes(&self.c, 1))
        with nogil:
            fbp_predict(&self.c, p, n, NULL, &rows, y, memory, threads)
        free(memory)
        if y != &only:
            free(y)
        return out

    cdef int require_dense(self) except -1:
        if self.sparse:
            raise TypeError("this model's input is a sparse matrix")
        return 0

    @property
    def sparse(self):
        """Whether the input is."""
        return self.c.ops > 0 and self.op[0].kind == FBP_SPARSE

    @property
    def nbytes(self):
        """Bytes of the frame's memory."""
        return 0 if self.memory == NULL else fbp_frame_bytes(&self.c, self.frame_threads)

    def release(self):
        """Gives the frame's memory back until it is used again; the values that `backward` needs go with it."""
        if self.running != 1 + fbp_forked():
            free(self.memory)
            self.memory, self.frame_threads = NULL, 0

    cdef int enter(self, int threads) except -1:
        """Marks the frame as in use and makes sure that it has memory for this many threads."""
        if self.running == 1 + fbp_forked():
            raise RuntimeError("the model is being used by another thread")
        cdef size_t bytes
        cdef void *memory
        cdef fbp_frame old = self.frame
        if self.memory == NULL or threads > self.frame_threads:   # scratch comes last: the values keep their places
            bytes = fbp_frame_bytes(&self.c, threads)
            memory = allocate(bytes)
            if self.memory != NULL:
                memcpy(memory, self.memory, fbp_frame_bytes(&self.c, self.frame_threads))
                free(self.memory)
            self.memory, self.frame_threads = memory, threads
            self.frame = fbp_frame_in(memory, &self.c)
            self.frame.params, self.frame.grads, self.frame.rows = old.params, old.grads, old.rows
            self.frame.training, self.frame.seed, self.frame.step, self.frame.csr = old.training, old.seed, old.step, old.csr
        self.running = 1 + fbp_forked()
        return 0

    def forward(self, params, cnp.ndarray x, bint training, uint64_t seed, uint64_t step):
        """Keeps the values of this batch for `backward`; returns the output (B, O), or a list."""
        self.require_dense()
        cdef ptrdiff_t B = cnp.PyArray_DIM(x, 0)
        cdef const void *x_data = data(x, self.type, B * self.inputs)
        if B > self.capacity or cnp.PyArray_NDIM(x) != 2 or cnp.PyArray_DIM(x, 1) != self.inputs:
            raise ValueError("x does not fit the program")
        cdef int threads = fbp_program_threads(&self.c, B, 1)
        self.enter(threads)
        try:
            self.frame.params = data(params, self.type, self.parameters) if self.parameters else NULL
            self.frame.rows, self.frame.training, self.frame.seed, self.frame.step = B, training, seed, step
            memcpy(self.frame.value[self.c.input], x_data, B * self.inputs * self.c.table.size)
            with nogil:
                fbp_forward(&self.frame, threads)
            out = [self.copy(self.frame.value, self.output[i].value) for i in range(self.c.outputs)]
        finally:
            self.running = 0
        return out if len(out) > 1 else out[0]

    cdef cnp.ndarray copy(self, void **frame, int v):
        """A value, or a gradient, of the frame's batch."""
        array = empty(self.type, self.frame.rows, self.value[v].width)
        memcpy(cnp.PyArray_DATA(array), frame[v], self.frame.rows * self.value[v].width * self.c.table.size)
        return array

    def backward(self, params, grads, dout):
        """Fills grads from dL/doutput (B, O), or a list, of the last forward batch; returns dL/dinput (B, I), or None for a program without it."""
        cdef ptrdiff_t B = self.frame.rows
        cdef int i
        given = dout if isinstance(dout, list) else [dout]
        if len(given) != self.c.outputs:
            raise ValueError(f"dout must hold {self.c.outputs} arrays, got {len(given)}")
        cdef const void **d = <const void **>allocate(self.c.outputs * sizeof(void *))
        cdef int threads = fbp_program_threads(&self.c, B, 2)
        try:
            for i in range(self.c.outputs):
                d[i] = data(given[i], self.type, B * self.value[self.output[i].value].width)
            self.enter(threads)
            try:
                self.frame.params = data(params, self.type, self.parameters) if self.parameters else NULL
                self.frame.grads = data(grads, self.type, self.parameters, True) if self.parameters else NULL
                with nogil:
                    fbp_backward(&self.frame, d, threads)
                return None if self.frame.gradient[self.c.input] == NULL else self.copy(self.frame.gradient, self.c.input)
            finally:
                self.running = 0
        finally:
            free(d)

    def read(self, int node):
        """Copies of a node's value and of the gradient by it, (B, width), as the last forward and backward left them."""
        cdef int v = self.nodes[node]
        if self.memory == NULL or self.frame.value[v] == NULL or self.frame.gradient[v] == NULL:
            raise ValueError(f"node {node} is not kept")
        return self.copy(self.frame.value, v), self.copy(self.frame.gradient, v)


cdef struct series:
    bitgen_t *source
    int64_t *order
    double *loss               # of the epochs that are complete
    ptrdiff_t n, epochs, most
    bint single
    double best, tol
    ptrdiff_t idle, patience


cdef int next_epoch(void *context, double loss_sum) noexcept nogil:
    """Books an epoch and prepares another one, unless it was the last: see Series."""
    cdef series *s = <series *>context
    cdef double loss = loss_sum / s.n, bar = s.best - s.tol
    cdef uint32_t mask = 1
    cdef ptrdiff_t i, j
    s.loss[s.epochs] = loss
    s.epochs += 1
    if s.single:   # as NumPy compares float32 scalars and Python's numbers
        loss, bar = <float>loss, <float>s.best - <float>s.tol
    s.idle = s.idle + 1 if loss > bar else 0
    if loss < s.best:
        s.best = loss
    if s.epochs == s.most or s.idle > s.patience:
        return 0
    if s.source != NULL:
        while mask < s.n - 1:
            mask = 2 * mask + 1
        for i in range(s.n - 1, 0, -1):
            while mask >> 1 >= i:
                mask >>= 1
            j = s.source.next_uint32(s.source.state) & mask
            while j > i:
                j = s.source.next_uint32(s.source.state) & mask
            s.order[i], s.order[j] = s.order[j], s.order[i]
    return 1


cdef class Series:
    """Up to `most` epochs over n rows in one call, for Run.start; `losses` are the mean losses of those that are complete.

    After each the order (int64) is shuffled in place as `random_state`, a numpy.random.RandomState that nobody else draws from, shuffles an array; None: it
    stays. The epochs end early after more than `patience` in a row whose loss was above the best one minus tol, `idle` of which have been already; single: compared in float32.
    """
    cdef series c
    cdef object held

    def __cinit__(self, ptrdiff_t n, order, random_state, ptrdiff_t most, bint single, double best, double tol, ptrdiff_t idle, ptrdiff_t patience):
        if not (0 < n <= 0xffffffff and most > 0):
            raise ValueError("a series needs rows and epochs")
        self.c = series(NULL, NULL, NULL, n, 0, most, single, best, tol, idle, patience)
        if random_state is not None:
            generator = random_state._bit_generator
            self.held = order, generator
            self.c.order = <int64_t *>labels_of(order, n)
            self.c.source = <bitgen_t *>PyCapsule_GetPointer(generator.capsule, "BitGenerator")
            if self.c.order == NULL or not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>order):
                raise ValueError("order must be there, and writable")
        self.c.loss = <double *>allocate(most * sizeof(double))

    def __dealloc__(self):
        free(self.c.loss)

    @property
    def losses(self):
        return [self.c.loss[i] for i in range(self.c.epochs)]


cdef class Run:
    """Training of one program on one data set. `start` begins an epoch, `advance` runs whole steps for a while.

    x (n, I), or for a sparse input as `csr` has it; w (n) or None; state1, state2: the optimizer's arrays or None; threshold: None for no accuracy of the first
    output, else see `hits`; tolerant: goes on when a number is not finite. objectives: for each output (loss, its weight, t (n, O) or None,
    label (n) or None, outputs (n, O) to receive the predictions in batch order or None).
    """
    cdef fbp_run c
    cdef fbp_csr rows
    cdef Program program
    cdef object held               # every array whose memory C uses
    cdef object epoch              # the order and learning rates of the running epoch
    cdef Series series             # that it is part of, or None
    cdef readonly int team         # threads that a step deserves
    cdef fbp_objective *objective

    def __cinit__(self, Program program, objectives, UpdateRule update, params, grads, state1, state2, x, w,
                  ptrdiff_t batch_size, threshold, uint64_t seed, uint64_t dropout_step, int64_t steps, bint tolerant=False):
        cdef int type = program.type
        cdef ptrdiff_t n = x.shape[0], batch = min(batch_size, program.capacity), O
        cdef int i, count = program.c.outputs
        cdef LossRule loss
        if len(objectives) != count or batch != batch_size or n < 1 or update.size != program.parameters:
            raise ValueError("the run does not fit the program")
        self.program = program
        gathered = [empty(type, batch, 1)]
        self.held = (program, objectives, update, params, grads, state1, state2, x, w, gathered)
        self.objective = <fbp_objective *>allocate(count * sizeof(fbp_objective))
        for i, (loss, weight, t, label, outputs) in enumerate(objectives):
            O = program.widths[i]
            gathered += [empty(type, batch, O), cnp.PyArray_EMPTY(1, [batch], cnp.NPY_INT64, 0)]
            self.objective[i] = fbp_objective(&loss.c, weight, targets(type, n, O, t, label, w), cnp.PyArray_DATA(<cnp.ndarray>gathered[-2]),
                                              <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>gathered[-1]), maybe(outputs, type, n * O, True))
        self.c.objective, self.c.optimizer = self.objective, &update.c
        self.c.params = data(params, type, program.parameters, True) if program.parameters else NULL
        self.c.state1, self.c.state2 = maybe(state1, type, update.size, True), maybe(state2, type, update.size, True)
        update.check_state(self.c.state1, self.c.state2)
        cdef size_t width = (1 + (state1 is not None) + (state2 is not None)) * (4 if type == FBP_F32 else 8)
        # A sum over all parameters depends on how they lie; who asks for gradients wants them as they are.
        if program.turns and program.parameters * width <= FBP_TURNED_BYTES and update.c.kind != FBP_GRADIENT and update.c.penalty == 0 and update.c.clip_norm == 0:
            self.c.room = allocate(program.c.extent * width)
        cdef size_t chunk_bytes = fbp_program_chunks(&program.c, batch) * program.c.extent * (4 if type == FBP_F32 else 8)
        if chunk_bytes > 0:
            self.c.chunk_grads = allocate(chunk_bytes)
            memset(self.c.chunk_grads, 0, chunk_bytes)
        self.c.n, self.c.batch_size = n, batch
        if program.sparse:
            self.rows, self.c.x = csr(x, type, program.inputs), NULL
        else:
            self.c.x = data(x, type, n * program.inputs)
        self.c.w, self.c.gathered_w = maybe(w, type, n), cnp.PyArray_DATA(<cnp.ndarray>gathered[0])
        self.c.wants_accuracy = threshold is not None
        self.c.threshold = 0 if threshold is None else threshold
        self.c.steps, self.c.tolerant = steps, tolerant
        self.team = fbp_training_threads(&program.c, min(batch, n))
        self.c.partial = <double *>allocate(fbp_partials(batch, count, program.parameters, self.team) * sizeof(double))
        self.c.prepared = <fbp_prepared *>allocate(program.c.ops * FBP_PRODUCTS * sizeof(fbp_prepared))
        self.c.frame = &program.frame
        program.enter(self.team)
        program.running = 0
        program.frame.params = self.c.params
        program.frame.grads = data(grads, type, program.parameters, True) if program.parameters else NULL
        program.frame.training, program.frame.seed, program.frame.step = True, seed, dropout_step
        program.frame.csr = &self.rows if program.sparse else NULL

    def __dealloc__(self):
        free(self.c.room)
        free(self.c.chunk_grads)
        free(self.c.partial)
        free(self.c.prepared)
        free(self.c.loss_sum)
        free(self.objective)

    def start(self, order, lr, ptrdiff_t batch=0, Series series=None):
        """Epochs over the rows in this order (int64, n numbers for each, or None: as they are), at batch i of all with learning rate lr[i], as many as
        there are rates for; from this batch on. Of a series it is the first epoch."""
        cdef ptrdiff_t of_epoch = (self.c.n + self.c.batch_size - 1) // self.c.batch_size, batches = len(lr), i
        cdef const int64_t *rows = labels_of(order, batches // of_epoch * self.c.n)
        if batches == 0 or batches % of_epoch or (series is not None and batches != of_epoch):
            raise ValueError(f"an epoch has {of_epoch} learning rates, got {batches}")
        if rows != NULL:
            for i in range(batches // of_epoch * self.c.n):
                if rows[i] < 0 or rows[i] >= self.c.n:
                    raise ValueError("order must hold row numbers")
        self.c.lr = <const double *>data(lr, FBP_F64, batches)
        self.epoch = (order, lr)
        self.c.order = rows
        self.c.batch, self.c.batches = batch, batches
        free(self.c.loss_sum)
        self.c.loss_sum = NULL   # an allocation may fail
        self.c.loss_sum = <double *>allocate(2 * (batches // of_epoch) * sizeof(double))
        self.c.hits = self.c.loss_sum + batches // of_epoch
        memset(self.c.loss_sum, 0, 2 * (batches // of_epoch) * sizeof(double))
        self.series, self.c.next, self.c.context = series, NULL, NULL
        if series is not None:
            if series.c.n != self.c.n or series.c.epochs != 0 or (series.c.source != NULL and series.c.order != rows) or not self.c.tolerant:
                raise ValueError("the series does not fit the run")
            self.c.next, self.c.context = next_epoch, &series.c

    def advance(self, int threads, double seconds, ptrdiff_t batches=0, copies=()):
        """Runs whole steps for about this long, at least one; `batches` > 0: that many at most. Returns the status. `copies`, arrays like
        params, state1 and state2, take what these were before."""
        cdef ptrdiff_t end = self.c.batches
        cdef int i, type = self.program.type
        for i in range(3):
            self.c.saved[i] = data(copies[i], type, self.program.parameters, True) if i < len(copies) else NULL
        if len(copies) and len(copies) != 1 + (self.c.state1 != NULL) + (self.c.state2 != NULL):
            raise ValueError("copies must be one per array that is trained")
        if not 1 <= threads <= self.team:
            raise ValueError(f"threads must be from 1 to {self.team}, got {threads}")
        if self.series is not None and batches > 0:
            raise ValueError("a series runs to the end of its epochs")
        self.program.enter(self.team)
        if 0 < batches < end - self.c.batch:
            self.c.batches = self.c.batch + batches
        self.c.threads, self.c.seconds = threads, seconds
        with nogil:
            fbp_train(&self.c)
        self.program.running = 0
        self.c.batches = end
        if self.c.status == FBP_DONE and self.c.batch < end:
            self.c.status = FBP_RUNNING
        return self.c.status

    @property
    def choices(self):
        """(threads to begin with, threads to try): the whole team, unless a step takes less than about a millisecond: waking a thread may
        take longer than a short fit alone. Both are the team when its size is forced."""
        if fbp_grain_forced():
            return self.team, self.team
        if 3 * self.program.c.work_per_row * min(self.c.batch_size, self.c.n) < 5e7:
            return 1, self.team
        return self.team, 1

    def totals(self, ptrdiff_t epoch=0):
        """(sum of rows * loss, right answers) of the batches of one of the epochs so far."""
        if not 0 <= epoch * self.c.n < self.c.batches * self.c.batch_size:
            raise IndexError(f"there is no epoch {epoch}")
        return self.c.loss_sum[epoch], self.c.hits[epoch]

    def rewind(self, int64_t steps, uint64_t dropout_step):
        """Sets the counters back to those of a snapshot."""
        self.c.steps = steps
        self.program.frame.step = dropout_step

    @property
    def batch(self): return self.c.batch
    @property
    def batches(self): return self.c.batches
    @property
    def steps(self): return self.c.steps
    @property
    def dropout_step(self): return self.program.frame.step
    @property
    def last_loss(self): return self.c.last_loss


# ---- plain functions on arrays (fastbp.kernels checks and converts what is not `plain`) -------------------------------------------------

cdef inline bint is_plain(object array, int number, bint either_order) noexcept:
    """A real ndarray of this type number that C can read where it lies."""
    if not cnp.PyArray_CheckExact(array):
        return False
    cdef cnp.ndarray a = <cnp.ndarray>array
    return (cnp.PyArray_TYPE(a) == number and cnp.PyArray_ISBEHAVED_RO(a)
            and (cnp.PyArray_IS_C_CONTIGUOUS(a) or (either_order and cnp.PyArray_IS_F_CONTIGUOUS(a))))


cdef inline bint disjoint(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef char *p = <char *>cnp.PyArray_DATA(a)
    cdef char *q = <char *>cnp.PyArray_DATA(b)
    return p + cnp.PyArray_NBYTES(a) <= q or q + cnp.PyArray_NBYTES(b) <= p


cdef inline bint same_or_disjoint(cnp.ndarray a, cnp.ndarray b) noexcept:
    return cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b) or disjoint(a, b)


cdef inline int real_number(object array) noexcept:
    """The type number of a float32 or float64 ndarray, else -1."""
    if not cnp.PyArray_CheckExact(array):
        return -1
    cdef int number = cnp.PyArray_TYPE(<cnp.ndarray>array)
    return number if number == cnp.NPY_FLOAT32 or number == cnp.NPY_FLOAT64 else -1


cdef bint plain_elements(x, other, out) noexcept:
    """Whether x, other (or None) and out (or None) need no conversion: one type, one shape, contiguous, out writable and each input either
    out itself or apart from it."""
    cdef int number = real_number(x)
    if number < 0 or not is_plain(x, number, False):
        return False
    if other is not None and not (is_plain(other, number, False) and cnp.PyArray_SAMESHAPE(<cnp.ndarray>x, <cnp.ndarray>other)):
        return False
    if out is None:
        return True
    if not (is_plain(out, number, False) and cnp.PyArray_SAMESHAPE(<cnp.ndarray>x, <cnp.ndarray>out) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out)):
        return False
    return same_or_disjoint(<cnp.ndarray>x, <cnp.ndarray>out) and (other is None or same_or_disjoint(<cnp.ndarray>other, <cnp.ndarray>out))


cdef bint plain_matrices(a, b, out) noexcept:
    """Whether the matrices a and b, in either order, and out (or None) need no conversion; out apart from both."""
    cdef int number = real_number(a)
    if number < 0 or not (is_plain(a, number, True) and is_plain(b, number, True)):
        return False
    if cnp.PyArray_NDIM(<cnp.ndarray>a) != 2 or cnp.PyArray_NDIM(<cnp.ndarray>b) != 2:
        return False
    if out is None:
        return True
    return (is_plain(out, number, False) and cnp.PyArray_NDIM(<cnp.ndarray>out) == 2 and cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out)
            and disjoint(<cnp.ndarray>a, <cnp.ndarray>out) and disjoint(<cnp.ndarray>b, <cnp.ndarray>out))


cdef inline bint is_state(array, cnp.ndarray p, object grad) noexcept:
    """Whether a state (or None) is like p, writable, and apart from p and grad."""
    if array is None:
        return True
    return (is_plain(array, cnp.PyArray_TYPE(p), False) and cnp.PyArray_SAMESHAPE(p, <cnp.ndarray>array) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray>array)
            and disjoint(<cnp.ndarray>array, p) and disjoint(<cnp.ndarray>array, <cnp.ndarray>grad))


cdef bint plain_updatable(param, grad, state1, state2) noexcept:
    """Whether an update of param by grad with these states (or None) needs no conversion: one type, one shape, all apart."""
    cdef int number = real_number(param)
    if number < 0 or not (is_plain(param, number, False) and is_plain(grad, number, False)):
        return False
    cdef cnp.ndarray p = <cnp.ndarray>param
    return (cnp.PyArray_ISWRITEABLE(p) and cnp.PyArray_SAMESHAPE(p, <cnp.ndarray>grad) and disjoint(p, <cnp.ndarray>grad)
            and is_state(state1, p, grad) and is_state(state2, p, grad)
            and (state1 is None or state2 is None or disjoint(<cnp.ndarray>state1, <cnp.ndarray>state2)))


cdef inline bint is_float(value, double end) noexcept:
    """Whether value is a float, 0 <= value < end."""
    return PyFloat_Check(value) and 0 <= PyFloat_AS_DOUBLE(value) < end


cdef update_all(fbp_optimizer *optimizer, double lr, int64_t step, cnp.ndarray param, cnp.ndarray grad, state1, state2):
    """One update in place of plain arrays, without clipping."""
    cdef int type = type_of_array(param)
    cdef ptrdiff_t n = cnp.PyArray_SIZE(param)
    cdef fbp_slot slot = fbp_slot(0, n, 1, 1)
    cdef void *g = cnp.PyArray_DATA(grad)
    cdef void *p = cnp.PyArray_DATA(param)
    cdef void *s1 = NULL if state1 is None else cnp.PyArray_DATA(<cnp.ndarray>state1)
    cdef void *s2 = NULL if state2 is None else cnp.PyArray_DATA(<cnp.ndarray>state2)
    cdef const fbp_kernels *table = fbp_kernels_for(type)
    cdef int threads = fbp_threads_for(8.0 * n)
    optimizer.slots, optimizer.slot = 1, &slot
    with nogil:
        fbp_optimizer_step(table, optimizer, lr, step, n, g, p, s1, s2, NULL, threads)


def plain_sgd(param, grad, velocity, lr, momentum, weight_decay):
    """param after one step, when nothing needs a conversion and the numbers are floats in their ranges; else None."""
    cdef fbp_optimizer optimizer
    if not (plain_updatable(param, grad, velocity, None) and is_float(lr, INFINITY) and is_float(momentum, 1) and is_float(weight_decay, INFINITY)):
        return None
    if velocity is None and <double>momentum != 0:
        return None
    memset(&optimizer, 0, sizeof(optimizer))
    optimizer.kind, optimizer.momentum, optimizer.weight_decay = FBP_SGD, momentum, weight_decay
    update_all(&optimizer, lr, 1, param, grad, velocity, None)
    return param


def plain_adam(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay):
    """param after one step, when nothing needs a conversion and the numbers are floats in their ranges; else None."""
    cdef fbp_optimizer optimizer
    if m is None or v is None or not plain_updatable(param, grad, m, v) or not (PyLong_CheckExact(step) and 1 <= step <= INT64_MAX):
        return None
    if not (is_float(lr, INFINITY) and is_float(beta1, 1) and is_float(beta2, 1) and is_float(eps, INFINITY) and is_float(weight_decay, INFINITY)) or <double>eps == 0:
        return None
    memset(&optimizer, 0, sizeof(optimizer))
    optimizer.kind, optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.weight_decay = FBP_ADAM, beta1, beta2, eps, weight_decay
    update_all(&optimizer, lr, step, param, grad, m, v)
    return param


cdef fbp_matrix matrix(cnp.ndarray a, int type) except *:
    """A 2-D array one of whose strides is one element, read where it lies."""
    cdef ptrdiff_t size = 4 if type == FBP_F32 else 8
    cdef fbp_matrix m
    if cnp.PyArray_TYPE(a) != number(type) or cnp.PyArray_NDIM(a) != 2 or not cnp.PyArray_ISALIGNED(a):
        raise ValueError("expected an aligned matrix")
    m.p = cnp.PyArray_DATA(a)
    if cnp.PyArray_SIZE(a) == 0:     # NumPy calls it contiguous whatever its strides
        m.row, m.col = cnp.PyArray_DIM(a, 1), 1
        return m
    m.row, m.col = cnp.PyArray_STRIDE(a, 0) // size, cnp.PyArray_STRIDE(a, 1) // size
    if cnp.PyArray_DIM(a, 1) <= 1:   # the stride of a single row or column means nothing
        m.col = 1
    if cnp.PyArray_DIM(a, 0) <= 1:
        m.row = cnp.PyArray_DIM(a, 1) if m.col == 1 else 1
    if not (m.row == 1 or m.col == 1) or m.row < 0 or m.col < 0:
        raise ValueError("expected a matrix with contiguous rows or columns")
    return m


cdef Spare scratch_kept   # of the last product


cdef fbp_matrix turned(fbp_matrix a) noexcept:
    a.row, a.col = a.col, a.row
    return a


cdef multiply(int type, fbp_product *q):
    """The product whose shapes and operands are given; the rest of q is 0."""
    if q.m == 0 or q.n == 0:
        return
    q.ldc, q.start = q.n, FBP_STORE
    cdef const fbp_kernels *table = fbp_kernels_for(type)
    cdef int threads = fbp_threads_for(<double>q.m * q.n * q.k)
    cdef size_t bytes
    cdef void *scratch = take(&scratch_kept, threads * fbp_gemm_scratch(table, q.m, q.n, q.k), &bytes)
    with nogil:
        fbp_matmul(table, q, scratch, threads)
    give(&scratch_kept, scratch, bytes)


cpdef matmul(cnp.ndarray a, cnp.ndarray b, cnp.ndarray out, bias=None, int act=FBP_IDENTITY, double alpha=0, bint chunked=False):
    """out (m, n) = act(a (m, k) b (k, n) + bias (n)); chunked: sums of fbp_chunk(k) terms, added up in order."""
    cdef int type = type_of_array(out)
    cdef ptrdiff_t m = a.shape[0], n = b.shape[1], k = a.shape[1]
    cdef fbp_epilogue e
    cdef fbp_product q
    if b.shape[0] != k or out.shape[0] != m or out.shape[1] != n:
        raise ValueError("the shapes of a, b and out do not agree")
    memset(&e, 0, sizeof(e))
    e.bias, e.act, e.alpha = maybe(bias, type, n), act, alpha
    memset(&q, 0, sizeof(q))
    q.m, q.n, q.k, q.a, q.b, q.c = m, n, k, matrix(a, type), matrix(b, type), data(out, type, m * n, True)
    q.chunked, q.epilogue = chunked, &e
    multiply(type, &q)
    return out


cdef inline bint holds(out, int number, ptrdiff_t rows, ptrdiff_t columns) noexcept:
    """Whether `out` is a writable matrix of this shape, or with rows = -1 a vector, that C can write where it lies."""
    if not is_plain(out, number, False) or not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out):
        return False
    cdef cnp.ndarray a = <cnp.ndarray>out
    if rows < 0:
        return cnp.PyArray_NDIM(a) == 1 and cnp.PyArray_DIM(a, 0) == columns
    return cnp.PyArray_NDIM(a) == 2 and cnp.PyArray_DIM(a, 0) == rows and cnp.PyArray_DIM(a, 1) == columns


def plain_product(a, b, out, bias=None, int act=FBP_IDENTITY, double alpha=0):
    """matmul in out or (out None) a new array, when nothing needs a conversion and the shapes agree; else None."""
    if not plain_matrices(a, b, out):
        return None
    cdef cnp.ndarray left = <cnp.ndarray>a, right = <cnp.ndarray>b
    cdef ptrdiff_t m = left.shape[0], n = right.shape[1]
    if left.shape[1] != right.shape[0]:
        return None
    if out is None:
        out = empty(type_of_array(left), m, n)
    elif not holds(out, cnp.PyArray_TYPE(left), m, n):
        return None
    if bias is not None and not (is_plain(bias, cnp.PyArray_TYPE(left), False) and cnp.PyArray_NDIM(<cnp.ndarray>bias) == 1
                                 and cnp.PyArray_DIM(<cnp.ndarray>bias, 0) == n and disjoint(<cnp.ndarray>bias, <cnp.ndarray>out)):
        return None
    return matmul(left, right, out, bias, act, alpha)


cdef outer_products(cnp.ndarray delta, cnp.ndarray x, cnp.ndarray out):
    """out (O, I) = deltaᵀ x, with delta (B, O) and x (B, I), in chunks."""
    cdef int type = type_of_array(delta)
    cdef fbp_product q
    memset(&q, 0, sizeof(q))
    q.m, q.n, q.k, q.a, q.b, q.c = delta.shape[1], x.shape[1], x.shape[0], turned(matrix(delta, type)), matrix(x, type), cnp.PyArray_DATA(out)
    q.chunked = True
    multiply(type, &q)


def plain_outer_products(delta, x, out):
    """deltaᵀ x in out or (out None) a new array, when nothing needs a conversion and the shapes agree; else None."""
    if not plain_matrices(delta, x, out):
        return None
    cdef cnp.ndarray left = <cnp.ndarray>delta, right = <cnp.ndarray>x
    if left.shape[0] != right.shape[0]:
        return None
    if out is None:
        out = empty(type_of_array(left), left.shape[1], right.shape[1])
    elif not holds(out, cnp.PyArray_TYPE(left), left.shape[1], right.shape[1]):
        return None
    outer_products(left, right, out)
    return out


def plain_sums(x, out):
    """The column sums of x (B, n), in out or (out None) a new array, when nothing needs a conversion and the shapes agree; else None."""
    cdef int number = real_number(x)
    if number < 0 or not is_plain(x, number, False) or cnp.PyArray_NDIM(<cnp.ndarray>x) != 2:
        return None
    cdef cnp.npy_intp n = cnp.PyArray_DIM(<cnp.ndarray>x, 1)
    if out is None:
        out = cnp.PyArray_EMPTY(1, &n, number, 0)
    elif not (holds(out, number, -1, n) and disjoint(<cnp.ndarray>x, <cnp.ndarray>out)):
        return None
    return column_sums(x, out)


def plain_backward(x, w, dy, dx, dw, db):
    """(dx, dw, db) = (dy w, dyᵀ x, 1ᵀ dy) in these arrays or (None) new ones, when nothing needs a conversion and the shapes agree; else None."""
    cdef int number = real_number(dy)
    if not (number >= 0 and is_plain(dy, number, False) and plain_matrices(dy, w, None) and plain_matrices(dy, x, None)):
        return None
    cdef ptrdiff_t B = (<cnp.ndarray>x).shape[0], I = (<cnp.ndarray>x).shape[1], O = (<cnp.ndarray>w).shape[0]
    if (<cnp.ndarray>w).shape[1] != I or (<cnp.ndarray>dy).shape[0] != B or (<cnp.ndarray>dy).shape[1] != O:
        return None
    cdef int type = type_of_array(<cnp.ndarray>dy)
    cdef cnp.npy_intp outputs = O
    dx = empty(type, B, I) if dx is None else dx
    dw = empty(type, O, I) if dw is None else dw
    db = cnp.PyArray_EMPTY(1, &outputs, number, 0) if db is None else db
    if not (holds(dx, number, B, I) and holds(dw, number, O, I) and holds(db, number, -1, O)):
        return None
    if not (disjoint(dx, x) and disjoint(dx, w) and disjoint(dx, dy) and disjoint(dx, dw) and disjoint(dx, db)
            and disjoint(dw, x) and disjoint(dw, dy) and disjoint(dw, db) and disjoint(db, dy)):
        return None
    matmul(dy, w, dx)
    outer_products(dy, x, dw)
    column_sums(dy, db)
    return dx, dw, db


cpdef column_sums(cnp.ndarray x, cnp.ndarray out):
    """out (n) = column sums of x (B, n)."""
    cdef int type = type_of_array(out), threads
    cdef ptrdiff_t B = x.shape[0], n = x.shape[1]
    cdef const void *x_data = data(x, type, B * n)
    cdef void *y_data = data(out, type, n, True)
    cdef const fbp_kernels *table = fbp_kernels_for(type)
    threads = fbp_threads_for(<double>B * n)
    with nogil:
        fbp_sum_columns(table, B, n, x_data, y_data, threads)
    return out


cpdef map_forward(int act, cnp.ndarray x, cnp.ndarray out, double alpha=0):
    """out = f(x), elementwise."""
    cdef int type = type_of_array(out), threads
    cdef ptrdiff_t n = x.size
    cdef const void *x_data = data(x, type, n)
    cdef void *y_data = data(out, type, n, True)
    cdef const fbp_kernels *table = fbp_kernels_for(type)
    threads = fbp_threads_for(4.0 * n)
    with nogil:
        fbp_map(table, act, n, x_data, alpha, y_data, threads)
    return out


cpdef map_backward(int act, cnp.ndarray s, cnp.ndarray dy, cnp.ndarray out, double alpha=0):
    """out = dy * f'(s), elementwise; s is f's output, or its input for softplus, gelu and silu."""
    cdef int type = type_of_array(out), threads
    cdef ptrdiff_t n = dy.size
    cdef const void *s_data = data(s, type, n)
    cdef const void *dy_data = data(dy, type, n)
    cdef void *dx_data = data(out, type, n, True)
    cdef const fbp_kernels *table = fbp_kernels_for(type)
    threads = fbp_threads_for(4.0 * n)
    with nogil:
        fbp_map_backward(table, act, n, s_data, dy_data, alpha, dx_data, threads)
    return out


cpdef softmax(cnp.ndarray x, cnp.ndarray out):
    """out (B, n) = softmax of the rows of x (B, n)."""
    cdef int type = type_of_array(out), threads
    cdef ptrdiff_t B = x.shape[0], n = x.shape[1]
    cdef const void *x_data = data(x, type, B * n)
    cdef void *y_data = data(out, type, B * n, True)
    cdef const fbp_kernels *table = fbp_kernels_for(type)
    threads = fbp_threads_for(20.0 * B * n)
    with nogil:
        fbp_softmax(table, B, n, x_data, y_data, threads)
    return out


cdef inline cnp.ndarray like(cnp.ndarray x):
    """A new array of x's shape and type."""
    return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x), 0)


def plain_forward(int act, x, out):
    """f(x) in out or (out None) a new array, when nothing needs a conversion; else None."""
    return map_forward(act, x, like(x) if out is None else out) if plain_elements(x, None, out) else None


def plain_derivative(int act, y, dy, out):
    """dy * f'(y) in out or (out None) a new array, when nothing needs a conversion; else None."""
    return map_backward(act, y, dy, like(y) if out is None else out) if plain_elements(y, dy, out) else None


def plain_softmax(s, out):
    """Softmax of the rows of s in out or (out None) a new array, when nothing needs a conversion; else None."""
    if not plain_elements(s, None, out) or cnp.PyArray_NDIM(<cnp.ndarray>s) != 2 or cnp.PyArray_DIM(<cnp.ndarray>s, 1) == 0:
        return None
    return softmax(s, like(s) if out is None else out)
