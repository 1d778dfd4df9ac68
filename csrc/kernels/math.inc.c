/* Elementary functions on whole vectors, written once for float and double and for every width.
 *
 * The building blocks, with k an integer and every polynomial a minimax fit of our own:
 *
 *     e^x      = 2^k (1 + q)              x = k ln2 + r,  |r| <= ln2/2,  q = e^r - 1 = r + r^2 P(r)
 *     log(u)   = k ln2 + log(1 + f)       u = 2^k (1 + f),  1/sqrt2 <= 1 + f < sqrt2
 *     log(1+f) = f - (h - s (h + R))      s = f/(2 + f),  h = f^2/2,  R = log((1+s)/(1-s))/s - 2 = s^2 P(s^2)
 *
 * All lanes run the same branch-free IEEE operations, so a result depends on the argument only: not on its lane, the vector
 * width or the instruction set (as long as that has FMA, see simd.h). Arguments for which a result is known, like e^1000,
 * run through the formula as well; what comes out is replaced at the end, which costs less latency than a clamp at the
 * start; tanh, which is clamped, has nothing to replace. Comparisons are false for NaN, which therefore passes through the
 * formula to the result.
 *
 * The figures at the functions are the largest errors in ULP of the exact value: for float over all 2^32 arguments, in
 * brackets for double over 10^7 random and special ones. Without FMA they are at most 0.7 larger, but 5.2 for gelu in
 * float. "Monotone" means: no exception between any two neighbouring floats. */

#ifdef FBP_DOUBLE
#define MANTISSA 52
#define BIAS 1023
#define SQRT_HALF_BITS ((ireal)0x3fe6a09e667f3bcd)
#define MIN_NORMAL 0x1p-1022
#define REAL(for_double, for_float) (for_double)
#else
#define MANTISSA 23
#define BIAS 127
#define SQRT_HALF_BITS ((ireal)0x3f3504f3)
#define MIN_NORMAL 0x1p-126f
#define REAL(for_double, for_float) (for_float)
#endif
#define UNIT ((ireal)1 << MANTISSA)   /* of the exponent */
#define ONE_BITS (BIAS * UNIT)
#define INF ((real)__builtin_inf())

static const real round_shift = (real)1.5 * (real)UNIT;   /* x + round_shift rounds x to an integer, in its low bits */
static const real log2_e = REAL(0x1.71547652b82fep+0, 0x1.715476p+0f);
static const real ln2_hi = REAL(0x1.62e42fefa4p-1, 0x1.62e4p-1f);   /* few digits: k * ln2_hi is exact even without FMA */
static const real ln2_lo = REAL(-0x1.8432a1b0e2634p-43, 0x1.7f7d1cp-20f);

static ALWAYS_INLINE vint v_int(ireal s) { return s - (vint){0}; }

/* y with the sign of x, for y >= 0 and for y that has that sign already */
static ALWAYS_INLINE vreal v_signed(vreal y, vreal x) { return (vreal)((vint)y | ((vint)x & (vint)v_set((real)-0.0))); }

/* c[0] + c[1] x + ... + c[degree] x^degree by Horner's rule */
static ALWAYS_INLINE vreal v_horner(vreal x, const real *c, int degree)
{
    vreal y = v_set(c[degree]);
    for (int i = degree - 1; i >= 0; i--) y = v_fma(y, x, v_set(c[i]));
    return y;
}
#define HORNER(x, table) v_horner(x, table, sizeof(table) / sizeof(real) - 1)

/* the same by Horner's rule in z = x^2 over pairs of terms: half the latency */
static ALWAYS_INLINE vreal v_polynomial(vreal x, vreal z, const real *c, int degree)
{
    vreal y = degree % 2 ? v_fma(x, v_set(c[degree]), v_set(c[degree - 1])) : v_set(c[degree]);
    for (int i = degree - 2 - degree % 2; i >= 0; i -= 2) y = v_fma(y, z, v_fma(x, v_set(c[i + 1]), v_set(c[i])));
    return y;
}
#define POLYNOMIAL(x, z, table) v_polynomial(x, z, table, sizeof(table) / sizeof(real) - 1)

/* e^(x + more) = 2^k (1 + q): returns q and leaves k + bias in the low bits of *t. `more` is what did not fit into x.
 * P has degree 4 (9); its error makes 4e-9 (1e-17) of e^x, 2e-8 (3e-17) of q. The careful variant spends two more
 * operations to keep the rounding error of r out of q. */
