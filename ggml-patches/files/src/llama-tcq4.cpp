#include "llama-tcq4.h"

#include "llama-impl.h"
#include "llama-model-loader.h"

#include "ggml-backend.h"
#include "ggml-tcq4.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string_view>

static const char * const KEY_PREFIX  = "tcq4.";
static const char * const KEY_VERSION = "tcq4.version";
static const char * const KEY_REORDER = "tcq4.reorder.enabled";
static const char * const KEY_ENCODER = "tcq4.encoder";
static const char * const KEY_ACTS    = "tcq4.activations";
static const char * const PERM_SUFFIX = ".perm";
static const char * const ACTS_SUFFIX = ".activations";

static const uint32_t VERSION = 1;

static std::string tensor_key(const std::string & tensor, const char * suffix) {
    return KEY_PREFIX + tensor + suffix;
}

static bool starts_with(std::string_view text, std::string_view start) {
    return text.size() >= start.size() && text.substr(0, start.size()) == start;
}

static bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// The name of the tensor that a key with this suffix is about, or nothing.
static std::string tensor_of_key(const std::string & key, const char * suffix) {
    const size_t n_prefix = strlen(KEY_PREFIX);
    const size_t n_suffix = strlen(suffix);
    if (key.size() <= n_prefix + n_suffix || !starts_with(key, KEY_PREFIX) || !ends_with(key, suffix)) {
        return "";
    }
    return key.substr(n_prefix, key.size() - n_prefix - n_suffix);
}

bool llama_tcq4_is_perm_key(const std::string & key) {
    return !tensor_of_key(key, PERM_SUFFIX).empty();
}

// Calls f(number of the key, tensor) for every key of a tensor with this suffix. Throws if the tensor is not there or not of the type.
template <typename F>
static void for_each_tensor_key(const llama_model_loader & ml, const char * suffix, F f) {
    for (int64_t i = 0; i < gguf_get_n_kv(ml.metadata); ++i) {
        const std::string key  = gguf_get_key(ml.metadata, i);
        const std::string name = tensor_of_key(key, suffix);
        if (name.empty()) {
            continue;
        }
        const auto * weight = ml.get_weight(name.c_str());
        if (weight == nullptr) {
            throw std::runtime_error(format("key '%s' is for a tensor that this model does not have", key.c_str()));
        }
        if (weight->tensor->type != GGML_TYPE_TCQ4_K32) {
            throw std::runtime_error(format("key '%s' is for a tensor of type %s, only those of type %s have it",
                key.c_str(), ggml_type_name(weight->tensor->type), ggml_type_name(GGML_TYPE_TCQ4_K32)));
        }
        f(i, weight->tensor);
    }
}

static void check_perm(const std::string & tensor, const std::vector<int32_t> & perm, int64_t n_columns) {
    if ((int64_t) perm.size() != n_columns) {
        throw std::runtime_error(format("the permutation of '%s' has %zu entries, the tensor has %lld columns",
            tensor.c_str(), perm.size(), (long long) n_columns));
    }
    if (!ggml_tcq4_is_bijection(perm.data(), n_columns)) {
        throw std::runtime_error(format("the permutation of '%s' does not hold each column once", tensor.c_str()));
    }
}

// All permutations of the file, checked.
static llama_tcq4_perms read_perms(llama_model_loader & ml) {
    llama_tcq4_perms perms;

    uint32_t version = VERSION;
    ml.get_key(std::string(KEY_VERSION), version, false);
    if (version != VERSION) {
        throw std::runtime_error(format("%s is %u, this program knows version %u", KEY_VERSION, version, VERSION));
    }

    bool enabled = true;
    ml.get_key(std::string(KEY_REORDER), enabled, false);
    if (!enabled) {
        LLAMA_LOG_INFO("%s: %s is false, permutations are ignored\n", __func__, KEY_REORDER);
        return perms;
    }

    for_each_tensor_key(ml, PERM_SUFFIX, [&](int64_t i, const ggml_tensor * tensor) {
        if (gguf_get_kv_type(ml.metadata, i) != GGUF_TYPE_ARRAY || gguf_get_arr_type(ml.metadata, i) != GGUF_TYPE_INT32) {
            throw std::runtime_error(format("key '%s' is not an array of 32-bit integers", gguf_get_key(ml.metadata, i)));
        }
        const auto * data = (const int32_t *) gguf_get_arr_data(ml.metadata, i);
        auto & perm = perms[ggml_get_name(tensor)];
        perm.assign(data, data + gguf_get_arr_n(ml.metadata, i));
        check_perm(ggml_get_name(tensor), perm, tensor->ne[0]);
    });

    return perms;
}

