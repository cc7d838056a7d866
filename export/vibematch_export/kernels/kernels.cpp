// Operators of domain `vibematch` for ONNX Runtime on x86-64 CPUs with AVX-512 VNNI: linear layers
// in float32 and int8, and the attention of Qwen3-VL's two towers in float32 or bfloat16.
//
// A matrix product walks over "units" of 32 bits along the summed dimension: 1 float, 2 bfloat16 or
// 4 int8. The right matrix is packed into panels of 32 columns, [panel][unit][32], the left one
// into blocks of up to 12 rows, [block][unit][rows]. One tile of 12 x 32 sums then fills 24 of the
// 32 vector registers, and the three number formats differ in the multiply-add instruction only.
// Every sum runs over its terms in one fixed order: neither the batch nor the threads change it.

#include "ort_abi.h"

// GCC 12 warns of its own intrinsics (bug 105593)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include <sys/mman.h>

namespace {

// Sizes of the work, in steps that fit the caches (chosen by measurement on Zen 4):
constexpr size_t LANES = 16;               // 32-bit lanes of a vector register
constexpr size_t ROWS = 12;                // of a tile of sums
constexpr size_t COLUMNS = 2 * LANES;      // of a tile of sums
constexpr size_t TILE = ROWS * COLUMNS;    // sums
constexpr size_t DEPTH = 512;              // most units summed in one go: 24 KB of a left block
constexpr size_t PANELS = 4;               // of a task, which share that block
constexpr size_t SLAB = size_t{1} << 20;   // most units of the left matrix packed at a time ...
constexpr size_t SLAB_ROWS = 192;          // ... but not fewer rows, or panels are read too often
constexpr size_t BLOCKS = 8;               // of rows, of a task, for the same reason ...
constexpr size_t TASKS = 256;              // ... unless so many tasks keep the threads busy anyway

constexpr size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

// Part `i` of `total` things shared out as evenly as possible among `parts`.
struct Share {
  size_t start, count;
  Share(size_t total, size_t parts, size_t i)
      : start(i * (total / parts) + std::min(i, total % parts)),
        count(total / parts + (i < total % parts ? 1 : 0)) {}
};

// Memory aligned for vectors, that only grows; its content is not kept when it does.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  template <class T>
  T* reserve(size_t count) {
    const size_t bytes = count * sizeof(T);
    if (bytes > capacity_) {
      std::free(data_);
      capacity_ = 0;
      // large memory in huge pages: fewer address translations while streaming through it
      const size_t page = bytes >= (size_t{4} << 20) ? size_t{2} << 20 : 64;
      const size_t padded = divide_up(bytes, page) * page;
      data_ = std::aligned_alloc(page, padded);
      if (data_ == nullptr) throw std::bad_alloc();
      if (page > 64) madvise(data_, padded, MADV_HUGEPAGE);
      capacity_ = padded;
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t capacity_ = 0;
};

// Scratch of the thread that computes a node, seen by all that help it...
struct SharedScratch {
  Buffer left, scales, queries, keys, values;
};
thread_local SharedScratch shared_scratch;
// ... and of each helper.
struct OwnScratch {
  Buffer sums, rows, scores;
};
thread_local OwnScratch own_scratch;

// ---- what the runtime gives and takes

struct RuntimeError {
  ort::Status* status;
};

void check(ort::Status* status) {
  if (status != nullptr) throw RuntimeError{status};
}

struct Tensor {
  float* data = nullptr;
  std::vector<int64_t> shape;

  size_t last() const { return static_cast<size_t>(shape.back()); }
  size_t count() const {
    size_t product = 1;
    for (int64_t n : shape) product *= static_cast<size_t>(n);
    return product;
  }
  bool is(std::initializer_list<size_t> expected) const {
    return std::equal(shape.begin(), shape.end(), expected.begin(), expected.end(),
                      [](int64_t a, size_t b) { return static_cast<size_t>(a) == b; });
  }
};

Tensor tensor(const ort::Api& api, const ort::Value* value) {
  Tensor result;
  ort::TensorInfo* info = nullptr;
  check(api.tensor_info(value, &info));
  const auto release = [&api](ort::TensorInfo* it) { api.release_tensor_info(it); };
  const std::unique_ptr<ort::TensorInfo, decltype(release)> owner(info, release);
  size_t rank = 0;
  check(api.dimension_count(info, &rank));
  result.shape.resize(rank);
  check(api.dimensions(info, result.shape.data(), rank));
  void* data = nullptr;
  check(api.tensor_data(const_cast<ort::Value*>(value), &data));
  result.data = static_cast<float*>(data);
  return result;
}

// One call of a node.
class Call {
 public:
  Call(const ort::Api& api, ort::KernelContext* context) : api_(api), context_(context) {}

  Tensor input(size_t index) const {
    const ort::Value* value = nullptr;
    check(api_.input(context_, index, &value));
    return tensor(api_, value);
  }

  float* output(const std::vector<int64_t>& shape) const {
    ort::Value* value = nullptr;
    check(api_.output(context_, 0, shape.data(), shape.size(), &value));
    void* data = nullptr;
    check(api_.tensor_data(value, &data));
    return static_cast<float*>(data);
  }

  // body(i) for each i < count, on the session's threads.
  template <class Body>
  void parallel(size_t count, const Body& body) const {
    struct Work {
      const Body& body;
      std::atomic<bool> failed{false};
    } work{body};
    check(api_.parallel_for(
        context_,
        [](void* data, size_t i) {
          Work& it = *static_cast<Work*>(data);
          try {
            it.body(i);
          } catch (const std::bad_alloc&) {  // must not unwind through the runtime
            it.failed = true;
          }
        },
        count, count, &work));
    if (work.failed) throw std::bad_alloc();
  }

 private:
  const ort::Api& api_;
  ort::KernelContext* context_;
};

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// ---- vector code; everything up to pop_options needs AVX-512

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma")

__mmask16 first_lanes(size_t count) {
  return count >= LANES ? __mmask16{0xFFFF} : static_cast<__mmask16>((1U << count) - 1);
}

struct Float32 {
  static constexpr size_t PER_UNIT = 1;
  static __m512i multiply_add(__m512i sums, __m512i left, __m512i right) {
    return _mm512_castps_si512(_mm512_fmadd_ps(
        _mm512_castsi512_ps(left), _mm512_castsi512_ps(right), _mm512_castsi512_ps(sums)));
  }
  static __m512i pair(__m512 first, __m512) { return _mm512_castps_si512(first); }
};

struct BFloat16 {
  static constexpr size_t PER_UNIT = 2;
  static __m512i multiply_add(__m512i sums, __m512i left, __m512i right) {
    return _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sums),
                                                reinterpret_cast<__m512bh>(left),
                                                reinterpret_cast<__m512bh>(right)));
  }
  static __m512i pair(__m512 first, __m512 second) {
    // lanes 0..15 are `first`, 16..31 `second`: interleave them
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9,
                                           24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
                                           16, 0);
    const __m512bh both = _mm512_cvtne2ps_pbh(second, first);
    return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(both));
  }
};