enum { QUICK, CAREFUL };
static ALWAYS_INLINE vreal v_exp_parts(int care, vreal x, vreal more, int bias, vint *t)
{
#ifdef FBP_DOUBLE
    static const real p[] = {0x1.0000000000007p-1, 0x1.5555555555533p-3, 0x1.5555555551689p-5, 0x1.111111111a513p-7,
        0x1.6c16c18179d7ep-10, 0x1.a01a016f6ffedp-13, 0x1.a019a08d2edfcp-16, 0x1.71de915ea2d66p-19, 0x1.28a8036fcab9ep-22,
        0x1.ae617d80f4153p-26};
#else
    static const real p[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.55586cp-5f, 0x1.123a74p-7f, 0x1.6ab47cp-10f};
#endif
    const vreal shifted = v_fma(x - (0 - more), v_set(log2_e), v_set(round_shift + (real)bias));
    const vreal k = shifted - (round_shift + (real)bias), high = v_fma(k, v_set(-ln2_hi), x);
    *t = (vint)shifted;
    if (care == QUICK) {
        const vreal r = v_fma(k, v_set(-ln2_lo), high), z = r * r;
        return v_fma(z, POLYNOMIAL(r, z, p), r);
    }
    const vreal low = k * ln2_lo - more, r = high - low, z = r * r;
    return high + v_fma(z, POLYNOMIAL(r, z, p), -low);
}

/* 2^n for normal 2^n, from t with n + BIAS in its low bits */
static ALWAYS_INLINE vreal v_power2(vint t) { return (vreal)(t << MANTISSA); }

/* 2^n = a * *b from t with n + 2 BIAS in its low bits; returns a. Two factors reach all subnormal numbers and infinity. */
static ALWAYS_INLINE vreal v_power2_split(vint t, vreal *b)
{
    const vint half = (vint)((vuint)t >> 1) << MANTISSA;
    *b = (vreal)((t << MANTISSA) - half);
    return (vreal)half;
}

static const real exp_low = REAL(-746, -104), exp_high = REAL(710, 89);   /* beyond these e^x rounds to 0, to infinity */

/* e^x = (a q + a) b, 2^k = a b. 0.90 (0.90) ULP. Monotone. */
static ALWAYS_INLINE vreal v_exp(vreal x)
{
    vint t;
    vreal b;
    const vreal q = v_exp_parts(CAREFUL, x, (vreal){0}, 2 * BIAS, &t), a = v_power2_split(t, &b);
    return v_select(x > exp_high, v_set(INF), v_drop(x < exp_low, v_fma(a, q, a) * b));
}

/* e^x - 1 = b (a q + (a - 1/b)), 2^k = a b. 1.61 (1.60) ULP. */
static ALWAYS_INLINE vreal v_expm1(vreal x)
{
    vint t;
    vreal b;
    const vreal q = v_exp_parts(CAREFUL, x, (vreal){0}, 2 * BIAS, &t), a = v_power2_split(t, &b);
    const vreal inverse = (vreal)(v_int(2 * ONE_BITS) - (vint)b);
    const vreal y = v_select(x > exp_high, v_set(INF), v_fma(a, q, a - inverse) * b);
    return v_signed(v_select(x < REAL(-38, -18), v_set(-1), y), x);
}

/* u = 2^k (1 + f): returns f; *scale = 2^-k */
static ALWAYS_INLINE vreal v_log_split(vreal u, vreal *k, vreal *scale)
{
    const vint i = (vint)u + v_int(ONE_BITS - SQRT_HALF_BITS), mask = v_int(UNIT - 1);
    *k = (vreal)((vint)((vuint)i >> MANTISSA) | (vint)v_set((real)UNIT)) - ((real)UNIT + BIAS);
    *scale = (vreal)(v_int(2 * ONE_BITS) - (i & ~mask));
    return (vreal)((i & mask) + v_int(SQRT_HALF_BITS)) - 1;
}

/* k ln2 + log(1 + f) - less. P has degree 2 (6); its error makes 8e-10 (1.4e-18) of log(1 + f). */
static ALWAYS_INLINE vreal v_log_join(vreal f, vreal k, vreal less)
{
#ifdef FBP_DOUBLE
    static const real p[] = {0x1.5555555555593p-1, 0x1.999999997f9fbp-2, 0x1.249249422a09p-2, 0x1.c71c51d80a963p-3,
        0x1.74664997d605p-3, 0x1.39a09ccad8077p-3, 0x1.2f10d5990d9d4p-3};
#else
    static const real p[] = {0x1.55557ap-1f, 0x1.995eccp-2f, 0x1.31e23ep-2f};
#endif
    const vreal s = f / (2 + f), z = s * s, h = (real)0.5 * f * f;
    const vreal correction = h - v_fma(s, v_fma(z, HORNER(z, p), h), k * ln2_lo);
    return v_fma(k, v_set(ln2_hi), f - correction - less);
}

