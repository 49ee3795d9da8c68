/* The network's arithmetic in WebAssembly with SIMD: what costs time, and nothing else.
 *
 * Between the first and the last layer, images lie as positions x channels ("channels last"):
 * n images, each of height x width positions, each of `channels` floats side by side. So a row of
 * a kernel's window is one run of floats, and any number of channels or positions will do.
 * network.js puts the kernels together and owns the memory. */

#include "simd.h"

enum { POSITIONS = 4, LANES = 8 }; /* of one tile of a product: they fit 16 registers */

static float sum4(v4 x) {
    return wasm_f32x4_extract_lane(x, 0) + wasm_f32x4_extract_lane(x, 1) +
           wasm_f32x4_extract_lane(x, 2) + wasm_f32x4_extract_lane(x, 3);
}

/* The last 1 … 3 floats of a row, as four, the others zero. */
static v4 load_few(const float *x, int count) {
    float few[4] = {0, 0, 0, 0};
    for (int k = 0; k < count; k++) few[k] = x[k];
    return wasm_v128_load(few);
}

static void store_few(float *y, v4 x, int count) {
    float few[4];
    wasm_v128_store(few, x);
    for (int k = 0; k < count; k++) y[k] = few[k];
}

/* Every convolution and linear layer: each of n images' height x width outputs is a product of a
 * window, `rows` runs of `run` floats, with the weights, plus the bias. Windows lie down_y and
 * down_x floats apart, a window's rows row_stride, images image_stride.
 * weight: blocks of 8 outputs, each rows x run x 8, the last filled up with zeros, as is bias. */
EXPORT(product)
void product(const float *x, const float *weight, const float *bias, float *y, int n, int height,
             int width, int image_stride, int down_y, int down_x, int row_stride, int rows, int run,
             int c_out) {
    int total = n * height * width;
    for (int c = 0; c < c_out; c += LANES, weight += rows * run * LANES, bias += LANES) {
        int lanes = c_out - c < LANES ? c_out - c : LANES;
        for (int first = 0; first < total; first += POSITIONS) {
            const float *window[POSITIONS];
            v4 low[POSITIONS], high[POSITIONS];
            for (int p = 0; p < POSITIONS; p++) {
                int k = first + p < total ? first + p : total - 1; /* the last again: not stored */
                int column = k % width, row = k / width % height, image = k / width / height;
                window[p] = x + image * image_stride + row * down_y + column * down_x;
                low[p] = wasm_v128_load(bias), high[p] = wasm_v128_load(bias + 4);
            }
            const float *w = weight;
            for (int r = 0; r < rows; r++)
                for (int k = 0; k < run; k++, w += LANES) {
                    v4 w_low = wasm_v128_load(w), w_high = wasm_v128_load(w + 4);
                    for (int p = 0; p < POSITIONS; p++) {
                        v4 value = wasm_v128_load32_splat(window[p] + r * row_stride + k);
                        low[p] = wasm_f32x4_add(low[p], wasm_f32x4_mul(value, w_low));
                        high[p] = wasm_f32x4_add(high[p], wasm_f32x4_mul(value, w_high));
                    }
                }
            for (int p = 0; p < POSITIONS && first + p < total; p++) {
                float *to = y + (first + p) * c_out + c;
                if (lanes == LANES) {
                    wasm_v128_store(to, low[p]), wasm_v128_store(to + 4, high[p]);
                } else {
                    store_few(to, low[p], lanes < 4 ? lanes : 4);
                    store_few(to + 4, high[p], lanes - 4);
                }
            }
        }
    }
}

/* Zeros around each image, so that a window needs no test for the border. */
EXPORT(pad)
void pad(const float *x, float *y, int n, int height, int width, int channels, int before,
         int after) {
    int row = width * channels, wide = (before + width + after) * channels;
    __builtin_memset(y, 0, 4 * n * (before + height + after) * wide);
    for (int image = 0; image < n; image++) {
        float *to = y + before * wide + before * channels;
        for (int k = 0; k < height; k++, x += row, to += wide) __builtin_memcpy(to, x, 4 * row);
        y += (before + height + after) * wide;
    }
}

