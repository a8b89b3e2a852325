// Layers of RNN, LSTM and GRU on a CPU, both passes; and the linear recurrence
// (at the end).
//
// Forward, a segment of time steps is projected at a time, so that projected
// inputs never leave the caches; then, at each time step, one product with the
// recurrent weights, and the gates on what is still in registers. The reverse
// pass gives the cotangents of both products; the gradients of weights and
// inputs are XLA's, in bulk.
//
// Weights are packed once a call in panels: all gates of one vector of units,
// unit block by unit block, so that a tile holds whole units. Threads
// (`workers.h`) share the rows of the batch out among them and never wait for
// each other; if the rows are few or the weights too large for one core, they
// share the units instead, and each time step is a phase of the job.
//
// Sequences are [batch, time, features], row-major, as users have them, so that
// nothing is transposed; but what only the reverse pass reads is [time, batch,
// features].

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "checks.h"
#include "workers.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
constexpr int kRegisters = 28;  // of 32, for the sums of a tile
#elif defined(__AVX__)
constexpr int kBytes = 32;
constexpr int kRegisters = 12;
#else
constexpr int kBytes = 16;
constexpr int kRegisters = 12;
#endif

template <class F>
struct Simd {
  typedef F Vec __attribute__((vector_size(kBytes)));
  static constexpr int kWidth = kBytes / sizeof(F);
};
template <class F>
using Vec = typename Simd<F>::Vec;
typedef int32_t Ints __attribute__((vector_size(kBytes)));

