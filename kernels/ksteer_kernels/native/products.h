// Products of a few tokens with a large weight, for gradient.cpp. Each reads the weight once, in the form in
// which it is stored, and sums every output in one order whatever the number of tokens.
//
// Arrays are float32, row-major, and zero padded to multiples of kBlock in all dimensions but the tokens.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace {

using Index = std::int64_t;

// Floats in a register, and the tokens of a tile that keeps 2 sums per token in registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kTokens = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTokens = 4;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kTokens = 8;
#else
constexpr int kLanes = 4, kTokens = 4;
#endif
constexpr Index kBlock = 32;  // a multiple of 2 kLanes, and of a cache line
constexpr Index kDepth = 768;  // of x: this part of a tile's tokens fits the first-level cache

template <int lanes>
struct Register {
    typedef float type __attribute__((vector_size(lanes * 4), aligned(4), may_alias));
};
using Vector = Register<kLanes>::type;

struct Range {
    Index begin, end;

    Range up_to(Index limit) const { return {begin, std::min(end, limit)}; }
};

Range share(Index size, Index part, Index parts) {
    const Index blocks = size / kBlock;
    return {blocks * part / parts * kBlock, blocks * (part + 1) / parts * kBlock};
}

// The sum of `lanes` floats by halves.
template <int lanes>
inline float total(const float* values) {
    if constexpr (lanes == 1) {
        return values[0];
    } else {
        using Half = typename Register<lanes / 2>::type;
        float sums[lanes / 2];
        *reinterpret_cast<Half*>(sums) =
            *reinterpret_cast<const Half*>(values) + *reinterpret_cast<const Half*>(values + lanes / 2);
        return total<lanes / 2>(sums);
    }
}

// Calls tile(integral_constant<T>, t) for consecutive tiles of T tokens each, T a power of two.
template <int T = kTokens, class Tile>
inline void by_tokens(Index count, const Tile& tile, Index from = 0) {
    for (; count - from >= T; from += T) tile(std::integral_constant<int, T>(), from);
    if constexpr (T > 1) by_tokens<T / 2>(count, tile, from);
}

// out[t, u] = x[t, :] . w[u, :] for T tokens and 2 units over `depth` columns; added to out if `more`.
template <int T>
inline void dot_tile(const float* x, const float* w, Index stride, Index depth, float* out, Index out_stride,
                     bool more) {
    Vector sum[T][2] = {};
    for (Index k = 0; k < depth; k += kLanes) {
        const Vector w0 = *reinterpret_cast<const Vector*>(w + k);
        const Vector w1 = *reinterpret_cast<const Vector*>(w + stride + k);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            const Vector value = *reinterpret_cast<const Vector*>(x + t * stride + k);
            sum[t][0] += value * w0;
            sum[t][1] += value * w1;
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
        for (int u = 0; u < 2; ++u) {
            float lanes[kLanes];
            *reinterpret_cast<Vector*>(lanes) = sum[t][u];
            float& place = out[t * out_stride + u];
            place = more ? place + total<kLanes>(lanes) : total<kLanes>(lanes);
        }
    }
}

// out[t, u] = x[t, :] . w[u, :] for u in units; x [count, depth], w [.., depth].
void dots(const float* x, Index count, const float* w, Index depth, Range units, float* out,
          Index out_stride) {
    for (Index block = units.begin; block < units.end; block += kBlock) {
        for (Index k = 0; k < depth; k += kDepth) {
            const Index part = std::min(kDepth, depth - k);
            by_tokens(count, [&](auto tokens, Index t) {
                for (Index u = block; u < block + kBlock; u += 2) {
                    dot_tile<tokens()>(x + t * depth + k, w + u * depth + k, depth, part,
                                       out + t * out_stride + u, out_stride, k > 0);
                }
            });
        }
    }
}

// out[t, c] = sum over u of s[t, u] w[u, c] for T tokens and 2 registers of columns.
template <int T>
inline void column_tile(const float* s, Index rows, const float* w, Index width, float* out) {
    Vector sum[T][2] = {};
    for (Index u = 0; u < rows; ++u) {
        const Vector w0 = *reinterpret_cast<const Vector*>(w + u * width);
        const Vector w1 = *reinterpret_cast<const Vector*>(w + u * width + kLanes);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            sum[t][0] += s[t * rows + u] * w0;
            sum[t][1] += s[t * rows + u] * w1;
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
        *reinterpret_cast<Vector*>(out + t * width) = sum[t][0];
        *reinterpret_cast<Vector*>(out + t * width + kLanes) = sum[t][1];
    }
}

// out[t, c] = sum over u of s[t, u] w[u, c] for c in columns; s [count, rows], w [rows, width].
void column_sums(const float* s, Index count, Index rows, const float* w, Index width, Range columns,
                 float* out) {
    for (Index c = columns.begin; c < columns.end; c += 2 * kLanes) {
        by_tokens(count, [&](auto tokens, Index t) {
            column_tile<tokens()>(s + t * rows, rows, w + c, width, out + t * width + c);
        });
    }
}

}  // namespace
