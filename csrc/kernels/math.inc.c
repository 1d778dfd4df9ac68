/* Elementary functions on whole vectors, written once for float and double and for every width.
 *
 * All lanes run the same branch-free code and every operation is an IEEE operation, so a result depends on the argument
 * only: not on its lane, not on the vector width, not on the instruction set (as long as it has FMA, see simd.h). NaN
 * comes out as NaN: v_min and v_max return their second argument if either is NaN, hence the order of arguments below.
 *
 * The building blocks, with k an integer and all polynomials minimax fits of our own:
 *
 *     e^x      = 2^k (1 + q)              x = k ln2 + r,  |r| <= ln2/2,  q = e^r - 1 = r + r^2 P(r)
 *     log u    = k ln2 + log(1 + f)       u = 2^k (1 + f),  1/sqrt2 <= 1 + f < sqrt2
 *     log(1+f) = f - (h - s (h + R))      s = f / (2 + f),  h = f^2/2,  R = log((1+s)/(1-s))/s - 2
 *
 * Everything else is composed so that rounding errors are not amplified and no intermediate overflows. */

#ifdef FBP_DOUBLE
typedef uint64_t vuint __attribute__((vector_size(VBYTES)));
#define MANTISSA 52
#define BIAS 1023
#define SQRT_HALF_BITS 0x3fe6a09e667f3bcd
#define DIGITS_HALF (~(((ireal)1 << 27) - 1))   /* keeps 26 digits: the square is exact */
#define MIN_NORMAL 0x1p-1022
#define RCONST(d, f) d
#else
typedef uint32_t vuint __attribute__((vector_size(VBYTES)));
#define MANTISSA 23
#define BIAS 127
#define SQRT_HALF_BITS 0x3f3504f3
#define DIGITS_HALF (~(((ireal)1 << 12) - 1))   /* keeps 12 digits: the square is exact */
#define MIN_NORMAL 0x1p-126f
#define RCONST(d, f) f
#endif
#define ONE_BITS ((ireal)BIAS << MANTISSA)
#define TWO_TO_MANTISSA ((real)((ireal)1 << MANTISSA))
#define INF ((real)__builtin_inf())

static const real ln2_hi = RCONST(0x1.62e42fefa4p-1, 0x1.62e4p-1f);   /* few digits: k * ln2_hi is exact */
static const real ln2_lo = RCONST(-0x1.8432a1b0e2634p-43, 0x1.7f7d1cp-20f);
static const real log2_e = RCONST(0x1.71547652b82fep+0, 0x1.715476p+0f);

static ALWAYS_INLINE vint v_int(ireal s) { return s - (vint){0}; }

/* c[0] + c[1] x + ... + c[degree] x^degree */
static ALWAYS_INLINE vreal v_polynomial(vreal x, const real *c, int degree)
{
    vreal y = v_set(c[degree]);
    for (int i = degree - 1; i >= 0; i--) y = v_fma(y, x, v_set(c[i]));
    return y;
}
#define POLYNOMIAL(x, table) v_polynomial(x, table, sizeof(table) / sizeof(real) - 1)

/* Writes e^(x - less) = 2^k (1 + q), returns q, and leaves k + bias in the low bits of *t. Adding 1.5 * 2^MANTISSA rounds
 * to an integer. `less` is the part of the argument that does not fit into x. */
static ALWAYS_INLINE vreal v_exp_parts(vreal x, vreal less, int bias, vint *t)
{
#ifdef FBP_DOUBLE
    static const real p[] = {0x1.0000000000007p-1, 0x1.5555555555533p-3, 0x1.5555555551689p-5, 0x1.111111111a513p-7,
        0x1.6c16c18179d7ep-10, 0x1.a01a016f6ffedp-13, 0x1.a019a08d2edfcp-16, 0x1.71de915ea2d66p-19, 0x1.28a8036fcab9ep-22,
        0x1.ae617d80f4153p-26};
#else
    static const real p[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.55586cp-5f, 0x1.123a74p-7f, 0x1.6ab47cp-10f};
#endif
    const real shift = (real)1.5 * TWO_TO_MANTISSA + (real)bias;
    const vreal shifted = v_fma(x - less, v_set(log2_e), v_set(shift)), k = shifted - shift;
    const vreal high = v_fma(k, v_set(-ln2_hi), x), low = v_fma(k, v_set(ln2_lo), less), r = high - low;
    *t = (vint)shifted;
    return high + v_fma(r * r, POLYNOMIAL(r, p), -low);
}

