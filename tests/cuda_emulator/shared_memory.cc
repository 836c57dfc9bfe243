#include "tests/cuda_emulator/shared_memory.h"

#include <fmt/format.h>

#include <cstring>

namespace facet::cuda_emulator {

SharedBytes::SharedBytes() : bytes_(kSharedBytesMax), cells_(kSharedBytesMax) {
  warp_epoch_.fill(1);
}

void SharedBytes::BeginBlock() {
  ++block_;
  ++epoch_;
}

// Whether the last write is not before an access by `thread` that happens now.
bool SharedBytes::WriteUnordered(const Cell& cell, int thread) const {
  if (cell.write_epoch != epoch_ || cell.writer == thread) return false;
  const int warp = thread / kLanes;
  return cell.writer / kLanes != warp || cell.write_warp_epoch == warp_epoch_[warp];
}

// Whether some read is not before a write by `thread` that happens now.
bool SharedBytes::ReadUnordered(const Cell& cell, int thread) const {
  if (cell.read_epoch != epoch_) return false;
  const int warp = thread / kLanes;
  if (cell.read_by_others || cell.read_warp != warp) return true;
  const uint32_t others = cell.read_lanes & ~(1u << (thread % kLanes));
  return cell.read_warp_epoch == warp_epoch_[warp] && others != 0;
}

void SharedBytes::NoteRead(Cell& cell, int thread) {
  const auto warp = static_cast<uint8_t>(thread / kLanes);
  if (cell.read_epoch != epoch_) {
    cell.read_epoch = epoch_;
    cell.read_warp = warp;
    cell.read_by_others = false;
    cell.read_lanes = 0;
  } else if (cell.read_warp != warp) {
    cell.read_by_others = true;
    return;
  }
  if (cell.read_warp_epoch != warp_epoch_[warp]) {
    cell.read_warp_epoch = warp_epoch_[warp];
    cell.read_lanes = 0;
  }
  cell.read_lanes |= 1u << (thread % kLanes);
}

std::optional<AccessFault> SharedBytes::Read(Range range, int thread, void* to) {
  for (uint32_t i = range.begin; i < range.begin + range.bytes; ++i) {
    Cell& cell = cells_[i];
    if (cell.copying_block == block_) {
      return AccessFault{Fault::kUnfinishedCopy,
                         fmt::format("reads byte {} before the copy to it was waited for", i)};
    }
    if (cell.defined_block != block_) {
      return AccessFault{Fault::kUninitialized,
                         fmt::format("reads byte {}, which nobody has written", i)};
    }
    if (WriteUnordered(cell, thread)) {
      return AccessFault{
          Fault::kRace,
          fmt::format("reads byte {} that thread {} wrote, no barrier between", i, cell.writer)};
    }
    NoteRead(cell, thread);
  }
  std::memcpy(to, &bytes_[range.begin], range.bytes);
  return std::nullopt;
}

std::optional<AccessFault> SharedBytes::NoteWrite(Range range, int thread) {
  for (uint32_t i = range.begin; i < range.begin + range.bytes; ++i) {
    Cell& cell = cells_[i];
    if (cell.copying_block == block_) {
      return AccessFault{Fault::kUnfinishedCopy,
                         fmt::format("writes byte {} while a copy to it is on the way", i)};
    }
    if (WriteUnordered(cell, thread)) {
      return AccessFault{
          Fault::kRace,
          fmt::format("writes byte {} that thread {} wrote, no barrier between", i, cell.writer)};
    }
    if (ReadUnordered(cell, thread)) {
      return AccessFault{
          Fault::kRace,
          fmt::format("writes byte {} that others (one of warp {}) read, no barrier between", i,
                      cell.read_warp)};
    }
    cell.defined_block = block_;
    cell.writer = static_cast<uint16_t>(thread);
    cell.write_epoch = epoch_;
    cell.write_warp_epoch = warp_epoch_[thread / kLanes];
  }
  return std::nullopt;
}

std::optional<AccessFault> SharedBytes::Write(Range range, int thread, const void* from) {
  if (auto fault = NoteWrite(range, thread)) return fault;
  std::memcpy(&bytes_[range.begin], from, range.bytes);
  return std::nullopt;
}

std::optional<AccessFault> SharedBytes::BeginCopy(Range range, int thread) {
  if (auto fault = NoteWrite(range, thread)) return fault;
  for (uint32_t i = range.begin; i < range.begin + range.bytes; ++i) {
    cells_[i].copying_block = block_;
  }
  return std::nullopt;
}

// The bytes count as written now: whoever waits for them has to order itself after this.
void SharedBytes::EndCopy(Range range, int thread, const void* from) {
  for (uint32_t i = range.begin; i < range.begin + range.bytes; ++i) {
    Cell& cell = cells_[i];
    cell.copying_block = 0;
    cell.write_epoch = epoch_;
    cell.write_warp_epoch = warp_epoch_[thread / kLanes];
  }
  std::memcpy(&bytes_[range.begin], from, range.bytes);
}

}  // namespace facet::cuda_emulator
