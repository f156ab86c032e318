// Attention on the CPU. Queries lie along the lanes of vectors, so that maxima and sums over keys are lane by lane: a tile of
// logits is keys, each number spread over a vector, times vectors of queries; its exponentials are at once made operands of the
// second product, and a chunk of keys of them meets the values while it is in cache. No matrix of L x S is ever held.
//
// Softmax usually subtracts the largest logit so that no exponential overflows. |q| |k| bounds a logit, and where that is small
// nothing needs to be subtracted: only for queries where it is not a first pass looks for the largest logit.
#include "cpu.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr double kSafeLogit = 22;  // the largest |logit| that is exponentiated as it is: sums of up to 2^32 v stay finite

// What one thread needs for one block of queries and all keys of its head. E: the operands' elements.
template <class E>
struct Workspace {
  using S = Sum<E>;
  static constexpr int64_t kWidth = kMostVectors * kLanesOf<S>;
  explicit Workspace(const AttentionArgs& a)
      : keys(round_up(a.keys, kTileStep)), k_width(round_up(a.d, kTerms<E>) / kTerms<E>), v_width(round_up(a.d, kTileStep)),
        k(keys * k_width), v(keys / kTerms<E> * v_width), q(k_width * kWidth), p(kChunk * kWidth), mask(kChunk * kWidth),
        out(v_width * kWidth), logsumexp(kWidth) {}
  const int64_t keys, k_width, v_width;
  AlignedScratch<E> k, v, q, p;  // [keys, d], [keys, d], [d, queries], [keys of a chunk, queries]
  AlignedScratch<S> mask, out;   // [keys of a chunk, queries], [d, queries] not yet divided by the sum of p
  AlignedScratch<S> logsumexp;   // and the sums of p below it
  S largest_square = 0;          // of |k|
};

template <class E>
void find_largest_key(Workspace<E>& w, int64_t keys) {
  using S = Sum<E>;
  w.largest_square = 0;
  for (int64_t j = 0; j < keys; ++j) {
    Vec<S> sum{};
    for_vectors<kLanesOf<E>>(w.k_width, [&](int64_t i, int64_t n) {
      Vec<E> v{};
      std::memcpy(&v, w.k.data() + j * w.k_width + i, n * sizeof(E));
      sum = add_square(sum, v);
    });
    const S square = sum_lanes(sum);
    w.largest_square = square <= w.largest_square ? w.largest_square : square;
  }
}

// One block of queries, whose operands are in the workspace: gives out and logsumexp there.
template <class E, int kVectors, Masking kMasking>
class Block {
  using S = Sum<E>;
  using V = Vec<S>;
  static constexpr int kRows = kTileRows<kVectors>, kLanes = kLanesOf<S>;
  static constexpr int64_t kWidth = kVectors * kLanes;
  using Tile = V[kRows][kVectors];

 public:
  Block(const AttentionArgs& a, Workspace<E>& w, int64_t head, int64_t first, int64_t count)
      : a_(a), w_(w), head_(head), first_(first), count_(count),
        scale_(splat<V>(static_cast<S>(a.scale))) {}