/* Each position four times: nearest neighbours, twice as high and wide. */
EXPORT(upsample)
void upsample(const float *x, float *y, int rows, int width, int channels) {
    int wide = 2 * width * channels;
    for (int row = 0; row < rows; row++, y += wide) {
        float *first = y;
        for (int k = 0; k < width; k++, x += channels)
            for (int twice = 0; twice < 2; twice++, y += channels)
                __builtin_memcpy(y, x, 4 * channels);
        __builtin_memcpy(y, first, 4 * wide);
    }
}

/* The channels of a, then those of b, at each position. */
EXPORT(concatenate)
void concatenate(const float *a, const float *b, float *y, int positions, int of_a, int of_b) {
    for (int k = 0; k < positions; k++, a += of_a, b += of_b) {
        __builtin_memcpy(y, a, 4 * of_a), y += of_a;
        __builtin_memcpy(y, b, 4 * of_b), y += of_b;
    }
}

/* y += x */
EXPORT(add)
void add(float *y, const float *x, int size) {
    int k = 0;
    for (; k + 4 <= size; k += 4)
        wasm_v128_store(y + k, wasm_f32x4_add(wasm_v128_load(y + k), wasm_v128_load(x + k)));
    for (; k < size; k++) y[k] += x[k];
}

/* Adds to each image its own vector of channels, at all positions alike. */
EXPORT(add_to_channels)
void add_to_channels(float *y, const float *vectors, int n, int positions, int channels) {
    for (int image = 0; image < n; image++, vectors += channels)
        for (int k = 0; k < positions; k++, y += channels) add(y, vectors, channels);
}

EXPORT(silu)
void silu(const float *x, float *y, int size) {
    int k = 0;
    for (; k + 4 <= size; k += 4) wasm_v128_store(y + k, silu4(wasm_v128_load(x + k)));
    if (k < size) store_few(y + k, silu4(load_few(x + k, size - k)), size - k);
}

/* y = x * scale + shift, channel by channel, then SiLU where asked. */
static void scaled(const float *x, float *y, int positions, int channels, const float *scale,
                   const float *shift, int then_silu) {
    for (int p = 0; p < positions; p++, x += channels, y += channels)
        for (int c = 0; c < channels; c += 4) {
            int count = channels - c < 4 ? channels - c : 4, whole = count == 4;
            v4 value = whole ? wasm_v128_load(x + c) : load_few(x + c, count);
            v4 by = whole ? wasm_v128_load(scale + c) : load_few(scale + c, count);
            v4 plus = whole ? wasm_v128_load(shift + c) : load_few(shift + c, count);
            value = wasm_f32x4_add(wasm_f32x4_mul(value, by), plus);
            if (then_silu) value = silu4(value);
            if (whole) wasm_v128_store(y + c, value);
            else store_few(y + c, value, count);
        }
}

/* The mean of each group's floats, for each of its channels, of x or (about) of (x - about)^2. */
static void group_means(const float *x, float *mean, const float *about, int positions,
                        int channels, int groups) {
    int each = channels / groups;
    for (int c = 0; c < channels; c++) mean[c] = 0;
    for (int p = 0; p < positions; p++, x += channels) {
        int c = 0;
        for (; c + 4 <= channels; c += 4) {
            v4 value = wasm_v128_load(x + c);
            if (about) {
                value = wasm_f32x4_sub(value, wasm_v128_load(about + c));
                value = wasm_f32x4_mul(value, value);
            }
            wasm_v128_store(mean + c, wasm_f32x4_add(wasm_v128_load(mean + c), value));
        }
        for (; c < channels; c++) {
            float value = about ? (x[c] - about[c]) * (x[c] - about[c]) : x[c];
            mean[c] += value;
        }
    }
    for (int first = 0; first < channels; first += each) {
        float sum = 0;
        for (int c = first; c < first + each; c++) sum += mean[c];
        for (int c = first; c < first + each; c++) mean[c] = sum / (each * positions);
    }
}