/* y for 0 < u < infinity, otherwise log(u): -infinity, NaN (all bits set), infinity or the NaN that u is */
static ALWAYS_INLINE vreal v_log_special(vreal u, vreal y)
{
    const vreal special = v_select(u == 0, v_set(-INF), (vreal)((vint)u | (u < 0)));
    return v_select((u > 0) & (u < INF), y, special);
}

/* log(x). 0.83 (0.79) ULP. */
static ALWAYS_INLINE vreal v_log(vreal x)
{
    const vint subnormal = x < MIN_NORMAL;
    vreal k, scale;
    const vreal f = v_log_split(v_select(subnormal, x * (real)UNIT, x), &k, &scale);
    return v_log_special(x, v_log_join(f, k - v_keep(subnormal, v_set(MANTISSA)), (vreal){0}));
}

/* log(1 + x) = log(u + lost), u = 1 + x rounded: f takes lost/2^k, so that f = x for small x. 1.40 (1.19) ULP. */
static ALWAYS_INLINE vreal v_log1p(vreal x)
{
    vreal k, scale;
    const vreal u = 1 + x, back = u - 1, lost = (1 - (u - back)) + (x - back), f = v_log_split(u, &k, &scale);
    const vreal y = v_log_join(v_fma(lost, v_keep(u < (real)UNIT * (real)UNIT, scale), f), k, (vreal){0});
    return v_log_special(u, v_signed(y, x));
}

/* log(1 + e^x) = max(x, 0) + log(1 + e^-|x|). For x > 0 the two move against each other, and a rounding in between would
 * make the result a sawtooth: hence e^-|x| = e + rest, and ln2 is added last. 1.67 (1.52) ULP. */
static ALWAYS_INLINE vreal v_softplus(vreal x)
{
    vint t;
    vreal b, k, scale;
    const vreal y = -v_abs(x), q = v_exp_parts(CAREFUL, y, (vreal){0}, 2 * BIAS, &t), a = v_power2_split(t, &b);
    const vreal head = v_fma(a, q, a), rest = v_drop(y < exp_low, v_fma(a, q, a - head) * b);
    const vreal e = v_drop(y < exp_low, head * b), u = 1 + e, f = v_log_split(u, &k, &scale);
    return v_log_join(v_fma((1 - u) + e + rest, scale, f), k, v_min(v_set(0), -x));
}

/* tanh(a) = a - a^3/B(a^2) for a <= 1, B of degree 3 (7), and 1 - 1/D for a >= 1, D = (1 + e^2a)/2. One expression does
 * both: c - c^3/max(B(c^2), D), c = min(a, 1), because D < B before a = 1, where they meet, and B stays constant after it.
 * Only a quarter of the relative error of D arrives in the result, so a plain reduction and 2^f of degree 5 (10),
 * |f| <= 1/2, will do. 1.29 (1.60) ULP. Monotone, odd bit for bit, never beyond 1: 1/D is lost in rounding long before the end. */
static ALWAYS_INLINE vreal v_tanh(vreal x)
{
#ifdef FBP_DOUBLE
    static const real power[] = {1, 0x1.62e42fefa3a17p-1, 0x1.ebfbdff82c3b9p-3, 0x1.c6b08d703d459p-5, 0x1.3b2ab6fbde0b7p-7,
        0x1.5d87fe9ccc43dp-10, 0x1.430912606c4c1p-13, 0x1.ffcb55d4e05f8p-17, 0x1.62c157a2f4f01p-20, 0x1.b67422d655f26p-24,
        0x1.e399bf5542f9ep-28};
    static const real b[] = {0x1.800000000005dp+1, 0x1.3333333331ab2p+0, -0x1.767dce31bf132p-8, 0x1.0a4e0f783dfecp-12,
        -0x1.997a6a89b1f57p-17, 0x1.413433c578e8fp-21, -0x1.f3682a5a8ba66p-26, 0x1.447ae5e2bd41bp-30};
#else
    static const real power[] = {1, 0x1.62e42ap-1f, 0x1.ebf9c2p-3f, 0x1.c6b6dcp-5f, 0x1.3ce8b8p-7f, 0x1.5bd842p-10f};
    static const real b[] = {0x1.800006p+1f, 0x1.3332bap+0f, -0x1.750566p-8f, 0x1.dad28ap-13f};
#endif
    const real shift = round_shift + (BIAS - 1), end = REAL(19.1, 9.1f);
    const vreal a = v_min(v_set(end), v_abs(x)), c = v_min(v_set(1), a), z = c * c;
    const vreal shifted = v_fma(a, v_set(2 * log2_e), v_set(shift)), f = v_fma(a, v_set(2 * log2_e), shift - shifted);
    const vreal d = v_fma(POLYNOMIAL(f, f * f, power), v_power2((vint)shifted), v_set((real)0.5));
    return v_signed(c - z * c / v_max(HORNER(z, b), d), x);
}

