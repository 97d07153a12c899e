// Blocks of GGUF's types, as a file holds them: row after row of whole blocks, little-endian.
#pragma once
#include <string>

#include "pack.h"

namespace galley {

struct BlockType {
  const char* name;
  int64_t values, bytes;  // of a block
  WeightLayout format;    // what it is packed as; n and k are 0
  const int8_t* levels;   // [16], of CodeTable::levels
  // Codes, scales and mins of a block, and its super scale and min.
  void (*decode)(const uint8_t* block, const CodeTarget& to);

  // Of a weight [n, k]. Throws std::invalid_argument if rows of k are not whole blocks.
  WeightLayout layout(int64_t n, int64_t k) const;
};

const std::vector<BlockType>& block_types();
// Throws std::invalid_argument.
const BlockType& block_type(const std::string& name);

// A row of k values. The table is not written.
void decode_row(const BlockType& type, const uint8_t* row, int64_t k, const CodeTarget& to);
// Rows by their addresses, and the table.
void decode_blocks(const BlockType& type, const uint64_t* rows, int64_t n, int64_t k,
                   const CodeTarget& to);

}  // namespace galley
