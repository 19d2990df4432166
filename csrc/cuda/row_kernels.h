// The three row kernels. Memory traffic of a row of V logits (B bytes in, W bytes out each):
//   row_statistics  reads V B                    writes five floats
//   row_gradient    reads V B                    writes V W
//   row_pass        reads V B once, keeps it     writes V W and five floats
//                   in shared memory
// `row_pass` is a cluster of blocks a row. Each block copies its share into shared memory, tile
// after tile, and folds tiles as they arrive; the blocks exchange three floats through distributed
// shared memory; each then writes the gradient of its share from its own copy. A thread reads back
// only what it copied itself, so the tiles need no barrier.
#pragma once
#include "row_math.h"

namespace rows {

constexpr int kThreads = 256;
constexpr int kMaxWarps = 32;
// fp32 shares are twice as large, so fewer blocks fit: twice the threads keep as many warps
template <int32_t dtype>
constexpr int kPassThreads = dtype == PKC_F32 ? 512 : 256;
template <int32_t dtype>
constexpr int kPassBlocks = dtype == PKC_F32 ? 2 : 3;
// vectors a thread holds at a time; 32 bf16 logits or 16 fp32 ones
constexpr int kTile = 4;
constexpr int kGradientTile = 2;

struct alignas(16) Shared {
  float warps[3][kMaxWarps];
  float sums[3];  // what the other blocks of the cluster read
  float target;
  RuleInputs inputs;
  Coefficients coefficients;
};

// v of a vector's items; behind the last column the floor, or, not masked, what nobody may store.
template <int32_t dtype, bool extras, bool masked>
PK_DEVICE void values(uint4 raw, int column, int num_columns, const Scaling& scaling, float* v) {
  constexpr int items = Vector<dtype>::kItems;
  Vector<dtype>::unpack(raw, v);
#pragma unroll
  for (int i = 0; i < items; ++i) {
    if (!masked || column + i < num_columns) {
      v[i] = scaling.template value<extras>(v[i], column + i);
    } else {
      v[i] = kFloor;
    }
  }
}

// The target's v, or nan.
template <int32_t dtype, bool extras>
PK_DEVICE float target_value(const typename Vector<dtype>::Element* row, int64_t target,
                             int num_columns, const Scaling& scaling) {
  if (target < 0 || target >= num_columns) return nanf("");
  uint32_t bits;
  if constexpr (dtype == PKC_BF16) {
    bits = uint32_t(row[target]) << 16;
  } else {
    bits = chip::as_bits(row[target]);
  }
  return scaling.template value<extras>(chip::as_float(bits), int(target));
}

// Sixteen bytes of a row in device memory; zeros behind its end.
template <int32_t dtype>
PK_DEVICE uint4 load_vector(const typename Vector<dtype>::Element* row, int column, int num_columns) {
  constexpr int items = Vector<dtype>::kItems;
  if (column + items <= num_columns) return chip::load16(row + column);
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < items; ++i) {
    if (column + i < num_columns) {
      if constexpr (dtype == PKC_BF16) {
        words[i / 2] |= uint32_t(row[column + i]) << (16 * (i % 2));
      } else {
        words[i] = chip::as_bits(row[column + i]);
      }
    }
  }
  return uint4{words[0], words[1], words[2], words[3]};
}