struct Int8 {  // left unsigned, right signed
  static constexpr size_t PER_UNIT = 4;
  static __m512i multiply_add(__m512i sums, __m512i left, __m512i right) {
    return _mm512_dpbusd_epi32(sums, left, right);
  }
};

// sums[R][32] (+)= left[units][R] x right[units][32]
template <class Format, size_t R>
void tile(const uint32_t* left, const uint32_t* right, size_t units, uint32_t* sums, bool add) {
  __m512i total[R][2];
#pragma GCC unroll 12
  for (size_t r = 0; r < R; ++r) {
    total[r][0] = add ? _mm512_load_si512(sums + r * COLUMNS) : _mm512_setzero_si512();
    total[r][1] = add ? _mm512_load_si512(sums + r * COLUMNS + LANES) : _mm512_setzero_si512();
  }
  for (size_t u = 0; u < units; ++u, left += R, right += COLUMNS) {
    const __m512i first = _mm512_load_si512(right);
    const __m512i second = _mm512_load_si512(right + LANES);
#pragma GCC unroll 12
    for (size_t r = 0; r < R; ++r) {
      const __m512i one = _mm512_set1_epi32(static_cast<int>(left[r]));
      total[r][0] = Format::multiply_add(total[r][0], one, first);
      total[r][1] = Format::multiply_add(total[r][1], one, second);
    }
  }
#pragma GCC unroll 12
  for (size_t r = 0; r < R; ++r) {
    _mm512_store_si512(sums + r * COLUMNS, total[r][0]);
    _mm512_store_si512(sums + r * COLUMNS + LANES, total[r][1]);
  }
}

template <class Format>
void multiply(size_t rows, const uint32_t* left, const uint32_t* right, size_t units,
              uint32_t* sums, bool add) {
  using Tile = void (*)(const uint32_t*, const uint32_t*, size_t, uint32_t*, bool);
  static constexpr Tile tiles[ROWS] = {
      tile<Format, 1>, tile<Format, 2>, tile<Format, 3>,  tile<Format, 4>,
      tile<Format, 5>, tile<Format, 6>, tile<Format, 7>,  tile<Format, 8>,
      tile<Format, 9>, tile<Format, 10>, tile<Format, 11>, tile<Format, 12>};
  tiles[rows - 1](left, right, units, sums, add);
}

// 16 x 16 lanes, in place.
void transpose_registers(__m512i (&v)[LANES]) {
  __m512i t[LANES];
  for (size_t i = 0; i < LANES; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (size_t i = 0; i < LANES; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (size_t half = 0; half < LANES; half += 8) {
    for (size_t i = 0; i < 4; ++i) {
      t[half + i] = _mm512_shuffle_i32x4(v[half + i], v[half + i + 4], 0x88);
      t[half + i + 4] = _mm512_shuffle_i32x4(v[half + i], v[half + i + 4], 0xDD);
    }
  }
  for (size_t i = 0; i < 8; ++i) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
  }
}

// to[column * to_stride + row] = from[row * from_stride + column]; at most 16 rows.
void transpose(const uint32_t* from, size_t from_stride, size_t rows, size_t columns, uint32_t* to,
               size_t to_stride) {
  const __mmask16 row_mask = first_lanes(rows);
  __m512i v[LANES];
  for (size_t start = 0; start < columns; start += LANES) {
    const size_t count = std::min(LANES, columns - start);
    const __mmask16 column_mask = first_lanes(count);
    for (size_t r = 0; r < LANES; ++r) {
      v[r] = r < rows ? _mm512_maskz_loadu_epi32(column_mask, from + r * from_stride + start)
                      : _mm512_setzero_si512();
    }
    transpose_registers(v);
    for (size_t c = 0; c < count; ++c) {
      _mm512_mask_storeu_epi32(to + (start + c) * to_stride, row_mask, v[c]);
    }
  }
}

// ---- elementary functions

// 2^x to 8e-8 (relative); x <= 127. Polynomial of least relative error on [-1/2, 1/2].
__m512 exp2(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(0.001327647129073739F);
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.009675540961325169F));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.05550713092088699F));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.24022120237350464F));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.6931469440460205F));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(1.0000001192092896F));
  return _mm512_scalef_ps(p, whole);
}

constexpr float LOG2_E = 1.44269504088896341F;

// 1 / x for 2^-126 <= |x| <= 2^126, to about one unit in the last place.
__m512 reciprocal(__m512 x) {
  const __m512 guess = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(guess, _mm512_fnmadd_ps(x, guess, _mm512_set1_ps(2.0F)));
}

// x / (1 + 2^-z)
__m512 gated(__m512 x, __m512 z) {
  const __m512 one = _mm512_set1_ps(1.0F);
  const __m512 power = _mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), z), _mm512_set1_ps(125.0F));
  return _mm512_mul_ps(x, reciprocal(_mm512_add_ps(one, exp2(power))));
}

__m512 silu(__m512 x) { return gated(x, _mm512_mul_ps(x, _mm512_set1_ps(LOG2_E))); }

// x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, as x times the logistic function.
__m512 gelu_tanh(__m512 x) {
  constexpr float scale = 2.0F * 0.79788456080286536F * LOG2_E;
  const __m512 square = _mm512_mul_ps(x, x);
  const __m512 slope =
      _mm512_fmadd_ps(square, _mm512_set1_ps(scale * 0.044715F), _mm512_set1_ps(scale));
  return gated(x, _mm512_mul_ps(x, slope));
}