/* Group normalisation (eps = 1e-6), then SiLU where asked. scratch: 2 x channels floats. */
EXPORT(group_norm)
void group_norm(const float *x, const float *gamma, const float *beta, float *y, float *scratch,
                int n, int positions, int channels, int groups, int then_silu) {
    float *shift = scratch, *scale = scratch + channels;
    for (int image = 0; image < n; image++) {
        group_means(x, shift, 0, positions, channels, groups);
        group_means(x, scale, shift, positions, channels, groups); /* about the mean: exact */
        for (int c = 0; c < channels; c++) {
            scale[c] = gamma[c] / __builtin_sqrtf(scale[c] + 1e-6f);
            shift[c] = beta[c] - shift[c] * scale[c];
        }
        scaled(x, y, positions, channels, scale, shift, then_silu);
        x += positions * channels, y += positions * channels;
    }
}

static float dot(const float *a, const float *b, int size) {
    v4 sum = wasm_f32x4_splat(0);
    int k = 0;
    for (; k + 4 <= size; k += 4)
        sum = wasm_f32x4_add(sum, wasm_f32x4_mul(wasm_v128_load(a + k), wasm_v128_load(b + k)));
    float result = sum4(sum);
    for (; k < size; k++) result += a[k] * b[k];
    return result;
}

/* y += factor * x */
static void accumulate(float *y, const float *x, float factor, int size) {
    v4 by = wasm_f32x4_splat(factor);
    int k = 0;
    for (; k + 4 <= size; k += 4)
        wasm_v128_store(y + k, wasm_f32x4_add(wasm_v128_load(y + k),
                                              wasm_f32x4_mul(by, wasm_v128_load(x + k))));
    for (; k < size; k++) y[k] += factor * x[k];
}

/* Self-attention with one head: rows of q, k and v (3 x channels) to softmax(q k / sqrt(c)) v.
 * scratch: as many floats as positions, rounded up to a multiple of 4. */
EXPORT(attend)
void attend(const float *qkv, float *y, float *scratch, int n, int positions, int channels) {
    int row = 3 * channels;
    float by = 1 / __builtin_sqrtf(channels);
    for (int image = 0; image < n; image++, qkv += positions * row)
        for (int q = 0; q < positions; q++, y += channels) {
            float most = -3e38f, sum = 0;
            for (int k = 0; k < positions; k++) {
                scratch[k] = dot(qkv + q * row, qkv + k * row + channels, channels) * by;
                most = scratch[k] > most ? scratch[k] : most;
            }
            for (int k = 0; k < positions; k += 4)
                wasm_v128_store(scratch + k, exp4(wasm_f32x4_sub(wasm_v128_load(scratch + k),
                                                                 wasm_f32x4_splat(most))));
            for (int k = 0; k < positions; k++) sum += scratch[k];
            __builtin_memset(y, 0, 4 * channels);
            for (int k = 0; k < positions; k++)
                accumulate(y, qkv + k * row + 2 * channels, scratch[k] / sum, channels);
        }
}

/* Images (channels, height, width) to patches: positions x (channels p p), and (back) again. */
EXPORT(shuffle)
void shuffle(const float *x, float *y, int n, int channels, int height, int width, int patch,
             int back) {
    int wide = width / patch, depth = channels * patch * patch;
    for (int image = 0; image < n; image++)
        for (int c = 0; c < channels; c++)
            for (int i = 0; i < height; i++)
                for (int j = 0; j < width; j++) {
                    int flat = ((image * channels + c) * height + i) * width + j;
                    int place = (image * (height / patch) + i / patch) * wide + j / patch;
                    int inside = (c * patch + i % patch) * patch + j % patch;
                    if (back) y[flat] = x[place * depth + inside];
                    else y[place * depth + inside] = x[flat];
                }
}