template <int32_t out_dtype, int items>
PK_DEVICE void store_vector(typename Vector<out_dtype>::Element* out, int column, int num_columns,
                            const float* v) {
  if (column + items <= num_columns) {
    Vector<out_dtype>::template store<items>(out + column, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < items; ++i) {
    if (column + i < num_columns) Vector<out_dtype>::store_one(out + column + i, v[i]);
  }
}

// Zeros in the columns of vectors [first, end) of the read type.
template <int32_t dtype, int32_t out_dtype>
PK_DEVICE void clear(typename Vector<out_dtype>::Element* out, int first, int end, int num_columns) {
  constexpr int items = Vector<dtype>::kItems;
  const float nothing[items] = {};
  for (int i = first + chip::thread(); i < end; i += chip::num_threads()) {
    store_vector<out_dtype, items>(out, i * items, num_columns, nothing);
  }
}

// In thread 0 the sums of the block.
PK_DEVICE Sums merge_block(Sums mine, Shared& shared, float factor) {
  const int lane = chip::thread() % 32, warp = chip::thread() / 32;
  mine = merge_warp(mine, factor);
  if (lane == 0) {
    shared.warps[0][warp] = mine.m, shared.warps[1][warp] = mine.s, shared.warps[2][warp] = mine.t;
  }
  chip::sync_block();
  if (warp == 0) {
    mine = kNothing;
    if (lane * 32 < chip::num_threads()) {
      mine = {shared.warps[0][lane], shared.warps[1][lane], shared.warps[2][lane]};
    }
    mine = merge_warp(mine, factor);
  }
  return mine;
}

template <int32_t dtype, bool extras>
PK_KERNEL(kThreads, 3)
row_statistics(PkcLogits in, PkcState state) {
  using Storage = Vector<dtype>;
  constexpr int items = Storage::kItems;
  Shared& shared = *reinterpret_cast<Shared*>(chip::shared_memory());
  const int64_t row = chip::block();
  if (in.kept && !in.kept[row]) {
    if (chip::thread() == 0) write(state, row, {0.0f, 0.0f, 0.0f, 0.0f, 1.0f});
    return;
  }
  const auto* logits = static_cast<const typename Storage::Element*>(in.logits) + row * in.row_stride;
  const int V = int(in.num_columns), stride = chip::num_threads();
  const Scaling scaling = Scaling::of(in, row);
  Sums sums = kNothing;
  int i = chip::thread();
  for (; (i + (kTile - 1) * stride + 1) * items <= V; i += kTile * stride) {
    uint4 raw[kTile];
    float v[kTile * items];
#pragma unroll
    for (int j = 0; j < kTile; ++j) raw[j] = chip::load16(logits + (i + j * stride) * items);
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      values<dtype, extras, false>(raw[j], (i + j * stride) * items, V, scaling, v + j * items);
    }
    fold<kTile * items>(sums, v, scaling.factor);
  }
  for (; i * items < V; i += stride) {
    float v[items];
    const uint4 raw = load_vector<dtype>(logits, i * items, V);
    values<dtype, extras, true>(raw, i * items, V, scaling, v);
    fold<items>(sums, v, scaling.factor);
  }
  sums = merge_block(sums, shared, scaling.factor);
  if (chip::thread() == 0) {
    const float target = target_value<dtype, extras>(logits, in.targets[row], V, scaling);
    write(state, row, result_of(sums, target, scaling));
  }
}

template <int32_t dtype, int32_t out_dtype, bool extras>
PK_KERNEL(kThreads, 3)
row_gradient(PkcLogits in, PkcState state, PkcRule rule, PkcOut to) {
  using Storage = Vector<dtype>;
  using Out = typename Vector<out_dtype>::Element;
  constexpr int items = Storage::kItems;
  const int64_t out_row = chip::block();
  const int64_t row = to.index ? to.index[out_row] : out_row;
  const auto* logits = static_cast<const typename Storage::Element*>(in.logits) + row * in.row_stride;
  Out* out = static_cast<Out*>(to.out) + out_row * to.row_stride;
  const int V = int(in.num_columns), stride = chip::num_threads();
  const int vectors = (V + items - 1) / items;
  if (in.kept && !in.kept[row]) {
    clear<dtype, out_dtype>(out, 0, vectors, V);
    return;
  }
  const Scaling scaling = Scaling::of(in, row);
  const Coefficients c =
      Coefficients::of(rule, RuleInputs::of(rule, row), state.logp[row], state.entropy[row],
                       state.shift[row], state.total[row], scaling.slope);
  if (!c.live) {
    clear<dtype, out_dtype>(out, 0, vectors, V);
    return;
  }
  const int64_t wanted = in.targets[row];
  const int target = wanted >= 0 && wanted < V ? int(wanted) : -items;
  for (int start = 0; start < vectors; start += kGradientTile * stride) {
    uint4 raw[kGradientTile];
#pragma unroll
    for (int j = 0; j < kGradientTile; ++j) {
      const int i = start + j * stride + chip::thread();
      if (i < vectors) raw[j] = load_vector<dtype>(logits, i * items, V);
    }
    // narrower rows over the logits: a tile lies over the bytes of earlier ones and of itself
    if constexpr (dtype != out_dtype) chip::sync_block();
#pragma unroll
    for (int j = 0; j < kGradientTile; ++j) {
      const int column = (start + j * stride + chip::thread()) * items;
      if (column < V) {
        float v[items];
        values<dtype, extras, extras>(raw[j], column, V, scaling, v);
        differentiate<extras, items>(v, target - column, c, scaling);
        store_vector<out_dtype, items>(out, column, V, v);
      }
    }
  }
}

// Wait for the oldest group while `younger` of this thread's groups are on their way.
PK_DEVICE void wait_for_oldest(int younger) {
  switch (younger) {
    case 0: return chip::wait_copies<0>();
    case 1: return chip::wait_copies<1>();
    case 2: return chip::wait_copies<2>();
    case 3: return chip::wait_copies<3>();
    case 4: return chip::wait_copies<4>();
    case 5: return chip::wait_copies<5>();
    case 6: return chip::wait_copies<6>();
    default: return chip::wait_copies<7>();
  }
}

