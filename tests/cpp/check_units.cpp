// The small parts: how work is cut, number formats, and the vector operations, which the results of
// whole kernels test too little.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "cpu/isa/convert.h"
#include "cpu/splits.h"
#include "cpu/tile_cache.h"

namespace lookaheadkv::cpu {

void check_splits() {
  for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{96}, int64_t{5000}, int64_t{1} << 20}) {
    for (int64_t units : {0, 1, 8, 300}) {
      const int64_t chunk = keys_per_chunk(n, units, kWantedTasks);
      check(chunk > 0 && chunk % kKeyTile == 0, "a chunk is whole tiles");
      check(num_chunks(n, chunk) * chunk >= n, "chunks cover the prompt");
      check(units * num_chunks(n, chunk) <= kWantedTasks + units, "not more tasks than wanted");
    }
  }
  check(grain(1) == 64 * 1024 && grain(int64_t{1} << 40) == 1, "grain");
  check(queries_per_block(4, 32, 256) == 32 && queries_per_block(300, 32, 256) == 1 &&
            queries_per_block(1, 5000, 256) == 256,
        "queries per block");
}

void check_tile_rounds() {
  constexpr int64_t kRows = 128;
  for (const int64_t heads : {0, 1, 8, 64, 256}) {
    for (const int64_t n : {0, 100, 4096, 32768, 131072}) {
      for (const int64_t element_size : {2, 4}) {
        for (const int64_t wanted : {kWantedTasks, kWantedOutputTasks}) {
          for (const int64_t bytes : {int64_t{0}, int64_t{1} << 20, kTileCacheBytes}) {
            const TileRounds rounds = tile_rounds(heads, n, kRows, element_size, wanted, bytes);
            const std::string name =
                "tile rounds heads=" + std::to_string(heads) + " N=" + std::to_string(n) +
                " element_size=" + std::to_string(element_size) +
                " wanted=" + std::to_string(wanted) + " bytes=" + std::to_string(bytes) + ": ";
            const int64_t round = rounds.heads_per_round;
            check(round >= 1 && round <= std::max<int64_t>(1, heads), name + "heads per round");
            check(rounds.chunk > 0 && rounds.chunk % kKeyTile == 0 &&
                      rounds.chunks * rounds.chunk >= n && (rounds.chunks - 1) * rounds.chunk <= n,
                  name + "chunks cover the prompt");
            check(rounds.cached_chunks >= 0 && rounds.cached_chunks <= rounds.chunks,
                  name + "cached chunks");
            // Maxima in fp32, then the probabilities; written out: tile_bytes() is under test.
            const int64_t tile = kRows * 4 + kRows * kKeyTile * element_size;
            check(round * rounds.cached_chunks * (rounds.chunk / kKeyTile) * tile <= bytes,
                  name + "stays within the bytes");
            // A round must not leave most threads idle, with the cache that is in use.
            if (n >= 4096 && bytes == kTileCacheBytes) {
              check(round == heads || round * rounds.chunks >= 32 || heads == 0,
                    name + "enough tasks per round");
            }
            // Everything that fits is kept.
            const int64_t all =
                std::max<int64_t>(1, heads) * rounds.chunks * (rounds.chunk / kKeyTile) * tile;
            if (all <= bytes) check(rounds.cached_chunks == rounds.chunks, name + "uses the bytes");
          }
        }
      }
    }
  }
}