// max(x, 0) - |x| Q(|x|), where Q, the upper tail of the normal distribution, is exp(-x^2/2) times
// a polynomial in 1 / (1 + 0.4 |x|) (the form of Abramowitz & Stegun 7.1.26, fitted to 7e-8).
__m512 gelu(__m512 x) {
  static constexpr float coefficients[] = {
      -0.04007509723305702F, 0.20264746248722076F,   -0.37739601731300354F,
      0.2546588182449341F,   -0.014566512778401375F, 0.1592014878988266F,
      0.1556192934513092F,   0.1599234640598297F,    -1.2905288713227492e-05F};
  const __m512 size = _mm512_abs_ps(x);
  const __m512 near = _mm512_min_ps(size, _mm512_set1_ps(30.0F));
  const __m512 t =
      reciprocal(_mm512_fmadd_ps(near, _mm512_set1_ps(0.4F), _mm512_set1_ps(1.0F)));
  __m512 tail = _mm512_setzero_ps();
  for (const float coefficient : coefficients) {
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(coefficient));
  }
  const __m512 power = _mm512_mul_ps(_mm512_mul_ps(near, near), _mm512_set1_ps(-0.5F * LOG2_E));
  tail = _mm512_mul_ps(tail, exp2(power));
  return _mm512_fnmadd_ps(size, tail, _mm512_max_ps(x, _mm512_setzero_ps()));
}

// ---- linear layers

enum class Activation { NONE, GELU, GELU_TANH, SWIGLU, ADD };

// The part of a linear layer's output that one tile covers, and what it is made from.
struct Finish {
  const float* row_scales;  // [M], int8 only
  const float* scale;       // [N], int8 only
  const int32_t* offsets;   // [panels * 32], int8 only: what the shift to unsigned added
  const float* bias;        // [N]
  const float* residual;    // [M, N], Add only
  float* y;                 // [M, width]
  size_t width;             // columns of y
};

template <bool QUANTIZED, Activation ACTIVATION>
void finish(const Finish& it, const uint32_t* sums, size_t row, size_t rows, size_t panel) {
  constexpr bool GATED = ACTIVATION == Activation::SWIGLU;
  const size_t column = panel * (GATED ? LANES : COLUMNS);
  const size_t other = column + (GATED ? it.width : LANES);  // of the right half of the tile
  const size_t valid = it.width - column, more = valid > LANES ? valid - LANES : 0;
  const __mmask16 masks[2] = {first_lanes(valid), first_lanes(GATED ? valid : more)};
  const size_t starts[2] = {column, other};
  __m512 bias[2], scale[2];
  __m512i offset[2];
  for (size_t h = 0; h < 2; ++h) {
    bias[h] = _mm512_maskz_loadu_ps(masks[h], it.bias + starts[h]);
    if (QUANTIZED) {
      scale[h] = _mm512_maskz_loadu_ps(masks[h], it.scale + starts[h]);
      offset[h] = _mm512_load_si512(it.offsets + panel * COLUMNS + h * LANES);
    }
  }
  for (size_t r = 0; r < rows; ++r) {
    __m512 v[2];
    for (size_t h = 0; h < 2; ++h) {
      const __m512i sum = _mm512_load_si512(sums + r * COLUMNS + h * LANES);
      if (QUANTIZED) {
        const __m512 factor = _mm512_mul_ps(scale[h], _mm512_set1_ps(it.row_scales[row + r]));
        const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offset[h]));
        v[h] = _mm512_fmadd_ps(exact, factor, bias[h]);
      } else {
        v[h] = _mm512_add_ps(_mm512_castsi512_ps(sum), bias[h]);
      }
    }
    float* y = it.y + (row + r) * it.width + column;
    if (GATED) {
      _mm512_mask_storeu_ps(y, masks[0], _mm512_mul_ps(silu(v[0]), v[1]));
      continue;
    }
    for (size_t h = 0; h < 2; ++h) {
      if (ACTIVATION == Activation::GELU) v[h] = gelu(v[h]);
      if (ACTIVATION == Activation::GELU_TANH) v[h] = gelu_tanh(v[h]);
      if (ACTIVATION == Activation::ADD) {
        const float* residual = it.residual + (row + r) * it.width + starts[h];
        v[h] = _mm512_add_ps(v[h], _mm512_maskz_loadu_ps(masks[h], residual));
      }
      _mm512_mask_storeu_ps(y + h * LANES, masks[h], v[h]);
    }
  }
}

// Asks for the memory that finish() will touch, so that it comes while the sums are computed.
template <Activation ACTIVATION>
void prefetch(const Finish& it, size_t row, size_t rows, size_t panel) {
  constexpr bool GATED = ACTIVATION == Activation::SWIGLU;
  for (size_t r = row; r < row + rows; ++r) {
    const size_t at = r * it.width + panel * (GATED ? LANES : COLUMNS);
    __builtin_prefetch(it.y + at, 1);
    if (!GATED) __builtin_prefetch(it.y + at + LANES, 1);
    if (ACTIVATION == Activation::ADD) {
      __builtin_prefetch(it.residual + at);
      __builtin_prefetch(it.residual + at + LANES);
    }
  }
}

// Row `x` as 128 + round(x / scale), padded to whole units; returns the scale: NaN if any x is not
// finite, so that all that is made from it is not either.
float quantize(const float* x, size_t count, uint8_t* to) {
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  __m512i largest = _mm512_setzero_si512();  // as integers: NaN > infinity > finite
  for (size_t i = 0; i < count; i += LANES) {
    const __m512i v = _mm512_maskz_loadu_epi32(first_lanes(count - i), x + i);
    largest = _mm512_max_epi32(largest, _mm512_and_si512(v, magnitude));
  }
  const int bits = _mm512_reduce_max_epi32(largest);
  const float peak = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
  // at least the smallest normal number: its inverse is finite, and zeros stay zeros
  const float scale = peak <= 3.4028234e38F ? std::max(peak / 127.0F, 1.1754944e-38F) : NAN;
  const __m512 inverse = _mm512_set1_ps(1.0F / scale);
  const size_t padded = divide_up(count, Int8::PER_UNIT) * Int8::PER_UNIT;
  for (size_t i = 0; i < padded; i += LANES) {
    const __m512 v = _mm512_maskz_loadu_ps(first_lanes(i < count ? count - i : 0), x + i);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse));
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(128)));
    _mm_mask_storeu_epi8(to + i, first_lanes(padded - i), bytes);
  }
  return scale;
}