  void run() {
    find_shift();
    std::memset(w_.out.data(), 0, w_.v_width * kWidth * sizeof(S));
    FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c) total_[c] = kept_[c] = V{};
    for (int64_t key = 0; key < a_.keys; key += kChunk) {
      const int64_t keys = least(kChunk, a_.keys - key);
      exponentials(key, keys);
      weigh_values(key, keys);
    }
    finish();
  }

 private:
  // f(first key in the chunk, tile of logits less the shift) over one chunk.
  template <class F>
  FASTDIFF_INLINE void for_logits(int64_t key, int64_t keys, F&& f) {
    if constexpr (kMasking != Masking::none) load_mask(a_, head_, first_, count_, key, keys, true, kWidth, w_.mask.data());
    for (int64_t j = 0; j < keys; j += kRows) {
      Tile tile;
      multiply(tile, w_.k.data() + (key + j) * w_.k_width, w_.k_width, 1, w_.q.data(), kWidth, w_.k_width);
      FASTDIFF_UNROLL for (int r = 0; r < kRows; ++r) {
        FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c) {
          const S* mask = w_.mask.data() + (j + r) * kWidth + c * kLanes;
          tile[r][c] = logit<kMasking>(tile[r][c], scale_, mask, shift_[c]);
        }
      }
      if (j + kRows > keys) {
        FASTDIFF_UNROLL for (int r = 0; r < kRows; ++r) {
          FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c)
            if (j + r >= keys) tile[r][c] = splat<V>(-static_cast<S>(__builtin_inf()));
        }
      }
      f(j, tile);
    }
  }

  // Query by query, so that what a query gives does not depend on those beside it.
  void find_shift() {
    V safe[kVectors], square[kVectors] = {};
    for (int64_t i = 0; i < w_.k_width; ++i)
      for (int c = 0; c < kVectors; ++c) square[c] = add_square(square[c], vector_at(w_.q.data() + i * kWidth + c * kLanes));
    bool all_safe = true;
    for (int c = 0; c < kVectors; ++c) {
      const S most = static_cast<S>(kSafeLogit * kSafeLogit);
      safe[c] = square[c] * splat<V>(w_.largest_square) * scale_ * scale_;
      shift_[c] = V{};
      for (int i = 0; i < kLanes; ++i) all_safe &= safe[c][i] <= most;
    }
    if (all_safe && kMasking != Masking::adding) return;
    const V lowest = splat<V>(-static_cast<S>(__builtin_inf()));
    V largest[kVectors];
    for (int c = 0; c < kVectors; ++c) largest[c] = lowest;
    for (int64_t key = 0; key < a_.keys; key += kChunk)
      for_logits(key, least(kChunk, a_.keys - key), [&](int64_t, const Tile& logits) {
        for (int r = 0; r < kRows; ++r)
          for (int c = 0; c < kVectors; ++c) largest[c] = logits[r][c] > largest[c] ? logits[r][c] : largest[c];
      });
    for (int c = 0; c < kVectors; ++c) {
      const V needed = largest[c] == lowest ? V{} : largest[c];  // exp(-inf + inf) would be NaN
      shift_[c] = kMasking != Masking::adding && safe[c] <= static_cast<S>(kSafeLogit * kSafeLogit) ? V{} : needed;
    }
  }

  void exponentials(int64_t key, int64_t keys) {
    V total[kVectors] = {}, kept[kVectors] = {};  // of this chunk
    for_logits(key, keys, [&](int64_t j, Tile& p) FASTDIFF_INLINE_LAMBDA {
      FASTDIFF_UNROLL for (int r = 0; r < kRows; ++r) {
        FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c) {
          p[r][c] = exponential(p[r][c]);
        }
      }
      FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c) {
        V sum = p[0][c] + p[1][c];
        FASTDIFF_UNROLL for (int r = 2; r < kRows; r += 2) sum += p[r][c] + p[r + 1][c];
        total[c] += sum;
        E* to = w_.p.data() + j / kTerms<E> * kWidth + c * kLanes;
        FASTDIFF_UNROLL for (int r = 0; r < kRows; r += kTerms<E>) {
          const Vec<E> operand = as_operand<E>(&p[r][c], kVectors);
          put_vector(to + r / kTerms<E> * kWidth, operand);
          if constexpr (kTerms<E> > 1) kept[c] = add_terms(kept[c], operand);
        }
      }
    });
    for (int c = 0; c < kVectors; ++c) total_[c] += total[c], kept_[c] += kTerms<E> > 1 ? kept[c] : total[c];
  }

  void weigh_values(int64_t key, int64_t keys) {
    const int64_t steps = round_up(keys, kRows) / kTerms<E>;
    for (int64_t i = 0; i < w_.v_width; i += kRows) {
      Tile tile;
      multiply(tile, w_.v.data() + key / kTerms<E> * w_.v_width + i, 1, w_.v_width, w_.p.data(), kWidth, steps);
      FASTDIFF_UNROLL for (int r = 0; r < kRows; ++r) {
        FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c) {
          S* at = w_.out.data() + (i + r) * kWidth + c * kLanes;
          put_vector(at, vector_at(at) + tile[r][c]);
        }
      }
    }
  }

  // What is divided by are the p that were multiplied, so that their rounding does not show where values are alike.
  void finish() {
    for (int c = 0; c < kVectors; ++c) {
      const V inverse = 1 / (kept_[c] == 0 ? V{} + 1 : kept_[c]);
      for (int64_t i = 0; i < a_.d; ++i) {
        S* at = w_.out.data() + i * kWidth + c * kLanes;
        put_vector(at, vector_at(at) * inverse);
      }
      put_vector(w_.logsumexp.data() + c * kLanes, shift_[c] + natural_logarithm(total_[c]));
    }
  }

  static V natural_logarithm(V v) {
    return map_lanes(v, [](S s) {
      if constexpr (sizeof(S) == 4) return __builtin_logf(s);
      else return __builtin_log(s);
    });
  }

  const AttentionArgs& a_;
  Workspace<E>& w_;
  const int64_t head_, first_, count_;
  const V scale_;
  V shift_[kVectors], total_[kVectors], kept_[kVectors];  // kept: the sum of p as operands
};

template <class T>
void attend(const AttentionArgs& a, int64_t begin, int64_t end) {
  using S = Compute<T>;
  using E = OperandElement<T>;
  Workspace<E> w(a);
  const int64_t blocks = attention_blocks(a.queries);
  const auto rows = [&](const Sequence& s, int64_t head) { return rows_of<T>(s, a.heads, head); };
  int64_t loaded = -1;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t head = block / blocks;
    if (head != loaded) {
      pack_rows(rows(a.k, head), a.k.stride_row, a.keys, w.keys, a.d, w.k.data());
      pack_row_terms(rows(a.v, head), a.v.stride_row, a.keys, w.keys, a.d, w.v_width, w.v.data());
      find_largest_key(w, a.keys);
      loaded = head;
    }
    const auto [first, last] = attention_block(a.queries, block % blocks);
    for (int64_t at = first; at < last; at += Workspace<E>::kWidth) {
      const int64_t count = least(last - at, Workspace<E>::kWidth), vectors = round_up(count, kLanesOf<S>) / kLanesOf<S>;
      const int64_t width = vectors * kLanesOf<S>, row = head * a.queries + at;
      pack_columns(rows(a.q, head) + at * a.q.stride_row, a.q.stride_row, count, a.d, width, w.q.data());
      prefetch_rows(rows(a.q, head) + (at + count) * a.q.stride_row, a.q.stride_row, least(a.queries - at - count, count), a.d);
      with_masking(a.mask, [&]<Masking kMasking>() {
        with_vectors(vectors, [&]<int kVectors>() { Block<E, kVectors, kMasking>(a, w, head, at, count).run(); });
      });
      unpack_columns(w.out.data(), count, a.d, width, static_cast<T*>(a.out) + row * a.d, a.d);
      std::memcpy(static_cast<S*>(a.logsumexp) + row, w.logsumexp.data(), count * sizeof(S));
    }
  }
}

}  // namespace

void attention_kernel(const AttentionArgs& a, int64_t begin, int64_t end) {
  with_operands(a.dtype, [&]<class T>() { attend<T>(a, begin, end); });
}

}  // namespace fastdiff::FASTDIFF_ISA