// Whether a path of activations, as the keys name it, is an INT4 one.
static bool is_int4_path(const gguf_context * metadata, int64_t i) {
    static const std::map<std::string, bool> PATHS = {
        { "none", false }, { "int8", false }, { "int4", true }, { "int4-group32", true }, { "int4-fork", true },
    };

    const char * key = gguf_get_key(metadata, i);
    if (gguf_get_kv_type(metadata, i) != GGUF_TYPE_STRING) {
        throw std::runtime_error(format("key '%s' is not a string", key));
    }
    const char * name = gguf_get_val_str(metadata, i);
    const auto   path = PATHS.find(name);
    if (path == PATHS.end()) {
        throw std::runtime_error(format("key '%s' is '%s', which is no path of activations: none, int8, int4, int4-group32, int4-fork", key, name));
    }
    return path->second;
}

// The names of the tensors that must not have INT4 activations.
static std::set<std::string> read_marks(const llama_model_loader & ml) {
    // what the marks were chosen for; which path the others take is for whoever runs the model to say
    const int64_t kid = gguf_find_key(ml.metadata, KEY_ACTS);
    if (kid >= 0) {
        is_int4_path(ml.metadata, kid);
    }

    std::set<std::string> marked;
    for_each_tensor_key(ml, ACTS_SUFFIX, [&](int64_t i, const ggml_tensor * tensor) {
        if (!is_int4_path(ml.metadata, i)) {
            marked.insert(ggml_get_name(tensor));
        }
    });

    const char * ignore = getenv("GGML_TCQ4_IGNORE_MARKS");
    if (ignore && *ignore && strcmp(ignore, "0") != 0) {
        LLAMA_LOG_INFO("%s: %zu tensors are marked for INT8 activations, which is ignored\n", __func__, marked.size());
        return {};
    }
    if (!marked.empty()) {
        LLAMA_LOG_INFO("%s: %zu tensors have INT8 activations where others have INT4\n", __func__, marked.size());
    }
    return marked;
}

// A matrix can be cut up among devices; its permutation goes to the first of them in one piece.
static ggml_backend_buffer_type_t perm_buft(ggml_backend_buffer_type_t weight_buft) {
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(weight_buft);
    return dev && !ggml_backend_buft_is_host(weight_buft) ? ggml_backend_dev_buffer_type(dev) : weight_buft;
}

void llama_tcq4_load(llama_model_loader & ml, llama_split_mode split_mode, llama_ctxs_bufs & ctxs_bufs) {
    const llama_tcq4_perms      perms = read_perms(ml);
    const std::set<std::string> marks = read_marks(ml);

    // Tensors that read the same input have equal permutations. They share one object where they share a buffer type: backends then see
    // that their inputs are permuted alike.
    std::map<ggml_backend_buffer_type_t, std::map<std::vector<int32_t>, std::vector<ggml_tensor *>>> matrices;

    for (auto & [ctx_key, ctx] : ml.ctx_map) {
        for (auto * cur = ggml_get_first_tensor(ctx.get()); cur != nullptr; cur = ggml_get_next_tensor(ctx.get(), cur)) {
            if (cur->type != GGML_TYPE_TCQ4_K32) {
                continue;
            }
            if (split_mode == LLAMA_SPLIT_MODE_TENSOR) {
                throw std::runtime_error(format("tensors of type %s cannot be split among devices", ggml_type_name(cur->type)));
            }
            if (marks.count(ggml_get_name(cur))) {
                ggml_tcq4_set_prec(cur, GGML_PREC_Q8);
            }
            const auto it = perms.find(ggml_get_name(cur));
            if (it != perms.end()) {
                matrices[perm_buft(ctx_key.buft)][it->second].push_back(cur);
            }
        }
    }

    for (const auto & [buft, by_perm] : matrices) {
        const ggml_init_params params = {
            /*.mem_size   =*/ by_perm.size()*ggml_tensor_overhead(),
            /*.mem_buffer =*/ nullptr,
            /*.no_alloc   =*/ true,
        };
        ggml_context_ptr ctx(ggml_init(params));
        if (!ctx) {
            throw std::runtime_error("failed to create a context for permutations");
        }

        std::vector<std::pair<ggml_tensor *, const int32_t *>> tensors;
        for (const auto & [perm, of] : by_perm) {
            ggml_tensor * tensor = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, perm.size());
            ggml_format_name(tensor, "%s%s", ggml_get_name(of[0]), PERM_SUFFIX);
            for (ggml_tensor * matrix : of) {
                ggml_tcq4_set_perm(matrix, tensor);
            }
            tensors.emplace_back(tensor, perm.data());
        }

        // without allocation, a dummy buffer keeps the scheduler from making room for them
        ggml_backend_buffer_ptr buf(ml.no_alloc ? ggml_backend_buft_alloc_buffer(buft, 0) : ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft));
        if (!buf) {
            throw std::runtime_error(format("unable to allocate a %s buffer for permutations", ggml_backend_buft_name(buft)));
        }
        ggml_backend_buffer_set_usage(buf.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);

        for (const auto & [tensor, data] : tensors) {
            if (ml.no_alloc) {
                tensor->buffer = buf.get();
            } else {
                ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
            }
        }

        std::vector<ggml_backend_buffer_ptr> bufs;
        bufs.push_back(std::move(buf));
        ctxs_bufs.emplace_back(std::move(ctx), std::move(bufs));
    }

    if (!perms.empty()) {
        LLAMA_LOG_INFO("%s: %zu tensors have permuted columns\n", __func__, perms.size());
    }
}