using PackLeft = void (*)(const float*, size_t, size_t, uint32_t*, float*);

// Rows of x [rows, count] as a block of the left matrix.
void pack_float32(const float* x, size_t rows, size_t count, uint32_t* to, float*) {
  transpose(reinterpret_cast<const uint32_t*>(x), count, rows, count, to, rows);
}

void pack_int8(const float* x, size_t rows, size_t count, uint32_t* to, float* scales) {
  const size_t units = divide_up(count, Int8::PER_UNIT);
  uint32_t* quantized = own_scratch.rows.reserve<uint32_t>(ROWS * units);
  for (size_t r = 0; r < rows; ++r) {
    scales[r] = quantize(x + r * count, count, reinterpret_cast<uint8_t*>(quantized + r * units));
  }
  transpose(quantized, units, rows, units, to, rows);
}

// 16 columns of one unit of the right matrix [K, N], from row k on.
__m512i load_unit(const float* w, size_t k, size_t, size_t N, size_t column, __mmask16 columns) {
  return _mm512_maskz_loadu_epi32(columns, w + k * N + column);
}

__m512i load_unit(const int8_t* w, size_t k, size_t K, size_t N, size_t column, __mmask16 columns) {
  __m128i rows[Int8::PER_UNIT];
  for (size_t i = 0; i < Int8::PER_UNIT; ++i) {
    rows[i] = _mm_maskz_loadu_epi8(k + i < K ? columns : 0, w + (k + i) * N + column);
  }
  const __m128i low01 = _mm_unpacklo_epi8(rows[0], rows[1]);
  const __m128i low23 = _mm_unpacklo_epi8(rows[2], rows[3]);
  const __m128i high01 = _mm_unpackhi_epi8(rows[0], rows[1]);
  const __m128i high23 = _mm_unpackhi_epi8(rows[2], rows[3]);
  __m512i unit = _mm512_castsi128_si512(_mm_unpacklo_epi16(low01, low23));
  unit = _mm512_inserti32x4(unit, _mm_unpackhi_epi16(low01, low23), 1);
  unit = _mm512_inserti32x4(unit, _mm_unpacklo_epi16(high01, high23), 2);
  return _mm512_inserti32x4(unit, _mm_unpackhi_epi16(high01, high23), 3);
}

// The right matrix w [K, N] as panels. A gated layer's panel is 16 columns of the first half of N
// and their 16 partners of the second. `offsets` [panels * 32] (int8 only, zeroed by the caller)
// become 128 times the column sums.
template <class Format, class Weight>
void pack_right(const Weight* w, size_t K, size_t N, bool gated, uint32_t* to, int32_t* offsets) {
  constexpr size_t CHUNK = 16;  // units of all panels at a time, so that w is read in order
  const size_t units = divide_up(K, Format::PER_UNIT), width = gated ? N / 2 : N;
  const size_t panels = divide_up(width, gated ? LANES : COLUMNS);
  for (size_t chunk = 0; chunk < units; chunk += CHUNK) {
    for (size_t half = 0; half < 2 * panels; ++half) {
      const size_t column = gated ? half / 2 * LANES : half * LANES;
      const __mmask16 mask = first_lanes(column < width ? width - column : 0);
      const size_t start = column + (gated && half % 2 == 1 ? width : 0);
      uint32_t* panel = to + half / 2 * units * COLUMNS + half % 2 * LANES;
      for (size_t u = chunk; u < std::min(chunk + CHUNK, units); ++u) {
        const __m512i unit = load_unit(w, u * Format::PER_UNIT, K, N, start, mask);
        _mm512_store_si512(panel + u * COLUMNS, unit);
        if (offsets != nullptr) {
          const __m512i shift = _mm512_set1_epi8(static_cast<char>(128));
          int32_t* at = offsets + half * LANES;
          _mm512_store_si512(at, _mm512_dpbusd_epi32(_mm512_load_si512(at), shift, unit));
        }
      }
    }
  }
}

// ---- attention

struct Attention {
  bool causal;
  size_t heads, kv_heads;
  float epsilon;
};

struct AttentionCall {
  Attention how;
  size_t length, dim;     // tokens, and columns of a head
  const float* qkv;       // [length, (heads + 2 kv_heads) * dim]
  const float *cos, *sin; // [length, dim]
  const float *q_norm, *k_norm;  // [dim] or null: no normalisation
  float* y;               // [length, heads * dim]

  size_t stride() const { return (how.heads + 2 * how.kv_heads) * dim; }
};