/* The logistic family divides by D = c (1 + e^-x), c = 1/2^512 (1/2^64), which neither overflows nor loses digits for any x
 * of interest, where 1 + e^-x would: so the quotients are right down to the subnormal numbers. */
static const real logistic_c = REAL(0x1p-512, 0x1p-64f), silu_low = REAL(-753, -110);
#define LOGISTIC_EXPONENT REAL(512, 64)

/* c (1 + e^-x) and power = c 2^k; `lost` is what rounding takes from power + c when k > MANTISSA */
static ALWAYS_INLINE vreal v_logistic_divisor(vreal x, vreal *q, vreal *power)
{
    vint t;
    *q = v_exp_parts(QUICK, -x, (vreal){0}, BIAS - LOGISTIC_EXPONENT, &t);
    *power = v_power2(t);
    const vreal sum = *power + logistic_c, lost = logistic_c - (sum - *power);
    return sum + v_fma(*power, *q, lost);
}

/* 1/(1 + e^-x) = c/D. 1.72 (1.66) ULP. Monotone, within [0, 1]. */
static ALWAYS_INLINE vreal v_sigmoid(vreal x)
{
    vreal q, power;
    const vreal y = logistic_c / v_logistic_divisor(x, &q, &power);
    return v_select(x > 40, v_set(1), v_drop(x < exp_low, y));
}

/* x/(1 + e^-x) = x c/D; here c = 1 unless x is far out, for the sake of subnormal x. 2.45 (2.36) ULP. */
static ALWAYS_INLINE vreal v_silu(vreal x)
{
    vint t;
    const vint shift = (x < -LOGISTIC_EXPONENT) & v_int(LOGISTIC_EXPONENT * UNIT);
    const vreal q = v_exp_parts(QUICK, -x, (vreal){0}, BIAS, &t);
    const vreal power = (vreal)((vint)v_power2(t) - shift), c = (vreal)(v_int(ONE_BITS) - shift);
    const vreal y = x * c / v_fma(power, q, power + c);
    return v_select(x > 40, x, v_select(x < silu_low, v_set((real)-0.0), y));
}

/* s (1 + x w), s = 1/(1 + e^-x), w = 1 - s = e^-x s, of which the first form is accurate for x < 0, the other for x > 0.
 * 3.43 (3.26) ULP; within 0.6 of the zero at -1.278 0.75 units of 2^-24 (2^-53). */
static ALWAYS_INLINE vreal v_silu_derivative(vreal x)
{
    vreal q, power;
    const vreal g = 1 / v_logistic_divisor(x, &q, &power);   /* s/c */
    const vreal w = v_select(x < 0, 1 - logistic_c * g, v_fma(power, q, power) * g);
    const vreal y = v_fma(x, w, v_set(1)) * g * logistic_c;
    return v_select(x > REAL(64, 40), v_set(1), v_select(x < silu_low, v_set((real)-0.0), y));
}

/* The normal distribution: Phi(-a) = e^(-a^2/2) F(g)/(a + b), g = a/(a + b), for 0 <= a <= 14.6 (38.7), beyond which all
 * results below are 0. F is a polynomial of degree 9 (23) in g - center with relative error 8e-9 (4e-17). The quotient
 * F/(a + b) is smooth and never small, so the result keeps its relative accuracy all the way down the tail. */