namespace {

// All 2^16 halves: to float, back, and the rounding of what lies between two neighbours.
void check_half(DType dtype, float (*widen)(uint16_t), uint16_t (*narrow)(float), uint16_t infinity,
                const std::string& name) {
  bool exact = true, back = true, rounds = true;
  for (uint32_t value = 0; value < 0x10000; ++value) {
    const uint16_t half = static_cast<uint16_t>(value);
    char bytes[2];
    std::memcpy(bytes, &half, 2);
    const double expected = decode(bytes, dtype);
    const float wide = widen(half);
    exact = exact && (std::isnan(expected) ? std::isnan(wide) : wide == expected);
    if (std::isnan(expected)) {
      back = back && std::isnan(widen(narrow(wide)));
      continue;
    }
    back = back && narrow(wide) == half;
    if ((half & 0x7fff) >= infinity - 1) continue;  // the next one is not finite
    const uint16_t next = static_cast<uint16_t>(half + 1);
    // Exact, with one more bit of mantissa; in double the sum cannot overflow.
    const float middle = static_cast<float>((static_cast<double>(wide) + widen(next)) / 2);
    rounds = rounds && narrow(middle) == (half % 2 == 0 ? half : next) &&
             narrow(std::nextafter(middle, wide)) == half &&
             narrow(std::nextafter(middle, widen(next))) == next;
  }
  check(exact, name + " to float");
  check(back, name + " survives a round trip");
  check(rounds, name + " rounds to nearest, ties to even");
}

// y = exp2(x), through the weights of cached tiles.
void check_exp2(const Isa& isa) {
  constexpr int kCount = 64;
  const std::vector<float> zero(kCount, 0.0f);
  std::vector<float> x(kCount), y(kCount);
  double worst = 0;
  for (float base = -125.0f; base < 127.0f; base += 0.37f) {
    for (int i = 0; i < kCount; ++i) x[i] = base + static_cast<float>(i) * 0.0057f;
    isa.vector.row_weights(x.data(), zero.data(), kCount, y.data());
    for (int i = 0; i < kCount; ++i) {
      const double exact = std::exp2(static_cast<double>(x[i]));
      worst = std::max(worst, std::abs(y[i] - exact) / exact);
    }
  }
  check(worst < 2.5e-7,
        std::string(isa.name) + " exp2 error " + std::to_string(worst * 1e7) + "e-7");

  const std::vector<float> edges = {0, -1000, -INFINITY, NAN, 1, -1, 127, -126,
                                    0, 0,     0,         0,   0, 0,  0,   0};
  isa.vector.row_weights(edges.data(), zero.data(), 16, y.data());
  check(y[0] == 1 && y[1] == 0 && y[2] == 0 && std::isnan(y[3]) && y[4] == 2 && y[5] == 0.5f &&
            y[6] == 0x1p127f && y[7] == 0x1p-126f,
        std::string(isa.name) + " exp2 edges");
}

// Compresses 16 probabilities and reads each back as the column sum of one key, weight 1.
std::vector<float> compressed_and_back(const Isa& isa, const std::vector<float>& p) {
  std::vector<uint16_t> code(16);
  isa.vector.compress(p.data(), 16, code.data());
  std::vector<float> back(16);
  for (int i = 0; i < 16; ++i) {
    std::vector<float> weights(16, 0.0f), columns(kMaxLanes, 0.0f);
    weights[i] = 1.0f;
    isa.vector.accumulate_compressed_columns(code.data(), 1, 16, weights.data(), columns.data());
    isa.vector.reduce_columns(columns.data(), 1, 1.0f, &back[i]);
  }
  return back;
}

void check_compression(const Isa& isa) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> mantissa(1.0f, 2.0f);
  std::vector<float> p(16);
  double error = 0, bias = 0;
  int count = 0;
  for (int exponent = -117; exponent < 8; ++exponent) {
    for (int round = 0; round < 16; ++round) {
      for (float& x : p) x = std::ldexp(mantissa(random), exponent);
      const std::vector<float> back = compressed_and_back(isa, p);
      for (int i = 0; i < 16; ++i) {
        const double relative = (static_cast<double>(back[i]) - p[i]) / p[i];
        error = std::max(error, std::abs(relative));
        bias += relative;
        ++count;
      }
    }
  }
  check(error <= 0x1p-10, std::string(isa.name) + " compression error");
  // Rounding errors cancel in a column sum; truncation would add up, to -2^-11 on average.
  check(std::abs(bias / count) < 0x1p-15, std::string(isa.name) + " compression is unbiased");

  p.assign(16, 0.0f);
  p[0] = 256.0f;
  p[1] = 0x1p-118f;
  p[2] = 0x1p-126f;
  const std::vector<float> back = compressed_and_back(isa, p);
  check(back[0] == 256.0f && back[1] == 0x1p-118f && back[2] >= 0 && back[2] <= 0x1p-118f &&
            back[3] >= 0 && back[3] <= 0x1p-118f,
        std::string(isa.name) + " compression edges");
}

}  // namespace

void check_halves() {
  check_half(DType::kFloat16, float_from_fp16, fp16_from_float, 0x7c00, "fp16");
  check_half(DType::kBFloat16, float_from_bf16, bf16_from_float, 0x7f80, "bf16");
  check(fp16_from_float(65519.0f) == 0x7bff && fp16_from_float(65520.0f) == 0x7c00 &&
            fp16_from_float(-1e30f) == 0xfc00,
        "fp16 overflows to infinity");
  check(bf16_from_float(3.3961775e38f) == 0x7f80 && bf16_from_float(3.39e38f) == 0x7f7f,
        "bf16 overflows to infinity");
}

void check_vector_ops() {
  for (const char* name : checked_isas()) {
    use_isa(name);
    check_exp2(active());
    check_compression(active());
  }
}

}  // namespace lookaheadkv::cpu
