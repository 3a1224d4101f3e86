/* Products of small matrices, c[m, n] (+)= sum over k of a[m, k] b[k, n], whose sizes and strides are constants where
 * they are inlined. Included once for each REAL.
 *
 * Sums stay in registers: of a block of up to MOST rows and two vectors of columns. What is left over at the edges is
 * done with vectors of 16 bytes, then number by number.
 */

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(a) JOIN(a, REAL)

typedef REAL NAME(wide) __attribute__((vector_size(64)));
typedef REAL NAME(half) __attribute__((vector_size(32)));
typedef REAL NAME(slim) __attribute__((vector_size(16)));
typedef REAL NAME(wide_at) __attribute__((vector_size(64), aligned(sizeof(REAL)), may_alias));
typedef REAL NAME(slim_at) __attribute__((vector_size(16), aligned(sizeof(REAL)), may_alias));

/* Columns of b beside each other: every number of a meets whole vectors of them. */
#define OUTER(name, VECTOR, AT, TWO)                                                                                   \
    INLINE void NAME(name)(REAL * c, const REAL *a, const REAL *b, long rows, long inner, long cm, long am, long ak,    \
                           long bk, bool keep) {                                                                       \
        const long lanes = sizeof(VECTOR) / sizeof(REAL);                                                              \
        VECTOR sums[MOST][TWO];                                                                                        \
        UNROLLED for (long r = 0; r < rows; r++)                                                                       \
            UNROLLED for (long j = 0; j < TWO; j++)                                                                    \
                sums[r][j] = keep ? (VECTOR) * (const AT *)(c + r * cm + j * lanes) : (VECTOR){0};                             \
        for (long k = 0; k < inner; k++)                                                                               \
            UNROLLED for (long r = 0; r < rows; r++)                                                                   \
                UNROLLED for (long j = 0; j < TWO; j++)                                                                \
                    sums[r][j] += a[r * am + k * ak] * *(const AT *)(b + k * bk + j * lanes);                          \
        UNROLLED for (long r = 0; r < rows; r++)                                                                       \
            UNROLLED for (long j = 0; j < TWO; j++) *(AT *)(c + r * cm + j * lanes) = sums[r][j];                      \
    }
OUTER(outer_two, NAME(wide), NAME(wide_at), 2)
OUTER(outer_one, NAME(wide), NAME(wide_at), 1)
OUTER(outer_slim, NAME(slim), NAME(slim_at), 1)
#undef OUTER

INLINE void NAME(outer_rows)(REAL *c, const REAL *a, const REAL *b, long rows, long columns, long inner, long cm, long am,
                             long ak, long bk, bool keep) {
    const long wide = 64 / sizeof(REAL), slim = 16 / sizeof(REAL);
    long n = 0;
    for (; n + 2 * wide <= columns; n += 2 * wide)
        NAME(outer_two)(c + n, a, b + n, rows, inner, cm, am, ak, bk, keep);
    for (; n + wide <= columns; n += wide) NAME(outer_one)(c + n, a, b + n, rows, inner, cm, am, ak, bk, keep);
    for (; n + slim <= columns; n += slim) NAME(outer_slim)(c + n, a, b + n, rows, inner, cm, am, ak, bk, keep);
    for (; n < columns; n++)
        for (long r = 0; r < rows; r++) {
            REAL sum = keep ? c[r * cm + n] : 0;
            for (long k = 0; k < inner; k++) sum += a[r * am + k * ak] * b[k * bk + n];
            c[r * cm + n] = sum;
        }
}

INLINE void NAME(outer)(REAL *c, const REAL *a, const REAL *b, long rows, long columns, long inner, long cm, long am,
                        long ak, long bk, bool keep, long block) {
    long m = 0;
    for (; m + block <= rows; m += block)
        NAME(outer_rows)(c + m * cm, a + m * am, b, block, columns, inner, cm, am, ak, bk, keep);
    if (rows % block) NAME(outer_rows)(c + m * cm, a + m * am, b, rows % block, columns, inner, cm, am, ak, bk, keep);
}

INLINE REAL NAME(total)(NAME(wide) x) {
    union { NAME(wide) whole; NAME(half) parts[2]; } a = {x};
    union { NAME(half) whole; NAME(slim) parts[2]; } b = {a.parts[0] + a.parts[1]};
    NAME(slim) c = b.parts[0] + b.parts[1];
    return sizeof(REAL) == 8 ? c[0] + c[1] : (c[0] + c[2 % (16 / sizeof(REAL))]) + (c[1] + c[3 % (16 / sizeof(REAL))]);
}

/* Both factors have their summed axis beside each other: sums of vectors, added up at the end. */
INLINE void NAME(dot_block)(REAL *c, const REAL *a, const REAL *b, long rows, long two, long inner, long cm, long cn,
                            long am, long bn, bool keep) {
    const long wide = 64 / sizeof(REAL), whole = inner / wide * wide;
    NAME(wide) sums[MOST][2];
    UNROLLED for (long r = 0; r < rows; r++) UNROLLED for (long j = 0; j < two; j++) sums[r][j] = (NAME(wide)){0};
    for (long k = 0; k < whole; k += wide)
        UNROLLED for (long r = 0; r < rows; r++)
            UNROLLED for (long j = 0; j < two; j++)
                sums[r][j] += *(const NAME(wide_at) *)(a + r * am + k) * *(const NAME(wide_at) *)(b + j * bn + k);
    UNROLLED for (long r = 0; r < rows; r++)
        UNROLLED for (long j = 0; j < two; j++) {
            REAL sum = NAME(total)(sums[r][j]);
            for (long k = whole; k < inner; k++) sum += a[r * am + k] * b[j * bn + k];
            c[r * cm + j * cn] = keep ? c[r * cm + j * cn] + sum : sum;
        }
}

INLINE void NAME(dot)(REAL *c, const REAL *a, const REAL *b, long rows, long columns, long inner, long cm, long cn,
                      long am, long bn, bool keep, long block) {
    for (long m = 0; m + block <= rows; m += block) {
        long n = 0;
        for (; n + 2 <= columns; n += 2)
            NAME(dot_block)(c + m * cm + n * cn, a + m * am, b + n * bn, block, 2, inner, cm, cn, am, bn, keep);
        if (columns % 2)
            NAME(dot_block)(c + m * cm + n * cn, a + m * am, b + n * bn, block, 1, inner, cm, cn, am, bn, keep);
    }
    if (rows % block) {
        long m = rows / block * block;
        for (long n = 0; n < columns; n++)
            NAME(dot_block)(c + m * cm + n * cn, a + m * am, b + n * bn, rows % block, 1, inner, cm, cn, am, bn, keep);
    }
}

/* Any strides. */
INLINE void NAME(plain)(REAL *c, const REAL *a, const REAL *b, long rows, long columns, long inner, long cm, long cn,
                        long am, long ak, long bk, long bn, bool keep) {
    for (long m = 0; m < rows; m++)
        for (long n = 0; n < columns; n++) {
            REAL sum = keep ? c[m * cm + n * cn] : 0;
            for (long k = 0; k < inner; k++) sum += a[m * am + k * ak] * b[k * bk + n * bn];
            c[m * cm + n * cn] = sum;
        }
}
