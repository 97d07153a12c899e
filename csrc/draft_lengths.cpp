#include "draft_lengths.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

namespace galley {
namespace {

// A measured time is the mean of so many last measurements, later ones weighing less.
constexpr double kMostTimes = 5;
// A measurement counts for so many steps.
constexpr int64_t kKept = 4096;
// The assumed cost of one more token, as a fraction of a step, before it has been measured.
constexpr double kPriorSlope = 0.04;

// The weight of a try after the next one: of a sequence, and of all with the same evidence.
constexpr double kKeep = 0.93, kLevelKeep = 0.99;
// Tries that the evidence of all sequences counts for in the estimate of one.
constexpr double kPriorTries = 3.0;
// Before anything is known: tries, and chance of the first draft and of one behind a right one.
constexpr double kUnknownTries = 2.0, kUnknownFirst = 0.5, kUnknownLater = 0.8;

// Drafts are taken where they promise so much more speed than none.
constexpr double kMargin = 1.03;
// What measuring steps without drafts may cost: this part of the speed.
constexpr double kMeasuring = 1.0 / 128;

}  // namespace

bool StepCosts::is_kept(const Place& place) const {
  return place.seconds > 0 && step_ - place.step < kKept;
}

void StepCosts::record(int64_t tokens, double seconds, bool drafts) {
  step_++;
  if (tokens < 0 || tokens >= static_cast<int64_t>(places_.size())) return;
  Place& place = places_[static_cast<size_t>(tokens)];
  const double known = place.seconds;
  const bool kept = is_kept(place);
  place.step = step_;
  place.times = kept ? place.times + 1 : 1;
  if (!kept) {
    place.seconds = seconds;
    return;
  }
  // A pause of the machine, which is no property of the step, counts as twice the time at most.
  seconds = std::min(std::max(seconds, known / 2), known * 2);
  const double mean = known + 1.0 / std::min(place.times, kMostTimes) * (seconds - known);
  if (drafts) {
    place.seconds = mean;
    return;
  }
  for (Place& each : places_) each.seconds *= mean / known;
}

int64_t StepCosts::age(int64_t tokens) const {
  if (tokens < 0 || tokens >= static_cast<int64_t>(places_.size())) return kKept;
  const Place& place = places_[static_cast<size_t>(tokens)];
  return place.seconds > 0 ? step_ - place.step : kKept;
}

double StepCosts::known(int64_t tokens) const {
  return places_.at(static_cast<size_t>(tokens)).seconds;
}

std::vector<double> StepCosts::curve(int64_t tokens, int64_t more) const {
  if (tokens < 0 || tokens + more >= static_cast<int64_t>(places_.size())) {
    throw std::invalid_argument("steps of so many tokens are not recorded");
  }
  const Place* places = places_.data() + tokens;
  const double first = places[0].seconds;
  std::vector<double> curve(static_cast<size_t>(more + 1));
  auto at = [&](int64_t i) -> double& { return curve[static_cast<size_t>(i)]; };
  struct Part {  // of the curve, in which fewer tokens took more time: its mean
    int64_t from, to;
    double seconds, weight;
  };
  std::vector<Part> parts;
  for (int64_t i = 1; i <= more; i++) {
    if (!is_kept(places[i])) continue;
    Part part{i, i, std::max(places[i].seconds, first), std::min(places[i].times, kMostTimes)};
    for (; !parts.empty() && parts.back().seconds > part.seconds; parts.pop_back()) {
      const Part& before = parts.back();
      const double weight = before.weight + part.weight;
      const double sum = before.seconds * before.weight + part.seconds * part.weight;
      part = {before.from, part.to, sum / weight, weight};
    }
    parts.push_back(part);
  }
  const int64_t last = parts.empty() ? 0 : parts.back().to;
  at(0) = first;
  for (const Part& part : parts) {
    for (int64_t i = part.from; i <= part.to; i++) at(i) = part.seconds;
  }
  const double slope = last ? std::max((at(last) - first) / static_cast<double>(last), kPriorSlope / 4 * first)
                            : kPriorSlope * first;
  for (int64_t from = 0; from < more;) {
    int64_t to = from + 1;
    while (to <= last && at(to) == 0) to++;
    for (int64_t i = from + 1; i < to; i++) {
      const double part = static_cast<double>(i - from) / static_cast<double>(to - from);
      at(i) = at(from) + (at(to) - at(from)) * (from ? part : part * part);
    }
    if (to > last) at(to) = at(from) + slope;
    from = to;
  }
  return curve;
}

DraftLengths::DraftLengths(int64_t num_slots, int64_t width, int64_t num_levels, int64_t most)
    : sequences_(static_cast<size_t>(num_slots)), ids_(static_cast<size_t>(num_slots * width)),
      levels_(static_cast<size_t>(num_levels),
              Level{{kUnknownFirst * kUnknownTries, kUnknownTries},
                    {kUnknownLater * kUnknownTries, kUnknownTries}}),
      costs_(most), width_(width), most_(most) {}

void DraftLengths::clear(int64_t slot) { sequences_.at(static_cast<size_t>(slot)) = {}; }

void DraftLengths::Rate::add(bool hit, double keep) {
  hits = hits * keep + hit;
  tries = tries * keep + 1;
}

double DraftLengths::chance(const Rate& own, const Rate& level) {
  return (own.hits + kPriorTries * level.hits / level.tries) / (own.tries + kPriorTries);
}

void DraftLengths::observe(const int32_t* tokens, int64_t stride, const int32_t* lengths,
                           const int64_t* slots, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    Sequence& sequence = sequences_.at(static_cast<size_t>(slots[i]));
    Proposal& proposal = sequence.proposal;
    Level& level = levels_[static_cast<size_t>(proposal.level)];
    const int32_t* text = tokens + slots[i] * stride + proposal.start;
    const int32_t* ids = ids_.data() + slots[i] * width_;
    const int32_t known = std::min(lengths[slots[i]] - proposal.start, proposal.count);
    while (proposal.compared < known) {
      const int32_t at = proposal.compared++;
      const bool hit = text[at] == ids[at];
      (at ? sequence.later : sequence.first).add(hit, kKeep);
      (at ? level.later : level.first).add(hit, kLevelKeep);
      if (!hit || proposal.compared == proposal.count) {
        proposal = {};
        break;
      }
    }
  }
}

