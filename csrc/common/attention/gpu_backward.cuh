#pragma once

#include "common/attention/gpu_common.cuh"

namespace gtkern::attention::gpu {

// Two passes, each gathering two rows an edge: the destination pass over the rows for everything
// that belongs to a destination or an edge, the source pass over the CSC for the gradients of k and
// v. Between them go O(N H) floats: `stats`. With vectors by edge (Features::kFull) the destination
// pass also leaves two floats for each edge and head, `edge_grads`: the source pass then needs no
// score, and the gradient of edge_attr can be summed over the heads.

template <typename T>
struct DestinationParams {
  Edges edges;
  Work work;
  Terms<T> terms;
  const T* q;
  const T* k;
  const T* v;
  const T* out;
  const T* edge_out;
  const T* grad_out;
  const T* grad_edge_out;    // or null
  const float* grad_scores;  // [E, H], or null
  const float* lse;
  int key_width, value_width;
  bool walk;  // false: only `stats` are wanted
  const float*
      score_delta;       // [N_dst, H]: sum of p grad_scores over each row; null without grad_scores
  float2* stats;         // [N_dst, H]: lse in units of log2 (inf for a row of weight 0), delta
  float2* edge_grads;    // [E, H], or null: gradient of the product, weight of the value
  T* grad_q;             // or null
  T* grad_edge_query;    // or null
  float* grad_key_edge;  // or null
  float* grad_bias_edge;  // or null
  // for each walker (group of lanes), added up by sum_rows_kernel: [W, T, H, D] and [W, T, H],
  // zeroed
  float* part_key_table;
  float* part_bias_table;
  int key_types, bias_types;
  // of heavy pieces: [M, H, D], [M, H, De]
  float* part_q;
  float* part_edge_query;
};

// What score_delta_kernel adds to DestinationParams.
struct ScoreDelta {
  float* rows;    // [N_dst, H]
  float* pieces;  // [M, H]
};

// One team per (item, head): sum of p grad_scores over the item's edges. Each sum is written by one
// team; pieces of heavy rows are added by merge_kernel.
template <typename T, Features FEATURES, int ACCESS, int LANES, int CHUNKS>
__global__ void __launch_bounds__(kThreads, kMinBlocks<FEATURES, 5>)
    score_delta_kernel(const __grid_constant__ DestinationParams<T> p, const ScoreDelta result) {
  static_assert(FEATURES == Features::kFull);
  constexpr int kSize = kPacketSize<T>;
  constexpr int U = edges_in_flight(sizeof(T), FEATURES, CHUNKS, Direction::kBackward);
  using Row = Slice<CHUNKS, kSize>;
  const Seat seat = take_seat<LANES>(p.work);
  const int heads = p.work.heads;
  const Item item = take_item(p.edges, seat.number, seat.exists);
  const int64_t head_row = item.row * heads + seat.head;
  const int edge_width = p.terms.edge_width;
  ScaledByType<ACCESS, CHUNKS, kSize> typed;
  Row query =
      load_slice<T, ACCESS, CHUNKS>(p.q + head_row * p.key_width, seat, p.key_width, item.exists);
  query.scale(p.terms.product_scale);
  typed.set(query);
  Row edge_query = load_slice<T, ACCESS, CHUNKS>(p.terms.edge_query + head_row * edge_width, seat,
                                                 edge_width, item.exists && edge_width > 0);
  edge_query.scale(p.terms.product_scale);
  const float lse = item.exists ? p.lse[head_row] * kLog2E : kInfinity;
  const float log2_lse = lse == -kInfinity ? kInfinity : lse;

  float sum = 0.0f;
  const int steps = count_steps<U>(item, seat);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const Batch<U> batch = load_batch<FEATURES, U>(p.edges, item, seat, step);
    float score[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t other = int64_t{batch.other[u]} * heads + seat.head;
      Row row = load_slice<T, ACCESS, CHUNKS>(p.k + other * p.key_width, seat, p.key_width,
                                              batch.live[u]);
      if (p.terms.key_edge != nullptr) {
        Row factor;
        const int64_t at = (batch.id[u] * heads + seat.head) * p.key_width;
        load_float_slice<ACCESS>(p.terms.key_edge + at, seat, p.key_width, batch.live[u], factor);
        row.multiply(factor);
      }
      if (batch.live[u]) typed.turn_to(batch.type[u], p.terms.key_table, seat, heads, p.key_width);
      const Row attr =
          load_slice<T, ACCESS, CHUNKS>(p.terms.edge_attr + batch.id[u] * edge_width, seat,
                                        edge_width, batch.live[u] && edge_width > 0);
      score[u] = typed.scaled.dot(row) + edge_query.dot(attr);
    }
    group_sum<LANES>(score, seat.lanes);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      bool inside;
      score[u] = finish_score<FEATURES>(p.terms, score[u], heads, seat.head, batch.type[u],
                                        batch.id[u], batch.live[u], inside);
      if (batch.live[u]) {
        sum += exp2f(score[u] - log2_lse) * p.grad_scores[batch.id[u] * heads + seat.head];
      }
    }
  }
