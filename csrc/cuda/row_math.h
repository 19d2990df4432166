// The arithmetic of one row: logits out of storage, running sums, and what a row's loss asks for.
#pragma once
#include <math.h>

#include "rows.h"

namespace rows {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
// below any logit, and finite even times a scale: its exponential is 0, and 0 times it is 0
constexpr float kFloor = -1e30f;
// exp2 is 0 from far above here; -inf, which a banned id has, is lifted to it
constexpr float kLowest = -1e4f;

PK_DEVICE float lift(float d) { return chip::larger_or_nan(d, kLowest); }

// Sixteen bytes of storage.
template <int32_t dtype>
struct Vector;

template <>
struct Vector<PKC_F32> {
  using Element = float;
  static constexpr int kItems = 4;
  PK_DEVICE void unpack(uint4 raw, float* v) {
    v[0] = chip::as_float(raw.x), v[1] = chip::as_float(raw.y);
    v[2] = chip::as_float(raw.z), v[3] = chip::as_float(raw.w);
  }
  // `v` holds the items of one vector of the type that was read
  template <int items>
  PK_DEVICE void store(Element* p, const float* v) {
    static_assert(items == 4, "only fp32 becomes fp32");
    chip::store16(p, uint4{chip::as_bits(v[0]), chip::as_bits(v[1]), chip::as_bits(v[2]),
                            chip::as_bits(v[3])});
  }
  PK_DEVICE void store_one(Element* p, float v) { *p = v; }
};

template <>
struct Vector<PKC_BF16> {
  using Element = uint16_t;
  static constexpr int kItems = 8;
  PK_DEVICE void unpack(uint4 raw, float* v) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = chip::as_float(words[i] << 16);
      v[2 * i + 1] = chip::as_float(words[i] & 0xffff0000u);
    }
  }
  template <int items>
  PK_DEVICE void store(Element* p, const float* v) {
    const uint32_t low = chip::pack_bf16(v[0], v[1]), high = chip::pack_bf16(v[2], v[3]);
    if constexpr (items == 8) {
      chip::store16(p, uint4{low, high, chip::pack_bf16(v[4], v[5]), chip::pack_bf16(v[6], v[7])});
    } else {
      chip::store8(p, uint2{low, high});
    }
  }
  PK_DEVICE void store_one(Element* p, float v) { *p = uint16_t(chip::pack_bf16(v, 0.0f)); }
};

// tanh to the last bits of fp32: 1 - e loses digits near 0, where the series is exact.
PK_DEVICE float tanh_of(float x) {
  const float e = chip::exp2(fabsf(x) * (-2.0f * kLog2E));
  const float far = (1.0f - e) / (1.0f + e);
  const float q = x * x;
  float near = fmaf(q, 62.0f / 2835.0f, -17.0f / 315.0f);
  near = fmaf(q, near, 2.0f / 15.0f);
  near = fmaf(q, near, -1.0f / 3.0f);
  return q < 0.0625f ? fmaf(q * x, near, x) : (x < 0.0f ? -far : far);
}

PK_DEVICE float rounded_to_bf16(float x) { return chip::as_float(chip::pack_bf16(0.0f, x)); }

// How a raw logit becomes v, and v becomes z, in one row.
struct Scaling {
  const float* bias;
  float slope;   // z = slope * v before v is negated
  float factor;  // |slope| log2(e)
  float cap_scale;
  bool rounds, flips;

  PK_DEVICE Scaling of(const PkcLogits& in, int64_t row) {
    const float slope = in.scale ? in.scale[row] : in.scale_all;
    const float size = in.flips ? -slope : slope;
    return {in.bias, slope, size * kLog2E, in.cap_scale, in.rounds != 0, in.flips != 0};
  }

  // bias, rounding, a cap and a negative scale are the extras
  template <bool extras>
  PK_MEMBER float value(float raw, int column) const {
    if constexpr (extras) {
      if (bias) raw += bias[column];
      if (rounds) raw = rounded_to_bf16(raw);
      if (cap_scale != 0.0f) raw = tanh_of(raw * cap_scale);
      if (flips) raw = -raw;
    }
    return raw;
  }
};

// Maximum, sum of E and sum of d E of some logits.
struct Sums {
  float m, s, t;
};

constexpr Sums kNothing = {kFloor, 0.0f, 0.0f};

// Take in `count` values.
template <int count>
PK_DEVICE void fold(Sums& sums, const float* v, float factor) {
  float m = sums.m;
#pragma unroll
  for (int i = 0; i < count; ++i) m = fmaxf(m, v[i]);
  const float moved = (sums.m - m) * factor;
  const float shrink = chip::exp2(moved);
  float t = (sums.t + moved * sums.s) * shrink, s = sums.s * shrink;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    // the difference comes first: exact near the maximum, and 0 at it
    const float d = lift((v[i] - m) * factor);
    const float e = chip::exp2(d);
    s += e;
    t = fmaf(d, e, t);
  }
  sums = {m, s, t};
}

PK_DEVICE Sums merge(const Sums& a, const Sums& b, float factor) {
  const float m = fmaxf(a.m, b.m);
  const float moved_a = (a.m - m) * factor, moved_b = (b.m - m) * factor;
  const float shrink_a = chip::exp2(moved_a), shrink_b = chip::exp2(moved_b);
  return {m, a.s * shrink_a + b.s * shrink_b,
          (a.t + moved_a * a.s) * shrink_a + (b.t + moved_b * b.s) * shrink_b};
}

