#include "tcq4-perms.h"

#include <nlohmann/json.hpp>

#include <cstdio>
#include <fstream>
#include <limits>
#include <set>
#include <stdexcept>

using json = nlohmann::json;

// A name that comes twice would hide a permutation, so it is an error.
static json parse(std::ifstream & file) {
    std::vector<std::set<std::string>> keys; // of the objects that are open
    return json::parse(file, [&](int, json::parse_event_t event, json & value) {
        if (event == json::parse_event_t::object_start) {
            keys.emplace_back();
        } else if (event == json::parse_event_t::object_end) {
            keys.pop_back();
        } else if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second) {
            throw std::runtime_error("'" + value.get<std::string>() + "' comes twice");
        }
        return true;
    });
}

static int32_t to_index(const json & value) {
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > (uint64_t) std::numeric_limits<int32_t>::max())) {
        throw std::runtime_error("an index is not a 32-bit integer");
    }
    const int64_t index = value.get<int64_t>();
    if (index < 0 || index > std::numeric_limits<int32_t>::max()) {
        throw std::runtime_error("an index is not a 32-bit integer");
    }
    return (int32_t) index;
}

bool tcq4_perm_list::load(const std::string & path) {
    perms.clear();
    list.clear();

    std::ifstream file(path);
    if (!file) {
        fprintf(stderr, "%s: cannot open '%s'\n", __func__, path.c_str());
        return false;
    }

    try {
        const json root = parse(file);
        if (!root.is_object() || !root.contains("version") || root["version"] != 1) {
            throw std::runtime_error("it is not an object with \"version\" 1");
        }
        if (!root.contains("permutations") || !root["permutations"].is_object()) {
            throw std::runtime_error("it has no object \"permutations\"");
        }
        const bool enabled = root.contains("reorder_enabled") ? root["reorder_enabled"].get<bool>() : true;
        for (const auto & [name, indices] : root["permutations"].items()) {
            if (!indices.is_array()) {
                throw std::runtime_error("the permutation of '" + name + "' is not an array");
            }
            if (!indices.empty() && enabled) {
                auto & perm = perms[name];
                perm.reserve(indices.size());
                for (const json & index : indices) {
                    perm.push_back(to_index(index));
                }
            }
        }
        if (!enabled) {
            printf("%s: reorder_enabled is false in '%s': no columns are permuted\n", __func__, path.c_str());
        }
    } catch (const std::exception & err) {
        fprintf(stderr, "%s: '%s' is not a perms.json: %s\n", __func__, path.c_str(), err.what());
        return false;
    }

    for (const auto & [name, perm] : perms) {
        list.push_back({ name.c_str(), perm.data(), perm.size() });
    }
    list.push_back({ nullptr, nullptr, 0 });

    printf("%s: %zu permutations in '%s'\n", __func__, perms.size(), path.c_str());
    return true;
}

const llama_model_tcq4_perm * tcq4_perm_list::data() const {
    return list.empty() ? nullptr : list.data();
}