#pragma unroll 1
  for (int offset = seat.lanes; offset < p.work.team; offset *= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, offset);
  }
  if (item.exists && seat.slot == 0 && seat.lane == 0) {
    if (item.piece >= 0) {
      result.pieces[item.piece * heads + seat.head] = sum;
    } else {
      result.rows[head_row] = sum;
    }
  }
}

// One team per (run of items, head): recomputes p from lse, and with it the gradients of what
// belongs to the row or to its edges. Each row and each (edge, head) is written by one team, each
// table part by one group of lanes: no atomics; heavy pieces leave sums to merge_kernel.
template <typename T, Features FEATURES, int ACCESS, int LANES, int CHUNKS>
__global__ void __launch_bounds__(kThreads, kMinBlocks<FEATURES, 5>)
    destination_kernel(const __grid_constant__ DestinationParams<T> p) {
  constexpr int kSize = kPacketSize<T>;
  constexpr int U = edges_in_flight(sizeof(T), FEATURES, CHUNKS, Direction::kBackward);
  constexpr bool kTyped = FEATURES != Features::kLean, kFull = FEATURES == Features::kFull;
  using Row = Slice<CHUNKS, kSize>;
  const Seat seat = take_seat<LANES>(p.work);
  const int heads = p.work.heads, edge_width = p.terms.edge_width;
  const int64_t walker = seat.number * seat.slots + seat.slot;
  // only table gradients give a team several items
  const int64_t items_per_team = kTyped ? p.work.items_per_team : 1;
#pragma unroll 1
  for (int64_t turn = 0; turn < items_per_team; ++turn) {
    const int64_t number = seat.number * items_per_team + turn;
    const Item item = take_item(p.edges, number, seat.exists && number < p.work.items);
    const int64_t head_row = item.row * heads + seat.head;

    Row query =
        load_slice<T, ACCESS, CHUNKS>(p.q + head_row * p.key_width, seat, p.key_width, item.exists);
    query.scale(kTyped ? p.terms.product_scale : p.terms.product_scale * kLog2E);
    ScaledByType<ACCESS, CHUNKS, kSize> typed;
    if constexpr (kTyped) typed.set(query);
    const Row grad = load_slice<T, ACCESS, CHUNKS>(p.grad_out + head_row * p.value_width, seat,
                                                   p.value_width, item.exists);
    float delta[1] = {grad.dot(load_slice<T, ACCESS, CHUNKS>(p.out + head_row * p.value_width, seat,
                                                             p.value_width, item.exists))};
    Row edge_query, edge_grad, sum_edge_query;
    if constexpr (kFull) {
      const int64_t at = head_row * edge_width;
      const bool some = item.exists && edge_width > 0;
      const bool some_grad = some && p.grad_edge_out != nullptr;
      edge_query = load_slice<T, ACCESS, CHUNKS>(p.terms.edge_query + at, seat, edge_width, some);
      edge_query.scale(p.terms.product_scale);
      edge_grad = load_slice<T, ACCESS, CHUNKS>(some_grad ? p.grad_edge_out + at : nullptr, seat,
                                                edge_width, some_grad);
      delta[0] += edge_grad.dot(
          load_slice<T, ACCESS, CHUNKS>(p.edge_out + at, seat, edge_width, some_grad));
      sum_edge_query.clear();
    }
    group_sum<LANES>(delta, seat.lanes);
    if constexpr (kFull) {
      if (p.score_delta != nullptr && item.exists) delta[0] += p.score_delta[head_row];
    }
    const float lse = item.exists ? p.lse[head_row] * kLog2E : kInfinity;
    const float log2_lse = lse == -kInfinity ? kInfinity : lse;
    const bool first_piece = item.piece < 0 || (item.exists && item.begin == p.edges.ptr[item.row]);
    if (item.exists && first_piece && seat.slot == 0 && seat.lane == 0) {
      p.stats[head_row] = make_float2(log2_lse, delta[0]);
    }

    // sum: of ds k over the edges of the current type, where types matter, else over all
    Row sum, grad_q;
    sum.clear();
    float sum_bias = 0.0f;
    int sum_type = -1;
    if constexpr (kTyped) grad_q.clear();
    // moves the sums of one type on: to the row's gradient and to this walker's part of the tables
    const auto flush = [&](int type) {
      if (p.terms.key_table != nullptr) {
        Row factor;
        const int64_t at = (int64_t{type} * heads + seat.head) * p.key_width;
        load_float_slice<ACCESS>(p.terms.key_table + at, seat, p.key_width, true, factor);
        grad_q.add_product(factor, sum);
      } else {
        grad_q.add(1.0f, sum);
      }
      if (p.part_key_table != nullptr) {
        Row table;
        const int64_t part = (walker * p.key_types + type) * heads + seat.head;
        float* const row = p.part_key_table + part * p.key_width;
        load_float_slice<ACCESS>(row, seat, p.key_width, true, table);
        table.add_product(typed.plain, sum);
        store_float_slice<ACCESS>(row, seat, p.key_width, table);
      }
      if (p.part_bias_table != nullptr && seat.lane == 0) {
        const int64_t part = (walker * p.bias_types + type) * heads + seat.head;
        p.part_bias_table[part] += sum_bias * p.terms.bias_scale;
      }
      sum.clear();
      sum_bias = 0.0f;
    };

    const int steps = p.walk ? count_steps<U>(item, seat) : 0;
    Batch<U> next = load_batch<FEATURES, U>(p.edges, item, seat, 0);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const Batch<U> batch = next;
      Packed<T, ACCESS, CHUNKS> key[U], value[U], attr[kFull ? U : 1];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int64_t other = int64_t{batch.other[u]} * heads + seat.head;
        key[u].load(p.k + other * p.key_width, seat, p.key_width, batch.live[u]);
        value[u].load(p.v + other * p.value_width, seat, p.value_width, batch.live[u]);
        if constexpr (kFull) {
          attr[u].load(p.terms.edge_attr + batch.id[u] * edge_width, seat, edge_width,
                       batch.live[u] && edge_width > 0);
        }
      }
      next = load_batch<FEATURES, U>(p.edges, item, seat, step + 1);

      float dots[2 * U];  // products, then gradients of the weights
#pragma unroll
      for (int u = 0; u < U; ++u) {
        Row row = key[u].floats();
        if constexpr (kFull) {
          if (p.terms.key_edge != nullptr) {
            Row factor;
            const int64_t at = (batch.id[u] * heads + seat.head) * p.key_width;
            load_float_slice<ACCESS>(p.terms.key_edge + at, seat, p.key_width, batch.live[u],
                                     factor);
            row.multiply(factor);
          }
        }
        if constexpr (kTyped) {
          if (batch.live[u]) {
            typed.turn_to(batch.type[u], p.terms.key_table, seat, heads, p.key_width);
          }
          dots[u] = typed.scaled.dot(row);
        } else {
          dots[u] = query.dot(row);
        }
        dots[U + u] = grad.dot(value[u].floats());
        if constexpr (kFull) {
          const Row attr_row = attr[u].floats();
          dots[u] += edge_query.dot(attr_row);
          dots[U + u] += edge_grad.dot(attr_row);
        }
      }
      group_sum<LANES>(dots, seat.lanes);
      float keep[U];
      if constexpr (kTyped) draw_keeps(p.terms, seat, batch.id[0], batch.id[1], keep);

#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (kTyped && !batch.live[u]) continue;
        bool inside;
        const float score = finish_score<FEATURES>(
            p.terms, dots[u], heads, seat.head, batch.type[u], batch.id[u], batch.live[u], inside);
        const float weight = exp2f(score - log2_lse);
        const int64_t edge_head = batch.id[u] * heads + seat.head;
        float grad_weight = dots[U + u];
        if constexpr (kTyped) grad_weight *= keep[u];
        if constexpr (kFull) {
          if (p.grad_scores != nullptr) grad_weight += __ldg(p.grad_scores + edge_head);
        }
        const float grad_score = inside ? weight * (grad_weight - delta[0]) : 0.0f;
        if constexpr (kTyped) {
          if (batch.type[u] != sum_type) {
            if (sum_type >= 0) flush(sum_type);
            sum_type = batch.type[u];
          }
          sum_bias += grad_score;
          if (p.grad_bias_edge != nullptr && seat.lane == 0) {
            p.grad_bias_edge[edge_head] = grad_score * p.terms.bias_scale;
          }
        }
        Row row = key[u].floats();
        if constexpr (kFull) {
          if (p.edge_grads != nullptr && seat.lane == 0) {
            p.edge_grads[edge_head] =
                make_float2(grad_score * p.terms.product_scale, weight * keep[u]);
          }
          sum_edge_query.add(grad_score, attr[u].floats());
          if (p.terms.key_edge != nullptr) {
            Row factor;
            load_float_slice<ACCESS>(p.terms.key_edge + edge_head * p.key_width, seat, p.key_width,
                                     true, factor);
            if (p.grad_key_edge != nullptr) {
              // the type's multiplier again: typed.scaled may stand at a later edge of the batch
              Row result;
              result.clear();
              result.add(grad_score, row);
              result.multiply(typed.plain);
              if (p.terms.key_table != nullptr) {
                Row multiplier;
                const int64_t at = (int64_t{batch.type[u]} * heads + seat.head) * p.key_width;
                load_float_slice<ACCESS>(p.terms.key_table + at, seat, p.key_width, true,
                                         multiplier);
                result.multiply(multiplier);
              }
              store_float_slice<ACCESS>(p.grad_key_edge + edge_head * p.key_width, seat,
                                        p.key_width, result);
            }
            row.multiply(factor);
          }
        }
        sum.add(grad_score, row);
      }
    }
    if constexpr (kTyped) {
      if (sum_type >= 0) flush(sum_type);
      sum = grad_q;
    }
    sum.merge(seat);
    sum.scale(p.terms.product_scale);
    if constexpr (kFull) {
      sum_edge_query.merge(seat);
      sum_edge_query.scale(p.terms.product_scale);
    }
    if (item.exists && seat.slot == 0) {
      if (item.piece >= 0) {
        const int64_t part = item.piece * heads + seat.head;
        if (p.grad_q != nullptr) {
          store_float_slice<ACCESS>(p.part_q + part * p.key_width, seat, p.key_width, sum);
        }
        if constexpr (kFull) {
          if (p.grad_edge_query != nullptr) {
            store_float_slice<ACCESS>(p.part_edge_query + part * edge_width, seat, edge_width,
                                      sum_edge_query);
          }
        }
      } else {
        if (p.grad_q != nullptr) {
          store_slice<T, ACCESS, CHUNKS>(p.grad_q + head_row * p.key_width, seat, p.key_width, sum);
        }
        if constexpr (kFull) {
          if (p.grad_edge_query != nullptr) {
            store_slice<T, ACCESS, CHUNKS>(p.grad_edge_query + head_row * edge_width, seat,
                                           edge_width, sum_edge_query);
          }
        }
      }
    }
  }
}

