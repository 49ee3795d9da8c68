/* What a training needs beyond kernels.c: gradients, Adam and the average of the weights.
 *
 * Numbers of channels are multiples of 4, numbers of outputs multiples of 8. trainer.js puts the
 * kernels together. */

#include "simd.h"

enum { INPUTS = 4, OUTPUTS = 8 }; /* of one tile of a weight's gradient */

static v4 times(v4 a, v4 b) { return wasm_f32x4_mul(a, b); }
static v4 plus(v4 a, v4 b) { return wasm_f32x4_add(a, b); }
static v4 at(const float *x) { return wasm_v128_load(x); }
static v4 all(float x) { return wasm_f32x4_splat(x); }

/* Adds to dw, laid as the weights of `product`, the gradient of a 3 x 3 convolution: over all
 * positions the products of x, which has a border of one position, and of dy. */
EXPORT(weight_gradient)
void weight_gradient(const float *x, const float *dy, float *dw, int n, int height, int width,
                     int c_in, int c_out) {
    int row = (width + 2) * c_in, run = 3 * c_in;
    for (int image = 0; image < n; image++) {
        float *to = dw;
        for (int c = 0; c < c_out; c += OUTPUTS)
            for (int r = 0; r < 3; r++)
                for (int k = 0; k < run; k += INPUTS, to += INPUTS * OUTPUTS) {
                    v4 low[INPUTS], high[INPUTS];
                    for (int i = 0; i < INPUTS; i++) {
                        low[i] = at(to + i * OUTPUTS);
                        high[i] = at(to + i * OUTPUTS + 4);
                    }
                    const float *g = dy + c;
                    for (int i = 0; i < height; i++) {
                        const float *from = x + (i + r) * row + k;
                        for (int j = 0; j < width; j++, from += c_in, g += c_out) {
                            v4 g_low = at(g), g_high = at(g + 4);
                            for (int p = 0; p < INPUTS; p++) {
                                v4 value = wasm_v128_load32_splat(from + p);
                                low[p] = plus(low[p], times(value, g_low));
                                high[p] = plus(high[p], times(value, g_high));
                            }
                        }
                    }
                    for (int i = 0; i < INPUTS; i++) {
                        wasm_v128_store(to + i * OUTPUTS, low[i]);
                        wasm_v128_store(to + i * OUTPUTS + 4, high[i]);
                    }
                }
        x += (height + 2) * row, dy += height * width * c_out;
    }
}

/* Adds to sums (channels) those of x over all positions, image by image. */
EXPORT(add_sums)
void add_sums(const float *x, float *sums, int n, int positions, int channels) {
    for (int image = 0; image < n; image++, x += positions * channels)
        for (int c = 0; c < channels; c += 4) {
            v4 sum = all(0);
            for (int p = 0; p < positions; p++) sum = plus(sum, at(x + p * channels + c));
            wasm_v128_store(sums + c, plus(at(sums + c), sum));
        }
}

/* The weights with which `product` of dy is the gradient of a convolution's input: inputs and
 * outputs exchanged, the window turned by half. c_in is a multiple of 8. */
EXPORT(turn)
void turn(const float *weight, float *turned, int c_in, int c_out) {
    for (int out = 0; out < c_out; out++)
        for (int tap = 0; tap < 9; tap++)
            for (int c = 0; c < c_in; c++) {
                int from = ((out / 8 * 9 + tap) * c_in + c) * 8 + out % 8;
                int to = ((c / 8 * 9 + 8 - tap) * c_out + out) * 8 + c % 8;
                turned[to] = weight[from];
            }
}

/* The mean of each group, laid out for each of its channels. */
static void spread(float *sums, int channels, int each, float count) {
    for (int first = 0; first < channels; first += each) {
        float sum = 0;
        for (int c = first; c < first + each; c++) sum += sums[c];
        for (int c = first; c < first + each; c++) sums[c] = sum / count;
    }
}

/* Group normalisation (eps = 1e-5), then SiLU. stats: of each image the mean and 1 / deviation,
 * channels each. */
EXPORT(norm_silu)
void norm_silu(const float *x, const float *gamma, const float *beta, float *y, float *stats, int n,
               int positions, int channels, int groups) {
    int each = channels / groups;
    float count = each * positions;
    for (int image = 0; image < n; image++, stats += 2 * channels) {
        float *mean = stats, *scale = stats + channels;
        for (int c = 0; c < channels; c += 4) {
            v4 sum = all(0);
            for (int p = 0; p < positions; p++) sum = plus(sum, at(x + p * channels + c));
            wasm_v128_store(mean + c, sum);
        }
        spread(mean, channels, each, count);
        for (int c = 0; c < channels; c += 4) {
            v4 sum = all(0), about = at(mean + c);
            for (int p = 0; p < positions; p++) {
                v4 d = wasm_f32x4_sub(at(x + p * channels + c), about);
                sum = plus(sum, times(d, d));
            }
            wasm_v128_store(scale + c, sum);
        }
        spread(scale, channels, each, count);
        for (int c = 0; c < channels; c++) scale[c] = 1 / __builtin_sqrtf(scale[c] + 1e-5f);
        for (int p = 0; p < positions; p++, x += channels, y += channels)
            for (int c = 0; c < channels; c += 4) {
                v4 unit = times(wasm_f32x4_sub(at(x + c), at(mean + c)), at(scale + c));
                wasm_v128_store(y + c, silu4(plus(times(unit, at(gamma + c)), at(beta + c))));
            }
    }
}