template <class F>
inline Vec<F> Load(const F* from) {
  Vec<F> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// The first n of a vector; the rest is zero.
template <class F>
inline Vec<F> Load(const F* from, int n) {
  if (n == Simd<F>::kWidth) return Load(from);
  Vec<F> v = {};
  std::memcpy(&v, from, n * sizeof(F));
  return v;
}

template <class F>
inline void Store(F* to, Vec<F> v, int n) {
  if (n == Simd<F>::kWidth) {
    std::memcpy(to, &v, sizeof(v));
  } else {
    std::memcpy(to, &v, n * sizeof(F));
  }
}

// Past the caches, for what is not read again before the reverse pass: else
// each line would be fetched only to be overwritten.
template <class F>
inline void Stream(F* to, Vec<F> v, int n) {
#if defined(__AVX512F__)
  if (n == Simd<F>::kWidth && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
    return;
  }
#endif
  Store<F>(to, v, n);
}

// 1 / x and the two sigmoids. In double each lane by the standard library: that
// is for tests. In float by polynomials (least squares at Chebyshev nodes).

inline Vec<float> Reciprocal(Vec<float> x) {
#if defined(__AVX512F__)
  Vec<float> r = (Vec<float>)_mm512_rcp14_ps((__m512)x);
  return r * (2.0f - x * r);
#else
  return 1.0f / x;
#endif
}

inline Vec<float> All(float x) { return x - Vec<float>{}; }

inline Vec<float> Exp(Vec<float> x) {
  x = x < -87.0f ? All(-87.0f) : x;
  x = x > 87.0f ? All(87.0f) : x;
  constexpr float kMagic = 12582912.0f;  // adding it rounds to an integer
  Vec<float> shifted = x * 1.44269504f + kMagic;
  Vec<float> n = shifted - kMagic;
  Vec<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec<float> p = 0.00139497829f * r + 0.00837597082f;
  p = p * r + 0.0416662f;
  p = p * r + 0.166664053f;
  p = p * r + 0.500000011f;
  p = p * r + 1.00000004f;
  p = p * r + 1.0f;
  // The integer stands in the low bits: into the exponent with it.
  return (Vec<float>)((Ints)p + ((Ints)shifted << 23));
}

// Below the smallest number that is not denormal it is zero, as XLA has it. The
// detour over integers would make a number of a NaN.
inline Vec<float> Sigmoid(Vec<float> x) {
  Vec<float> y = Reciprocal(1.0f + Exp(-x));
  y = x < -87.33654f ? Vec<float>{} : y;
  return x == x ? y : x;
}

inline Vec<float> Tanh(Vec<float> x) {
  Vec<float> size = x < 0.0f ? -x : x;
  Vec<float> far = 1.0f - 2.0f * Reciprocal(1.0f + Exp(2.0f * size));
  far = x < 0.0f ? -far : far;
  Vec<float> z = x * x;
  Vec<float> p = -0.00566477536f * z + 0.02059568f;
  p = p * z - 0.0537226793f;
  p = p * z + 0.133311502f;
  p = p * z - 0.333332616f;
  p = p * z * x + x;
  return size >= 0.625f ? far : p;  // and NaN by the polynomial
}

template <class Function>
inline Vec<double> Each(Vec<double> x, Function f) {
  for (int i = 0; i < Simd<double>::kWidth; ++i) x[i] = f(x[i]);
  return x;
}
inline Vec<double> Sigmoid(Vec<double> x) {
  return Each(x, [](double v) { return 1 / (1 + std::exp(-v)); });
}
inline Vec<double> Tanh(Vec<double> x) {
  return Each(x, [](double v) { return std::tanh(v); });
}

// The cells. `Forward` gets the sums of the projected inputs and of the product
// apart, and the carry; it leaves the new carry, and in `saved` what `Backward`
// wants to see again. `kKinds` activations are to choose from. If `kApart`, a
// gate multiplies the product with the recurrent weights: the product has a
// bias of its own, and a cotangent that is not that of the projected inputs.

template <class F>
struct TimeStep {
  Vec<F> hidden, cell;
};

template <class F>
struct Rnn {
  static constexpr int kGates = 1, kSaved = 1, kKinds = 3;
  static constexpr bool kCell = false, kApart = false;
  static TimeStep<F> Forward(const Vec<F>* x, const Vec<F>* h, Vec<F>, TimeStep<F>,
                         Vec<F>* saved, int kind) {
    Vec<F> sum = x[0] + h[0];
    if (kind == 0) saved[0] = Tanh(sum);
    if (kind == 1) saved[0] = sum <= 0 ? Vec<F>{} : sum;  // NaN stays
    if (kind == 2) saved[0] = Sigmoid(sum);
    return {saved[0], Vec<F>{}};
  }
  // Cotangents of the new carry in, of the old one (what does not pass the
  // product) out; `d_x` of the projected inputs, `d_h` of the product.
  static TimeStep<F> Backward(const Vec<F>* saved, TimeStep<F>, TimeStep<F> d, Vec<F>* d_x,
                          Vec<F>* d_h, int kind) {
    Vec<F> y = saved[0], slope = {};
    if (kind == 0) slope = 1 - y * y;
    if (kind == 2) slope = y * (1 - y);
    d_x[0] = d.hidden * slope;
    if (kind == 1) d_x[0] = y > 0 ? d.hidden : slope;
    d_h[0] = d_x[0];
    return {Vec<F>{}, Vec<F>{}};
  }
};

template <class F>
struct Lstm {
  static constexpr int kGates = 4, kSaved = 4, kKinds = 1;
  static constexpr bool kCell = true, kApart = false;
  static TimeStep<F> Forward(const Vec<F>* x, const Vec<F>* h, Vec<F>, TimeStep<F> old,
                         Vec<F>* saved, int) {
    Vec<F> i = Sigmoid(x[0] + h[0]), f = Sigmoid(x[1] + h[1]);
    Vec<F> g = Tanh(x[2] + h[2]), o = Sigmoid(x[3] + h[3]);
    Vec<F> cell = f * old.cell + i * g;
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
    return {o * Tanh(cell), cell};
  }
  static TimeStep<F> Backward(const Vec<F>* saved, TimeStep<F> old, TimeStep<F> d,
                          Vec<F>* d_x, Vec<F>* d_h, int) {
    Vec<F> i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    Vec<F> seen = Tanh(f * old.cell + i * g);
    Vec<F> d_cell = d.cell + d.hidden * o * (1 - seen * seen);
    d_x[0] = d_cell * g * i * (1 - i);
    d_x[1] = d_cell * old.cell * f * (1 - f);
    d_x[2] = d_cell * i * (1 - g * g);
    d_x[3] = d.hidden * seen * o * (1 - o);
    for (int k = 0; k < 4; ++k) d_h[k] = d_x[k];
    return {Vec<F>{}, d_cell * f};
  }
};

template <class F>
struct Coupled {  // the LSTM with f = 1 - i
  static constexpr int kGates = 3, kSaved = 3, kKinds = 1;
  static constexpr bool kCell = true, kApart = false;
  static TimeStep<F> Forward(const Vec<F>* x, const Vec<F>* h, Vec<F>, TimeStep<F> old,
                         Vec<F>* saved, int) {
    Vec<F> i = Sigmoid(x[0] + h[0]), g = Tanh(x[1] + h[1]);
    Vec<F> o = Sigmoid(x[2] + h[2]);
    Vec<F> cell = (1 - i) * old.cell + i * g;
    saved[0] = i, saved[1] = g, saved[2] = o;
    return {o * Tanh(cell), cell};
  }
  static TimeStep<F> Backward(const Vec<F>* saved, TimeStep<F> old, TimeStep<F> d,
                          Vec<F>* d_x, Vec<F>* d_h, int) {
    Vec<F> i = saved[0], g = saved[1], o = saved[2];
    Vec<F> seen = Tanh((1 - i) * old.cell + i * g);
    Vec<F> d_cell = d.cell + d.hidden * o * (1 - seen * seen);
    d_x[0] = d_cell * (g - old.cell) * i * (1 - i);
    d_x[1] = d_cell * i * (1 - g * g);
    d_x[2] = d.hidden * seen * o * (1 - o);
    for (int k = 0; k < 3; ++k) d_h[k] = d_x[k];
    return {Vec<F>{}, d_cell * (1 - i)};
  }
};

template <class F>
struct Gru {
  static constexpr int kGates = 3, kSaved = 4, kKinds = 1;
  static constexpr bool kCell = false, kApart = true;
  static TimeStep<F> Forward(const Vec<F>* x, const Vec<F>* h, Vec<F> bias,
                         TimeStep<F> old, Vec<F>* saved, int) {
    Vec<F> r = Sigmoid(x[0] + h[0]), z = Sigmoid(x[1] + h[1]);
    Vec<F> inner = h[2] + bias;
    Vec<F> n = Tanh(x[2] + r * inner);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = inner;
    return {n + z * (old.hidden - n), Vec<F>{}};
  }
  static TimeStep<F> Backward(const Vec<F>* saved, TimeStep<F> old, TimeStep<F> d,
                          Vec<F>* d_x, Vec<F>* d_h, int) {
    Vec<F> r = saved[0], z = saved[1], n = saved[2], inner = saved[3];
    Vec<F> d_n = d.hidden * (1 - z) * (1 - n * n);
    d_x[0] = d_h[0] = d_n * inner * r * (1 - r);
    d_x[1] = d_h[1] = d.hidden * (old.hidden - n) * z * (1 - z);
    d_x[2] = d_n;
    d_h[2] = d_n * r;
    return {d.hidden * z, Vec<F>{}};
  }
};

// Memory that starts at a cache line.
template <class T>
class Aligned {
 public:
  // Throws std::bad_alloc.
  explicit Aligned(int64_t size) {
    int64_t bytes;
    if (__builtin_mul_overflow(std::max<int64_t>(size, 1), sizeof(T), &bytes) ||
        bytes > INT64_MAX - 63) {
      throw std::bad_alloc();
    }
    data_ = static_cast<T*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (!data_) throw std::bad_alloc();
  }
  ~Aligned() { std::free(data_); }
  Aligned(const Aligned&) = delete;
  T* data() const { return data_; }
  T& operator[](int64_t at) const { return data_[at]; }

 private:
  T* data_;
};

// Panels: for each block of `kWidth` columns of each of `groups` matrices that
// stand side by side, all rows. `at(row, group, column)` reads an entry.
template <class F>
struct Panels {
  static constexpr int kWidth = Simd<F>::kWidth;
  int64_t rows, groups, columns, blocks;
  Aligned<F> data;

  Panels(int64_t rows, int64_t groups, int64_t columns)
      : rows(rows),
        groups(groups),
        columns(columns),
        blocks((columns + kWidth - 1) / kWidth),
        data(blocks * rows * groups * kWidth) {}

  // Packs a range of the blocks.
  template <class At>
  void Fill(int64_t block, int64_t last, At at) {
    for (; block < last; ++block) {
      F* to = &data[block * rows * groups * kWidth];
      const int64_t left = block * kWidth;
      const int lanes =
          static_cast<int>(std::min<int64_t>(kWidth, columns - left));
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t group = 0; group < groups; ++group) {
          for (int lane = 0; lane < lanes; ++lane) {
            to[lane] = at(row, group, left + lane);
          }
          for (int lane = lanes; lane < kWidth; ++lane) to[lane] = F(0);
          to += kWidth;
        }
      }
    }
  }
};