template <int32_t dtype, int32_t out_dtype, bool extras>
PK_KERNEL(kPassThreads<dtype>, kPassBlocks<dtype>)
row_pass(PkcLogits in, PkcState state, PkcRule rule, PkcOut to) {
  using Storage = Vector<dtype>;
  using Out = typename Vector<out_dtype>::Element;
  constexpr int items = Storage::kItems;
  Shared& shared = *reinterpret_cast<Shared*>(chip::shared_memory());
  auto* share = reinterpret_cast<uint4*>(chip::shared_memory() + sizeof(Shared));
  const int size = chip::cluster_size(), rank = chip::cluster_rank();
  const int64_t row = chip::block() / size;
  const auto* logits = static_cast<const typename Storage::Element*>(in.logits) + row * in.row_stride;
  Out* out = static_cast<Out*>(to.out) + row * to.row_stride;
  const int V = int(in.num_columns), stride = chip::num_threads(), thread = chip::thread();
  const int vectors = (V + items - 1) / items, largest = (vectors + size - 1) / size;
  const int first = chip::least(rank * largest, vectors);
  const int count = chip::least(largest, vectors - first);
  if (in.kept && !in.kept[row]) {
    if (rank == 0 && thread == 0) write(state, row, {0.0f, 0.0f, 0.0f, 0.0f, 1.0f});
    clear<dtype, out_dtype>(out, first, first + count, V);
    return;
  }

  // every copy is on its way before the first wait
  const int tiles = (count + kTile * stride - 1) / (kTile * stride);
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      const int i = (tile * kTile + j) * stride + thread;
      if (i < count) {
        const int column = (first + i) * items;
        const int bytes = chip::least(items, V - column) * int(sizeof(typename Storage::Element));
        chip::copy_async(share + i, logits + column, bytes);
      }
    }
    chip::end_copy_group();
  }
  const Scaling scaling = Scaling::of(in, row);
  const int64_t wanted = in.targets[row];
  if (thread == stride - 1) {
    // before any block of the cluster writes over the logits
    shared.target = target_value<dtype, extras>(logits, wanted, V, scaling);
    shared.inputs = RuleInputs::of(rule, row);
  }

  Sums sums = kNothing;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_oldest(tiles - 1 - tile);
    const int i = tile * kTile * stride + thread;
    if ((first + i + (kTile - 1) * stride + 1) * items <= V && i + (kTile - 1) * stride < count) {
      float v[kTile * items];
#pragma unroll
      for (int j = 0; j < kTile; ++j) {
        values<dtype, extras, false>(share[i + j * stride], (first + i + j * stride) * items, V,
                                     scaling, v + j * items);
      }
      fold<kTile * items>(sums, v, scaling.factor);
    } else {
#pragma unroll 1
      for (int k = i; k < chip::least(count, i + kTile * stride); k += stride) {
        float v[items];
        values<dtype, extras, true>(share[k], (first + k) * items, V, scaling, v);
        fold<items>(sums, v, scaling.factor);
      }
    }
  }
  sums = merge_block(sums, shared, scaling.factor);
  if (thread == 0) shared.sums[0] = sums.m, shared.sums[1] = sums.s, shared.sums[2] = sums.t;
  // from here on every block has read its share: rows may be overwritten
  chip::cluster_arrive();
  chip::cluster_wait();

  if (thread < 32) {
    sums = kNothing;
    if (thread < size) {
      sums = {chip::load_from(&shared.sums[0], thread), chip::load_from(&shared.sums[1], thread),
              chip::load_from(&shared.sums[2], thread)};
    }
    // the same floats in the same order in every block, so the same bits
    sums = merge_warp(sums, scaling.factor);
    if (thread == 0) {
      const Result r = result_of(sums, shared.target, scaling);
      shared.coefficients = Coefficients::of(rule, shared.inputs, r.logp, r.entropy, r.shift,
                                             r.total, scaling.slope);
      if (rank == 0) write(state, row, r);
    }
  }
  chip::sync_block();
  // a block may end only when nobody reads its sums any more
  chip::cluster_arrive();
  const Coefficients c = shared.coefficients;
  if (c.live) {
    const int target = wanted >= 0 && wanted < V ? int(wanted) : -items;
#pragma unroll 2
    for (int i = thread; i < count; i += stride) {
      const int column = (first + i) * items;
      float v[items];
      values<dtype, extras, extras>(share[i], column, V, scaling, v);
      differentiate<extras, items>(v, target - column, c, scaling);
      store_vector<out_dtype, items>(out, column, V, v);
    }
  } else {
    clear<dtype, out_dtype>(out, first, first + count, V);
  }
  chip::cluster_wait();
}

}  // namespace rows