static void write_perm(gguf_context * ctx, const std::string & tensor, const int32_t * perm, size_t n) {
    gguf_set_arr_data(ctx, tensor_key(tensor, PERM_SUFFIX).c_str(), GGUF_TYPE_INT32, perm, n);
}

void llama_tcq4_save(gguf_context * ctx, const ggml_tensor * tensor) {
    if (ggml_tcq4_get_prec(tensor) == GGML_PREC_Q8) {
        gguf_set_val_str(ctx, tensor_key(ggml_get_name(tensor), ACTS_SUFFIX).c_str(), "int8");
    }

    const ggml_tensor * perm = ggml_tcq4_get_perm(tensor);
    if (perm == nullptr) {
        return;
    }
    std::vector<int32_t> data(ggml_nelements(perm));
    ggml_backend_tensor_get(perm, data.data(), 0, ggml_nbytes(perm));
    gguf_set_val_u32 (ctx, KEY_VERSION, VERSION);
    gguf_set_val_bool(ctx, KEY_REORDER, true);
    write_perm(ctx, ggml_get_name(tensor), data.data(), data.size());
}

//
// llama-quantize
//

ggml_type llama_tcq4_tensor_type(const ggml_tensor * tensor, bool is_output, bool is_token_embd) {
    // what no multiplication of a block reads as a matrix, or what is small and sensitive
    static const char * const KEPT[] = {
        "norm", "conv", "time_mix", "attn_rel_b", "altup", "laurel", "per_layer", "ssm_a", "ssm_d", "nextn", "indexer", "_inp",
    };

    const std::string name = ggml_get_name(tensor);
    if (is_output || (is_token_embd && name == "token_embd.weight")) {
        return tensor->ne[0] % ggml_blck_size(GGML_TYPE_Q6_K) == 0 ? GGML_TYPE_Q6_K : GGML_TYPE_Q8_0;
    }
    const bool kept = !starts_with(name, "blk.") ||
        std::any_of(std::begin(KEPT), std::end(KEPT), [&](const char * part) { return name.find(part) != std::string::npos; });

    return kept ? tensor->type : GGML_TYPE_TCQ4_K32;
}

// Within each 256 columns by importance, the largest first, equals as they were. Experts share a permutation, so theirs are added up.
static std::vector<int32_t> perm_of_importance(const float * importance, size_t size, int64_t n_columns) {
    std::vector<double> sums(n_columns, 0.0);
    for (size_t i = 0; i < size; ++i) {
        sums[i % n_columns] += importance[i];
    }

    std::vector<int32_t> perm(n_columns);
    std::iota(perm.begin(), perm.end(), 0);
    const int64_t chunk = ggml_blck_size(GGML_TYPE_TCQ4_K32);
    for (int64_t i = 0; i < n_columns; i += chunk) {
        std::stable_sort(perm.begin() + i, perm.begin() + std::min(i + chunk, n_columns),
            [&](int32_t a, int32_t b) { return sums[a] > sums[b]; });
    }
    return perm;
}