/* The gradients of norm_silu: from dy that of x, and added to dgamma and dbeta. scratch: 2 x
 * channels floats. */
EXPORT(norm_silu_gradient)
void norm_silu_gradient(const float *x, const float *gamma, const float *beta, const float *stats,
                        const float *dy, float *dx, float *dgamma, float *dbeta, float *scratch,
                        int n, int positions, int channels, int groups) {
    int each = channels / groups, size = positions * channels;
    float count = each * positions, *first = scratch, *second = scratch + channels;
    for (int image = 0; image < n; image++, stats += 2 * channels) {
        const float *mean = stats, *scale = stats + channels;
        for (int c = 0; c < channels; c += 4) {
            v4 sum = all(0), product = all(0), m = at(mean + c), s = at(scale + c);
            v4 g = at(gamma + c), b = at(beta + c);
            for (int k = c; k < size; k += channels) {
                v4 unit = times(wasm_f32x4_sub(at(x + k), m), s), z = plus(times(unit, g), b);
                v4 gate = wasm_f32x4_div(all(1), plus(all(1), exp4(wasm_f32x4_neg(z))));
                v4 slope = plus(all(1), times(z, wasm_f32x4_sub(all(1), gate)));
                v4 dz = times(at(dy + k), times(gate, slope));
                wasm_v128_store(dx + k, dz);
                sum = plus(sum, dz);
                product = plus(product, times(dz, unit));
            }
            wasm_v128_store(dbeta + c, plus(at(dbeta + c), sum));
            wasm_v128_store(dgamma + c, plus(at(dgamma + c), product));
            wasm_v128_store(first + c, times(g, sum));
            wasm_v128_store(second + c, times(g, product));
        }
        spread(first, channels, each, count);
        spread(second, channels, each, count);
        for (int p = 0; p < positions; p++, x += channels, dy += channels, dx += channels)
            for (int c = 0; c < channels; c += 4) {
                v4 s = at(scale + c), unit = times(wasm_f32x4_sub(at(x + c), at(mean + c)), s);
                v4 d = wasm_f32x4_sub(times(at(dx + c), at(gamma + c)), at(first + c));
                d = wasm_f32x4_sub(d, times(unit, at(second + c)));
                wasm_v128_store(dx + c, times(d, s));
            }
    }
}

/* y, half as high and wide: `factor` times the sum of four neighbours. rows: of y, of all images. */
EXPORT(pool)
void pool(const float *x, float *y, float factor, int rows, int width, int channels) {
    int wide = 2 * width * channels;
    for (int row = 0; row < rows; row++, x += 2 * wide)
        for (int j = 0; j < width; j++, y += channels)
            for (int c = 0; c < channels; c += 4) {
                const float *from = x + 2 * j * channels + c;
                v4 upper = plus(at(from), at(from + channels));
                v4 lower = plus(at(from + wide), at(from + wide + channels));
                wasm_v128_store(y + c, times(plus(upper, lower), all(factor)));
            }
}

/* The channels of a, then those of b, from y. */
EXPORT(separate)
void separate(const float *y, float *a, float *b, int positions, int of_a, int of_b) {
    for (int k = 0; k < positions; k++, a += of_a, b += of_b) {
        __builtin_memcpy(a, y, 4 * of_a), y += of_a;
        __builtin_memcpy(b, y, 4 * of_b), y += of_b;
    }
}

/* y += factor * x */
EXPORT(add_times)
void add_times(float *y, const float *x, float factor, int size) {
    for (int k = 0; k < size; k += 4)
        wasm_v128_store(y + k, plus(at(y + k), times(at(x + k), all(factor))));
}

/* Adam, as in PyTorch: rate is the learning rate over 1 - 0.9^step, root is the square root of
 * 1 - 0.999^step. Then the moving average of the weights, of which `share` is new. */
EXPORT(adam)
void adam(float *weight, const float *gradient, float *mean, float *square, float *average,
          float rate, float root, float share, int size) {
    for (int k = 0; k < size; k += 4) {
        v4 g = at(gradient + k), m = at(mean + k), v = at(square + k), w = at(weight + k);
        m = plus(m, times(wasm_f32x4_sub(g, m), all(0.1f)));
        v = plus(times(v, all(0.999f)), times(times(g, g), all(0.001f)));
        v4 below = plus(wasm_f32x4_div(wasm_f32x4_sqrt(v), all(root)), all(1e-8f));
        w = wasm_f32x4_sub(w, times(all(rate), wasm_f32x4_div(m, below)));
        wasm_v128_store(mean + k, m), wasm_v128_store(square + k, v);
        wasm_v128_store(weight + k, w);
        v4 e = at(average + k);
        wasm_v128_store(average + k, plus(e, times(wasm_f32x4_sub(w, e), all(share))));
    }
}
