// Attention's backward on the CPU, in two passes that each compute p again, so that every gradient has one writer: one has
// queries along lanes and gives dq, one has keys along lanes and gives dk and dv. In both a tile is what lies along rows, each
// number spread over a vector, times vectors of what lies along lanes, as in forward.
#include "cpu.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

// Operands for one thread. "rows" are all keys of a head and "lanes" a block of its queries, or the other way about.
template <class E>
struct BackwardWorkspace {
  using S = Sum<E>;
  static constexpr int64_t kWidth = kMostVectors * kLanesOf<S>;
  BackwardWorkspace(int64_t rows, int64_t d, bool by_queries)
      : padded(round_up(rows, kTileStep)), k_width(round_up(d, kTerms<E>) / kTerms<E>), v_width(round_up(d, kTileStep)),
        qk(padded * k_width), gv(padded * k_width), qk_terms(padded / kTerms<E> * v_width),
        grad_terms(padded / kTerms<E> * v_width), qk_columns(k_width * kWidth), gv_columns(k_width * kWidth),
        p(kChunk * kWidth), ds(kChunk * kWidth), all_p(by_queries ? padded * kWidth : 0),
        all_dp(by_queries ? padded * kWidth : 0), mask(kChunk * kWidth), sums(v_width * kWidth), p_sums(v_width * kWidth),
        logsumexp(padded > kWidth ? padded : kWidth), delta(padded > kWidth ? padded : kWidth) {}
  const int64_t padded, k_width, v_width;
  AlignedScratch<E> qk, gv, qk_terms, grad_terms;  // k and v, or q and grad: [rows, d]
  AlignedScratch<E> qk_columns, gv_columns;        // q and grad, or k and v: [d, lanes]
  AlignedScratch<E> p, ds;                         // [rows of a chunk, lanes]
  AlignedScratch<S> all_p, all_dp;                 // [rows, lanes], where sum p dp has to be known before ds
  AlignedScratch<S> mask, sums, p_sums;            // [rows of a chunk, lanes]; gradients [d, lanes]
  AlignedScratch<S> logsumexp, delta;              // of the queries
};

template <class E, int kVectors, Masking kMasking, bool kByQueries>
class BackwardBlock {
  using S = Sum<E>;
  using V = Vec<S>;
  static constexpr int kRows = kTileRows<kVectors>, kLanes = kLanesOf<S>;
  static constexpr int64_t kWidth = kVectors * kLanes;
  using Tile = V[kRows][kVectors];

 public:
  BackwardBlock(const AttentionArgs& a, BackwardWorkspace<E>& w, int64_t head, int64_t first, int64_t count)
      : a_(a), w_(w), head_(head), first_(first), count_(count), scale_(splat<V>(static_cast<S>(a.scale))) {}

  void run() {
    std::memset(w_.sums.data(), 0, w_.v_width * kWidth * sizeof(S));
    if constexpr (kByQueries) find_delta();
    else std::memset(w_.p_sums.data(), 0, w_.v_width * kWidth * sizeof(S));
    const int64_t all = kByQueries ? a_.keys : a_.queries;
    for (int64_t row = 0; row < all; row += kChunk) {
      const int64_t rows = least(kChunk, all - row);
      if constexpr (!kByQueries) load_chunk_mask(row, rows);
      for (int64_t j = 0; j < rows; j += kRows) {
        Tile p, dp;
        if constexpr (kByQueries) {
          for_tile([&](int r, int c) FASTDIFF_INLINE_LAMBDA {
            const int64_t at = (row + j + r) * kWidth + c * kLanes;
            p[r][c] = vector_at(w_.all_p.data() + at), dp[r][c] = vector_at(w_.all_dp.data() + at);
          });
        } else probabilities(row, j, rows, p, dp);
        store_operands(row, j, p, dp);
      }
      const int64_t steps = round_up(rows, kRows) / kTerms<E>, terms = row / kTerms<E> * w_.v_width;
      add_products(w_.qk_terms.data() + terms, w_.ds.data(), steps, w_.sums.data());
      if constexpr (!kByQueries) add_products(w_.grad_terms.data() + terms, w_.p.data(), steps, w_.p_sums.data());
    }
    S* const end = w_.sums.data() + w_.v_width * kWidth;
    for (S* at = w_.sums.data(); at < end; at += kLanes) put_vector(at, vector_at(at) * scale_);
  }

