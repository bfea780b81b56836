// Attention of a ragged call: its rows in groups with as many new tokens each, one after another.
#pragma once

#include "attention.h"

namespace doge {

// The job of rows with io.sequence new tokens each. Of several rows of a bounded cache in a ragged call all new keys
// find empty places, or there is one a row.
std::unique_ptr<AttentionJob> make_uniform_attention(const AttentionParts& parts, const AttentionIO& io,
                                                     const AttentionRows& rows, Arena& arena);

// The job of rows that do not all have the same number of new tokens; io.sequence is not read.
std::unique_ptr<AttentionJob> make_ragged_attention(const AttentionParts& parts, const AttentionIO& io,
                                                    const AttentionRows& rows, Arena& arena);

}  // namespace doge