template <typename T>
struct SourceParams {
  Edges edges;  // of the CSC: rows are sources, the other end is the destination
  Work work;
  Terms<T> terms;
  const T* q;
  const T* k;
  const T* v;
  const T* grad_out;
  const float2* stats;       // [N_dst, H]
  const float2* edge_grads;  // [E, H]; only with Features::kFull
  int key_width, value_width;
  T* grad_k;  // or null
  T* grad_v;  // or null
  // of heavy pieces: [M, H, D], [M, H, Dv]
  float* part_k;
  float* part_v;
};

// One team per (item of the CSC, head): gathers q and grad_out of the destinations. Each row of
// grad_k and grad_v is written by one team: no atomics; heavy pieces leave sums to merge_kernel.
template <typename T, Features FEATURES, int ACCESS, int LANES, int CHUNKS>
__global__ void __launch_bounds__(kThreads, kMinBlocks<FEATURES, 4>)
    source_kernel(const __grid_constant__ SourceParams<T> p) {
  constexpr int kSize = kPacketSize<T>;
  constexpr int U = edges_in_flight(sizeof(T), FEATURES, CHUNKS, Direction::kBackward);
  constexpr bool kTyped = FEATURES != Features::kLean, kFull = FEATURES == Features::kFull;
  using Row = Slice<CHUNKS, kSize>;
  const Seat seat = take_seat<LANES>(p.work);
  const int heads = p.work.heads;
  const Item item = take_item(p.edges, seat.number, seat.exists);
  const int64_t head_row = item.row * heads + seat.head;

  Row key, value;
  ScaledByType<ACCESS, CHUNKS, kSize> typed;
  if constexpr (!kFull) {
    key =
        load_slice<T, ACCESS, CHUNKS>(p.k + head_row * p.key_width, seat, p.key_width, item.exists);
    value = load_slice<T, ACCESS, CHUNKS>(p.v + head_row * p.value_width, seat, p.value_width,
                                          item.exists);
    key.scale(kTyped ? p.terms.product_scale : p.terms.product_scale * kLog2E);
    if constexpr (kTyped) typed.set(key);
  }

  Row sum, grad_k, grad_v;
  sum.clear();
  grad_v.clear();
  int sum_type = -1;
  if constexpr (kTyped) grad_k.clear();
  const auto flush = [&](int type) {
    if (p.terms.key_table != nullptr) {
      Row factor;
      const int64_t at = (int64_t{type} * heads + seat.head) * p.key_width;
      load_float_slice<ACCESS>(p.terms.key_table + at, seat, p.key_width, true, factor);
      grad_k.add_product(factor, sum);
    } else {
      grad_k.add(1.0f, sum);
    }
    sum.clear();
  };

  const int steps = count_steps<U>(item, seat);
  Batch<U> next = load_batch<FEATURES, U>(p.edges, item, seat, 0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const Batch<U> batch = next;
    Packed<T, ACCESS, CHUNKS> query[U], grad[U];
    float2 stats[U];  // lse and delta; with kFull the edge's two gradients
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t other = int64_t{batch.other[u]} * heads + seat.head;
      query[u].load(p.q + other * p.key_width, seat, p.key_width, batch.live[u]);
      grad[u].load(p.grad_out + other * p.value_width, seat, p.value_width, batch.live[u]);
      stats[u] = make_float2(kInfinity, 0.0f);
      if (batch.live[u]) {
        if constexpr (kFull) {
          stats[u] = __ldg(p.edge_grads + batch.id[u] * heads + seat.head);
        } else {
          stats[u] = __ldg(p.stats + other);
        }
      }
    }
    next = load_batch<FEATURES, U>(p.edges, item, seat, step + 1);

    if constexpr (!kFull) {
      float dots[2 * U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if constexpr (kTyped) {
          if (batch.live[u]) {
            typed.turn_to(batch.type[u], p.terms.key_table, seat, heads, p.key_width);
          }
          dots[u] = typed.scaled.dot(query[u].floats());
        } else {
          dots[u] = key.dot(query[u].floats());
        }
        dots[U + u] = value.dot(grad[u].floats());
      }
      group_sum<LANES>(dots, seat.lanes);
      float keep[U];
      if constexpr (kTyped) draw_keeps(p.terms, seat, batch.id[0], batch.id[1], keep);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        bool inside;
        const float score = finish_score<FEATURES>(
            p.terms, dots[u], heads, seat.head, batch.type[u], batch.id[u], batch.live[u], inside);
        const float weight = batch.live[u] ? exp2f(score - stats[u].x) : 0.0f;
        float grad_weight = dots[U + u], kept = weight;
        if constexpr (kTyped) {
          grad_weight *= keep[u];
          kept *= keep[u];
        }
        stats[u] = make_float2(inside ? weight * (grad_weight - stats[u].y) : 0.0f, kept);
      }
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (kTyped && !batch.live[u]) continue;
      if constexpr (kTyped) {
        if (batch.type[u] != sum_type) {
          if (sum_type >= 0) flush(sum_type);
          sum_type = batch.type[u];
        }
      }
      Row row = query[u].floats();
      if constexpr (kFull) {
        if (p.terms.key_edge != nullptr) {
          Row factor;
          const int64_t at = (batch.id[u] * heads + seat.head) * p.key_width;
          load_float_slice<ACCESS>(p.terms.key_edge + at, seat, p.key_width, true, factor);
          row.multiply(factor);
        }
      }
      sum.add(stats[u].x, row);
      grad_v.add(stats[u].y, grad[u].floats());
    }
  }
  if constexpr (kTyped) {
    if (sum_type >= 0) flush(sum_type);
    sum = grad_k;
  }
  sum.merge(seat);
  grad_v.merge(seat);
  // edge_grads hold the gradient of the product, scale and temperature included
  if constexpr (!kFull) sum.scale(p.terms.product_scale);
  if (item.exists && seat.slot == 0) {
    if (item.piece >= 0) {
      const int64_t part = item.piece * heads + seat.head;
      if (p.grad_k != nullptr) {
        store_float_slice<ACCESS>(p.part_k + part * p.key_width, seat, p.key_width, sum);
      }
      if (p.grad_v != nullptr) {
        store_float_slice<ACCESS>(p.part_v + part * p.value_width, seat, p.value_width, grad_v);
      }
    } else {
      if (p.grad_k != nullptr) {
        store_slice<T, ACCESS, CHUNKS>(p.grad_k + head_row * p.key_width, seat, p.key_width, sum);
      }
      if (p.grad_v != nullptr) {
        store_slice<T, ACCESS, CHUNKS>(p.grad_v + head_row * p.value_width, seat, p.value_width,
                                       grad_v);
      }
    }
  }
}