int64_t DraftLengths::choose(const int32_t* lengths, const int64_t* slots, int64_t n,
                             const ProposedDrafts& drafts, int64_t num_rows, double seconds,
                             int32_t* counts) {
  chances_.clear();
  for (int64_t i = 0; i < n; i++) {
    counts[i] = 0;
    const int32_t count = drafts.counts[i];
    if (count == 0) continue;
    Sequence& sequence = sequences_.at(static_cast<size_t>(slots[i]));
    const Level& level = levels_.at(static_cast<size_t>(drafts.levels[i]));
    const double later = chance(sequence.later, level.later);
    // Where the last proposal still holds, what is proposed now goes on with it.
    const bool holds = sequence.proposal.count > 0;
    double all = holds ? later : chance(sequence.first, level.first);
    for (int32_t j = 0; j < count; j++, all *= later) chances_.push_back(all);
    if (holds) continue;
    sequence.proposal = {lengths[slots[i]], count, 0, drafts.levels[i]};
    std::copy_n(drafts.ids + i * width_, count, ids_.data() + slots[i] * width_);
  }
  const int64_t total = static_cast<int64_t>(chances_.size());
  if (total == 0 || num_rows + total > most_ || costs_.age(num_rows) >= kKept) return -1;
  best_ = chances_;
  std::sort(best_.begin(), best_.end(), std::greater<>());
  const std::vector<double> curve = costs_.curve(num_rows, total);
  double tokens = static_cast<double>(num_rows), fastest = kMargin * tokens / curve[0];
  double least = 2.0;  // chance of a draft that is taken
  for (size_t k = 0; k < best_.size(); k++) {
    tokens += best_[k];
    const double speed = tokens / (curve[k + 1] + seconds);
    if (speed > fastest) fastest = speed, least = best_[k];
  }
  if (least > 1) return 0;
  // The less drafts bring, the more often what they are compared with is measured.
  const double gain = fastest * curve[0] / static_cast<double>(num_rows);
  if (kMeasuring * static_cast<double>(costs_.age(num_rows)) > 1 - 1 / gain) return -1;
  int64_t taken = 0;
  const double* own = chances_.data();
  for (int64_t i = 0; i < n; own += drafts.counts[i++]) {
    while (counts[i] < drafts.counts[i] && own[counts[i]] >= least) counts[i]++;
    taken += counts[i];
  }
  return taken;
}

}  // namespace galley
