// Noise as kernels take it: whose, and in which pieces an image is walked. The definition is fastdiff/ops/philox_normal.py.
#pragma once
#include <cstdint>

namespace fastdiff {

// What keys the noise of one image.
struct Draw {
  uint64_t seed;
  uint32_t step, purpose;
};

// The noise of a batch; without seeds there is none.
struct Noise {
  const int64_t* seeds = nullptr;  // one per image
  int64_t stride = 0;
  const int64_t* step = nullptr;  // one value, on the device of the call
  uint32_t purpose = 0;
};

// How the images of a batch are cut into tiles, the units of work: some channels of some pixels of one image each. Noise is
// counted in N C H W order. Where memory is in that order too, an image counts as one channel; else it is in N H W C order.
struct Walk {
  int64_t images, channels, pixels;
  int64_t tile_channels, tile_pixels;      // at most kTile together; whole rows of kRow pixels where an image has that many
  int64_t tiles_across, tiles_per_image;   // tiles across the channels come first
};
constexpr int64_t kTile = 8192;  // elements: the tiles of floats that are made and turned stay in the second-level cache
constexpr int64_t kRow = 128;    // normals that the widest vector makes at a time

}  // namespace fastdiff