// Root-mean-square normalisation (if `weight` is given) and rotary embedding of one head's row.
void rotate(const AttentionCall& call, const float* x, const float* weight, size_t token,
            float* __restrict to) {
  const size_t dim = call.dim, half = dim / 2;
  const float* cos = call.cos + token * dim;
  const float* sin = call.sin + token * dim;
  __m512 inverse = _mm512_set1_ps(1.0F);
  if (weight != nullptr) {
    __m512 squares = _mm512_setzero_ps();
    for (size_t i = 0; i < dim; i += LANES) {
      const __m512 v = _mm512_maskz_loadu_ps(first_lanes(dim - i), x + i);
      squares = _mm512_fmadd_ps(v, v, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(dim);
    inverse = _mm512_set1_ps(1.0F / std::sqrt(mean + call.how.epsilon));
  }
  for (size_t i = 0; i < half; i += LANES) {
    const __mmask16 mask = first_lanes(half - i);
    __m512 low = _mm512_maskz_loadu_ps(mask, x + i);
    __m512 high = _mm512_maskz_loadu_ps(mask, x + half + i);
    if (weight != nullptr) {
      low = _mm512_mul_ps(_mm512_mul_ps(low, inverse), _mm512_maskz_loadu_ps(mask, weight + i));
      high = _mm512_mul_ps(_mm512_mul_ps(high, inverse),
                           _mm512_maskz_loadu_ps(mask, weight + half + i));
    }
    const __m512 turned_low = _mm512_fnmadd_ps(
        high, _mm512_maskz_loadu_ps(mask, sin + i),
        _mm512_mul_ps(low, _mm512_maskz_loadu_ps(mask, cos + i)));
    const __m512 turned_high = _mm512_fmadd_ps(
        low, _mm512_maskz_loadu_ps(mask, sin + half + i),
        _mm512_mul_ps(high, _mm512_maskz_loadu_ps(mask, cos + half + i)));
    _mm512_mask_storeu_ps(to + i, mask, turned_low);
    _mm512_mask_storeu_ps(to + half + i, mask, turned_high);
  }
}

// A row of floats as units, in place.
template <class Format>
void to_units(float* row, size_t count) {
  if (Format::PER_UNIT == 1) return;
  for (size_t i = 0; i < count; i += LANES) {
    const __mmask16 mask = first_lanes(count - i);
    const __m512 v = _mm512_maskz_loadu_ps(mask, row + i);
    const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
    _mm256_mask_storeu_epi16(reinterpret_cast<uint16_t*>(row) + i, mask, rounded);
  }
}

// `rows` (at most 16) rotated heads from token `first` on: to[unit * to_stride + row].
template <class Format>
void pack_heads(const AttentionCall& call, const float* x, const float* weight, size_t first,
                size_t rows, uint32_t* to, size_t to_stride) {
  float* rotated = own_scratch.rows.reserve<float>(LANES * call.dim);
  for (size_t r = 0; r < rows; ++r) {
    float* row = rotated + r * call.dim;
    const float* from = x + (first + r) * call.stride();
    rotate(call, from, weight, first + r, row);
    for (size_t i = 0; i < call.dim; i += LANES) __builtin_prefetch(from + call.dim + i);
    to_units<Format>(row, call.dim);
  }
  transpose(reinterpret_cast<const uint32_t*>(rotated), call.dim, rows,
            call.dim / Format::PER_UNIT, to, to_stride);
}

// Values x [length, dim] of the tokens from `first` on as part of the left matrix of (values^T x
// weights): blocks of columns of the head, [block][unit of tokens][columns].
template <class Format>
void pack_values(const AttentionCall& call, const float* x, size_t first, size_t tokens,
                 uint32_t* to) {
  const size_t all = divide_up(call.length, Format::PER_UNIT);
  const size_t blocks = divide_up(call.dim, ROWS);
  for (size_t block = 0; block < blocks; ++block) {
    const Share columns(call.dim, blocks, block);
    const __mmask16 mask = first_lanes(columns.count);
    for (size_t token = first; token < first + tokens; token += Format::PER_UNIT) {
      const float* row = x + token * call.stride() + columns.start;
      const __m512 one = _mm512_maskz_loadu_ps(mask, row);
      const __m512 two = Format::PER_UNIT == 2 && token + 1 < call.length
                             ? _mm512_maskz_loadu_ps(mask, row + call.stride())
                             : _mm512_setzero_ps();
      _mm512_mask_storeu_epi32(
          to + columns.start * all + token / Format::PER_UNIT * columns.count, mask,
          Format::pair(one, two));
    }
  }
}

// One batch item's heads, packed.
template <class Format>
struct Packed {
  size_t units, query_size, key_size, value_size;  // of a head
  uint32_t* queries;  // [heads][block of 32 tokens][units][32]
  uint32_t* keys;     // [kv_heads][block of 12 tokens][units][12]
  uint32_t* values;   // [kv_heads], see pack_values

  explicit Packed(const AttentionCall& call)
      : units(call.dim / Format::PER_UNIT),
        query_size(divide_up(call.length, COLUMNS) * COLUMNS * units),
        key_size(call.length * units),
        value_size(divide_up(call.length, Format::PER_UNIT) * call.dim),
        queries(shared_scratch.queries.reserve<uint32_t>(call.how.heads * query_size)),
        keys(shared_scratch.keys.reserve<uint32_t>(call.how.kv_heads * key_size)),
        values(shared_scratch.values.reserve<uint32_t>(call.how.kv_heads * value_size)) {}

  // All heads of a few tokens at a time: they lie side by side in memory.
  void pack_queries(const AttentionCall& call, size_t first) const {
    const size_t tokens = std::min(COLUMNS, call.length - first);
    for (size_t head = 0; head < call.how.heads; ++head) {
      for (size_t start = 0; start < tokens; start += LANES) {
        pack_heads<Format>(call, call.qkv + head * call.dim, call.q_norm, first + start,
                           std::min(LANES, tokens - start),
                           queries + head * query_size + first * units + start, COLUMNS);
      }
    }
  }

  void pack_keys_and_values(const AttentionCall& call, size_t first) const {
    const size_t tokens = std::min(ROWS, call.length - first);
    for (size_t head = 0; head < call.how.kv_heads; ++head) {
      const float* key = call.qkv + (call.how.heads + head) * call.dim;
      pack_heads<Format>(call, key, call.k_norm, first, tokens,
                         keys + head * key_size + first * units, tokens);
      pack_values<Format>(call, key + call.how.kv_heads * call.dim, first, tokens,
                          values + head * value_size);
    }
  }
};

// Softmax numerators of 32 queries, scores [tokens][32], turned in place into units
// [unit of tokens][32]; returns the inverses of their sums in `inverse`.
template <class Format>
void softmax(float* scores, size_t tokens, float factor, const __m512 (&peaks)[2],
             __m512 (&inverse)[2]) {
  const __m512 scale = _mm512_set1_ps(factor * LOG2_E);
  for (size_t h = 0; h < 2; ++h) {
    float* column = scores + h * LANES;
    __m512 sum = _mm512_setzero_ps();
    uint32_t* to = reinterpret_cast<uint32_t*>(column);
    size_t token = 0;
    for (; token + Format::PER_UNIT <= tokens; token += Format::PER_UNIT, to += COLUMNS) {
      __m512 numerators[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      for (size_t i = 0; i < Format::PER_UNIT; ++i) {
        const __m512 score = _mm512_load_ps(column + (token + i) * COLUMNS);
        numerators[i] = exp2(_mm512_mul_ps(_mm512_sub_ps(score, peaks[h]), scale));
        sum = _mm512_add_ps(sum, numerators[i]);
      }
      _mm512_store_si512(to, Format::pair(numerators[0], numerators[1]));
    }
    if (token < tokens) {
      const __m512 score = _mm512_load_ps(column + token * COLUMNS);
      const __m512 numerator = exp2(_mm512_mul_ps(_mm512_sub_ps(score, peaks[h]), scale));
      sum = _mm512_add_ps(sum, numerator);
      _mm512_store_si512(to, Format::pair(numerator, _mm512_setzero_ps()));
    }
    inverse[h] = _mm512_div_ps(_mm512_set1_ps(1.0F), sum);
  }
}

// Scores of the queries from `first` on (32, packed) for `tokens` keys, [tokens][32], and the
// largest of each query. Keys after a causal query get a score that no softmax sees.
template <class Format>
void score(const AttentionCall& call, const uint32_t* queries, const uint32_t* keys, size_t first,
           size_t tokens, float* scores, __m512 (&peaks)[2]) {
  const size_t units = call.dim / Format::PER_UNIT;
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i here[2] = {
      _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first))),
      _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first + LANES)))};
  peaks[0] = peaks[1] = _mm512_set1_ps(-INFINITY);
  for (size_t key = 0; key < tokens; key += ROWS) {
    const size_t rows = std::min(ROWS, tokens - key);
    float* block = scores + key * COLUMNS;
    multiply<Format>(rows, keys + key * units, queries, units, reinterpret_cast<uint32_t*>(block),
                     false);
    const bool hide = call.how.causal && key + rows > first + 1;
    for (size_t r = 0; r < rows; ++r) {
      for (size_t h = 0; h < 2; ++h) {
        float* at = block + r * COLUMNS + h * LANES;
        __m512 v = _mm512_load_ps(at);
        if (hide) {
          const __mmask16 seen =
              _mm512_cmpge_epi32_mask(here[h], _mm512_set1_epi32(static_cast<int>(key + r)));
          v = _mm512_mask_blend_ps(seen, _mm512_set1_ps(-1e30F), v);
          _mm512_store_ps(at, v);
        }
        peaks[h] = _mm512_max_ps(peaks[h], v);
      }
    }
  }
}

