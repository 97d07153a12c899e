#include "draft_index.h"

#include <algorithm>
#include <stdexcept>

namespace galley {
namespace {

// So many tokens that match before a changed one are worth as much as one that matches behind it.
constexpr int32_t kOldForNew = 4;

uint32_t hash_of(const int32_t* end, int32_t count) {
  uint64_t h = 0;
  for (int32_t i = -count; i < 0; i++) {
    h = (h ^ static_cast<uint32_t>(end[i])) * 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
  }
  return static_cast<uint32_t>(h >> 16);
}

}  // namespace

void TextIndex::clear() {
  heads_ = {}, previous_ = {};
  length_ = 0;
}

void TextIndex::insert(const int32_t* text, int32_t place, int32_t min_match) {
  int32_t& head = heads_[hash_of(text + place, min_match) & mask()];
  previous_[static_cast<size_t>(place)] = head;
  head = place;
}

void TextIndex::grow(const int32_t* text, int32_t length, int32_t min_match) {
  if (static_cast<size_t>(length) > previous_.size()) {
    size_t size = previous_.empty() ? 256 : previous_.size();
    while (size < static_cast<size_t>(length)) size *= 2;
    previous_.resize(size);
    heads_.assign(size, 0);
    for (int32_t place = min_match; place < length_; place++) insert(text, place, min_match);
  }
  for (int32_t place = std::max(length_, min_match); place < length; place++) {
    insert(text, place, min_match);
  }
  length_ = std::max(length, length_);
}

Corpus::Corpus(int64_t size, int32_t min_match, int64_t max_texts)
    : tokens_(static_cast<size_t>(size)), scopes_(static_cast<size_t>(size)),
      heads_(static_cast<size_t>(size)), previous_(static_cast<size_t>(size)),
      starts_(static_cast<size_t>(max_texts)), mask_(size - 1), min_match_(min_match) {}

void Corpus::push(int32_t token, int64_t scope) {
  const size_t at = static_cast<size_t>(end_ & mask_);
  tokens_[at] = token, scopes_[at] = scope, previous_[at] = 0;
  if (run_ >= min_match_) {  // this place is behind so many tokens
    int32_t last[16];
    for (int32_t i = 0; i < min_match_; i++) last[i] = this->token(end_ - min_match_ + i);
    int64_t& head = heads_[static_cast<size_t>(hash_of(last + min_match_, min_match_) & mask_)];
    previous_[at] = head, head = end_;
  }
  run_ = token == kSeparator ? 0 : run_ + 1;
  end_++;
  oldest_ = std::max(oldest_, end_ - mask_ - 1);
}

void Corpus::add(const int32_t* text, int64_t length, int64_t scope) {
  length = std::min(length, (mask_ + 1) / 4);  // one text does not drive all others out
  if (length <= min_match_) return;
  int64_t& start = starts_[static_cast<size_t>(texts_ % static_cast<int64_t>(starts_.size()))];
  if (texts_++ >= static_cast<int64_t>(starts_.size())) oldest_ = std::max(oldest_, start + 1);
  start = end_ + length;  // its last token: with it, the text is gone
  push(kSeparator, scope);
  for (int64_t i = 0; i < length; i++) push(text[i], scope);
}

DraftIndex::DraftIndex(int32_t num_slots, DraftLimits limits, int64_t corpus_tokens,
                       int64_t max_texts)
    : limits_(limits), texts_(static_cast<size_t>(num_slots)),
      handles_(static_cast<size_t>(num_slots), -1), sources_(static_cast<size_t>(num_slots)),
      corpus_tokens_(corpus_tokens),
      max_texts_(max_texts) {
  if (limits.min_match < 1 || limits.min_match > 16 || limits.max_match < limits.min_match) {
    throw std::invalid_argument("matches must have 1 .. 16 tokens at least, and no less at most");
  }
  if (corpus_tokens & (corpus_tokens - 1) || corpus_tokens < 0 || (corpus_tokens && max_texts < 1)) {
    throw std::invalid_argument("the size of a corpus is a power of two");
  }
  clear_corpus();
}

void DraftIndex::clear_corpus() {
  corpus_.clear();
  if (corpus_tokens_) corpus_.emplace_back(corpus_tokens_, limits_.min_match, max_texts_);
}

void DraftIndex::clear(int64_t slot) {
  texts_.at(static_cast<size_t>(slot)).clear();
  handles_[static_cast<size_t>(slot)] = -1;
  sources_[static_cast<size_t>(slot)] = {};
}

void DraftIndex::add(const int32_t* text, int64_t length, int64_t scope) {
  if (!corpus_.empty()) corpus_[0].add(text, length, scope);
}

// Collect the places with the longest match, latest first, those of the own text before others.
void DraftIndex::find(const int32_t* text, int32_t length, int64_t scope, const TextIndex& index) {
  places_.clear();
  const uint32_t hash = hash_of(text + length, limits_.min_match);
  const int32_t longest = std::min(limits_.max_match, length);
  int32_t best = limits_.min_match;
  auto consider = [&](Place place) {
    if (place.match < best) return;
    if (place.match > best) places_.clear();
    best = place.match;
    places_.push_back(place);
  };
  int32_t left = limits_.candidates;
  for (int32_t at = index.newest(hash); at > 0 && left > 0; at = index.before(at), left--) {
    if (at >= length) continue;
    int32_t match = 0;
    while (match < longest && match < at && text[at - 1 - match] == text[length - 1 - match]) match++;
    consider({text, at, match, 0});
  }
  if (corpus_.empty()) return;
  const Corpus& corpus = corpus_[0];
  left = limits_.candidates;
  for (int64_t at = corpus.newest(hash); at > 0 && corpus.holds(at) && left > 0;
       at = corpus.before(at), left--) {
    if (corpus.scope(at) != scope) continue;
    int32_t match = 0;
    while (match < longest && corpus.token(at - 1 - match) == text[length - 1 - match]) match++;
    consider({nullptr, at, match, 0});
  }
}

// Go on where the last drafts came from, if a long match before a changed token outweighs what matches
// exactly. Returns whether it does; then it is the only place.
bool DraftIndex::resume(const int32_t* text, int32_t length, int64_t scope, const Source& source) {
  if (!source.length) return false;
  const int64_t at = source.at + length - source.length;
  if (!source.own && corpus_[0].scope(at - 1) != scope) return false;
  auto held = [&](int32_t back) {  // the separator ends a text, and a scope
    if (back >= length) return Corpus::kSeparator;
    if (!source.own) return corpus_[0].token(at - 1 - back);
    return back < at ? text[at - 1 - back] : Corpus::kSeparator;
  };
  auto same = [&](int32_t back) { return back < length && held(back) == text[length - 1 - back]; };
  int32_t fresh = 0, old = 0;
  while (fresh < limits_.min_match && same(fresh)) fresh++;
  if (fresh == limits_.min_match || held(fresh) == Corpus::kSeparator) return false;  // an exact match
  while (old < limits_.max_match && same(fresh + 1 + old)) old++;
  const int32_t best = places_.empty() ? 0 : places_[0].match;
  if (fresh + old / kOldForNew <= best) return false;
  places_.assign(1, {source.own ? text : nullptr, at, std::min(fresh + old, limits_.max_match), 0});
  return true;
}

int32_t DraftIndex::token(const Place& place, int32_t length, int64_t ahead) const {
  if (!place.text) return corpus_[0].token(place.at + ahead);
  // Behind the text's end, what it repeats goes on.
  return place.text[place.at + ahead % (length - place.at)];
}

// Follow the places; at each token those that disagree with the majority are left behind.
int32_t DraftIndex::draft(int32_t length, int32_t most, int32_t* ids, int32_t* match) {
  if (places_.empty()) return 0;
  *match = places_[0].match;
  if (limits_.spec_factor > 0) {
    most = std::min(most, static_cast<int32_t>(limits_.spec_factor * *match));
  }
  if (!limits_.votes) places_.resize(1);
  double probability = 1.0;
  int32_t count = 0;
  for (; count < most; count++) {
    int32_t chosen = Corpus::kSeparator;
    int64_t votes = 0;
    for (Place& place : places_) place.next = token(place, length, count);
    for (const Place& place : places_) {
      if (place.next == Corpus::kSeparator || place.next == chosen) continue;
      const int64_t n = std::count_if(places_.begin(), places_.end(), [&](const Place& other) {
        return other.next == place.next;
      });
      if (n > votes) chosen = place.next, votes = n;
    }
    if (chosen == Corpus::kSeparator) break;
    probability *= static_cast<double>(votes) / static_cast<double>(places_.size());
    if (probability < limits_.min_probability) break;
    if (votes < static_cast<int64_t>(places_.size())) {
      auto disagrees = [&](const Place& place) { return place.next != chosen; };
      places_.erase(std::remove_if(places_.begin(), places_.end(), disagrees), places_.end());
    }
    ids[count] = chosen;
  }
  return count;
}

void DraftIndex::propose(const int32_t* tokens, int64_t stride, const int32_t* lengths,
                         const int64_t* handles, const int64_t* scopes, const int64_t* slots,
                         int64_t n, const int32_t* most, int32_t width, int32_t* counts,
                         int32_t* matches, int32_t* ids) {
  for (int64_t i = 0; i < n; i++) {
    const size_t slot = static_cast<size_t>(slots[i]);
    if (slot >= texts_.size()) throw std::invalid_argument("no such slot");
    counts[i] = matches[i] = 0;
    TextIndex& index = texts_[slot];
    if (handles_[slot] != handles[slot]) {
      clear(slots[i]);
      handles_[slot] = handles[slot];
    }
    const int32_t* text = tokens + static_cast<int64_t>(slot) * stride;
    const int32_t length = lengths[slot], room = std::min(most[i], width);
    if (room <= 0 || length <= limits_.min_match) continue;
    index.grow(text, length, limits_.min_match);
    find(text, length, scopes[slot], index);
    const bool resumed = resume(text, length, scopes[slot], sources_[slot]);
    counts[i] = draft(length, room, ids + i * width, &matches[i]);
    if (counts[i] == 0) {
      matches[i] = 0;
      continue;
    }
    if (resumed) matches[i] = kResumed;
    sources_[slot] = {places_[0].text != nullptr, places_[0].at, length};
  }
}

}  // namespace galley