#ifdef FBP_DOUBLE
static const real phi_b = 3.5, phi_center = 0.4375, phi_end = 38.7;
static const real phi_f[] = {0x1.a3fa7f6239483p-1, -0x1.4ccae535b3eep+0, 0x1.7116b777fedf8p+0, -0x1.fa5c0fccd1435p-1,
    0x1.9e8c4be1bb6fp-3, 0x1.1c2e2d08a735dp-2, -0x1.558a70b93c888p-3, -0x1.c715492c4e60ap-4, 0x1.7492d859ead1p-4,
    0x1.28a66e1ff5232p-4, -0x1.59955a5721e46p-5, -0x1.e3166a69e5043p-5, 0x1.f60b2037ca60ap-8, 0x1.74f4a21a664e8p-5,
    0x1.190da2b218fcbp-6, -0x1.a1369ab395cf8p-6, -0x1.e85772badd027p-6, 0x1.dec3eb71fb7d1p-11, 0x1.c19938c43f406p-6,
    0x1.3ab6ee3d3122ep-6, -0x1.d281e8eb79184p-7, -0x1.8cb2b8f04e303p-6, 0x1.555f29a33d2f3p-9, 0x1.9d242385c3fdap-7};
#else
static const real phi_b = 3.5f, phi_center = 0.1875f, phi_end = 14.6f;
static const real phi_f[] = {0x1.405604p+0f, -0x1.1b3baep+1f, 0x1.1ac030p+1f, -0x1.f7fc0cp-1f, -0x1.cd8186p-3f,
    0x1.5e9f42p-2f, 0x1.5dab50p-4f, -0x1.1257d2p-3f, -0x1.a6a396p-5f, 0x1.d0f382p-5f};
#endif

/* v e^(-a^2/2). The head h of a has few digits, so h^2 is exact, and a^2 = h^2 + (a - h)(a + h). */
static ALWAYS_INLINE vreal v_times_gauss(vreal v, vreal a)
{
    vint t;
    vreal scale;
    const vreal h = (vreal)((vint)a & v_int(~(((ireal)1 << REAL(27, 12)) - 1)));
    const vreal q = v_exp_parts(CAREFUL, (real)-0.5 * h * h, (real)-0.5 * (a - h) * (a + h), 2 * BIAS, &t);
    v *= v_power2_split(t, &scale);
    return v_fma(v, q, v) * scale;
}

/* x Phi(x) = max(x, 0) - a Phi(-a), a = |x|. 3.83 (3.74) ULP. */
static ALWAYS_INLINE vreal v_gelu(vreal x)
{
    const vreal a = v_abs(x), g = a / (a + phi_b), c = g - phi_center;
    const vreal below = v_times_gauss(g * POLYNOMIAL(c, c * c, phi_f), a);
    return v_signed(v_max(v_set(0), x) - v_drop(a > phi_end, below), x);
}

/* Phi(x) + x phi(x), at -a: e^(-a^2/2) (F/(a + b) - a/sqrt(2 pi)); at a: 1 minus that.
 * 3.21 (3.26) ULP; within 0.6 of the zero at -0.752 1.51 units of 2^-24 (2^-53). */
static ALWAYS_INLINE vreal v_gelu_derivative(vreal x)
{
    const real density = REAL(0x1.9884533d43651p-2, 0x1.988454p-2f);   /* 1/sqrt(2 pi) */
    const vreal a = v_abs(x), d = a + phi_b, c = a / d - phi_center;
    const vreal below = v_times_gauss(v_fma(a, v_set(-density), POLYNOMIAL(c, c * c, phi_f) / d), a);
    const vreal y = v_select(a > phi_end, v_set((real)-0.0), below);
    return v_select(x > 0, 1 - y, y);
}

/* ---- sine and cosine, in double for both types ----------------------------------------------------------------------
 *
 *     x = k pi/2 + y + rest,  |y| <= pi/4,  pi/2 in three parts of which k times the first two is exact
 *     sin = y + y^3 P(y^2) + rest (1 - y^2/2),  cos = 1 - y^2/2 + y^4 Q(y^2) - rest y
 *
 * P and Q are off by 2^-55 and 2^-60 of the result, for float by 2^-36 and 2^-30, where the rest is no matter. Beyond `turns` quarter turns, and for what is not
 * finite, the C library answers. */

static const double turns = 1024;
static const double half_pi[] = {0x1.921fb54442c00p+0, 0x1.18469898cc400p-44, 0x1.1701b839a2520p-88};
#ifdef FBP_DOUBLE
static const double sine[] = {-0x1.5555555555555p-3, 0x1.1111111110bafp-7, -0x1.a01a019e82db1p-13, 0x1.71de37957c95cp-19, -0x1.ae6009e9f7070p-26,
                              0x1.5e0ab4dd007dap-33};
