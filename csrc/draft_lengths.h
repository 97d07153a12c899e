// How many drafts a step takes: as many as give the most tokens per second, by how often drafts turned
// out to be right, and by the measured time of steps.
//
// A draft needs not be computed to know whether it is right: what was proposed is compared with the tokens
// that come. So where drafts do not pay, and none are computed, it is still known when they would.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace galley {

// Seconds of decode steps by their tokens, 1 .. most. More tokens are not recorded.
class StepCosts {
 public:
  explicit StepCosts(int64_t most) : places_(static_cast<size_t>(most + 1)) {}
  // A step of nothing but decode rows took so long. Without drafts it also shows how fast the machine is now:
  // what is known of other steps changes by the same factor.
  void record(int64_t tokens, double seconds, bool drafts);
  // Steps since one of so many tokens was measured; many where none was.
  int64_t age(int64_t tokens) const;
  // Seconds of a step of so many tokens as measured; 0 where there is no measurement.
  double known(int64_t tokens) const;
  // Seconds of steps of tokens .. tokens + more tokens; `tokens` has been measured. Up to the next measurement
  // they grow by the square, as reading weights hides the first tokens, between others in a line; beyond the
  // last one the mean slope goes on. More tokens take no less time: where measurements say so, their mean holds.
  std::vector<double> curve(int64_t tokens, int64_t more) const;

 private:
  struct Place {
    double seconds = 0;
    int64_t step = 0;  // that it was measured at last
    double times = 0;
  };
  bool is_kept(const Place& place) const;
  std::vector<Place> places_;
  int64_t step_ = 0;
};

// Drafts of n sequences, as they were proposed.
struct ProposedDrafts {
  const int32_t* counts;  // [n]
  const int32_t* ids;     // [n][width]
  const int32_t* levels;  // [n] the evidence: the acceptance of each level is measured by itself
};

class DraftLengths {
 public:
  // width: most drafts of a sequence; most: tokens of the largest step that takes drafts.
  DraftLengths(int64_t num_slots, int64_t width, int64_t num_levels, int64_t most);
  // A sequence leaves its slot.
  void clear(int64_t slot);
  // See StepCosts.
  void record(int64_t tokens, double seconds, bool drafts) { costs_.record(tokens, seconds, drafts); }
  // Compare what was proposed for n slots with their tokens now: tokens [slots][stride], lengths by slot.
  void observe(const int32_t* tokens, int64_t stride, const int32_t* lengths, const int64_t* slots,
               int64_t n);
  // Writes how many drafts [n] the next step takes of each slot; `num_rows` rows sample in it, and proposing
  // took so many seconds. Returns how many in all; -1 if nothing was proposed, or a step without drafts
  // has to be measured first.
  int64_t choose(const int32_t* lengths, const int64_t* slots, int64_t n, const ProposedDrafts& drafts,
                 int64_t num_rows, double seconds, int32_t* counts);

 private:
  // How often drafts were right, old tries fading: the first behind the known tokens, and each behind a right
  // one.
  struct Rate {
    double hits, tries;
    void add(bool hit, double keep);
  };
  // The last proposal of a slot, while no token has refuted it.
  struct Proposal {
    int32_t start = 0, count = 0, compared = 0, level = 0;
  };
  struct Sequence {
    Rate first{0, 0}, later{0, 0};
    Proposal proposal;
  };
  struct Level {
    Rate first, later;
  };
  static double chance(const Rate& own, const Rate& level);

  std::vector<Sequence> sequences_;
  std::vector<int32_t> ids_;  // [slots][width] of the proposals
  std::vector<Level> levels_;
  std::vector<double> chances_, best_;
  StepCosts costs_;
  int64_t width_, most_;
};

}  // namespace galley
