#pragma once

#include "llama.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

// The permutations of a perms.json (version 1): an object with "version", "reorder_enabled" and "permutations", the last one with an array
// of column numbers for each tensor. Empty arrays stand for no permutation.
class tcq4_perm_list {
public:
    // Says on stderr what is wrong with the file. Whether the arrays fit a model is for llama_model_quantize() to see.
    bool load(const std::string & path);

    // For llama_model_quantize_params; null if there are none.
    const llama_model_tcq4_perm * data() const;

private:
    std::map<std::string, std::vector<int32_t>> perms;
    std::vector<llama_model_tcq4_perm>          list;
};