// The outputs of up to 32 queries of one head.
template <class Format>
void attend(const AttentionCall& call, const Packed<Format>& packed, size_t head, size_t first) {
  const size_t dim = call.dim, shared = head / (call.how.heads / call.how.kv_heads);
  const uint32_t* queries = packed.queries + head * packed.query_size + first * packed.units;
  const uint32_t* keys = packed.keys + shared * packed.key_size;
  const uint32_t* values = packed.values + shared * packed.value_size;
  const size_t count = std::min(COLUMNS, call.length - first);
  const size_t all = divide_up(call.length, Format::PER_UNIT);
  // keys are packed in blocks: take whole ones
  const size_t last = call.how.causal ? first + count : call.length;
  const size_t tokens = std::min(divide_up(last, ROWS) * ROWS, call.length);

  float* scores = own_scratch.scores.reserve<float>(call.length * COLUMNS);
  __m512 peaks[2], inverse[2];
  score<Format>(call, queries, keys, first, tokens, scores, peaks);
  softmax<Format>(scores, tokens, 1.0F / std::sqrt(static_cast<float>(dim)), peaks, inverse);

  uint32_t* sums = own_scratch.sums.reserve<uint32_t>(dim * COLUMNS);
  const size_t blocks = divide_up(dim, ROWS);
  for (size_t block = 0; block < blocks; ++block) {
    const Share columns(dim, blocks, block);
    multiply<Format>(columns.count, values + columns.start * all,
                     reinterpret_cast<const uint32_t*>(scores),
                     divide_up(tokens, Format::PER_UNIT), sums + columns.start * COLUMNS, false);
  }
  for (size_t i = 0; i < dim * 2; ++i) {
    float* at = reinterpret_cast<float*>(sums) + i * LANES;
    _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), inverse[i % 2]));
  }
  const size_t width = call.how.heads * dim;
  float* y = call.y + first * width + head * dim;
  for (size_t start = 0; start < count; start += LANES) {
    for (size_t column = 0; column < dim; column += LANES) {
      transpose(sums + column * COLUMNS + start, COLUMNS, std::min(LANES, dim - column),
                std::min(LANES, count - start),
                reinterpret_cast<uint32_t*>(y + start * width + column), width);
    }
  }
}

#pragma GCC pop_options

// ---- nodes

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Call& call) const = 0;
};

// What the kernels read of a node when the session is made.
class Node {
 public:
  Node(const ort::Api& api, const ort::KernelInfo* info) : api_(api), info_(info) {}

  template <class T>
  T attribute(const char* name) const {
    T value{};
    check(api_.attribute(info_, name, &value));
    return value;
  }

  Tensor constant(size_t index) const {
    int is_constant = 0;
    const ort::Value* value = nullptr;
    check(api_.constant_input(info_, index, &is_constant, &value));
    require(is_constant != 0 && value != nullptr,
            "the weight must be a constant: store it as an initializer that is no graph input");
    return tensor(api_, value);
  }

 private:
  const ort::Api& api_;
  const ort::KernelInfo* info_;
};

template <class Format, Activation ACTIVATION>
class Linear final : public Kernel {
  static constexpr bool QUANTIZED = Format::PER_UNIT == 4;
  static constexpr bool GATED = ACTIVATION == Activation::SWIGLU;

