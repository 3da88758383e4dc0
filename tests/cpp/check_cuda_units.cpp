// The emulated instructions themselves, and the pure functions that cut the work.
#include "check_cuda.h"
#include "cuda/launch.cuh"
#include "cuda/splits.h"

namespace lookaheadkv::cuda {

using cpu::check;

namespace {

float* results;  // [32, 4], written by the kernels below

// Products of small integers, one warp: a from shared memory by a matrix load, b = 8 x 16 keys.
void product_kernel() {
  start_kernel();
  auto* const rows = reinterpret_cast<uint16_t*>(shared_memory());  // [24, 16] fp16: a, then b^T
  const int lane = thread_index();
  for (int at = lane; at < 24 * 16; at += 32) {
    const int row = at / 16, column = at % 16;
    const float value = row < 16 ? static_cast<float>(row + 2 * column)
                                 : static_cast<float>((row - 16) * 3 - column);
    rows[at] = static_cast<uint16_t>(pack<fp16>(value, 0.0f));
  }
  sync_threads();
  uint32_t a[4], b[4];
  load_matrices(a, rows + (lane % 16) * 16 + lane / 16 * 8);
  load_matrices(b, rows + (16 + lane % 8) * 16 + lane / 8 % 2 * 8);
  float d[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  mma(d, a, b[0], b[1], fp16{});
  for (int i = 0; i < 4; ++i) results[lane * 4 + i] = d[i];
}

// Fragments of the transpose: element (row, column) of a lane's matrix is 100 * row + column.
void transposed_kernel() {
  start_kernel();
  auto* const rows = reinterpret_cast<uint16_t*>(shared_memory());  // [8, 8]
  const int lane = thread_index();
  for (int at = lane; at < 64; at += 32) rows[at] = static_cast<uint16_t>(at / 8 * 100 + at % 8);
  sync_threads();
  uint32_t r[4];
  load_matrices_transposed(r, rows + lane % 8 * 8);
  results[lane * 4] = static_cast<float>(r[0] & 0xffff);
  results[lane * 4 + 1] = static_cast<float>(r[0] >> 16);
}

void copies_kernel(const float* from) {
  start_kernel();
  auto* const to = reinterpret_cast<float*>(shared_memory());
  const int at = thread_index() * 4;
  copy_async(to + at, from + at, true);
  commit_copies();
  copy_async(to + 128 + at, from, false);
  commit_copies();
  wait_copies<1>();
  results[at] = to[at];
  wait_copies<0>();
  results[at + 1] = to[128 + at];
  results[at + 2] = shuffle_up(static_cast<float>(thread_index()), 3);
  results[at + 3] = shuffle_xor(static_cast<float>(thread_index()), 5);
}

}  // namespace

void check_emulation() {
  std::vector<float> out(128, NAN), from(128);
  results = out.data();
  launch(product_kernel, 1, 32, 24 * 16 * 2, nullptr, false);
  bool right = true;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
      float sum = static_cast<float>(i + 1);
      for (int k = 0; k < 16; ++k) sum += static_cast<float>((row + 2 * k) * (column * 3 - k));
      right = right && out[lane * 4 + i] == sum;
    }
  }
  check(right, "emulated mma");
  launch(transposed_kernel, 1, 32, 128, nullptr, false);
  right = true;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 2; ++i) {
      right =
          right && out[lane * 4 + i] == static_cast<float>((2 * (lane % 4) + i) * 100 + lane / 4);
    }
  }
  check(right, "emulated ldmatrix.trans");
  for (int i = 0; i < 128; ++i) from[i] = static_cast<float>(i);
  launch(copies_kernel, 1, 32, 1024, nullptr, false, static_cast<const float*>(from.data()));
  right = true;
  for (int i = 0; i < 32; ++i) {
    const float* const mine = &out[i * 4];
    right = right && mine[0] == from[i * 4] && mine[1] == 0.0f &&
            mine[2] == static_cast<float>(i < 3 ? i : i - 3) &&
            mine[3] == static_cast<float>(i ^ 5);
  }
  check(right, "emulated cp.async and shuffles");
}