// sums[m][n] = the product of `kRows` rows of `a` with `kBlocks` panels of
// `kGroups` vectors a row.
//
// On the way it asks for `kAhead` lines a row of the panels that come next:
// weights that are larger than the second cache arrive while others are used.
template <class F, int kRows, int kGroups, int kBlocks>
inline void Tile(const F* const a[kRows], const F* panels, int64_t depth,
                 const F* next, Vec<F> sums[kRows][kGroups * kBlocks]) {
  constexpr int kAhead = kRows >= 3 ? (kGroups * kBlocks + 2) / 3 : 0;
  constexpr int kWidth = Simd<F>::kWidth;
  Vec<F> total[kRows][kGroups * kBlocks] = {};
  const int64_t panel = depth * kGroups * kWidth;
  for (int64_t k = 0; k < depth; ++k) {
    Vec<F> right[kGroups * kBlocks];
    for (int block = 0; block < kBlocks; ++block) {
      for (int group = 0; group < kGroups; ++group) {
        right[block * kGroups + group] =
            Load(panels + block * panel + (k * kGroups + group) * kWidth);
      }
    }
    for (int line = 0; line < kAhead; ++line) {
      __builtin_prefetch(next + (k * kAhead + line) * kWidth, 0, 2);
    }
    for (int m = 0; m < kRows; ++m) {
      Vec<F> left = a[m][k] - Vec<F>{};
      for (int n = 0; n < kGroups * kBlocks; ++n) {
        total[m][n] += left * right[n];
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kGroups * kBlocks; ++n) sums[m][n] = total[m][n];
  }
}

// Calls `use(row, block, sums of kGroups)` for all rows and blocks in range;
// `left(row)` is a row of the matrix on the left.
template <class F, int kGroups, int kRows, int kBlocks, class Left, class Use>
inline void Tiles(Left left, const F* panels, int64_t depth, int64_t row,
                  int64_t block, int64_t part, Use use) {
  constexpr int kWidth = Simd<F>::kWidth, kVectors = kGroups * kBlocks;
  Vec<F> sums[kRows][kVectors];
  const F* a[kRows];
  for (int m = 0; m < kRows; ++m) a[m] = left(row + m);
  const F* here = panels + block * depth * kGroups * kWidth;
  // Each tile of rows asks for a third: there are seldom fewer than three.
  const F* next =
      here + (depth * kVectors + part % 3 * depth * ((kVectors + 2) / 3)) *
                 kWidth;
  Tile<F, kRows, kGroups, kBlocks>(a, here, depth, next, sums);
  for (int b = 0; b < kBlocks; ++b) {
    for (int m = 0; m < kRows; ++m) {
      use(row + m, block + b, &sums[m][b * kGroups]);
    }
  }
}

// As many rows as fit in the registers, and what is left of them at the end.
template <class F, int kGroups, int kBlocks, int kRows, class Left, class Use>
inline void Rows(Left left, const F* panels, int64_t depth, int64_t row,
                 int64_t end, int64_t block, Use use, int64_t part = 0) {
  for (; row + kRows <= end; row += kRows) {
    Tiles<F, kGroups, kRows, kBlocks>(left, panels, depth, row, block, part++,
                                      use);
  }
  if constexpr (kRows > 1) {
    Rows<F, kGroups, kBlocks, kRows / 2>(left, panels, depth, row, end, block,
                                         use, part);
  }
}

// [rows on the left] times [panels], over a range of rows and of blocks.
template <class F, int kGroups, class Left, class Use>
inline void Product(Left left, const Panels<F>& packed, int64_t row,
                    int64_t end, int64_t block, int64_t last, Use use) {
  const F* panels = packed.data.data();
  const int64_t depth = packed.rows;
  // Several blocks at once where a block has few vectors: loads from the left
  // serve them all. A row by itself needs many sums under way.
  constexpr int kBlocks = kGroups >= 3 ? 1 : 4 / kGroups;
  constexpr int kRows = kRegisters / (kGroups * kBlocks);
  if (end - row < 3) {
    constexpr int kMany = kGroups >= 3 ? 2 : 8 / kGroups;
    for (; block + kMany <= last; block += kMany) {
      Rows<F, kGroups, kMany, 1>(left, panels, depth, row, end, block, use);
    }
  }
  for (; block + kBlocks <= last; block += kBlocks) {
    Rows<F, kGroups, kBlocks, kRows>(left, panels, depth, row, end, block, use);
  }
  if constexpr (kBlocks > 1) {
    for (; block < last; ++block) {
      Rows<F, kGroups, 1, kRows>(left, panels, depth, row, end, block, use);
    }
  }
}

// A piece of the work: a range of rows times a range of blocks of units.
struct Share {
  int64_t row, end, block, last, piece;

  int64_t Blocks() const { return last - block; }
};

// How threads share the work of a layer: each takes all blocks of some rows, or
// all rows of some blocks. Then each needs what the others made in the time
// step before.
struct Plan {
  int64_t threads;  // and so many pieces
  bool by_rows;
  int64_t rows, blocks;

  Plan(int64_t batch, int64_t blocks, int64_t weight_bytes, double work,
       int64_t most)
      : rows(batch), blocks(blocks) {
    // A thread costs some 10 microseconds to wake.
    threads = work < 4e6 ? 1 : Processors(std::min(most, Workers::kMostPieces));
    by_rows = batch >= 8 * threads && weight_bytes <= (4 << 20);
    // Nor is a time step worth a phase that takes less than it: some 0.3.
    if (!by_rows && weight_bytes * batch < (64 << 10)) threads = 1;
    threads = std::max<int64_t>(1, std::min(threads, by_rows ? batch : blocks));
  }

  int64_t Cut(int64_t n, int64_t at) const { return n * at / threads; }

  Share Of(int64_t piece) const {
    if (by_rows) {
      return {Cut(rows, piece), Cut(rows, piece + 1), 0, blocks, piece};
    }
    return {0, rows, Cut(blocks, piece), Cut(blocks, piece + 1), piece};
  }

  // Rows, and rows times blocks, of the largest piece.
  int64_t MostRows() const {
    return by_rows ? (rows + threads - 1) / threads : rows;
  }
  int64_t Most() const {
    return MostRows() *
           (by_rows ? blocks : (blocks + threads - 1) / threads);
  }

  // Calls `pack(first block, last)` for all blocks, and then `step(share, k)`
  // for all shares and all `steps`, in order.
  template <class Pack, class Step>
  void Run(int64_t steps, Pack pack, Step step) const {
    auto pack_piece = [&](int64_t piece) {
      pack(Cut(blocks, piece), Cut(blocks, piece + 1));
    };
    if (by_rows) {
      Workers::Get().Run(threads, 2, threads, true, false,
                      [&](int64_t phase, int64_t piece) {
                        if (phase == 0) return pack_piece(piece);
                        const Share share = Of(piece);
                        for (int64_t k = 0; k < steps; ++k) step(share, k);
                      });
    } else {
      Workers::Get().Run(threads, steps, threads, true, true,
                      [&](int64_t phase, int64_t piece) {
                        // A piece reads no weights but its own.
                        if (phase == 0) pack_piece(piece);
                        step(Of(piece), phase);
                      });
    }
  }
};

// What both passes have in common. `cell` is null unless the cell has one,
// `mask`, `resets`, `bias` unless they are wanted.
template <class F>
struct Call {
  int64_t time, batch, features;
  bool reverse;
  int kind;
  int64_t threads;
  const F *recurrent, *bias;
  const bool *mask, *resets;
  const F *initial_hidden, *initial_cell;

  int64_t At(int64_t time_step) const { return reverse ? time - 1 - time_step : time_step; }
  // Where a time step of a row stands in what users see, and in what is saved.
  int64_t Outside(int64_t at, int64_t row) const { return row * time + at; }
  int64_t Inside(int64_t at, int64_t row) const { return at * batch + row; }
  bool Real(int64_t at, int64_t row) const {
    return !mask || mask[Outside(at, row)];
  }
  bool Reset(int64_t at, int64_t row) const {
    return resets && resets[Outside(at, row)];
  }
};

template <class F>
struct Inputs {
  int64_t features;
  const F *data, *kernel, *bias;
};

template <class F, class Cell>
void Forward(const Call<F>& c, const Inputs<F>& inputs, const F* hidden,
             const F* cell, F* outputs, F* last_hidden, F* last_cell, F* saved,
             F* old_hidden, F* old_cell) {
  constexpr int kWidth = Simd<F>::kWidth, kGates = Cell::kGates;
  constexpr int64_t kAhead = 1 << 20;  // bytes of projected inputs at a time
  const int64_t h = c.features, gh = kGates * h, all = c.batch * h;
  Panels<F> kernel(inputs.features, kGates, h), recurrent(h, kGates, h);
  Aligned<F> buffers(2 * all), cells(Cell::kCell ? all : 0);
  auto fresh = [&](int64_t time_step, int64_t row) {
    return time_step < c.time && c.Reset(c.At(time_step), row);
  };
  for (int64_t row = 0; row < c.batch; ++row) {
    bool reset = fresh(0, row);
    std::copy_n((reset ? c.initial_hidden : hidden) + row * h, h,
                &buffers[row * h]);
    if (Cell::kCell) {
      std::copy_n((reset ? c.initial_cell : cell) + row * h, h,
                  &cells[row * h]);
    }
  }
  Plan plan(c.batch, recurrent.blocks, gh * h * sizeof(F),
            2.0 * c.time * c.batch * gh * (h + inputs.features), c.threads);
  // So many time steps are projected at once: enough for whole tiles, even if
  // there are few rows.
  const int64_t most = plan.Most() * kGates * kWidth * sizeof(F);
  const int64_t span = std::min(
      c.time,
      std::max(kAhead / most, kRegisters / plan.MostRows() + 1));
  const int64_t size = span * plan.Most() * kGates;
  Aligned<Vec<F>> projections(size * plan.threads);
  auto entry = [&](const F* matrix) {
    return [=](int64_t row, int64_t g, int64_t j) {
      return matrix[row * gh + g * h + j];
    };
  };
  plan.Run(
      c.time,
      [&](int64_t block, int64_t last) {
        kernel.Fill(block, last, entry(inputs.kernel));
        recurrent.Fill(block, last, entry(c.recurrent));
      },
      [&](Share share, int64_t time_step) {
        const int64_t first = time_step / span * span;
        const int64_t count = std::min(span, c.time - first);
        const int64_t low = std::min(c.At(first), c.At(first + count - 1));
        Vec<F>* ahead = &projections[share.piece * size];
        auto projected = [&](int64_t at, int64_t row, int64_t block) {
          return ahead + ((at - low + (row - share.row) * count) *
                              share.Blocks() +
                          block - share.block) *
                             kGates;
        };
        if (time_step == first) {
          Product<F, kGates>(
              [&](int64_t pair) {
                return inputs.data +
                       c.Outside(low + pair % count, share.row + pair / count) *
                           inputs.features;
              },
              kernel, 0, (share.end - share.row) * count, share.block,
              share.last, [&](int64_t pair, int64_t block, const Vec<F>* sums) {
                const int64_t j = block * kWidth;
                const int n =
                    static_cast<int>(std::min<int64_t>(kWidth, h - j));
                Vec<F>* to = projected(low + pair % count,
                                       share.row + pair / count, block);
                for (int g = 0; g < kGates; ++g) {
                  to[g] = sums[g] + Load(inputs.bias + g * h + j, n);
                }
              });
        }
        const int64_t at = c.At(time_step);
        const F* now = &buffers[(time_step % 2) * all];
        F* next = &buffers[((time_step + 1) % 2) * all];
        Product<F, kGates>(
            [&](int64_t row) { return now + row * h; }, recurrent, share.row,
            share.end, share.block, share.last,
            [&](int64_t row, int64_t block, const Vec<F>* mixed) {
              const int64_t j = block * kWidth, here = row * h + j;
              const int64_t outside = c.Outside(at, row) * h + j;
              const int n = static_cast<int>(std::min<int64_t>(kWidth, h - j));
              Vec<F> keep[Cell::kSaved];
              TimeStep<F> old = {Load(now + here, n), Vec<F>{}};
              if (Cell::kCell) old.cell = Load(&cells[here], n);
              Vec<F> bias = {};
              if (c.bias) bias = Load(c.bias + j, n);
              TimeStep<F> made = Cell::Forward(projected(at, row, block), mixed,
                                           bias, old, keep, c.kind);
              const int64_t inside = c.Inside(at, row);
              if (saved) {
                for (int s = 0; s < Cell::kSaved; ++s) {
                  Stream<F>(saved + (inside * Cell::kSaved + s) * h + j,
                            keep[s], n);
                }
              }
              if (old_hidden) {
                Stream<F>(old_hidden + outside, old.hidden, n);
                if (Cell::kCell) {
                  Stream<F>(old_cell + inside * h + j, old.cell, n);
                }
              }
              bool real = c.Real(at, row);
              Stream<F>(outputs + outside, real ? made.hidden : Vec<F>{}, n);
              if (!real) made = old;
              if (fresh(time_step + 1, row)) {
                made.hidden = Load(c.initial_hidden + here, n);
                if (Cell::kCell) made.cell = Load(c.initial_cell + here, n);
              }
              Store<F>(next + here, made.hidden, n);
              if (Cell::kCell) Store<F>(&cells[here], made.cell, n);
            });
      });
  std::copy_n(&buffers[(c.time % 2) * all], all, last_hidden);
  if (Cell::kCell) std::copy_n(&cells[0], all, last_cell);
}

template <class F, class Cell>
void Backward(const Call<F>& c, const F* saved, const F* old_hidden,
              const F* old_cell, const F* d_outputs, const F* d_last_hidden,
              const F* d_last_cell, F* d_projected, F* d_mixed, F* d_hidden,
              F* d_cell, F* d_initial_hidden, F* d_initial_cell) {
  constexpr int kWidth = Simd<F>::kWidth, kGates = Cell::kGates;
  const int64_t h = c.features, gh = kGates * h, all = c.batch * h;
  Panels<F> recurrent(gh, 1, h);
  Aligned<F> buffers(2 * c.batch * gh);
  std::copy_n(d_last_hidden, all, d_hidden);
  std::fill_n(d_initial_hidden, all, F(0));
  if (Cell::kCell) {
    std::copy_n(d_last_cell, all, d_cell);
    std::fill_n(d_initial_cell, all, F(0));
  }
  // Two, since who is done goes on to the next time step while others read.
  auto cotangents = [&](int64_t time_step, int64_t row) {
    return &buffers[((time_step % 2) * c.batch + row) * gh];
  };
  // Those of the gates, from those of the carry.
  auto gates = [&](Share share, int64_t time_step) {
    const int64_t at = c.At(time_step);
    for (int64_t row = share.row; row < share.end; ++row) {
      F* now = cotangents(time_step, row);
      for (int64_t block = share.block; block < share.last; ++block) {
        const int64_t j = block * kWidth, here = row * h + j;
        const int64_t inside = c.Inside(at, row);
        const int64_t outside = c.Outside(at, row);
        const int n = static_cast<int>(std::min<int64_t>(kWidth, h - j));
        Vec<F> d_x[kGates] = {}, d_h[kGates] = {};
        if (c.Real(at, row)) {
          Vec<F> kept[Cell::kSaved];
          for (int s = 0; s < Cell::kSaved; ++s) {
            kept[s] = Load(saved + (inside * Cell::kSaved + s) * h + j, n);
          }
          TimeStep<F> old = {Load(old_hidden + outside * h + j, n), Vec<F>{}};
          TimeStep<F> d = {
              Load(d_hidden + here, n) + Load(d_outputs + outside * h + j, n),
              Vec<F>{}};
          if (Cell::kCell) {
            old.cell = Load(old_cell + inside * h + j, n);
            d.cell = Load(d_cell + here, n);
          }
          d = Cell::Backward(kept, old, d, d_x, d_h, c.kind);
          Store<F>(d_hidden + here, d.hidden, n);
          if (Cell::kCell) Store<F>(d_cell + here, d.cell, n);
        }
        for (int g = 0; g < kGates; ++g) {
          Store<F>(now + g * h + j, d_h[g], n);
          Stream<F>(d_mixed + outside * gh + g * h + j, d_h[g], n);
          if (d_projected != d_mixed) {
            Stream<F>(d_projected + outside * gh + g * h + j, d_x[g], n);
          }
        }
      }
    }
  };
  // That of the hidden state before, from those of all gates.
  auto before = [&](Share share, int64_t time_step) {
    const int64_t at = c.At(time_step);
    Product<F, 1>(
        [&](int64_t row) { return cotangents(time_step, row); }, recurrent,
        share.row, share.end, share.block, share.last,
        [&](int64_t row, int64_t block, const Vec<F>* sum) {
          const int64_t j = block * kWidth, here = row * h + j;
          const int n = static_cast<int>(std::min<int64_t>(kWidth, h - j));
          Vec<F> d = Load(d_hidden + here, n) + sum[0];
          if (c.Reset(at, row)) {
            F* to = d_initial_hidden + here;
            Store<F>(to, Load(to, n) + d, n);
            d = Vec<F>{};
            if (Cell::kCell) {
              to = d_initial_cell + here;
              Store<F>(to, Load(to, n) + Load(d_cell + here, n), n);
              Store<F>(d_cell + here, Vec<F>{}, n);
            }
          }
          Store<F>(d_hidden + here, d, n);
        });
  };
  Plan plan(c.batch, recurrent.blocks, gh * h * sizeof(F),
            2.0 * c.time * c.batch * gh * h, c.threads);
  plan.Run(
      c.time + 1,
      [&](int64_t block, int64_t last) {
        recurrent.Fill(block, last, [&](int64_t row, int64_t, int64_t j) {
          return c.recurrent[j * gh + row];
        });
      },
      // Of two time steps, so that they have one phase.
      [&](Share share, int64_t done) {
        if (done > 0) before(share, c.time - done);
        if (done < c.time) gates(share, c.time - 1 - done);
      });
}

// h = decay * h + drive, elementwise, and its reverse pass. Memory is all it
// costs: threads take segments of a row, whose state stays in the first cache.
//
// Each state has a second part, what rounding has taken from the first: over
// many time steps with decays near one that adds up. The second part of a
// complex state would cost more than a state in double.

constexpr int64_t kSegment = 1024;

// The compiler's own product of complex numbers asks each for NaN first.
template <class F>
inline F Times(F a, F b) {
  return a * b;
}
template <class F>
inline std::complex<F> Times(std::complex<F> a, std::complex<F> b) {
  return {a.real() * b.real() - a.imag() * b.imag(),
          a.real() * b.imag() + a.imag() * b.real()};
}

template <class F, class W>
struct Plain {
  W value;
  static Plain Of(F x) { return {W(x)}; }
  F Rounded() const { return F(value); }
  // a * this + b
  Plain Next(F a, F b) const { return {Times(W(a), value) + W(b)}; }
  // b after a reset
  Plain Or(F b, bool reset) const { return {reset ? W(b) : value}; }
};

template <class F>
struct Compensated {
  F high, low;
  static Compensated Of(F x) { return {x, F(0)}; }
  F Rounded() const { return high; }
  // The second product is exact, but for what is as small beside `b` as
  // rounding is beside the sum. After an overflow nothing is left to add.
  Compensated Next(F a, F b) const {
    const F rest = std::fma(a, low, b);
    const F sum = std::fma(a, high, rest);
    const F lost = std::fma(a, high, -sum) + rest;
    return {sum, std::abs(lost) <= std::numeric_limits<F>::max() ? lost : F(0)};
  }
  Compensated Or(F b, bool reset) const {
    return {reset ? b : high, reset ? F(0) : low};
  }
};

template <class F>
struct StateOf {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  using Type = Compensated<F>;
#else
  using Type = Plain<F, double>;
#endif
};
template <class F>
struct StateOf<std::complex<F>> {
  using Type = Plain<std::complex<F>, std::complex<double>>;
};
template <class F>
using State = typename StateOf<F>::Type;

// States side by side: each part by itself, as vectors need it.
template <class F, class S>
struct States {
  decltype(S::value) values[kSegment];
  S Get(int64_t i) const { return {values[i]}; }
  void Set(int64_t i, S s) { values[i] = s.value; }
};
template <class F>
struct States<F, Compensated<F>> {
  F highs[kSegment], lows[kSegment];
  Compensated<F> Get(int64_t i) const { return {highs[i], lows[i]}; }
  void Set(int64_t i, Compensated<F> s) { highs[i] = s.high, lows[i] = s.low; }
};

template <class Work>
void Segments(int64_t time, int64_t width, int64_t most, Work work) {
  // As for the cells: a thread costs some 10 microseconds to wake.
  int64_t threads = 1;
  if (time * width >= 100000) {
    threads = Processors(std::min({most, width / 16, Workers::kMostPieces}));
  }
  auto cut = [&](int64_t piece) {
    return piece == threads ? width : width * piece / threads / 16 * 16;
  };
  auto work_piece = [&](int64_t, int64_t piece) {
    for (int64_t from = cut(piece), to = cut(piece + 1); from < to;
         from += kSegment) {
      work(from, std::min(kSegment, to - from));
    }
  };
  Workers::Get().Run(threads, 1, threads, true, false, work_piece);
}

// Calls `work(first, count)` for all time steps, some at once, so that states are
// read and written once for all of those; `count` is a constant.
template <class Work>
void Unrolled(int64_t time, Work work) {
  constexpr int kAtOnce = 4;
  int64_t first = 0;
  for (; first + kAtOnce <= time; first += kAtOnce) {
    work(first, std::integral_constant<int, kAtOnce>());
  }
  for (; first < time; ++first) work(first, std::integral_constant<int, 1>());
}

template <class F>
void LinearForward(int64_t time, int64_t width, bool reverse, int64_t threads,
                   const F* decay, const F* drive, const F* start,
                   const uint8_t* resets, F* hidden) {
  Segments(time, width, threads, [&](int64_t from, int64_t count) {
    States<F, State<F>> states;
    for (int64_t i = 0; i < count; ++i) {
      states.Set(i, State<F>::Of(start[from + i]));
    }
    Unrolled(time, [&](int64_t first, auto steps) {
      constexpr int kSteps = decltype(steps)::value;
      int64_t at[kSteps];
      for (int k = 0; k < kSteps; ++k) {
        at[k] = (reverse ? time - 1 - first - k : first + k) * width + from;
      }
      auto all = [&](auto with_resets) {
#pragma GCC ivdep
        for (int64_t i = 0; i < count; ++i) {
          State<F> state = states.Get(i);
          for (int k = 0; k < kSteps; ++k) {
            const F b = drive[at[k] + i];
            state = state.Next(decay[at[k] + i], b);
            if (with_resets) state = state.Or(b, resets[at[k] + i] != 0);
            hidden[at[k] + i] = state.Rounded();
          }
          states.Set(i, state);
        }
      };
      resets ? all(std::true_type()) : all(std::false_type());
    });
  });
}

// The cotangent of a state is that of its output and, by the decay of the time
// step after, that of the next state: the same recurrence, backwards.
template <class F>
void LinearBackward(int64_t time, int64_t width, bool reverse, int64_t threads,
                    const F* decay, const F* start, const uint8_t* resets,
                    const F* hidden, const F* d_hidden, F* d_decay, F* d_drive,
                    F* d_start) {
  const int64_t next = reverse ? -width : width;
  Segments(time, width, threads, [&](int64_t from, int64_t count) {
    States<F, State<F>> states;  // cotangents of the time step after
    for (int64_t i = 0; i < count; ++i) states.Set(i, State<F>::Of(F(0)));
    Unrolled(time, [&](int64_t first, auto steps) {
      constexpr int kSteps = decltype(steps)::value;
      int64_t at[kSteps];
      const F* before[kSteps];
      const F* after[kSteps];  // decays; at the end any will do: times zero
      const uint8_t* cut[kSteps];
      for (int k = 0; k < kSteps; ++k) {
        const int64_t time_step = time - 1 - first - k;
        at[k] = (reverse ? first + k : time_step) * width + from;
        before[k] = time_step ? hidden + at[k] - next : start + from;
        after[k] = decay + at[k] + (time_step + 1 < time ? next : 0);
        cut[k] = resets ? resets + (after[k] - decay) : nullptr;
      }
      auto all = [&](auto with_resets, auto at_end) {
#pragma GCC ivdep
        for (int64_t i = 0; i < count; ++i) {
          State<F> state = states.Get(i);
          for (int k = 0; k < kSteps; ++k) {
            const F b = d_hidden[at[k] + i];
            state = state.Next(after[k][i], b);
            if (at_end && k == 0) state = State<F>::Of(b);
            if (with_resets) state = state.Or(b, cut[k][i] != 0);
            const F d = state.Rounded();
            const F to_decay = Times(d, before[k][i]);
            d_drive[at[k] + i] = d;
            d_decay[at[k] + i] =
                with_resets && resets[at[k] + i] != 0 ? F(0) : to_decay;
          }
          states.Set(i, state);
        }
      };
      using Yes = std::true_type;
      using No = std::false_type;
      if (first == 0) {
        resets ? all(Yes(), Yes()) : all(No(), Yes());
      } else {
        resets ? all(Yes(), No()) : all(No(), No());
      }
    });
    const int64_t at = (reverse ? (time - 1) * width : 0) + from;
    for (int64_t i = 0; i < count; ++i) {
      const bool none = time == 0 || (resets && resets[at + i]);
      d_start[from + i] =
          none ? F(0) : states.Get(i).Next(decay[at + i], F(0)).Rounded();
    }
  });
}

// What XLA calls. Arrays that a cell or a call does without are empty.

template <ffi::DataType type>
using In = ffi::Buffer<type>;
template <ffi::DataType type>
using Out = ffi::Result<ffi::Buffer<type>>;
using Flags = ffi::Buffer<ffi::PRED>;

template <class F, ffi::DataType type>
const F* Data(In<type>& array) {
  return array.element_count() ? array.typed_data() : nullptr;
}
template <class F, ffi::DataType type>
F* Data(Out<type>& array) {
  return array->element_count() ? array->typed_data() : nullptr;
}

inline const bool* Data(Flags& flags) {
  return flags.element_count() ? flags.typed_data() : nullptr;
}

inline const uint8_t* Bytes(Flags& flags) {
  return reinterpret_cast<const uint8_t*>(Data(flags));
}

constexpr int64_t kMany = INT64_MAX;

template <class F, ffi::DataType type, template <class> class Cell>
ffi::Error RunForward(In<type> inputs, In<type> kernel, In<type> input_bias,
                      In<type> recurrent, In<type> bias, Flags mask,
                      Flags resets, In<type> initial_hidden,
                      In<type> initial_cell, In<type> hidden, In<type> cell,
                      Out<type> outputs, Out<type> last_hidden,
                      Out<type> last_cell, Out<type> saved,
                      Out<type> old_hidden, Out<type> old_cell, bool reverse,
                      int64_t kind, int64_t threads) {
  using C = Cell<F>;
  return Guarded([&] {
    Checks checks;
    checks.Axes("inputs", inputs, 3).Axes("recurrent", recurrent, 2);
    if (!checks) return checks.Error();
    auto shape = inputs.dimensions();
    const int64_t batch = shape[0], time = shape[1], depth = shape[2];
    const int64_t h = recurrent.dimensions()[0], gh = C::kGates * h;
    const bool carries = old_hidden->dimensions().size() != 1;
    checks.Is("recurrent", recurrent, {h, gh})
        .Is("kernel", kernel, {depth, gh})
        .Is("input_bias", input_bias, {gh})
        .If(C::kApart && bias.element_count(), "bias", bias, {h})
        .May("mask", mask, {batch, time})
        .May("resets", resets, {batch, time})
        .Is("initial_hidden", initial_hidden, {batch, h})
        .If(C::kCell, "initial_cell", initial_cell, {batch, h})
        .Is("hidden", hidden, {batch, h})
        .If(C::kCell, "cell", cell, {batch, h})
        .Is("outputs", outputs, {batch, time, h})
        .Is("last_hidden", last_hidden, {batch, h})
        .If(C::kCell, "last_cell", last_cell, {batch, h})
        .May("saved", saved, {time, batch, C::kSaved * h})
        .If(carries, "old_hidden", old_hidden, {batch, time, h})
        .If(carries && C::kCell, "old_cell", old_cell, {time, batch, h})
        .Range("kind", kind, 0, C::kKinds - 1)
        .Range("threads", threads, 1, kMany);
    if (!checks) return checks.Error();
    if (batch == 0 || h == 0) return ffi::Error::Success();
    Call<F> call = {time, batch, h, reverse, static_cast<int>(kind), threads,
                    Data<F>(recurrent), Data<F>(bias), Data(mask), Data(resets),
                    Data<F>(initial_hidden), Data<F>(initial_cell)};
    Inputs<F> in = {depth, Data<F>(inputs), Data<F>(kernel),
                    Data<F>(input_bias)};
    Forward<F, C>(call, in, Data<F>(hidden), Data<F>(cell), Data<F>(outputs),
                  Data<F>(last_hidden), Data<F>(last_cell), Data<F>(saved),
                  Data<F>(old_hidden), Data<F>(old_cell));
    return ffi::Error::Success();
  });
}

template <class F, ffi::DataType type, template <class> class Cell>
ffi::Error RunBackward(In<type> d_outputs, In<type> recurrent, In<type> bias,
                       Flags mask, Flags resets, In<type> saved,
                       In<type> old_hidden, In<type> old_cell,
                       In<type> d_last_hidden, In<type> d_last_cell,
                       Out<type> d_projected, Out<type> d_mixed,
                       Out<type> d_hidden, Out<type> d_cell,
                       Out<type> d_initial_hidden, Out<type> d_initial_cell,
                       bool reverse, int64_t kind, int64_t threads) {
  using C = Cell<F>;
  return Guarded([&] {
    Checks checks;
    checks.Axes("d_outputs", d_outputs, 3);
    if (!checks) return checks.Error();
    auto shape = d_outputs.dimensions();
    const int64_t batch = shape[0], time = shape[1], h = shape[2];
    const int64_t gh = C::kGates * h;
    checks.Is("recurrent", recurrent, {h, gh})
        .If(C::kApart && bias.element_count(), "bias", bias, {h})
        .May("mask", mask, {batch, time})
        .May("resets", resets, {batch, time})
        .Is("saved", saved, {time, batch, C::kSaved * h})
        .Is("old_hidden", old_hidden, {batch, time, h})
        .If(C::kCell, "old_cell", old_cell, {time, batch, h})
        .Is("d_last_hidden", d_last_hidden, {batch, h})
        .If(C::kCell, "d_last_cell", d_last_cell, {batch, h})
        .If(C::kApart, "d_projected", d_projected, {batch, time, gh})
        .Is("d_mixed", d_mixed, {batch, time, gh})
        .Is("d_hidden", d_hidden, {batch, h})
        .If(C::kCell, "d_cell", d_cell, {batch, h})
        .Is("d_initial_hidden", d_initial_hidden, {batch, h})
        .If(C::kCell, "d_initial_cell", d_initial_cell, {batch, h})
        .Range("kind", kind, 0, C::kKinds - 1)
        .Range("threads", threads, 1, kMany);
    if (!checks) return checks.Error();
    if (batch == 0 || h == 0) return ffi::Error::Success();
    Call<F> call = {time, batch, h, reverse, static_cast<int>(kind), threads,
                    Data<F>(recurrent), Data<F>(bias), Data(mask), Data(resets),
                    Data<F>(old_hidden), Data<F>(old_cell)};
    F* mixed = Data<F>(d_mixed);
    Backward<F, C>(call, Data<F>(saved), Data<F>(old_hidden), Data<F>(old_cell),
                   Data<F>(d_outputs), Data<F>(d_last_hidden),
                   Data<F>(d_last_cell), C::kApart ? Data<F>(d_projected) : mixed,
                   mixed, Data<F>(d_hidden), Data<F>(d_cell),
                   Data<F>(d_initial_hidden), Data<F>(d_initial_cell));
    return ffi::Error::Success();
  });
}

template <ffi::DataType type>
auto ForwardBinding() {
  using A = In<type>;
  using R = ffi::Buffer<type>;
  return ffi::Ffi::Bind()
      .template Arg<A>().template Arg<A>().template Arg<A>()
      .template Arg<A>().template Arg<A>()
      .template Arg<Flags>().template Arg<Flags>()
      .template Arg<A>().template Arg<A>().template Arg<A>().template Arg<A>()
      .template Ret<R>().template Ret<R>().template Ret<R>()
      .template Ret<R>().template Ret<R>().template Ret<R>()
      .template Attr<bool>("reverse")
      .template Attr<int64_t>("kind")
      .template Attr<int64_t>("threads");
}

template <ffi::DataType type>
auto BackwardBinding() {
  using A = In<type>;
  using R = ffi::Buffer<type>;
  return ffi::Ffi::Bind()
      .template Arg<A>().template Arg<A>().template Arg<A>()
      .template Arg<Flags>().template Arg<Flags>()
      .template Arg<A>().template Arg<A>().template Arg<A>()
      .template Arg<A>().template Arg<A>()
      .template Ret<R>().template Ret<R>().template Ret<R>()
      .template Ret<R>().template Ret<R>().template Ret<R>()
      .template Attr<bool>("reverse")
      .template Attr<int64_t>("kind")
      .template Attr<int64_t>("threads");
}

template <ffi::DataType type>
ffi::Error RunLinearForward(In<type> decay, In<type> drive, In<type> start,
                            Flags resets, Out<type> hidden, bool reverse,
                            int64_t threads) {
  return Guarded([&] {
    Checks checks;
    auto all = drive.dimensions();
    if (all.size() == 0) return checks.Axes("drive", drive, 1).Error();
    checks.Is("decay", decay, all)
        .Is("start", start, all.last(all.size() - 1))
        .May("resets", resets, all)
        .Is("hidden", hidden, all)
        .Range("threads", threads, 1, kMany);
    if (!checks) return checks.Error();
    const int64_t width = start.element_count();
    if (width == 0) return ffi::Error::Success();
    LinearForward(all[0], width, reverse, threads, decay.typed_data(),
                  drive.typed_data(), start.typed_data(), Bytes(resets),
                  hidden->typed_data());
    return ffi::Error::Success();
  });
}

template <ffi::DataType type>
ffi::Error RunLinearBackward(In<type> decay, In<type> start, Flags resets,
                             In<type> hidden, In<type> d_hidden,
                             Out<type> d_decay, Out<type> d_drive,
                             Out<type> d_start, bool reverse,
                             int64_t threads) {
  return Guarded([&] {
    Checks checks;
    auto all = hidden.dimensions();
    if (all.size() == 0) return checks.Axes("hidden", hidden, 1).Error();
    auto state = all.last(all.size() - 1);
    checks.Is("decay", decay, all)
        .Is("start", start, state)
        .May("resets", resets, all)
        .Is("d_hidden", d_hidden, all)
        .Is("d_decay", d_decay, all)
        .Is("d_drive", d_drive, all)
        .Is("d_start", d_start, state)
        .Range("threads", threads, 1, kMany);
    if (!checks) return checks.Error();
    const int64_t width = start.element_count();
    if (width == 0) return ffi::Error::Success();
    LinearBackward(all[0], width, reverse, threads, decay.typed_data(),
                   start.typed_data(), Bytes(resets), hidden.typed_data(),
                   d_hidden.typed_data(), d_decay->typed_data(),
                   d_drive->typed_data(), d_start->typed_data());
    return ffi::Error::Success();
  });
}

template <ffi::DataType type>
auto LinearForwardBinding() {
  using A = In<type>;
  return ffi::Ffi::Bind()
      .template Arg<A>().template Arg<A>().template Arg<A>()
      .template Arg<Flags>()
      .template Ret<A>()
      .template Attr<bool>("reverse")
      .template Attr<int64_t>("threads");
}

template <ffi::DataType type>
auto LinearBackwardBinding() {
  using A = In<type>;
  return ffi::Ffi::Bind()
      .template Arg<A>().template Arg<A>()
      .template Arg<Flags>()
      .template Arg<A>().template Arg<A>()
      .template Ret<A>().template Ret<A>().template Ret<A>()
      .template Attr<bool>("reverse")
      .template Attr<int64_t>("threads");
}

}  // namespace