/* 2^n from t whose low bits are n + BIAS, for normal 2^n */
static ALWAYS_INLINE vreal v_power2(vint t) { return (vreal)(t << MANTISSA); }

/* 2^n = *a * *b from t whose low bits are n + 2 BIAS: two factors reach the subnormal numbers and beyond 2^BIAS */
static ALWAYS_INLINE void v_power2_split(vint t, vreal *a, vreal *b)
{
    const vint half = (vint)((vuint)t >> 1) << MANTISSA;
    *a = (vreal)half;
    *b = (vreal)((t << MANTISSA) - half);
}

static ALWAYS_INLINE vreal v_exp_in_range(vreal x)
{
    vint t;
    vreal a, b;
    const vreal q = v_exp_parts(x, (vreal){0}, 2 * BIAS, &t);
    v_power2_split(t, &a, &b);
    return v_fma(a, q, a) * b;
}

static const real exp_low = RCONST(-746, -104), exp_high = RCONST(710, 89);   /* e^x is 0, inf */

static ALWAYS_INLINE vreal v_exp(vreal x)
{
    return v_exp_in_range(v_max(v_set(exp_low), v_min(v_set(exp_high), x)));
}

static ALWAYS_INLINE vreal v_expm1(vreal x)
{
    vint t;
    vreal a, b;
    const vreal low = v_set(RCONST(-38, -18));   /* -1 */
    const vreal q = v_exp_parts(v_max(low, v_min(v_set(exp_high), x)), (vreal){0}, 2 * BIAS, &t);
    v_power2_split(t, &a, &b);
    const vreal inverse = (vreal)(v_int(2 * BIAS * ((ireal)1 << MANTISSA)) - (vint)b);
    const vreal y = v_fma(a, q, a - inverse) * b;
    return (vreal)((vint)y | ((vint)x & (vint)v_set((real)-0.0)));
}

/* log(u) = k ln2 + log(m), m - 1 = f; *scale = 2^-k */
static ALWAYS_INLINE vreal v_log_split(vreal u, vreal *k, vreal *scale)
{
    const vint mantissa_mask = v_int(((ireal)1 << MANTISSA) - 1);
    const vint i = (vint)u + v_int(ONE_BITS - (ireal)SQRT_HALF_BITS);
    const vreal biased = (vreal)((vint)((vuint)i >> MANTISSA) | (vint)v_set(TWO_TO_MANTISSA));
    *k = biased - v_set(TWO_TO_MANTISSA + BIAS);
    *scale = (vreal)(v_int(2 * ONE_BITS) - (i & ~mantissa_mask));
    return (vreal)((i & mantissa_mask) + v_int(SQRT_HALF_BITS)) - 1;
}

static ALWAYS_INLINE vreal v_log_join(vreal f, vreal k)
{
#ifdef FBP_DOUBLE
    static const real p[] = {0x1.5555555555593p-1, 0x1.999999997f9fbp-2, 0x1.249249422a09p-2, 0x1.c71c51d80a963p-3,
        0x1.74664997d605p-3, 0x1.39a09ccad8077p-3, 0x1.2f10d5990d9d4p-3};
#else
    static const real p[] = {0x1.55557ap-1f, 0x1.995eccp-2f, 0x1.31e23ep-2f};
#endif
    const vreal s = f / (2 + f), z = s * s, h = (real)0.5 * f * f;
    const vreal correction = h - v_fma(s, v_fma(z, POLYNOMIAL(z, p), h), k * ln2_lo);
    return v_fma(k, v_set(ln2_hi), f - correction);
}