 public:
  explicit Linear(const Node& node) {
    const Tensor weight = node.constant(1);
    require(weight.shape.size() == 2 && weight.count() > 0, "the weight must be a matrix [K, N]");
    K_ = static_cast<size_t>(weight.shape[0]);
    N_ = static_cast<size_t>(weight.shape[1]);
    require(!QUANTIZED || K_ <= size_t{1} << 17, "K above 131072: int32 sums could overflow");
    require(!GATED || N_ % 2 == 0, "a gated layer needs as many gate columns as others");
    units_ = divide_up(K_, Format::PER_UNIT);
    width_ = GATED ? N_ / 2 : N_;
    panels_ = divide_up(width_, GATED ? LANES : COLUMNS);
    right_ = packed_.reserve<uint32_t>(panels_ * units_ * COLUMNS);
    if constexpr (QUANTIZED) {
      offsets_ = offset_memory_.reserve<int32_t>(panels_ * COLUMNS);
      std::fill(offsets_, offsets_ + panels_ * COLUMNS, 0);
      pack_right<Format>(reinterpret_cast<const int8_t*>(weight.data), K_, N_, GATED, right_,
                         offsets_);
    } else {
      pack_right<Format>(weight.data, K_, N_, GATED, right_, nullptr);
    }
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    require(!x.shape.empty() && x.last() == K_,
            "the input's last dimension must be the weight's K");
    size_t next = 2;
    Finish out{};
    if (QUANTIZED) out.scale = vector(call, next++, "scale must be [N]");
    out.bias = vector(call, next++, "bias must be [N]");
    std::vector<int64_t> shape = x.shape;
    shape.back() = static_cast<int64_t>(width_);
    if (ACTIVATION == Activation::ADD) {
      const Tensor residual = call.input(next);
      require(residual.shape == shape, "the residual must have the output's shape");
      out.residual = residual.data;
    }
    out.y = call.output(shape);
    out.width = width_;
    out.offsets = offsets_;
    const size_t rows = x.count() / K_;
    const size_t slabs = divide_up(rows, std::max(SLAB / units_, SLAB_ROWS));
    for (size_t i = 0; i < slabs; ++i) {
      const Share slab(rows, slabs, i);
      Finish part = out;
      part.y += slab.start * width_;
      if (part.residual != nullptr) part.residual += slab.start * width_;
      multiply_slab(call, x.data + slab.start * K_, slab.count, part);
    }
  }

 private:
  const float* vector(const Call& call, size_t index, const char* message) const {
    const Tensor v = call.input(index);
    require(v.is({N_}), message);
    return v.data;
  }

  void multiply_slab(const Call& call, const float* x, size_t rows, Finish out) const {
    const size_t blocks = divide_up(rows, ROWS);
    uint32_t* left = shared_scratch.left.reserve<uint32_t>(rows * units_);
    float* scales = shared_scratch.scales.reserve<float>(rows);
    out.row_scales = scales;
    constexpr PackLeft pack = QUANTIZED ? pack_int8 : pack_float32;
    call.parallel(blocks, [&](size_t i) {
      const Share block(rows, blocks, i);
      pack(x + block.start * K_, block.count, K_, left + block.start * units_,
           scales + block.start);
    });
    const size_t groups = divide_up(panels_, PANELS);
    const size_t parts = std::min(divide_up(TASKS, groups), divide_up(blocks, BLOCKS));
    call.parallel(groups * parts, [&](size_t i) {
      multiply_panels(Share(panels_, groups, i / parts), Share(blocks, parts, i % parts), blocks,
                      rows, left, out);
    });
  }

  // The given panels of the right matrix times the given ones of the `blocks` of `rows` rows. Each
  // part of a block serves all panels while it is in the L1 cache.
  void multiply_panels(Share panels, Share part, size_t blocks, size_t rows, const uint32_t* left,
                       const Finish& out) const {
    const size_t steps = divide_up(units_, DEPTH);
    uint32_t* tiles = own_scratch.sums.reserve<uint32_t>(part.count * panels.count * TILE);
    for (size_t step = 0; step < steps; ++step) {
      const Share depth(units_, steps, step);
      uint32_t* tile = tiles;
      for (size_t i = part.start; i < part.start + part.count; ++i) {
        const Share block(rows, blocks, i);
        const uint32_t* slice = left + block.start * units_ + depth.start * block.count;
        for (size_t p = panels.start; p < panels.start + panels.count; ++p, tile += TILE) {
          const bool last = step + 1 == steps;
          if (last) prefetch<ACTIVATION>(out, block.start, block.count, p);
          multiply<Format>(block.count, slice, right_ + (p * units_ + depth.start) * COLUMNS,
                           depth.count, tile, step > 0);
          if (last) finish<QUANTIZED, ACTIVATION>(out, tile, block.start, block.count, p);
        }
      }
    }
  }

  size_t K_ = 0, N_ = 0, units_ = 0, width_ = 0, panels_ = 0;
  Buffer packed_, offset_memory_;
  uint32_t* right_ = nullptr;   // [panels][units][32]
  int32_t* offsets_ = nullptr;  // [panels * 32]
};

bool cpu_has_bfloat16() { return __builtin_cpu_supports("avx512bf16"); }

template <bool DECODER>
class AttentionKernel final : public Kernel {
 public:
  explicit AttentionKernel(const Node& node) {
    how_.causal = DECODER;
    how_.heads = static_cast<size_t>(node.attribute<int64_t>("num_heads"));
    how_.kv_heads =
        DECODER ? static_cast<size_t>(node.attribute<int64_t>("num_kv_heads")) : how_.heads;
    how_.epsilon = DECODER ? node.attribute<float>("epsilon") : 0.0F;
    reduced_ = node.attribute<int64_t>("reduced_precision") != 0 && cpu_has_bfloat16();
    require(how_.heads > 0 && how_.kv_heads > 0 && how_.heads % how_.kv_heads == 0,
            "num_heads must be a multiple of num_kv_heads");
  }

  void compute(const Call& call) const override {
    const Tensor qkv = call.input(0), cos = call.input(1), sin = call.input(2);
    require(qkv.shape.size() == 3, "qkv must be [B, T, columns]");
    const size_t batch = static_cast<size_t>(qkv.shape[0]);
    AttentionCall each{};
    each.how = how_;
    each.length = static_cast<size_t>(qkv.shape[1]);
    const size_t parts = how_.heads + 2 * how_.kv_heads;
    each.dim = qkv.last() / parts;
    require(each.dim > 0 && each.dim * parts == qkv.last() && each.dim % 4 == 0,
            "qkv's columns must be (num_heads + 2 num_kv_heads) * D with D a multiple of 4");
    require(cos.is({each.length, each.dim}) && sin.is({each.length, each.dim}),
            "cos and sin must be [T, D]");
    each.cos = cos.data;
    each.sin = sin.data;
    if (DECODER) {
      const Tensor q_norm = call.input(3), k_norm = call.input(4);
      require(q_norm.is({each.dim}) && k_norm.is({each.dim}), "q_norm and k_norm must be [D]");
      each.q_norm = q_norm.data;
      each.k_norm = k_norm.data;
    }
    const size_t width = how_.heads * each.dim;
    float* y = call.output({qkv.shape[0], qkv.shape[1], static_cast<int64_t>(width)});
    if (each.length == 0) return;
    for (size_t b = 0; b < batch; ++b) {
      each.qkv = qkv.data + b * each.length * qkv.last();
      each.y = y + b * each.length * width;
      reduced_ ? compute_one<BFloat16>(call, each) : compute_one<Float32>(call, each);
    }
  }