#define RECURRENT_LINEAR(name, type)                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_forward_##name,                 \
                                RunLinearForward<type>,                \
                                LinearForwardBinding<type>());         \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_backward_##name,                \
                                RunLinearBackward<type>,               \
                                LinearBackwardBinding<type>())

RECURRENT_LINEAR(f32, ffi::F32);
RECURRENT_LINEAR(f64, ffi::F64);
RECURRENT_LINEAR(c64, ffi::C64);
RECURRENT_LINEAR(c128, ffi::C128);

#define RECURRENT_LOOPS(name, Cell)                                         \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_forward_f32,                         \
                                (RunForward<float, ffi::F32, Cell>),        \
                                ForwardBinding<ffi::F32>());                \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_forward_f64,                         \
                                (RunForward<double, ffi::F64, Cell>),       \
                                ForwardBinding<ffi::F64>());                \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_backward_f32,                        \
                                (RunBackward<float, ffi::F32, Cell>),       \
                                BackwardBinding<ffi::F32>());               \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_backward_f64,                        \
                                (RunBackward<double, ffi::F64, Cell>),      \
                                BackwardBinding<ffi::F64>())

RECURRENT_LOOPS(rnn, Rnn);
RECURRENT_LOOPS(lstm, Lstm);
RECURRENT_LOOPS(lstm_coupled, Coupled);
RECURRENT_LOOPS(gru, Gru);