/* y where log(u) is finite; the limits elsewhere */
static ALWAYS_INLINE vreal v_log_special(vreal u, vreal y)
{
    const vreal zero_or_not = v_select(u == 0, v_set(-INF), (vreal)((vint)u | (u < 0)));
    return v_select((u > 0) & (u < INF), y, zero_or_not);
}

static ALWAYS_INLINE vreal v_log(vreal x)
{
    const real up = RCONST(54, 25);
    const vint tiny = x < MIN_NORMAL;
    vreal k, scale;
    const vreal f = v_log_split(v_select(tiny, x * (TWO_TO_MANTISSA * 4), x), &k, &scale);
    return v_log_special(x, v_log_join(f, k - v_keep(tiny, v_set(up))));
}

static ALWAYS_INLINE vreal v_log1p(vreal x)
{
    vreal k, scale;
    const vreal u = 1 + x, most = u - 1;
    const vreal lost = (1 - (u - most)) + (x - most);
    const vreal f = v_log_split(u, &k, &scale);
    const vreal y = v_log_join(v_fma(lost, v_keep(u < TWO_TO_MANTISSA * TWO_TO_MANTISSA, scale), f), k);
    return v_log_special(u, (vreal)((vint)y | ((vint)x & (vint)v_set((real)-0.0))));
}

static ALWAYS_INLINE vreal v_softplus(vreal x)
{
    vreal k, scale;
    const vreal e = v_exp_in_range(v_max(v_set(exp_low), -v_abs(x)));
    const vreal u = 1 + e, f = v_log_split(u, &k, &scale);
    return v_max(v_set(0), x) + v_log_join(v_fma((1 - u) + e, scale, f), k);
}

static ALWAYS_INLINE vreal v_tanh(vreal x)
{
#ifdef FBP_DOUBLE
    static const real p[] = {-0x1.5555555555555p-2, -0x1.4fde779d01278p-6, -0x1.a1cd21cfaaae0p-13};
    static const real q[] = {1, 0x1.d893500709cb6p-2, 0x1.7da09e34e51f8p-6, 0x1.b13bea03d9e5bp-13};
#else
    static const real p[] = {-0x1.55554cp-2f, -0x1.96559ep-10f};
    static const real q[] = {1, 0x1.9e5a72p-2f};
#endif
    vint t;
    const vreal magnitude = v_abs(x), a = v_min(v_set(RCONST(19.1, 9.1f)), magnitude), z = a * a;
    const vreal e = v_exp_parts(a + a, (vreal){0}, BIAS, &t), power = v_power2(t);
    const vint small = a < (real)0.5625;
    const vreal top = v_select(small, a * z * POLYNOMIAL(z, p), v_set(-2));
    const vreal bottom = v_select(small, POLYNOMIAL(z, q), v_fma(power, e, power + 1));
    return v_copysign(v_select(small, a, v_set(1)) + top / bottom, x);
}

#define SIGMOID_SCALE RCONST(512, 64)
#define SIGMOID_C RCONST(0x1p-512, 0x1p-64f)

static ALWAYS_INLINE vreal v_sigmoid(vreal x)
{
    vint t;
    const vreal q = v_exp_parts(-v_max(v_set(exp_low), v_min(v_set(40), x)), (vreal){0}, BIAS - SIGMOID_SCALE, &t);
    const vreal power = v_power2(t), c = v_set(SIGMOID_C);
    return c / v_fma(power, q, power + c);
}

static const real silu_low = RCONST(-753, -110);

static ALWAYS_INLINE vreal v_silu(vreal x)
{
    vint t;
    const vreal low = v_max(v_set(silu_low), x);
    const vint shift = (low < RCONST(-512, -64)) & v_int((ireal)SIGMOID_SCALE << MANTISSA);
    const vreal q = v_exp_parts(-v_min(v_set(40), low), (vreal){0}, BIAS, &t);
    const vreal power = (vreal)((vint)v_power2(t) - shift), c = (vreal)(v_int(ONE_BITS) - shift);
    return low * c / v_fma(power, q, power + c);
}

