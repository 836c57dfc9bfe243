#ifndef FACET_SERVING_SHORT_SLICES_H_
#define FACET_SERVING_SHORT_SLICES_H_

namespace facet {

// While it lives, the calling thread, and every thread started from it meanwhile for as long as
// that runs, asks the scheduler for short slices. Such a thread runs at once when it is woken, also
// where threads compute on every processor, and has no more of the processors than before: for
// threads that carry messages and then wait. Linux before 6.12 takes no notice of it.
class ShortSlices {
 public:
  ShortSlices();
  ~ShortSlices();
  ShortSlices(const ShortSlices&) = delete;
  ShortSlices& operator=(const ShortSlices&) = delete;
};

}  // namespace facet

#endif  // FACET_SERVING_SHORT_SLICES_H_