void check_splits() {
  for (const int64_t units : {1, 2, 8, 40, 1000}) {
    for (const int64_t tiles : {1, 3, 4, 5, 63, 512, 100000}) {
      for (const int64_t blocks : {1, 4, 108, 264}) {
        const Splits splits = split_keys(units, tiles, blocks, 4);
        const Splits one_wave = split_keys(units, tiles, blocks, 4, 1);
        const std::string name = "splits of " + std::to_string(tiles) + " tiles, " +
                                 std::to_string(units) + " units, " + std::to_string(blocks);
        check(splits.count >= 1 && splits.tiles >= 4, name + ": none is too short");
        check(int64_t{splits.count} * splits.tiles >= tiles, name + ": all tiles are covered");
        check(int64_t{splits.count - 1} * splits.tiles < tiles, name + ": none is empty");
        check(one_wave.count == 1 || one_wave.count * units <= blocks, name + ": one wave");
        const auto time = [&](const Splits& s) {
          return ceil_div(s.count * units, blocks) * (s.tiles + 4);
        };
        check(time(splits) <= time(one_wave), name + ": no slower than one wave");
      }
    }
  }
  const auto are = [](const Splits& splits, int count, int tiles) {
    return splits.count == count && splits.tiles == tiles;
  };
  // 264 blocks at once, 256 tiles. 8 units: 256 blocks, one wave of 8 + 2 tiles.
  check(are(split_keys(8, 256, 264, 2), 32, 8), "splits of few units are one wave");
  // 144 units: five waves of 29 + 2 tiles, where one wave would take 256 + 2 on half of the chip.
  check(are(split_keys(144, 256, 264, 2), 9, 29), "splits where one wave wastes the chip");
  // 300 units, which are two waves anyway, the second one of 36 blocks: six of 52 + 2 tiles.
  check(are(split_keys(300, 256, 264, 2), 5, 52), "splits where the second wave wastes the chip");
  check(are(split_keys(264, 256, 264, 2), 1, 256), "no splits where units fill the chip");
  for (const int64_t rows : {1, 8, 64, 1000}) {
    for (const int64_t n : {0, 1, 2048, 2049, 8192, 32768, 32769, 131072, 1000000, 50000000}) {
      for (const int64_t budget : {0, 1, 128, 2048, 16384, 40000}) {
        const Pieces pieces = cut_row(rows, n, std::min(budget, n), 132);
        const std::string name = "pieces of " + std::to_string(n) + ", budget " +
                                 std::to_string(budget) + ", " + std::to_string(rows) + " rows";
        if (pieces.count == 0) {
          check(n > kLongestBlockRow, name + ": a block holds a short row");
          continue;
        }
        check(pieces.length <= kLongestBlockRow, name + ": a block holds one");
        check(int64_t{pieces.count} * pieces.length >= n, name + ": all positions are covered");
        check(pieces.count == 1 || int64_t{pieces.count - 1} * pieces.length < n,
              name + ": none is empty");
        check(pieces.count == 1 ||
                  pieces.count * std::min<int64_t>(budget, pieces.length) <= kMostCandidates,
              name + ": a block holds the candidates");
      }
    }
  }
  const auto pieces_are = [](const Pieces& pieces, int count, int length) {
    return pieces.count == count && pieces.length == length;
  };
  // In positions, a block costing 8,192: one 40,960; 16 of 2,048 and 2,048 candidates 20,480.
  check(pieces_are(cut_row(8, 32768, 128, 132), 16, 2048), "pieces of few long rows");
  check(pieces_are(cut_row(8, 4096, 128, 132), 1, 4096), "a short row is one block's");
  check(pieces_are(cut_row(132, 32768, 128, 132), 1, 32768), "no pieces where rows fill the chip");
  check(cut_row(8, 131072, 128, 132).count > 1, "long rows with a small budget");
  check(cut_row(8, 131072, 65536, 132).count == 0, "long rows with a large one");
  bool padded = true;
  for (int64_t dim = 8; dim <= 256; dim += 8) {
    padded = padded && padded_dim(dim) >= dim && padded_dim(dim) % 16 == 0;
  }
  check(padded && padded_dim(64) == 64 && padded_dim(72) == 96 && padded_dim(128) == 128,
        "padded head dimensions");
  emulated_multiprocessors = 7;
  check(multiprocessors_of_current_device() == 7, "the chip is asked");
}

}  // namespace lookaheadkv::cuda