static ALWAYS_INLINE vreal v_silu_derivative(vreal x)
{
    vint t;
    const vreal b = v_max(v_set(silu_low), v_min(v_set(RCONST(64, 40)), x));
    const vreal q = v_exp_parts(-b, (vreal){0}, BIAS - SIGMOID_SCALE, &t);
    const vreal power = v_power2(t), c = v_set(SIGMOID_C), g = 1 / v_fma(power, q, power + c);
    const vreal slope = power * (1 + b);
    return v_fma(slope, q, slope + c) * g * g * c;
}

/* Phi(-a) = e^(-a^2/2) F(g - 7/16) / (a + b), g = a/(a + b) */
#ifdef FBP_DOUBLE
static const real mills[] = {0x1.b8b58435469ebp-1, -0x1.9c4e1625de1a8p+0, 0x1.427269ff2032cp+1, -0x1.a176ba352f572p+1,
    0x1.b4cd4e419e51ap+1, -0x1.5e96807fb60c5p+1, 0x1.7865ebc83ca84p+0, -0x1.ecb0ec7f03858p-3, -0x1.781d56f19e67bp-2,
    0x1.2addab062453cp-2, 0x1.887b3b81f6085p-6, -0x1.1dc300ee50657p-3, 0x1.c53d5f44112d8p-6, 0x1.071ace476e0e0p-4,
    -0x1.7ef5889404a42p-6, -0x1.118b85c7fa557p-5, 0x1.c3d9ba15fb20dp-7, 0x1.42c96782c4057p-6, -0x1.acf8528d5d2b4p-8,
    -0x1.72f28fcd26658p-7, 0x1.04278e0478023p-9, 0x1.15fc0cf23be67p-8};
#else
static const real mills[] = {0x1.ace714p-1f, -0x1.6d84e6p+0f, 0x1.d9fd02p+0f, -0x1.bdf3ccp+0f, 0x1.06e18ap+0f,
    -0x1.20889p-3f, -0x1.39a034p-2f, 0x1.5a9102p-3f, 0x1.572ad4p-4f, -0x1.1c10fep-4f};
#endif
static const real mills_b = RCONST(5, 4), gauss_low = RCONST(38.7, 14.6f);

static ALWAYS_INLINE vreal v_gauss(vreal a, vreal *scale)
{
    vint t;
    vreal s;
    const vreal h = (vreal)((vint)a & v_int(DIGITS_HALF));
    const vreal q = v_exp_parts((real)-0.5 * h * h, (real)0.5 * (a - h) * (a + h), 2 * BIAS, &t);
    v_power2_split(t, &s, scale);
    return v_fma(s, q, s);
}

static ALWAYS_INLINE vreal v_gelu(vreal x)
{
    vreal scale;
    const vreal a = v_min(v_set(gauss_low), v_abs(x)), e = v_gauss(a, &scale), g = a / (a + mills_b);
    const vreal y = v_max(v_set(0), x) - e * (g * POLYNOMIAL(g - (real)0.4375, mills)) * scale;
    return (vreal)((vint)y | ((vint)x & (vint)v_set((real)-0.0)));
}

static ALWAYS_INLINE vreal v_gelu_derivative(vreal x)
{
    const real density = RCONST(0x1.9884533d43651p-2, 0x1.988454p-2f);   /* 1/sqrt(2 pi) */
    vreal scale;
    const vreal a = v_min(v_set(gauss_low), v_abs(x)), e = v_gauss(a, &scale), i = 1 / (a + mills_b);
    const vreal y = e * v_fma(a, v_set(-density), i * POLYNOMIAL(v_fma(a, i, v_set((real)-0.4375)), mills)) * scale;
    return v_select(x > 0, 1 - y, y);
}
