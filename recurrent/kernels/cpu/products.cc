// Products of a few rows with a packed matrix, as a decoder needs at each
// token.
//
// The matrix stands in panels of 64 columns, all rows of one after another, so
// that a product reads it once and in order. Its entries are float32, bfloat16
// or int8, made float32 in registers: of narrow ones fewer bytes go by. Each
// column has a factor, by which its sums are multiplied at the end.

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "checks.h"
#include "workers.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRows = 6;
#elif defined(__AVX__)
constexpr int kBytes = 32, kRows = 2;
#else
constexpr int kBytes = 16, kRows = 2;
#endif
constexpr int kPanel = 64, kWidth = kBytes / 4, kVectors = 4;
constexpr int kSpan = kVectors * kWidth;  // columns of a tile

typedef float Vec __attribute__((vector_size(kBytes)));
typedef uint32_t Bits __attribute__((vector_size(kBytes)));

inline Vec Widen(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// A bfloat16 is the upper half of a float32.
inline Vec Widen(const uint16_t* from) {
#if defined(__AVX512F__)
  __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
#else
  typedef uint16_t Narrow __attribute__((vector_size(2 * kWidth)));
  Narrow narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  return (Vec)(__builtin_convertvector(narrow, Bits) << 16);
#endif
}

inline Vec Widen(const int8_t* from) {
#if defined(__AVX512F__)
  __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(narrow));
#else
  typedef int8_t Narrow __attribute__((vector_size(kWidth)));
  Narrow narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  return __builtin_convertvector(narrow, Vec);
#endif
}

// All arrays of a call: [rows, depth] times [depth, columns].
template <class W>
struct Call {
  int64_t rows, depth, columns;
  const float* inputs;
  const W* panels;
  const float* scale;
  float* outputs;
};

// So many rows times one span of a panel. `kAtOnce` steps down the panel have
// sums of their own: one row by itself would wait for its last addition.
template <class W, int kMany, int kAtOnce>
inline void Tile(const Call<W>& c, int64_t row, const W* weights,
                 int64_t column) {
  const float* a = c.inputs + row * c.depth;
  Vec sums[kAtOnce][kMany][kVectors] = {};
  auto step = [&](int64_t k, Vec (&to)[kMany][kVectors]) {
    Vec right[kVectors];
    for (int n = 0; n < kVectors; ++n) {
      right[n] = Widen(weights + k * kPanel + n * kWidth);
    }
    for (int m = 0; m < kMany; ++m) {
      Vec left = a[m * c.depth + k] - Vec{};
      for (int n = 0; n < kVectors; ++n) to[m][n] += left * right[n];
    }
  };
  int64_t k = 0;
  for (; k + kAtOnce <= c.depth; k += kAtOnce) {
    for (int at = 0; at < kAtOnce; ++at) step(k + at, sums[at]);
  }
  for (; k < c.depth; ++k) step(k, sums[0]);
  for (int m = 0; m < kMany; ++m) {
    for (int n = 0; n < kVectors; ++n) {
      const int64_t j = column + n * kWidth;
      if (j >= c.columns) break;
      Vec sum = sums[0][m][n];
      for (int at = 1; at < kAtOnce; ++at) sum += sums[at][m][n];
      float* to = c.outputs + (row + m) * c.columns + j;
      if (j + kWidth <= c.columns) {
        sum *= Widen(c.scale + j);
        std::memcpy(to, &sum, sizeof(sum));
      } else {
        for (int i = 0; j + i < c.columns; ++i) to[i] = sum[i] * c.scale[j + i];
      }
    }
  }
}

template <class W, int kMany>
inline void Rows(const Call<W>& c, int64_t row, const W* weights,
                 int64_t column) {
  constexpr int kAtOnce = kMany == 1 ? 4 : kMany == 2 ? 2 : 1;
  for (; row + kMany <= c.rows; row += kMany) {
    Tile<W, kMany, kAtOnce>(c, row, weights, column);
  }
  if constexpr (kMany > 1) Rows<W, kMany / 2>(c, row, weights, column);
}

// Panels from one to before another. A panel stays in the second cache while
// all rows meet it.
template <class W>
void Product(const Call<W>& c, int64_t panel, int64_t last) {
  for (; panel < last; ++panel) {
    for (int span = 0; span < kPanel; span += kSpan) {
      const int64_t column = panel * kPanel + span;
      if (column >= c.columns) break;
      Rows<W, kRows>(c, 0, c.panels + panel * c.depth * kPanel + span, column);
    }
  }
}

template <ffi::DataType type, class W>
ffi::Error Run(ffi::Buffer<ffi::F32> inputs, ffi::Buffer<type> panels,
               ffi::Buffer<ffi::F32> scale,
               ffi::Result<ffi::Buffer<ffi::F32>> outputs, int64_t threads) {
  return Guarded([&] {
    Checks checks;
    checks.Axes("inputs", inputs, 2).Axes("scale", scale, 1);
    if (!checks) return checks.Error();
    auto shape = inputs.dimensions();
    const int64_t rows = shape[0], depth = shape[1];
    const int64_t columns = scale.dimensions()[0];
    const int64_t all = columns / kPanel + (columns % kPanel != 0);
    checks.Is("panels", panels, {all, depth, kPanel})
        .Is("outputs", outputs, {rows, columns})
        .Range("threads", threads, 1, INT64_MAX);
    if (!checks) return checks.Error();
    if (rows == 0 || columns == 0) return ffi::Error::Success();
    Call<W> call = {rows,
                    depth,
                    columns,
                    inputs.typed_data(),
                    reinterpret_cast<const W*>(panels.typed_data()),
                    scale.typed_data(),
                    outputs->typed_data()};
    // What a core does in some 5 microseconds is not worth sharing.
    const double work = 1.0 * depth * columns * (rows + 1);
    const int64_t workers =
        work < 4e5 ? 1 : Processors(std::min(threads, Workers::kMostPieces / 4));
    // Who is done first takes more of them.
    const int64_t pieces = workers > 1 ? std::min(all, 4 * workers) : 1;
    auto work_piece = [&](int64_t, int64_t piece) {
      Product(call, all * piece / pieces, all * (piece + 1) / pieces);
    };
    Workers::Get().Run(workers, 1, pieces, false, true, work_piece);
    return ffi::Error::Success();
  });
}

template <ffi::DataType type>
auto Binding() {
  return ffi::Ffi::Bind()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<type>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Ret<ffi::Buffer<ffi::F32>>()
      .template Attr<int64_t>("threads");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(product_float32, (Run<ffi::F32, float>),
                              Binding<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(product_bfloat16, (Run<ffi::BF16, uint16_t>),
                              Binding<ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(product_int8, (Run<ffi::S8, int8_t>),
                              Binding<ffi::S8>());
