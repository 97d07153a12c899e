// Drafts from what was written before: the places where the last tokens of a sequence occurred
// already, in its own text and, with a corpus, in the recent outputs of others.
//
// Hash chains, as in LZ77: `heads` leads from the hash of `min_match` tokens to the last place behind
// them, `previous` from a place to the one before it of the same hash. A token costs one insertion, a
// look-up at most `candidates` comparisons of at most `max_match` tokens.
//
// Edited copies: behind a changed token the text goes on where the last drafts came from, though nothing,
// or only something shorter, matches exactly.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace galley {

struct DraftLimits {
  int32_t min_match, max_match;  // tokens that must, and may, match
  int32_t candidates;            // places compared
  bool votes;                    // the most frequent continuation, else the latest
  double spec_factor;            // most drafts for each matching token; 0 = no limit
  double min_probability;        // of a draft, by votes
};

// The places of one sequence's text, which grows at its end.
class TextIndex {
 public:
  // Index the places in front of `length` that have a token behind them.
  void grow(const int32_t* text, int32_t length, int32_t min_match);
  void clear();
  int32_t newest(uint32_t hash) const { return heads_.empty() ? 0 : heads_[hash & mask()]; }
  int32_t before(int32_t place) const { return previous_[static_cast<size_t>(place)]; }

 private:
  uint32_t mask() const { return static_cast<uint32_t>(heads_.size()) - 1; }
  void insert(const int32_t* text, int32_t place, int32_t min_match);
  std::vector<int32_t> heads_, previous_;  // places; 0 = none
  int32_t length_ = 0;
};

// The last `size` tokens (a power of two) of texts that have ended, each behind a separator. A text
// belongs to a scope, and only look-ups of that scope find it.
class Corpus {
 public:
  Corpus(int64_t size, int32_t min_match, int64_t max_texts);
  void add(const int32_t* text, int64_t length, int64_t scope);
  int64_t newest(uint32_t hash) const { return heads_[hash & mask_]; }
  int64_t before(int64_t place) const { return previous_[static_cast<size_t>(place & mask_)]; }
  bool holds(int64_t place) const { return place > oldest_; }
  int64_t end() const { return end_; }
  // The token at a place; the separator, which is no token, where nothing is held.
  int32_t token(int64_t place) const {
    return place < oldest_ || place >= end_ ? kSeparator : tokens_[static_cast<size_t>(place & mask_)];
  }
  int64_t scope(int64_t place) const { return scopes_[static_cast<size_t>(place & mask_)]; }

  static constexpr int32_t kSeparator = -1;

 private:
  void push(int32_t token, int64_t scope);
  std::vector<int32_t> tokens_;
  std::vector<int64_t> scopes_, heads_, previous_;
  std::vector<int64_t> starts_;  // of the last max_texts texts, in a ring
  int64_t mask_, end_ = 0, oldest_ = 0, texts_ = 0, run_ = 0;
  int32_t min_match_;
};

class DraftIndex {
 public:
  static constexpr int32_t kResumed = 1;

  // corpus_tokens: a power of two, or 0 for no corpus; max_texts of them are kept.
  DraftIndex(int32_t num_slots, DraftLimits limits, int64_t corpus_tokens, int64_t max_texts);

  // Drafts for n slots. tokens: [slots][stride]; lengths, handles, scopes by slot; most: [n]. Writes
  // counts and matches (tokens that matched, 0 = no draft) [n] and ids [n][width]. Drafts behind
  // a changed token report `kResumed` matching tokens.
  void propose(const int32_t* tokens, int64_t stride, const int32_t* lengths, const int64_t* handles,
               const int64_t* scopes, const int64_t* slots, int64_t n, const int32_t* most,
               int32_t width, int32_t* counts, int32_t* matches, int32_t* ids);
  // Add a text to the corpus.
  void add(const int32_t* text, int64_t length, int64_t scope);
  void clear_corpus();
  // Forget the text of a slot.
  void clear(int64_t slot);

 private:
  struct Place {
    const int32_t* text;  // null: of the corpus
    int64_t at;           // the place behind the match
    int32_t match;
    int32_t next;         // the token there, as drafts go on
  };
  // Where the drafts of a slot came from last, and the length of its text then; 0 = none.
  struct Source {
    bool own;
    int64_t at;
    int32_t length;
  };
  void find(const int32_t* text, int32_t length, int64_t scope, const TextIndex& index);
  bool resume(const int32_t* text, int32_t length, int64_t scope, const Source& source);
  int32_t draft(int32_t length, int32_t most, int32_t* ids, int32_t* match);
  int32_t token(const Place& place, int32_t length, int64_t ahead) const;

  DraftLimits limits_;
  std::vector<TextIndex> texts_;
  std::vector<int64_t> handles_;
  std::vector<Source> sources_;
  std::vector<Corpus> corpus_;  // one or none
  std::vector<Place> places_;
  int64_t corpus_tokens_, max_texts_;
};

}  // namespace galley
