/* Python's noise in WebAssembly: numpy.random.default_rng((seed, k)).standard_normal(n, float32).
 *
 * SeedSequence (M. E. O'Neill's seed_seq_fe), PCG64 (her PCG XSL-RR 128/64) and the ziggurat of
 * Marsaglia and Tsang, each as in NumPy (BSD 3-clause, (c) 2005 NumPy Developers), so that image k
 * of seed s begins with the same x_T here and there. noise.js makes the ziggurat's tables. */

#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(#name)))

/* A place in a stream of random numbers. */
struct stream {
    uint64_t high, low;          /* the state, of 128 bits */
    uint64_t step_high, step_low; /* what is added to it: odd, one for each stream */
    uint32_t left, has_left;     /* the upper half of the last 64 bits, not yet given out */
};

/* The ziggurat's 256 layers. */
struct layers {
    uint32_t inside[256]; /* below this, of 2^23, a point lies under the curve for sure */
    float width[256], height[256];
};

#define END 3.6541528853610088 /* where the lowest layer's tail begins */

double log1p(double); /* JavaScript's */
double exp(double);

static uint32_t scramble(uint32_t value, uint32_t *by, uint32_t factor) {
    value ^= *by;
    *by *= factor;
    value *= *by;
    return value ^ value >> 16;
}

static uint32_t mixed(uint32_t a, uint32_t b) {
    uint32_t value = 0xca01f9ddu * a - 0x4973f715u * b;
    return value ^ value >> 16;
}

/* 128 bits times PCG's multiplier, plus the stream's step. */
static void advance(struct stream *s) {
    const uint64_t factor_high = 0x2360ED051FC65DA4ull, factor_low = 0x4385DF649FCCF645ull;
    uint64_t a = s->low >> 32, b = (uint32_t)s->low;
    uint64_t c = factor_low >> 32, d = (uint32_t)factor_low;
    uint64_t middle = a * d + (b * d >> 32), other = b * c + (uint32_t)middle;
    uint64_t high = a * c + (middle >> 32) + (other >> 32);
    high += s->high * factor_low + s->low * factor_high;
    uint64_t low = s->low * factor_low + s->step_low;
    s->high = high + s->step_high + (low < s->step_low);
    s->low = low;
}

EXPORT(seed_stream)
void seed_stream(struct stream *s, uint32_t seed, uint32_t k) {
    uint32_t pool[4] = {seed, k, 0, 0}, by = 0x43b0d7e5u, words[8];
    for (int i = 0; i < 4; i++) pool[i] = scramble(pool[i], &by, 0x931e8875u);
    for (int from = 0; from < 4; from++)
        for (int to = 0; to < 4; to++)
            if (from != to) pool[to] = mixed(pool[to], scramble(pool[from], &by, 0x931e8875u));
    by = 0x8b51f9ddu;
    for (int i = 0; i < 8; i++) words[i] = scramble(pool[i % 4], &by, 0x58f38dedu);
    uint64_t value[4];
    for (int i = 0; i < 4; i++) value[i] = words[2 * i] | (uint64_t)words[2 * i + 1] << 32;
    s->step_high = value[2] << 1 | value[3] >> 63, s->step_low = value[3] << 1 | 1;
    s->high = s->low = 0;
    s->has_left = 0;
    advance(s);
    s->low += value[1];
    s->high += value[0] + (s->low < value[1]);
    advance(s);
}

static uint32_t bits(struct stream *s) {
    if (s->has_left) {
        s->has_left = 0;
        return s->left;
    }
    advance(s);
    uint64_t folded = s->high ^ s->low;
    int turn = s->high >> 58;
    uint64_t value = folded >> turn | folded << (-turn & 63);
    s->left = value >> 32, s->has_left = 1;
    return (uint32_t)value;
}

static float uniform(struct stream *s) { return (bits(s) >> 8) * (1.f / 16777216.f); }

static float tail(struct stream *s, int negative) {
    for (;;) {
        float x = -(float)(1 / END) * (float)log1p(-uniform(s));
        float y = -(float)log1p(-uniform(s));
        if (y + y > x * x) return negative ? -((float)END + x) : (float)END + x;
    }
}

static float normal(struct stream *s, const struct layers *layers) {
    for (;;) {
        uint32_t r = bits(s), layer = r & 0xff, place = r >> 9;
        float x = place * layers->width[layer];
        if (r >> 8 & 1) x = -x;
        if (place < layers->inside[layer]) return x; /* in 99 of 100 cases */
        if (layer == 0) return tail(s, place >> 8 & 1);
        float top = layers->height[layer - 1], bottom = layers->height[layer];
        if ((top - bottom) * uniform(s) + bottom < exp(-0.5 * x * x)) return x;
    }
}

EXPORT(draw_normal)
void draw_normal(struct stream *s, const struct layers *layers, float *y, int count) {
    for (int k = 0; k < count; k++) y[k] = normal(s, layers);
}
