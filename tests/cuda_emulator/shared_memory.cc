#include "tests/cuda_emulator/shared_memory.h"

#include <fmt/format.h>

#include <cstring>

namespace facet::cuda_emulator {
namespace {

constexpr uint32_t kBytes = kSharedBytesMax + kSharedBytesWithoutAsking;
constexpr uint32_t kWord = sizeof(uint32_t);

AccessFault NotWaitedFor(const char* does, uint32_t byte) {
  return {Fault::kUnfinishedCopy,
          fmt::format("{} byte {} before the copy to it was waited for", does, byte)};
}
AccessFault NotWritten(const char* does, uint32_t byte) {
  return {Fault::kUninitialized, fmt::format("{} byte {}, which nobody has written", does, byte)};
}
AccessFault AfterWrite(const char* does, uint32_t byte, int writer) {
  return {Fault::kRace,
          fmt::format("{} byte {} that thread {} wrote, no barrier between", does, byte, writer)};
}
AccessFault AfterOthers(const char* does, uint32_t byte, int warp, const char* did) {
  return {Fault::kRace,
          fmt::format("{} byte {} that others (one of warp {}) {}, no barrier between", does, byte,
                      warp, did)};
}

}  // namespace

SharedBytes::SharedBytes() : bytes_(kBytes), cells_(kBytes), atomics_(kBytes / kWord) {
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

// Whether some of them are not before an access by `thread` that happens now.
bool SharedBytes::Unordered(const Accesses& accesses, int thread) const {
  if (accesses.epoch != epoch_) return false;
  const int warp = thread / kLanes;
  if (accesses.by_others || accesses.warp != warp) return true;
  const uint32_t others = accesses.lanes & ~(1u << (thread % kLanes));
  return accesses.warp_epoch == warp_epoch_[warp] && others != 0;
}

void SharedBytes::Note(Accesses& accesses, int thread) const {
  const auto warp = static_cast<uint8_t>(thread / kLanes);
  if (accesses.epoch != epoch_) {
    accesses.epoch = epoch_;
    accesses.warp = warp;
    accesses.by_others = false;
    accesses.lanes = 0;
  } else if (accesses.warp != warp) {
    accesses.by_others = true;
    return;
  }
  if (accesses.warp_epoch != warp_epoch_[warp]) {
    accesses.warp_epoch = warp_epoch_[warp];
    accesses.lanes = 0;
  }
  accesses.lanes |= 1u << (thread % kLanes);
}

// What is wrong with a plain access for the sake of atomics before it.
std::optional<AccessFault> SharedBytes::BesideAtomics(Range range, int thread,
                                                      const char* does) const {
  if (atomic_epoch_ != epoch_) return std::nullopt;  // none since the last barrier
  for (uint32_t i = range.begin; i < range.begin + range.bytes; ++i) {
    const Accesses& atomics = atomics_[i / kWord];
    if (Unordered(atomics, thread)) return AfterOthers(does, i, atomics.warp, "updated");
  }
  return std::nullopt;
}

std::optional<AccessFault> SharedBytes::Read(Range range, int thread, void* to) {
  for (uint32_t i = range.begin; i < range.begin + range.bytes; ++i) {
    Cell& cell = cells_[i];
    if (cell.copying_block == block_) return NotWaitedFor("reads", i);
    if (cell.defined_block != block_) return NotWritten("reads", i);
    if (WriteUnordered(cell, thread)) return AfterWrite("reads", i, cell.writer);
    Note(cell.reads, thread);
  }
  if (auto fault = BesideAtomics(range, thread, "reads")) return fault;
  std::memcpy(to, &bytes_[range.begin], range.bytes);
  return std::nullopt;
}

std::optional<AccessFault> SharedBytes::NoteWrite(Range range, int thread) {
  for (uint32_t i = range.begin; i < range.begin + range.bytes; ++i) {
    Cell& cell = cells_[i];
    if (cell.copying_block == block_) return NotWaitedFor("writes", i);
    if (WriteUnordered(cell, thread)) return AfterWrite("writes", i, cell.writer);
    if (Unordered(cell.reads, thread)) return AfterOthers("writes", i, cell.reads.warp, "read");
    cell.defined_block = block_;
    cell.writer = static_cast<uint16_t>(thread);
    cell.write_epoch = epoch_;
    cell.write_warp_epoch = warp_epoch_[thread / kLanes];
  }
  return BesideAtomics(range, thread, "writes");
}

std::optional<AccessFault> SharedBytes::Write(Range range, int thread, const void* from) {
  if (auto fault = NoteWrite(range, thread)) return fault;
  std::memcpy(&bytes_[range.begin], from, range.bytes);
  return std::nullopt;
}

std::optional<AccessFault> SharedBytes::Update(Range range, int thread,
                                               const std::function<uint32_t(uint32_t)>& update,
                                               uint32_t* before) {
  for (uint32_t i = range.begin; i < range.begin + kWord; ++i) {
    const Cell& cell = cells_[i];
    if (cell.copying_block == block_) return NotWaitedFor("updates", i);
    if (cell.defined_block != block_) return NotWritten("updates", i);
    if (WriteUnordered(cell, thread)) return AfterWrite("updates", i, cell.writer);
    if (Unordered(cell.reads, thread)) return AfterOthers("updates", i, cell.reads.warp, "read");
  }
  Note(atomics_[range.begin / kWord], thread);
  atomic_epoch_ = epoch_;
  std::memcpy(before, &bytes_[range.begin], kWord);
  const uint32_t after = update(*before);
  std::memcpy(&bytes_[range.begin], &after, kWord);
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
