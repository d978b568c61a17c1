// Plain gradient steps of one group of tokens, on a CPU, as one parallel region:
//
//   z1 = W1 x + b1;  num_steps times:  z2 = W2 relu(z1) + b2,  step = 1[z1 > 0] W2^T (1[z2 > 0] a_t u),
//   s += step,  z1 -= G step;   at last  hidden -= U^T s, bounded and rounded once,
//
// with U = W1, W1 times the columns' scale, or rows of their own, and G = W1 U^T.
//
// A few tokens do little arithmetic on weights that are larger than a core's cache, so what counts is to read
// them once per product: W x as dot products with W's rows, W^T s as sums of W's rows over a range of
// columns. Units and columns are divided among the threads in blocks, and each output is summed by one thread in one
// order: neither the number of threads nor that of tokens changes a bit.
//
// Weights are float32, row-major, zero padded to multiples of kBlock (native/__init__.py, which also puts
// products.h in its place before the compiler sees this file).

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include <omp.h>

#include "products.h"

namespace {

constexpr float kLimit = 16777216.0f;  // expand.naive.edit_limit: 2**24

// The arguments are arrays of 8-byte fields.
static_assert(sizeof(void*) == 8);

struct Slot {  // padded sizes, and the true number of second units
    Index hidden, first, second, true_second;
    const float *w1, *b1, *w2, *b2, *gram;  // gram: G^T
    const float *up, *scale;  // U = up times scale [hidden]; null: 1
};

struct Group {
    Index count, steps, readout_stride;
    const Index* tokens;  // null: consecutive ones from start
    Index start;
    const float* readouts[1];  // a_t u of each step t, [count, true_second]

