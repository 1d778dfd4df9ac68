"""The C API of csrc/, for _core.pyx: what is called and which fields are read and written. Meanings are in the headers."""
from libc.stdint cimport int32_t, int64_t, uint64_t

cdef extern from "fastbp.h" nogil:
    const char *FASTBP_VERSION
    const char *FASTBP_COMPILER

    enum: FBP_F32, FBP_F64
    ctypedef struct fbp_kernels:
        size_t size
    const char *fbp_isa_name(int i)
    int fbp_isa_supported(int i)
    int fbp_isa_select(const char *name)
    const char *fbp_isa_selected()
    const fbp_kernels *fbp_kernels_for(int type)

    void *fbp_allocate(size_t bytes)
    enum: FBP_LARGE
    int fbp_openmp_version()
    int fbp_forked()
    int fbp_thread_limit()
    void fbp_set_thread_limit(int threads)
    int fbp_set_own_thread_limit(int threads)
    int fbp_threads_for(double work)
    double fbp_set_grain(double multiply_adds)
    int fbp_grain_forced()

    enum: FBP_IDENTITY, FBP_RELU, FBP_LEAKY_RELU, FBP_SIGMOID, FBP_TANH, FBP_ELU, FBP_EXP, FBP_SQRT, FBP_RECIPROCAL
    enum: FBP_SOFTPLUS, FBP_GELU, FBP_SILU, FBP_LOG, FBP_SIN, FBP_COS, FBP_SQUARE
    enum: FBP_MSE, FBP_L1, FBP_HUBER, FBP_QUANTILE, FBP_POISSON, FBP_BCE, FBP_BCE_LOGITS, FBP_CROSS_ENTROPY
    enum: FBP_STORE
    enum: FBP_DENSE, FBP_ACTIVATION, FBP_SOFTMAX, FBP_DROPOUT, FBP_BINARY, FBP_AFFINE, FBP_SUM, FBP_EXPAND, FBP_PLACE, FBP_PICK
    enum: FBP_PARAMETER, FBP_LAYERNORM, FBP_BATCHNORM, FBP_SCALE, FBP_EMBEDDING, FBP_SPARSE, FBP_OP_KINDS
    enum: FBP_UNWANTED, FBP_FIRST, FBP_MORE, FBP_SHARED
    enum: FBP_SGD, FBP_ADAM, FBP_GRADIENT
    enum: FBP_TURNED_BYTES, FBP_LINE
    enum: FBP_RUNNING, FBP_DONE, FBP_LOSS_NOT_FINITE, FBP_PARAMETER_NOT_FINITE

    ctypedef struct fbp_epilogue:
        const void *bias
        int act
        double alpha
        const void *y
        ptrdiff_t ldy
    ctypedef struct fbp_matrix:
        const void *p
        ptrdiff_t row, col
    ctypedef struct fbp_product:
        ptrdiff_t m, n, k
        fbp_matrix a, b
        void *c
        ptrdiff_t ldc
        int start, chunked
        const fbp_epilogue *epilogue
    size_t fbp_gemm_scratch(const fbp_kernels *t, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k)

    void fbp_matmul(const fbp_kernels *t, const fbp_product *q, void *scratch, int threads)
    void fbp_sum_columns(const fbp_kernels *t, ptrdiff_t B, ptrdiff_t n, const void *x, void *y, int threads)
    void fbp_map(const fbp_kernels *t, int act, ptrdiff_t n, const void *x, double alpha, void *y, int threads)
    void fbp_map_backward(const fbp_kernels *t, int act, ptrdiff_t n, const void *s, const void *dy, double alpha, void *dx, int threads)
    void fbp_softmax(const fbp_kernels *t, ptrdiff_t B, ptrdiff_t n, const void *x, void *y, int threads)
    double fbp_peak(const fbp_kernels *t, double seconds)
    ptrdiff_t fbp_first_nonfinite(const fbp_kernels *t, ptrdiff_t n, const void *x)

    ctypedef struct fbp_op:
        int kind, x, z, y, act, dact, zact, dx, dz, dw, db, last_w, last_b, closes, transposed, turns
        ptrdiff_t parts, weight, bias, sums
        int summed
        ptrdiff_t at, room
        double alpha, beta, dalpha, zalpha
        int stream, stage
    ctypedef struct fbp_value:
        ptrdiff_t width, offset, gradient
    ctypedef struct fbp_output:
        int value, act
        double alpha
    ctypedef struct fbp_program:
        const fbp_kernels *table
        int values, ops
        const fbp_value *value
        const fbp_op *op
        int input, outputs
        const fbp_output *output
        int complete, statistics
        ptrdiff_t capacity, arena, extent
        size_t scratch
        size_t half
        double work_per_row
    ctypedef struct fbp_loss:
        int kind, sum
        double per_row, scale, param, limit, reported
    ctypedef struct fbp_target:
        const void *t
        const int64_t *label
        const void *w
    ctypedef struct fbp_slot:
        ptrdiff_t offset, size
        double rate, decay
    ctypedef struct fbp_optimizer:
        int kind
        double momentum
        int nesterov, rate_inside
        double beta1, beta2, eps, weight_decay
        int decoupled, epsilon_hat
        double penalty, clip_norm
        int slots
        const fbp_slot *slot
    ctypedef struct fbp_csr:
        const int64_t *start
        const int32_t *column
        const void *value
    ctypedef struct fbp_frame:
        const fbp_program *program
        void **value
        void **gradient
        const void *params
        void *grads
        ptrdiff_t rows
        int training
        uint64_t seed, step
        const fbp_csr *csr
        void *scratch
    ctypedef struct fbp_prepared:
        pass
    enum: FBP_PRODUCTS
    ctypedef struct fbp_objective:
        const fbp_loss *loss
        double weight
        fbp_target target
        void *gathered_t
        int64_t *gathered_label
        void *outputs
    ctypedef struct fbp_run:
        fbp_frame *frame
        const fbp_objective *objective
        const fbp_optimizer *optimizer
        void *params
        void *state1
        void *state2
        void *saved[3]
        void *room
        void *chunk_grads
        const double *lr
        ptrdiff_t n, batch_size
        const void *x
        const void *w
        const int64_t *order
        void *gathered_w
        int wants_accuracy
        double threshold
        double *partial
        fbp_prepared *prepared
        double seconds
        int threads, tolerant
        ptrdiff_t batch, batches
        int64_t steps
        double *loss_sum
        double *hits
        double last_loss
        int (*next)(void *context, double loss_sum) noexcept
        void *context
        int status

    ptrdiff_t fbp_program_chunks(const fbp_program *p, ptrdiff_t rows)
    int fbp_program_threads(const fbp_program *p, ptrdiff_t rows, int passes)
    int fbp_training_threads(const fbp_program *p, ptrdiff_t rows)
    size_t fbp_program_scratch(const fbp_kernels *t, int ops, const fbp_op *op, const fbp_value *value, ptrdiff_t rows)
    size_t fbp_program_half(const fbp_kernels *t, int ops, const fbp_op *op, const fbp_value *value, ptrdiff_t rows)
    ptrdiff_t fbp_line_row(ptrdiff_t O)
    size_t fbp_frame_bytes(const fbp_program *p, int threads)
    fbp_frame fbp_frame_in(void *memory, const fbp_program *p)
    void fbp_forward(fbp_frame *f, int threads)
    void fbp_backward(fbp_frame *f, const void *const *dout, int threads)
    void fbp_predict(const fbp_program *p, const void *params, ptrdiff_t n, const void *x, const fbp_csr *csr, void *const *y, void *memory, int threads)
    void fbp_train(fbp_run *run)
    ptrdiff_t fbp_partials(ptrdiff_t rows, int outputs, ptrdiff_t parameters, int threads)
    double fbp_loss_value(const fbp_kernels *t, const fbp_loss *loss, ptrdiff_t B, ptrdiff_t O, const void *p, fbp_target target, void *dp,
                          double *partial, int threads)
    double fbp_hits(const fbp_kernels *t, double threshold, ptrdiff_t B, ptrdiff_t O, const void *p, fbp_target target)
    int fbp_optimizer_step(const fbp_kernels *t, const fbp_optimizer *o, double lr, int64_t step, ptrdiff_t n, void *grads, void *params,
                           void *state1, void *state2, double *partial, int threads)