static const double cosine[] = {0x1.5555555555555p-5, -0x1.6c16c16c16965p-10, 0x1.a01a019f4e480p-16, -0x1.27e4fa17532cap-22, 0x1.1eeb685cba14cp-29,
                                -0x1.907d3e3374a42p-37};

static ALWAYS_INLINE vdouble v_fma_double(vdouble a, vdouble b, vdouble c) { return v_fma(a, b, c); }
#else
static const double sine[] = {-0x1.555555545d8c5p-3, 0x1.11110dedfad55p-7, -0x1.a013a5f4d59a4p-13, 0x1.6dbd81c32f629p-19};
static const double cosine[] = {0x1.555554410ec69p-5, -0x1.6c12d1ee5c9cap-10, 0x1.9bd8110cc0e34p-16};
static ALWAYS_INLINE vdouble v_fma_double(vdouble a, vdouble b, vdouble c) { return a * b + c; }
#endif

static ALWAYS_INLINE vdouble v_horner_double(vdouble z, const double *c, int degree)
{
    vdouble y = c[degree] - (vdouble){0};
    for (int i = degree - 1; i >= 0; i--) y = v_fma_double(y, z, c[i] - (vdouble){0});
    return y;
}
#define HORNER_DOUBLE(z, table) v_horner_double(z, table, sizeof(table) / sizeof(double) - 1)

/* sin(x + quarters pi/2) for |x| up to `turns` */
static ALWAYS_INLINE vdouble v_turned(vdouble x, int quarters)
{
    const double shift = 0x1.8p52;
    const vdouble shifted = x * 0x1.45f306dc9c883p-1 + shift, k = shifted - shift;
    const vlong quarter = (vlong)shifted + quarters;
    const vdouble a = x - k * half_pi[0], b = k * half_pi[1], sum = a - b;
#ifdef FBP_DOUBLE
    const vdouble back = sum - a, lost = (a - (sum - back)) - (b + back) - k * half_pi[2];
    const vdouble y = sum + lost, rest = (sum - y) + lost, z = y * y, half = 0.5 * z, one = 1 - half;
    const vdouble s = y + v_fma_double(y * z, HORNER_DOUBLE(z, sine), rest * one);
    const vdouble c = one + ((1 - one - half) + v_fma_double(z * z, HORNER_DOUBLE(z, cosine), -rest * y));
#else
    const vdouble y = sum, z = y * y;
    const vdouble s = y + y * z * HORNER_DOUBLE(z, sine), c = (1 - 0.5 * z) + z * z * HORNER_DOUBLE(z, cosine);
#endif
    const vlong odd = -(quarter & 1), turned = (odd & (vlong)c) | (~odd & (vlong)s);
    return (vdouble)(turned ^ ((quarter & 2) << 62));
}

static ALWAYS_INLINE vreal v_sine(vreal x, int quarters)
{
    vdouble y[DOUBLES];
    EACH_DOUBLE y[h] = v_turned(v_widen(x, h), quarters);
    return v_narrow(y);
}

/* Whether some lane is beyond the reach of v_turned. */
static ALWAYS_INLINE int v_far(vreal x)
{
    const vint far = ~(v_abs(x) <= (real)(turns * 1.57));
    ireal any = 0;
    for (ptrdiff_t i = 0; i < VL; i++) any |= far[i];
    return any != 0;
}

/* 0.51 (0.78) ULP; not monotone. */
static ALWAYS_INLINE vreal v_sin(vreal x)
{
    const vreal y = v_select(x == 0, x, v_sine(x, 0));   /* sin -0 = -0 */
    if (__builtin_expect(!v_far(x), 1)) return y;
    vreal exact = y;
    for (ptrdiff_t i = 0; i < VL; i++) if (!(fabs((double)x[i]) <= turns * 1.57)) exact[i] = (real)sin((double)x[i]);
    return exact;
}

static ALWAYS_INLINE vreal v_cos(vreal x)
{
    const vreal y = v_sine(x, 1);
    if (__builtin_expect(!v_far(x), 1)) return y;
    vreal exact = y;
    for (ptrdiff_t i = 0; i < VL; i++) if (!(fabs((double)x[i]) <= turns * 1.57)) exact[i] = (real)cos((double)x[i]);
    return exact;
}