    Index token(Index i) const { return tokens ? tokens[i] : start + i; }
};

template <class Scalar>
struct Rows {  // hidden, and residual or null
    Scalar *hidden, *residual;
    Index hidden_stride, residual_stride, width;
};

// Calls entry(i * width + u, i, u) for every token i and unit u in range.
template <class Entry>
inline void each(Index count, Index width, Range range, const Entry& entry) {
    for (Index i = 0; i < count; ++i) {
#pragma omp simd
        for (Index u = range.begin; u < range.end; ++u) entry(i * width + u, i, u);
    }
}

inline float to_float(float value) { return value; }
inline float to_float(std::uint16_t bfloat16) {
    const std::uint32_t bits = static_cast<std::uint32_t>(bfloat16) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline void round_to(float& out, float value) { out = value; }
inline void round_to(std::uint16_t& out, float value) {  // to the nearest, ties to even; never a NaN
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    out = static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

bool all_finite(const float* values, Index count) {
    float sum = 0;  // of zeros, and of NaN for every value that is not finite
#pragma omp simd reduction(+ : sum)
    for (Index i = 0; i < count; ++i) sum += values[i] * 0.0f;
    return sum == 0;
}

// x = hidden + residual, zero in the padding. All NaN, and false returned, if an entry is not finite: then no
// unit is active, and the edit is 0.
template <class Scalar>
bool load(const Rows<Scalar>& rows, Index token, float* x, Index padded) {
    const Scalar* const hidden = rows.hidden + token * rows.hidden_stride;
    const Scalar* const residual = rows.residual ? rows.residual + token * rows.residual_stride : nullptr;
    std::fill(x + rows.width, x + padded, 0.0f);
#pragma omp simd
    for (Index c = 0; c < rows.width; ++c) {
        x[c] = to_float(hidden[c]) + (residual ? to_float(residual[c]) : 0.0f);
    }
    if (all_finite(x, rows.width)) return true;
    std::fill(x, x + padded, NAN);
    return false;
}

// expand.naive.bounded_edit of one token; an edit that is 0 or not finite changes no bit.
template <class Scalar>
void subtract(const float* edit, Range columns, Scalar* hidden) {
#pragma omp simd
    for (Index c = columns.begin; c < columns.end; ++c) {
        const float before = to_float(hidden[c]);
        const float exact = before - edit[c];
        const float bounded = std::min(std::max(exact, std::min(before, -kLimit)), std::max(before, kLimit));
        Scalar rounded;
        round_to(rounded, bounded);
        hidden[c] = edit[c] != 0 && std::fabs(edit[c]) <= FLT_MAX ? rounded : hidden[c];
    }
}

// Memory for one call; kept by the calling thread.
float* scratch(Index floats) {
    thread_local std::vector<float> memory;
    memory.resize(std::max<Index>(memory.size(), floats + 16));
    return reinterpret_cast<float*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
}

// Returns how many tokens' edits were dropped.
template <class Scalar>
int edit(const Slot& slot, const Group& group, const Rows<Scalar>& rows, int max_threads) {
    const Index n = group.count, d = slot.hidden, r = slot.first, m = slot.second;
    float* const z1 = scratch(n * (4 * r + m + max_threads * d));
    float *const h1 = z1 + n * r, *const step = h1 + n * r, *const s = step + n * r, *const upper = s + n * r;
    float* const wide = upper + n * m;
    int dropped = 0;  // thread 0 counts
#pragma omp parallel num_threads(max_threads)
    {
        const Index thread = omp_get_thread_num(), threads = omp_get_num_threads();
        const Range first = share(r, thread, threads), second = share(m, thread, threads);
        const Range columns = share(d, thread, threads);
        // Every thread makes its own x: cheaper than to wait for a shared one.
        float* const x = wide + thread * n * d;
        for (Index i = 0; i < n; ++i) {
            if (!load(rows, group.token(i), x + i * d, d) && thread == 0) ++dropped;
        }
        dots(x, n, slot.w1, d, first, z1, r);
        each(n, r, first, [&](Index at, Index, Index u) {
            z1[at] += slot.b1[u];
            h1[at] = z1[at] < 0 ? 0 : z1[at];
        });
        for (Index t = 0; t < group.steps; ++t) {
            const float* const readout = group.readouts[t];
#pragma omp barrier
            dots(h1, n, slot.w2, r, second, upper, m);
            each(n, m, second.up_to(slot.true_second), [&](Index at, Index i, Index u) {
                upper[at] = upper[at] + slot.b2[u] > 0 ? readout[i * group.readout_stride + u] : 0;
            });
#pragma omp barrier
            column_sums(upper, n, m, slot.w2, r, first, step);
            each(n, r, first, [&](Index at, Index, Index) {
                step[at] = z1[at] > 0 ? step[at] : 0;
                s[at] = t == 0 ? step[at] : s[at] + step[at];
            });
            if (t + 1 == group.steps) break;
#pragma omp barrier
            column_sums(step, n, r, slot.gram, r, first, h1);
            each(n, r, first, [&](Index at, Index, Index) {
                z1[at] -= h1[at];
                h1[at] = z1[at] < 0 ? 0 : z1[at];
            });
        }
#pragma omp barrier
        column_sums(s, n, r, slot.up, d, columns, x);  // x is over: now the edit
        if (slot.scale) each(n, d, columns, [&](Index at, Index, Index c) { x[at] *= slot.scale[c]; });
        for (Index i = 0; i < n; ++i) {
            if (!all_finite(s + i * r, r)) {
                if (thread == 0) ++dropped;
                continue;
            }
            subtract(x + i * d, columns.up_to(rows.width), rows.hidden + group.token(i) * rows.hidden_stride);
        }
    }
    return dropped;
}

}  // namespace

// slot, group: see the structs. hidden, residual (or null): rows of `width` bfloat16 or float32 entries.
// Returns how many tokens' edits were dropped, or -1 if there was no memory; hidden is then unchanged.
extern "C" int ksteer_gradient(const void* slot, const void* group, void* hidden, std::int64_t hidden_stride,
                               void* residual, std::int64_t residual_stride, std::int64_t width,
                               int is_bfloat16, int threads) {
    const auto run = [&](auto* rows) {
        using Pointer = decltype(rows);
        return edit(*static_cast<const Slot*>(slot), *static_cast<const Group*>(group),
             Rows<std::remove_pointer_t<Pointer>>{rows, static_cast<Pointer>(residual), hidden_stride,
                                                  residual_stride, width}, threads);
    };
    try {
        return is_bfloat16 ? run(static_cast<std::uint16_t*>(hidden)) : run(static_cast<float*>(hidden));
    } catch (const std::bad_alloc&) {
        return -1;
    }
}