llama_tcq4_quantizer::llama_tcq4_quantizer(const llama_model_loader & ml, const llama_model_quantize_params & params) {
    for (const auto * p = params.tcq4_perms; p && p->name; ++p) {
        const auto * weight = ml.get_weight(p->name);
        if (weight == nullptr) {
            throw std::runtime_error(format("there is a permutation for '%s', a tensor that this model does not have", p->name));
        }
        if (weight->tensor->type == GGML_TYPE_TCQ4_K32) {
            throw std::runtime_error(format("there is a permutation for '%s', which is of type %s already", p->name, ggml_type_name(weight->tensor->type)));
        }
        auto & perm = perms[p->name];
        if (!perm.empty()) {
            throw std::runtime_error(format("there are two permutations for '%s'", p->name));
        }
        perm.assign(p->data, p->data + p->size);
        check_perm(p->name, perm, weight->tensor->ne[0]);
    }

    for (const auto * p = params.tcq4_importance; p && p->name; ++p) {
        const auto * weight = ml.get_weight(p->name);
        if (weight == nullptr || weight->tensor->type == GGML_TYPE_TCQ4_K32) {
            continue; // an imatrix can be of a larger model
        }
        const int64_t n_columns = weight->tensor->ne[0];
        if (p->size == 0 || (int64_t) p->size != n_columns*weight->tensor->ne[2]) {
            throw std::runtime_error(format("the importance of '%s' has %zu entries, the tensor has %lld columns and %lld experts",
                p->name, p->size, (long long) n_columns, (long long) weight->tensor->ne[2]));
        }
        perms[p->name] = perm_of_importance(p->data, p->size, n_columns);
    }

    if (!perms.empty() && params.prune_layers) {
        throw std::runtime_error("layers cannot be pruned and columns permuted at the same time");
    }
}

const std::vector<int32_t> * llama_tcq4_quantizer::perm_of(const ggml_tensor * tensor, ggml_type new_type) const {
    if (new_type != GGML_TYPE_TCQ4_K32) {
        return nullptr;
    }
    const auto it = perms.find(ggml_get_name(tensor));
    return it == perms.end() || std::is_sorted(it->second.begin(), it->second.end()) ? nullptr : &it->second;
}

void llama_tcq4_quantizer::write_keys(gguf_context * ctx, const std::vector<std::pair<const ggml_tensor *, ggml_type>> & tensors) const {
    const bool keeps_any = std::any_of(tensors.begin(), tensors.end(), [](const auto & t) { return t.first->type == GGML_TYPE_TCQ4_K32; });
    const bool makes_any = std::any_of(tensors.begin(), tensors.end(), [](const auto & t) {
        return t.second == GGML_TYPE_TCQ4_K32 && t.first->type != GGML_TYPE_TCQ4_K32;
    });

    // what the source says about tensors that are no longer what they were
    if (!keeps_any) {
        std::vector<std::string> stale;
        for (int64_t i = 0; i < gguf_get_n_kv(ctx); ++i) {
            if (starts_with(gguf_get_key(ctx, i), KEY_PREFIX)) {
                stale.emplace_back(gguf_get_key(ctx, i));
            }
        }
        for (const std::string & key : stale) {
            gguf_remove_key(ctx, key.c_str());
        }
    }
    if (!makes_any) {
        if (!perms.empty()) {
            LLAMA_LOG_WARN("%s: no tensor becomes %s: permutations are not used\n", __func__, ggml_type_name(GGML_TYPE_TCQ4_K32));
        }
        return;
    }

    size_t n_perms = 0;
    for (const auto & [tensor, type] : tensors) {
        const auto * perm = perm_of(tensor, type);
        if (perm) {
            write_perm(ctx, ggml_get_name(tensor), perm->data(), perm->size());
            ++n_perms;
        } else if (perms.count(ggml_get_name(tensor)) && type != GGML_TYPE_TCQ4_K32) {
            LLAMA_LOG_WARN("%s: '%s' becomes %s: its permutation is not used\n", __func__, ggml_get_name(tensor), ggml_type_name(type));
        }
    }

    gguf_set_val_u32(ctx, KEY_VERSION, VERSION);
    gguf_set_val_str(ctx, KEY_ENCODER, "parity");
    if (!keeps_any) {
        gguf_set_val_bool(ctx, KEY_REORDER, n_perms > 0);
    } else if (n_perms > 0) {
        gguf_set_val_bool(ctx, KEY_REORDER, true);
    }
    LLAMA_LOG_INFO("%s: %zu tensors have permuted columns\n", __func__, n_perms);
}

void llama_tcq4_permute_rows(float * rows, int64_t nrows, const std::vector<int32_t> & perm) {
    std::vector<float> row(perm.size());
    for (int64_t i = 0; i < nrows; ++i) {
        float * x = rows + i*perm.size();
        std::copy(x, x + perm.size(), row.begin());
        for (size_t j = 0; j < perm.size(); ++j) {
            x[j] = row[perm[j]];
        }
    }
}