template <typename T>
struct EdgeAttrParams {
  Edges edges;  // of the CSR
  Work work;    // one team per item: its `heads` is 1
  int heads;
  int edge_width;
  float product_scale;
  const T* edge_query;
  const T* grad_edge_out;    // or null
  const float2* edge_grads;  // [E, H]
  T* grad_edge_attr;         // [E, De]
};

// One team per item, a group for every edge of it, lanes stride over De: sums over the heads. Each
// edge's row is written by one group: no atomics.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    edge_attr_kernel(const __grid_constant__ EdgeAttrParams<T> p) {
  const Seat seat = take_seat<0>(p.work);
  const Item item = take_item(p.edges, seat.number, seat.exists);
  const int64_t width = p.edge_width, row = item.row * p.heads * width;
  for (int64_t at = item.begin + seat.slot; at < item.end; at += seat.slots) {
    if (p.edges.index[at] < 0) continue;
    const int64_t id = p.edges.id != nullptr ? p.edges.id[at] : at;
    for (int64_t c = seat.lane; c < width; c += seat.lanes) {
      float sum = 0.0f;
      for (int head = 0; head < p.heads; ++head) {
        const float2 grads = __ldg(p.edge_grads + id * p.heads + head);
        sum += grads.x * to_float(p.edge_query[row + head * width + c]);
        if (p.grad_edge_out != nullptr) {
          sum += grads.y * to_float(p.grad_edge_out[row + head * width + c]);
        }
      }
      p.grad_edge_attr[id * width + c] = from_float<T>(sum);
    }
  }
}

}  // namespace gtkern::attention::gpu