 private:
  // f(r, c) for each vector of a tile
  template <class F>
  static FASTDIFF_INLINE void for_tile(F&& f) {
    FASTDIFF_UNROLL for (int r = 0; r < kRows; ++r) {
      FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c) f(r, c);
    }
  }

  void load_chunk_mask(int64_t row, int64_t rows) {
    if constexpr (kMasking == Masking::none) return;
    else if constexpr (kByQueries) load_mask(a_, head_, first_, count_, row, rows, true, kWidth, w_.mask.data());
    else load_mask(a_, head_, row, rows, first_, count_, false, kWidth, w_.mask.data());
  }

  // Rows [j, j + kRows) of a chunk that begins at `row`; zeros past its end.
  FASTDIFF_INLINE void probabilities(int64_t row, int64_t j, int64_t rows, Tile& p, Tile& dp) {
    multiply(p, w_.qk.data() + (row + j) * w_.k_width, w_.k_width, 1, w_.qk_columns.data(), kWidth, w_.k_width);
    multiply(dp, w_.gv.data() + (row + j) * w_.k_width, w_.k_width, 1, w_.gv_columns.data(), kWidth, w_.k_width);
    for_tile([&](int r, int c) FASTDIFF_INLINE_LAMBDA {
      const S* mask = w_.mask.data() + (j + r) * kWidth + c * kLanes;
      p[r][c] = exponential(logit<kMasking>(p[r][c], scale_, mask, of_query(w_.logsumexp.data(), row + j + r, c)));
    });
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; j + r >= rows && c < kVectors; ++c) p[r][c] = dp[r][c] = V{};
  }

  // p and dp of all keys, and delta: sum p dp over the sum of p, 1 but for logsumexp's rounding, so that this does not stand
  // out where dp - delta cancels. grad out would be delta too, but for the rounding of out.
  void find_delta() {
    V total[kVectors] = {}, delta[kVectors] = {};
    for (int64_t row = 0; row < a_.keys; row += kChunk) {
      const int64_t rows = least(kChunk, a_.keys - row);
      V chunk_total[kVectors] = {}, chunk_delta[kVectors] = {};
      load_chunk_mask(row, rows);
      for (int64_t j = 0; j < rows; j += kRows) {
        Tile p, dp;
        probabilities(row, j, rows, p, dp);
        for_tile([&](int r, int c) FASTDIFF_INLINE_LAMBDA {
          const int64_t at = (row + j + r) * kWidth + c * kLanes;
          put_vector(w_.all_p.data() + at, p[r][c]), put_vector(w_.all_dp.data() + at, dp[r][c]);
          chunk_total[c] += p[r][c], chunk_delta[c] = madd(p[r][c], dp[r][c], chunk_delta[c]);
        });
      }
      for (int c = 0; c < kVectors; ++c) total[c] += chunk_total[c], delta[c] += chunk_delta[c];
    }
    for (int c = 0; c < kVectors; ++c)
      put_vector(w_.delta.data() + c * kLanes, delta[c] / (total[c] == 0 ? V{} + 1 : total[c]));
  }

  // p as an operand where dv needs it, and ds = p (dp - delta)
  FASTDIFF_INLINE void store_operands(int64_t row, int64_t j, const Tile& p, Tile& ds) {
    for_tile([&](int r, int c) FASTDIFF_INLINE_LAMBDA {
      ds[r][c] = p[r][c] * (ds[r][c] - of_query(w_.delta.data(), row + j + r, c));
    });
    FASTDIFF_UNROLL for (int r = 0; r < kRows; r += kTerms<E>) {
      FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c) {
        const int64_t at = (j + r) / kTerms<E> * kWidth + c * kLanes;
        put_vector(w_.ds.data() + at, as_operand<E>(&ds[r][c], kVectors));
        if constexpr (!kByQueries) put_vector(w_.p.data() + at, as_operand<E>(&p[r][c], kVectors));
      }
    }
  }

  static FASTDIFF_INLINE V of_query(const S* values, [[maybe_unused]] int64_t row, [[maybe_unused]] int c) {
    if constexpr (kByQueries) return vector_at(values + c * kLanes);
    else return splat<V>(values[row]);
  }

  void add_products(const E* terms, const E* weights, int64_t steps, S* sums) {
    for (int64_t i = 0; i < w_.v_width; i += kRows) {
      Tile tile;
      multiply(tile, terms + i, 1, w_.v_width, weights, kWidth, steps);
      FASTDIFF_UNROLL for (int r = 0; r < kRows; ++r) {
        FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c) {
          S* at = sums + (i + r) * kWidth + c * kLanes;
          put_vector(at, vector_at(at) + tile[r][c]);
        }
      }
    }
  }

  const AttentionArgs& a_;
  BackwardWorkspace<E>& w_;
  const int64_t head_, first_, count_;
  const V scale_;
};