 private:
  template <class Format>
  static void compute_one(const Call& call, const AttentionCall& it) {
    const Packed<Format> packed(it);
    const size_t key_blocks = divide_up(it.length, ROWS);
    const size_t query_blocks = divide_up(it.length, COLUMNS);
    call.parallel(key_blocks + query_blocks, [&](size_t i) {
      if (i < query_blocks) {
        packed.pack_queries(it, i * COLUMNS);
      } else {
        packed.pack_keys_and_values(it, (i - query_blocks) * ROWS);
      }
    });
    call.parallel(it.how.heads * query_blocks, [&](size_t i) {
      // the longest causal rows first: no thread is left with one at the end
      const size_t block = query_blocks - 1 - i % query_blocks;
      attend<Format>(it, packed, i / query_blocks, block * COLUMNS);
    });
  }

  Attention how_{};
  bool reduced_ = false;
};

// ---- registration

struct Operator : ort::CustomOp {
  const char* title;
  std::vector<ort::ElementType> inputs;
  Kernel* (*make)(const Node&);
};

const Operator& own(const ort::CustomOp* op) { return *static_cast<const Operator*>(op); }

template <class Action>
ort::Status* guarded(const ort::Api& api, const std::string& where, const Action& action) {
  try {
    action();
    return nullptr;
  } catch (const RuntimeError& error) {
    return error.status;
  } catch (const std::invalid_argument& error) {
    return api.create_status(ort::INVALID_ARGUMENT, (where + ": " + error.what()).c_str());
  } catch (const std::exception& error) {
    return api.create_status(ort::FAIL, (where + ": " + error.what()).c_str());
  }
}

struct Instance {
  const ort::Api& api;
  const Operator& op;
  std::unique_ptr<Kernel> kernel;
};

ort::Status* create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                    void** out) {
  return guarded(*api, own(op).title, [&] {
    std::unique_ptr<Kernel> kernel(own(op).make(Node(*api, info)));
    *out = new Instance{*api, own(op), std::move(kernel)};
  });
}

ort::Status* compute(void* data, ort::KernelContext* context) {
  const Instance& it = *static_cast<Instance*>(data);
  return guarded(it.api, it.op.title, [&] { it.kernel->compute(Call(it.api, context)); });
}

template <class T>
Kernel* make(const Node& node) {
  return new T(node);
}

Operator describe(const char* title, std::vector<ort::ElementType> inputs,
                  Kernel* (*make)(const Node&)) {
  using ort::CustomOp;
  Operator op{};
  op.title = title;
  op.inputs = std::move(inputs);
  op.make = make;
  op.name = [](const CustomOp* it) { return own(it).title; };
  op.execution_provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
  op.input_type = [](const CustomOp* it, size_t i) { return own(it).inputs[i]; };
  op.input_count = [](const CustomOp* it) { return own(it).inputs.size(); };
  op.output_type = [](const CustomOp*, size_t) { return ort::FLOAT; };
  op.output_count = [](const CustomOp*) { return size_t{1}; };
  op.destroy = [](void* data) { delete static_cast<Instance*>(data); };
  op.input_characteristic = [](const CustomOp*, size_t) { return 0; };   // required
  op.output_characteristic = [](const CustomOp*, size_t) { return 0; };  // required
  op.input_memory = [](const CustomOp*, size_t) { return 0; };           // of the CPU
  op.create_kernel_v2 = create;
  op.compute_v2 = compute;
  op.start_version = [](const CustomOp*) { return 1; };
  op.end_version = [](const CustomOp*) { return 1; };
  return op;
}

template <Activation ACTIVATION>
void add_linear(std::vector<Operator>& operators, const char* title, const char* quantized_title) {
  std::vector<ort::ElementType> inputs(ACTIVATION == Activation::ADD ? 4 : 3, ort::FLOAT);
  operators.push_back(describe(title, inputs, make<Linear<Float32, ACTIVATION>>));
  inputs.push_back(ort::FLOAT);
  inputs[1] = ort::INT8;
  operators.push_back(describe(quantized_title, inputs, make<Linear<Int8, ACTIVATION>>));
}

std::vector<Operator> all_operators() {
  std::vector<Operator> operators;
  add_linear<Activation::NONE>(operators, "Linear", "QuantizedLinear");
  add_linear<Activation::GELU>(operators, "LinearGelu", "QuantizedLinearGelu");
  add_linear<Activation::GELU_TANH>(operators, "LinearGeluTanh", "QuantizedLinearGeluTanh");
  add_linear<Activation::SWIGLU>(operators, "LinearSwiGLU", "QuantizedLinearSwiGLU");
  add_linear<Activation::ADD>(operators, "LinearAdd", "QuantizedLinearAdd");
  const std::vector<ort::ElementType> three(3, ort::FLOAT), five(5, ort::FLOAT);
  operators.push_back(describe("VisionAttention", three, make<AttentionKernel<false>>));
  operators.push_back(describe("DecoderAttention", five, make<AttentionKernel<true>>));
  return operators;
}

bool cpu_is_able() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

// The domain, made once: it must outlive every session.
ort::CustomOpDomain* domain(const ort::Api& api) {
  static const std::vector<Operator> operators = all_operators();
  static ort::CustomOpDomain* const made = [&api] {
    ort::CustomOpDomain* result = nullptr;
    check(api.create_domain("vibematch", &result));
    for (const Operator& op : operators) check(api.add_operator(result, &op));
    return result;
  }();
  return made;
}

}  // namespace

// The entry point that ONNX Runtime looks for. Adds nothing on a CPU without the instructions: the
// graph's own function bodies run there.
extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(
    ort::SessionOptions* options, const ort::ApiBase* base) {
  const ort::Api* api = base->get_api(ort::API_VERSION);
  if (api == nullptr) {
    // too old for our version of the interface, but creating a status is as old as the interface
    return base->get_api(1)->create_status(
        ort::NOT_IMPLEMENTED, "the vibematch kernels need ONNX Runtime 1.17 or newer");
  }
  if (!cpu_is_able()) return nullptr;
  return guarded(*api, "vibematch kernels",
                 [&] { check(api->add_domain(options, domain(*api))); });
}