// In every lane the sums of the warp; lane 0's are the same whatever the others round.
PK_DEVICE Sums merge_warp(Sums mine, float factor) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const Sums other = {chip::shuffle_xor(mine.m, mask), chip::shuffle_xor(mine.s, mask),
                        chip::shuffle_xor(mine.t, mask)};
    mine = merge(mine, other, factor);
  }
  return mine;
}

// What a row comes out as.
struct Result {
  float logp, entropy, lse, shift, total;
};

PK_DEVICE Result result_of(const Sums& sums, float target, const Scaling& scaling) {
  const float log_total = log2f(sums.s);
  const float d = (target - sums.m) * scaling.factor;
  return {(d - log_total) * kLn2, (log_total - sums.t / sums.s) * kLn2,
          sums.m * (scaling.factor * kLn2) + log_total * kLn2, sums.m, sums.s};
}

PK_DEVICE void write(const PkcState& state, int64_t row, const Result& r) {
  state.logp[row] = r.logp;
  state.entropy[row] = r.entropy;
  state.lse[row] = r.lse;
  state.shift[row] = r.shift;
  state.total[row] = r.total;
}

// The row's part of a PkcRule, read while the logits are on their way.
struct RuleInputs {
  float g_logp, g_entropy, g_lse, advantage, old_logp, weight, ref_logp, kl_weight;

  PK_DEVICE RuleInputs of(const PkcRule& rule, int64_t row) {
    RuleInputs in = {};
    if (rule.g_logp) in.g_logp = rule.g_logp[row];
    if (rule.g_entropy) in.g_entropy = rule.g_entropy[row];
    if (rule.g_lse) in.g_lse = rule.g_lse[row];
    if (rule.advantages) {
      in.advantage = rule.advantages[row];
      in.weight = rule.weight[row];
      if (rule.old_logps) in.old_logp = rule.old_logps[row];
      if (rule.kl != PKC_KL_NONE) {
        in.ref_logp = rule.ref_logps[row];
        in.kl_weight = rule.kl_weight[row];
      }
    }
    return in;
  }
};

PK_DEVICE float kl_slope(int32_t kl, float distance) {
  if (kl == PKC_KL_K1) return 1.0f;
  if (kl == PKC_KL_ABS) return distance > 0.0f ? 1.0f : (distance < 0.0f ? -1.0f : distance);
  if (kl == PKC_KL_K2) return distance;
  return -expm1f(-distance);
}

// d loss / d logp of the row.
PK_DEVICE float g_logp_of(const PkcRule& rule, const RuleInputs& in, float logp) {
  float g = in.g_logp;
  if (rule.advantages) {
    // a ratio may overflow, and no advantage of 0 makes that 0
    if (in.advantage != 0.0f) {
      const float r = rule.old_logps ? expf(logp - in.old_logp) : 1.0f;
      const float free = r * in.advantage;
      const float clipped = fminf(fmaxf(r, rule.ratio_low), rule.ratio_high) * in.advantage;
      // nan is not stopped
      if (!(free > clipped || r > rule.ratio_cap)) g -= free * in.weight;
    }
    // a token without loss may have a log-prob of -inf, whose slope no weight of 0 makes 0
    if (rule.kl != PKC_KL_NONE && in.kl_weight != 0.0f) {
      g += in.kl_weight * kl_slope(rule.kl, logp - in.ref_logp);
    }
  }
  return g;
}

// The three floats of the gradient, with the scale in them; not `live`: all zero.
struct Coefficients {
  float alpha, beta, gamma, shift;
  int live;

  PK_DEVICE Coefficients of(const PkcRule& rule, const RuleInputs& in, float logp, float entropy,
                            float shift, float total, float slope) {
    const float g_logp = g_logp_of(rule, in, logp);
    const float g_entropy = in.g_entropy, g_lse = in.g_lse;
    float alpha = g_lse - g_logp;
    if (g_entropy != 0.0f) alpha -= g_entropy * (entropy - log2f(total) * kLn2);
    return {alpha * slope / total, -g_entropy * slope * kLn2 / total, g_logp * slope, shift,
            g_logp != 0.0f || g_entropy != 0.0f || g_lse != 0.0f};
  }
};

// v of one vector's items -> d loss / d raw, in place; `at` is the target's place in it.
template <bool extras, int items>
PK_DEVICE void differentiate(float* v, int at, const Coefficients& c, const Scaling& scaling) {
  float slopes[items];
  if constexpr (extras) {
#pragma unroll
    for (int i = 0; i < items; ++i) slopes[i] = (1.0f - v[i] * v[i]) * scaling.cap_scale;
  }
  if (c.beta == 0.0f) {
#pragma unroll
    for (int i = 0; i < items; ++i) v[i] = chip::exp2((v[i] - c.shift) * scaling.factor) * c.alpha;
  } else {
#pragma unroll
    for (int i = 0; i < items; ++i) {
      const float d = lift((v[i] - c.shift) * scaling.factor);
      v[i] = chip::exp2(d) * fmaf(d, c.beta, c.alpha);
    }
  }
  if (unsigned(at) < unsigned(items)) {
#pragma unroll
    for (int i = 0; i < items; ++i) v[i] += i == at ? c.gamma : 0.0f;
  }
  if constexpr (extras) {
    if (scaling.cap_scale != 0.0f) {
#pragma unroll
      for (int i = 0; i < items; ++i) v[i] *= slopes[i];
    }
  }
}

}  // namespace rows