// logsumexp of `count` queries, zeros up to `padded`; 0 where it is -inf: exp(-inf + inf) would be NaN.
template <class S>
void load_logsumexp(const AttentionArgs& a, int64_t first, int64_t count, int64_t padded, S* logsumexp) {
  for (int64_t l = 0; l < padded; ++l) {
    const S value = l < count ? static_cast<const S*>(a.logsumexp)[first + l] : S{0};
    logsumexp[l] = value == -static_cast<S>(__builtin_inf()) ? S{0} : value;
  }
}

// One pass over blocks [begin, end): of queries for dq, of keys for dk and dv.
template <class T, bool kByQueries>
void backward_pass(const AttentionBackwardArgs& b, int64_t begin, int64_t end) {
  using S = Compute<T>;
  using E = OperandElement<T>;
  const AttentionArgs& a = b.forward;
  const int64_t rows = kByQueries ? a.keys : a.queries, lanes = kByQueries ? a.queries : a.keys;
  const Sequence &row_qk = kByQueries ? a.k : a.q, &row_gv = kByQueries ? a.v : b.grad;
  const Sequence &lane_qk = kByQueries ? a.q : a.k, &lane_gv = kByQueries ? b.grad : a.v;
  BackwardWorkspace<E> w(rows, a.d, kByQueries);
  const int64_t blocks = attention_blocks(lanes);
  int64_t loaded = -1;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t head = block / blocks;
    const auto of = [&](const Sequence& s) { return rows_of<T>(s, a.heads, head); };
    if (head != loaded) {
      pack_rows(of(row_qk), row_qk.stride_row, rows, w.padded, a.d, w.qk.data());
      pack_rows(of(row_gv), row_gv.stride_row, rows, w.padded, a.d, w.gv.data());
      pack_row_terms(of(row_qk), row_qk.stride_row, rows, w.padded, a.d, w.v_width, w.qk_terms.data());
      if constexpr (!kByQueries) {
        pack_row_terms(of(row_gv), row_gv.stride_row, rows, w.padded, a.d, w.v_width, w.grad_terms.data());
        load_logsumexp(a, head * rows, rows, w.padded, w.logsumexp.data());
        std::memset(w.delta.data() + rows, 0, (w.padded - rows) * sizeof(S));
        std::memcpy(w.delta.data(), static_cast<const S*>(b.delta) + head * rows, rows * sizeof(S));
      }
      loaded = head;
    }
    const auto [first, last] = attention_block(lanes, block % blocks);
    for (int64_t at = first; at < last; at += w.kWidth) {
      const int64_t count = least(last - at, w.kWidth), vectors = round_up(count, kLanesOf<S>) / kLanesOf<S>;
      const int64_t width = vectors * kLanesOf<S>, row = head * lanes + at;
      if constexpr (kByQueries) load_logsumexp(a, row, count, width, w.logsumexp.data());
      pack_columns(of(lane_qk) + at * lane_qk.stride_row, lane_qk.stride_row, count, a.d, width, w.qk_columns.data());
      pack_columns(of(lane_gv) + at * lane_gv.stride_row, lane_gv.stride_row, count, a.d, width, w.gv_columns.data());
      with_masking(a.mask, [&]<Masking kMasking>() {
        with_vectors(vectors, [&]<int kVectors>() {
          BackwardBlock<E, kVectors, kMasking, kByQueries>(a, w, head, at, count).run();
        });
      });
      unpack_columns(w.sums.data(), count, a.d, width, static_cast<T*>(kByQueries ? b.dq : b.dk) + row * a.d, a.d);
      if constexpr (kByQueries) std::memcpy(static_cast<S*>(b.delta) + row, w.delta.data(), count * sizeof(S));
      else unpack_columns(w.p_sums.data(), count, a.d, width, static_cast<T*>(b.dv) + row * a.d, a.d);
    }
  }
}

}  // namespace

void attention_dq_kernel(const AttentionBackwardArgs& b, int64_t begin, int64_t end) {
  with_operands(b.forward.dtype, [&]<class T>() { backward_pass<T, true>(b, begin, end); });
}

void attention_dkdv_kernel(const AttentionBackwardArgs& b, int64_t begin, int64_t end) {
  with_operands(b.forward.dtype, [&]<class T>() { backward_pass<T, false>(b, begin, end); });
}

}  // namespace fastdiff::FASTDIFF_ISA
