/* Four floats at a time: what kernels.c and train.c share. */

#pragma once

#include <wasm_simd128.h>

typedef v128_t v4; /* four floats */
#define EXPORT(name) __attribute__((export_name(#name)))

/* e^x, within 2 units in the last place, for |x| below 87 (clamped there): 2^n times a polynomial
 * on [-ln 2 / 2, ln 2 / 2], with Cephes' coefficients for expf. */
static inline v4 exp4(v4 x) {
    x = wasm_f32x4_min(wasm_f32x4_max(x, wasm_f32x4_splat(-87.f)), wasm_f32x4_splat(87.f));
    v4 n = wasm_f32x4_nearest(wasm_f32x4_mul(x, wasm_f32x4_splat(1.44269504f)));
    v4 r = wasm_f32x4_sub(x, wasm_f32x4_mul(n, wasm_f32x4_splat(0.693359375f)));
    r = wasm_f32x4_add(r, wasm_f32x4_mul(n, wasm_f32x4_splat(2.12194440e-4f)));
    v4 p = wasm_f32x4_splat(1.9875691500e-4f);
    static const float more[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                                 1.6666665459e-1f, 5.0000001201e-1f, 1.f, 1.f};
    for (int k = 0; k < 7; k++)
        p = wasm_f32x4_add(wasm_f32x4_mul(p, r), wasm_f32x4_splat(more[k]));
    return wasm_i32x4_add(p, wasm_i32x4_shl(wasm_i32x4_trunc_sat_f32x4(n), 23));
}

static inline v4 silu4(v4 x) {
    v4 one = wasm_f32x4_splat(1.f);
    return wasm_f32x4_div(x, wasm_f32x4_add(one, exp4(wasm_f32x4_neg(x))));
}
