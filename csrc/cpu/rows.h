// The row pass of one level. The including file names the level in PK_LEVEL and sets its flags.
#pragma once
#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "level.h"
#include "row_pass.h"

namespace PK_LEVEL {
namespace {

#include "vector.h"

// columns that are scaled into a buffer (8 KiB) before they are reduced: the block's maximum is
// known before the first exp
constexpr int64_t kBlock = 2048;

// What one element of storage is, and how a vector of them is read and written.
template <int32_t dtype>
struct Storage;

template <>
struct Storage<PK_F32> {
  using Element = float;
  using Vector = Floats;
  PK_INLINE Vector load(const Element* p) {
    Vector v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  PK_INLINE void store(Element* p, Vector v) { __builtin_memcpy(p, &v, sizeof v); }
};

template <>
struct Storage<PK_BF16> {
  using Element = uint16_t;
  using Vector = Floats;
  PK_INLINE Vector load(const Element* p) {
    Halves h;
    __builtin_memcpy(&h, p, sizeof h);
    return widen_bf16(h);
  }
  PK_INLINE void store(Element* p, Vector v) {
    Halves h = narrow_bf16(v);
    __builtin_memcpy(p, &h, sizeof h);
  }
};

template <>
struct Storage<PK_F16> {
  using Element = uint16_t;
  using Vector = Floats;
  PK_INLINE Vector load(const Element* p) {
    Halves h;
    __builtin_memcpy(&h, p, sizeof h);
    return widen_f16(h);
  }
  PK_INLINE void store(Element* p, Vector v) {
    Halves h = narrow_f16(v);
    __builtin_memcpy(p, &h, sizeof h);
  }
};

template <>
struct Storage<PK_F64> {
  using Element = double;
  using Vector = double;
  PK_INLINE Vector load(const Element* p) { return *p; }
  PK_INLINE void store(Element* p, Vector v) { *p = v; }
};

template <class Vector>
struct Traits;

template <>
struct Traits<Floats> {
  using Scalar = float;
  static constexpr int64_t kWidth = kLanes;
  PK_INLINE Floats all(float x) { return spread(x); }
  PK_INLINE float first(Floats x) { return x[0]; }
  PK_INLINE Floats load(const float* p) { return Storage<PK_F32>::load(p); }
  PK_INLINE void store(float* p, Floats v) { Storage<PK_F32>::store(p, v); }
  PK_INLINE Floats round_bf16(Floats x) { return widen_bf16(narrow_bf16(x)); }
  // `outside` in lanes from `count` on
  PK_INLINE Floats cut(Floats x, int64_t count, float outside) {
    for (int i = 0; i < kLanes; ++i) x[i] = i < count ? x[i] : outside;
    return x;
  }
};

template <>
struct Traits<double> {
  using Scalar = double;
  static constexpr int64_t kWidth = 1;
  PK_INLINE double all(double x) { return x; }
  PK_INLINE double first(double x) { return x; }
  PK_INLINE double load(const double* p) { return *p; }
  PK_INLINE void store(double* p, double v) { *p = v; }
  PK_INLINE double round_bf16(double x) { return widen_bf16(narrow_bf16(spread((float)x)))[0]; }
  PK_INLINE double cut(double x, int64_t, double) { return x; }
};

// Raw logits -> z for the columns of one row. `kGeneral` false: nothing but one factor.
template <int32_t dtype, bool kGeneral>
struct Row {
  using S = Storage<dtype>;
  using V = typename S::Vector;
  using T = Traits<V>;
  using Scalar = typename T::Scalar;

  const typename S::Element* raw;
  int64_t columns;
  const Scalar* bias;
  bool rounds;
  bool capped;
  V factor;    // scale / temperature, or scale / cap
  V stretch;   // cap / temperature

  Row(const PkLogits& in, int64_t row)
      : raw(static_cast<const typename S::Element*>(in.logits) + row * in.row_stride),
        columns(in.num_columns),
        bias(static_cast<const Scalar*>(in.bias)),
        rounds(in.rounds_logits != 0),
        capped(in.softcap > 0) {
    Scalar temperature = in.temperature ? static_cast<const Scalar*>(in.temperature)[row]
                                        : static_cast<Scalar>(in.temperature_all);
    Scalar scale = static_cast<Scalar>(in.scale);
    Scalar cap = static_cast<Scalar>(in.softcap);
    factor = T::all(capped ? scale / cap : scale / temperature);
    stretch = T::all(capped ? cap / temperature : 1);
  }

  // Argument of the cap, or z itself without one.
  PK_INLINE V scaled(const Row& r, V s, V b) {
    if (kGeneral) {
      if (r.bias) s = s + b;
      if (r.rounds) s = T::round_bf16(s);
    }
    return s * r.factor;
  }

