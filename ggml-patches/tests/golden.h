// Reads tcq4_golden.json and .bin: no general JSON, only what that file contains.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

struct golden_case {
    std::string name;
    int64_t rows = 0;
    int64_t k    = 0;
    std::map<std::string, std::vector<char>> sections;

    bool has(const std::string & section) const { return sections.count(section) != 0; }

    template <typename T> std::vector<T> values(const std::string & section) const {
        const auto found = sections.find(section);
        if (found == sections.end()) {
            fprintf(stderr, "golden case %s has no section %s\n", name.c_str(), section.c_str());
            exit(1);
        }
        std::vector<T> values(found->second.size()/sizeof(T));
        memcpy(values.data(), found->second.data(), values.size()*sizeof(T));
        return values;
    }
};

inline std::string golden_file(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        fprintf(stderr, "cannot read %s\n", path.c_str());
        exit(1);
    }
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// The number after the next "key": from `at` on.
inline int64_t golden_number(const std::string & json, const char * key, size_t at) {
    const size_t found = json.find("\"" + std::string(key) + "\":", at);
    if (found == std::string::npos) {
        fprintf(stderr, "golden vectors: no %s after byte %zu\n", key, at);
        exit(1);
    }
    return strtoll(json.c_str() + found + strlen(key) + 3, nullptr, 10);
}

inline std::vector<golden_case> golden_read(const std::string & folder) {
    const std::string json = golden_file(folder + "/tcq4_golden.json");
    const std::string data = golden_file(folder + "/tcq4_golden.bin");
    std::vector<golden_case> cases;
    const std::string mark = "\"name\": \"";
    size_t at = json.find(mark);
    while (at != std::string::npos) {
        const size_t end = std::min(json.find(mark, at + 1), json.size());
        golden_case c;
        c.name = json.substr(at + mark.size(), json.find('"', at + mark.size()) - at - mark.size());
        c.rows = golden_number(json, "rows", at);
        c.k    = golden_number(json, "k", at);
        // A section is the only object that begins with its dtype; its name is the last string before the brace.
        for (size_t s = json.find("\"dtype\"", at); s < end; s = json.find("\"dtype\"", s + 1)) {
            const size_t close = json.rfind('"', json.rfind('{', s));
            const size_t open  = json.rfind('"', close - 1);
            const size_t offset = (size_t) golden_number(json, "offset", s), bytes = (size_t) golden_number(json, "bytes", s);
            if (offset + bytes > data.size()) {
                fprintf(stderr, "golden vectors: section beyond the end of the data\n");
                exit(1);
            }
            c.sections[json.substr(open + 1, close - open - 1)] = std::vector<char>(data.begin() + offset, data.begin() + offset + bytes);
        }
        cases.push_back(std::move(c));
        at = json.find(mark, at + 1);
    }
    return cases;
}