  PK_INLINE V curved(const Row& r, V u, V* slope) {
    if (kGeneral && r.capped) {
      V t = tanh_any(u);
      *slope = T::all(1) - t * t;
      return t * r.stretch;
    }
    *slope = T::all(1);
    return u;
  }

  V z(int64_t j, V* slope) const {
    V b = kGeneral && bias ? T::load(bias + j) : T::all(0);
    return curved(*this, scaled(*this, S::load(raw + j), b), slope);
  }

  // The last, incomplete vector; other lanes hold what a 0 would give.
  V z_tail(int64_t j, int64_t count, V* slope) const {
    typename S::Element part[T::kWidth] = {};
    Scalar bias_part[T::kWidth] = {};
    for (int64_t i = 0; i < count; ++i) part[i] = raw[j + i];
    if (kGeneral && bias)
      for (int64_t i = 0; i < count; ++i) bias_part[i] = bias[j + i];
    return curved(*this, scaled(*this, S::load(part), T::load(bias_part)), slope);
  }

  Scalar z_at(int64_t j, V* slope) const { return T::first(z_tail(j, 1, slope)); }
};

template <class Scalar>
struct Sums {
  Scalar maximum, sum_exp, sum_z_exp;

  // Shift to a larger maximum: z' moves by d, so sum (z' + d) E e^d.
  PK_INLINE void raise(Sums& s, Scalar maximum) {
    Scalar d = s.maximum - maximum;
    Scalar e = d == 0 ? Scalar(1) : Scalar(__builtin_exp(d));
    // nothing was there yet
    if (s.sum_exp == 0) d = 0;
    s.sum_z_exp = (s.sum_z_exp + d * s.sum_exp) * e;
    s.sum_exp *= e;
    s.maximum = maximum;
  }
};

template <int32_t dtype, bool kGeneral>
void statistics(const PkLogits& in, const PkStatistics& out, bool accumulate, int64_t begin,
                int64_t end) {
  using R = Row<dtype, kGeneral>;
  using V = typename R::V;
  using T = typename R::T;
  using Scalar = typename R::Scalar;
  constexpr int64_t W = T::kWidth;
  constexpr Scalar kInfinity = __builtin_huge_val();
  Scalar buffer[kBlock];
  auto* maximum = static_cast<Scalar*>(out.maximum);
  auto* sum_exp = static_cast<Scalar*>(out.sum_exp);
  auto* sum_z_exp = static_cast<Scalar*>(out.sum_z_exp);
  auto* target = static_cast<Scalar*>(out.target);
  for (int64_t i = begin; i < end; ++i) {
    int64_t row = out.rows ? out.rows[i] : i;
    R r(in, row);
    V slope;
    Sums<double> total = {-__builtin_huge_val(), 0, 0};
    if (accumulate) total = {maximum[row], sum_exp[row], sum_z_exp[row]};
    for (int64_t start = 0; start < in.num_columns; start += kBlock) {
      int64_t count = in.num_columns - start < kBlock ? in.num_columns - start : kBlock;
      int64_t whole = count / W * W;
      V top[4] = {T::all(-kInfinity), T::all(-kInfinity), T::all(-kInfinity), T::all(-kInfinity)};
      int64_t j = 0;
      for (; j + 4 * W <= whole; j += 4 * W) {
        for (int i = 0; i < 4; ++i) {
          V z = r.z(start + j + i * W, &slope);
          T::store(buffer + j + i * W, z);
          top[i] = larger(z, top[i]);
        }
      }
      for (; j < whole; j += W) {
        V z = r.z(start + j, &slope);
        T::store(buffer + j, z);
        top[0] = larger(z, top[0]);
      }
      if (whole < count) {
        V z = T::cut(r.z_tail(start + whole, count - whole, &slope), count - whole, -kInfinity);
        T::store(buffer + whole, z);
        top[0] = larger(z, top[0]);
      }
      double block = highest(larger(larger(top[0], top[1]), larger(top[2], top[3])));
      if (block > total.maximum) Sums<double>::raise(total, block);
      // -inf so far: any finite shift leaves exp at 0 (and nan at nan)
      V shift = T::all(total.maximum == -__builtin_huge_val() ? Scalar(0) : Scalar(total.maximum));
      V e_sum[2] = {T::all(0), T::all(0)}, ze_sum[2] = {T::all(0), T::all(0)};
      for (j = 0; j < count; j += 2 * W) {
        for (int i = 0; i < 2 && j + i * W < count; ++i) {
          V d = lift(T::load(buffer + j + i * W) - shift);
          V e = exp_lifted(d);
          e_sum[i] += e;
          ze_sum[i] = fused(d, e, ze_sum[i]);
        }
      }
      total.sum_exp += sum(e_sum[0] + e_sum[1]);
      total.sum_z_exp += sum(ze_sum[0] + ze_sum[1]);
    }
    maximum[row] = static_cast<Scalar>(total.maximum);
    sum_exp[row] = static_cast<Scalar>(total.sum_exp);
    sum_z_exp[row] = static_cast<Scalar>(total.sum_z_exp);
    int64_t t = in.targets[row] - in.target_offset;
    if (t >= 0 && t < in.num_columns) target[row] = r.z_at(t, &slope);
  }
}

template <int32_t dtype, bool kGeneral, int32_t out_dtype>
void gradient(const PkLogits& in, const PkGradient& g, int64_t begin, int64_t end) {
  using R = Row<dtype, kGeneral>;
  using O = Storage<out_dtype>;
  using V = typename R::V;
  using T = typename R::T;
  using Scalar = typename R::Scalar;
  constexpr int64_t W = T::kWidth;
  for (int64_t i = begin; i < end; ++i) {
    int64_t row = g.rows ? g.rows[i] : i;
    R r(in, row);
    auto* out = static_cast<typename O::Element*>(g.out) + row * g.out_row_stride;
    V shift = T::all(static_cast<const Scalar*>(g.maximum)[row]);
    V alpha = T::all(static_cast<const Scalar*>(g.alpha)[row]);
    V beta = T::all(g.beta ? static_cast<const Scalar*>(g.beta)[row] : 0);
    auto plain = [&](V z) {
      V d = lift(z - shift);
      return exp_lifted(d) * fused(beta, d, alpha);
    };
    int64_t t = in.targets[row] - in.target_offset;
    bool here = g.gamma && t >= 0 && t < in.num_columns;
    V slope;
    Scalar at_target = 0;
    // before the loop: it overwrites the logits
    if (here) {
      V z = T::all(r.z_at(t, &slope));
      V kept = slope;
      at_target = T::first(plain(z) + T::all(static_cast<const Scalar*>(g.gamma)[row]));
      at_target *= T::first(kept);
    }
    int64_t whole = in.num_columns / W * W;
    int64_t j = 0;
    for (; j + 2 * W <= whole; j += 2 * W) {
      V slopes[2];
      V a = r.z(j, &slopes[0]), b = r.z(j + W, &slopes[1]);
      a = plain(a), b = plain(b);
      if (kGeneral) a *= slopes[0], b *= slopes[1];
      O::store(out + j, a);
      O::store(out + j + W, b);
    }
    for (; j < whole; j += W) {
      V d = plain(r.z(j, &slope));
      O::store(out + j, kGeneral ? d * slope : d);
    }
    if (whole < in.num_columns) {
      int64_t count = in.num_columns - whole;
      typename O::Element part[W];
      V d = plain(r.z_tail(whole, count, &slope));
      O::store(part, kGeneral ? d * slope : d);
      for (int64_t k = 0; k < count; ++k) out[whole + k] = part[k];
    }
    if (here) {
      typename O::Element part[W];
      O::store(part, T::all(at_target));
      out[t] = part[0];
    }
  }
}

void add_bf16(float* total, const uint16_t* part, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes)
    Storage<PK_F32>::store(total + i, Storage<PK_F32>::load(total + i) +
                                          Storage<PK_BF16>::load(part + i));
  for (; i < end; ++i) total[i] += bits<float>(static_cast<uint32_t>(part[i]) << 16);
}

bool is_general(const PkLogits& in) { return in.bias || in.rounds_logits || in.softcap > 0; }

template <int32_t dtype>
void run_statistics(const PkLogits& in, const PkStatistics& out, bool accumulate, int64_t begin,
                    int64_t end) {
  if (is_general(in))
    statistics<dtype, true>(in, out, accumulate, begin, end);
  else
    statistics<dtype, false>(in, out, accumulate, begin, end);
}

template <int32_t dtype, int32_t out_dtype>
void run_gradient(const PkLogits& in, const PkGradient& g, int64_t begin, int64_t end) {
  if (is_general(in))
    gradient<dtype, true, out_dtype>(in, g, begin, end);
  else
    gradient<dtype, false, out_dtype>(in, g, begin, end);
}

}  // namespace

extern const Level level = {
    {run_statistics<PK_F32>, run_statistics<PK_BF16>, run_statistics<PK_F16>,
     run_statistics<PK_F64>},
    {
        {run_gradient<PK_F32, PK_F32>, run_gradient<PK_F32, PK_BF16>,
         run_gradient<PK_F32, PK_F16>, nullptr},
        {nullptr, run_gradient<PK_BF16, PK_BF16>, nullptr, nullptr},
        {nullptr, nullptr, run_gradient<PK_F16, PK_F16>, nullptr},
        {nullptr, nullptr, nullptr, run_gradient<PK_F64, PK_F64>},
    },
    add_bf16,
};

}  // namespace PK_LEVEL
