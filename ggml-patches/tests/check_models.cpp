// Checks what a patched libllama makes of TCQ4_K32 models, by their logits. One command a run; make_gguf.py makes the files.
//
// usage: check_models near TOLERANCE A.gguf B.gguf [LORA.gguf]   the logits agree, and so does what the adapter changes in them
//        check_models same A.gguf B.gguf                         bit for bit
//        check_models differ A.gguf B.gguf                       not so
//        check_models load FILE.gguf SPLIT.gguf                  read, mapped, by direct I/O and split: the same bit for bit
//        check_models save A.gguf OUT.gguf                       saved by libllama and loaded again: the same bit for bit
//        check_models turns A.gguf B.gguf                        two models used in turns give what each gives alone, bit for bit
//        check_models batch TOLERANCE A.gguf                     sequences in one batch give what each gives alone
//        check_models refuse WORDS FILE.gguf...                  none can be loaded, with its data checked; each message matches the expression WORDS
//
// Prints what was found. The exit code is 0, or 1 if the check failed; a crash is another one.
//
// Distances are squared errors by the squares of what is compared with, as in test-backend-ops.

#include "ggml.h"
#include "llama.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <regex>
#include <string>
#include <vector>

static const int N_TOKENS = 96;

typedef std::vector<float> floats;

static std::string told; // by libllama at level warning and above

static void remember(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR || level == GGML_LOG_LEVEL_WARN) {
        told += text;
    }
}

struct model_deleter   { void operator()(llama_model   * p) const { llama_model_free(p); } };
struct context_deleter { void operator()(llama_context * p) const { llama_free(p); } };

typedef std::unique_ptr<llama_model,   model_deleter>   model_ptr;
typedef std::unique_ptr<llama_context, context_deleter> context_ptr;

static model_ptr open(const std::string & file, llama_load_mode mode = LLAMA_LOAD_MODE_MMAP, bool check_tensors = false) {
    llama_model_params params = llama_model_default_params();
    params.load_mode     = mode;
    params.check_tensors = check_tensors;
    return model_ptr(llama_model_load_from_file(file.c_str(), params));
}

static model_ptr need(const std::string & file, llama_load_mode mode = LLAMA_LOAD_MODE_MMAP) {
    model_ptr model = open(file, mode);
    if (!model) {
        fprintf(stderr, "%s: cannot load it\n%s", file.c_str(), told.c_str());
        exit(2);
    }
    return model;
}

static context_ptr context_of(llama_model * model, int n_seqs = 1) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = 512*n_seqs;
    params.n_batch         = 512;
    params.n_ubatch        = 512;
    params.n_seq_max       = n_seqs;
    params.n_threads       = 2;
    params.n_threads_batch = 2;
    context_ptr ctx(llama_init_from_model(model, params));
    if (!ctx) {
        fprintf(stderr, "no context\n%s", told.c_str());
        exit(2);
    }
    return ctx;
}

static int n_vocab(const llama_model * model) {
    return llama_vocab_n_tokens(llama_model_get_vocab(model));
}

// Any tokens do: what is compared is arithmetic.
static std::vector<llama_token> tokens_of(const llama_model * model, uint32_t seed) {
    std::vector<llama_token> tokens(N_TOKENS);
    for (llama_token & token : tokens) {
        seed  = seed*1664525u + 1013904223u;
        token = (llama_token) ((seed >> 8) % (uint32_t) n_vocab(model));
    }
    return tokens;
}

// Decodes the tokens first .. first + n of each sequence at once and adds their logits to those of the sequence.
static void decode(llama_context * ctx, const std::vector<std::vector<llama_token>> & seqs, int first, int n, std::vector<floats> & logits) {
    llama_batch batch = llama_batch_init(n*(int) seqs.size(), 0, 1);
    for (int i = first; i < first + n; ++i) {
        for (size_t s = 0; s < seqs.size(); ++s) {
            const int at = batch.n_tokens++;
            batch.token   [at]    = seqs[s][i];
            batch.pos     [at]    = i;
            batch.n_seq_id[at]    = 1;
            batch.seq_id  [at][0] = (llama_seq_id) s;
            batch.logits  [at]    = true;
        }
    }
    if (llama_decode(ctx, batch) != 0) {
        fprintf(stderr, "decoding failed\n%s", told.c_str());
        exit(2);
    }
    const int vocab = n_vocab(llama_get_model(ctx));
    for (int at = 0; at < batch.n_tokens; ++at) {
        const float * x = llama_get_logits_ith(ctx, at);
        floats & of = logits[at % seqs.size()];
        of.insert(of.end(), x, x + vocab);
    }
    llama_batch_free(batch);
}

// A prompt, then single tokens: both kinds of products.
static void decode_all(llama_context * ctx, const std::vector<std::vector<llama_token>> & seqs, std::vector<floats> & logits) {
    logits.assign(seqs.size(), floats());
    const int prompt = N_TOKENS - 8;
    decode(ctx, seqs, 0, prompt, logits);
    for (int i = prompt; i < N_TOKENS; ++i) {
        decode(ctx, seqs, i, 1, logits);
    }
}

static floats logits_of(llama_model * model, uint32_t seed = 1, const char * lora = nullptr) {
    context_ptr ctx = context_of(model);
    if (lora) {
        llama_adapter_lora * adapter = llama_adapter_lora_init(model, lora); // the model frees it
        float scale = 1.0f;
        if (!adapter || llama_set_adapters_lora(ctx.get(), &adapter, 1, &scale) != 0) {
            fprintf(stderr, "%s: cannot load it\n%s", lora, told.c_str());
            exit(2);
        }
    }
    std::vector<floats> logits;
    decode_all(ctx.get(), { tokens_of(model, seed) }, logits);
    return logits[0];
}

static double squares(const floats & a) {
    double sum = 0;
    for (float x : a) {
        sum += (double) x*x;
    }
    return sum;
}

static floats minus(const floats & a, const floats & b) {
    if (a.size() != b.size()) {
        fprintf(stderr, "%zu and %zu logits\n", a.size(), b.size());
        exit(2);
    }
    floats difference(a.size());
    for (size_t i = 0; i < a.size(); ++i) {
        difference[i] = a[i] - b[i];
    }
    return difference;
}

static double distance(const floats & a, const floats & b) {
    return squares(minus(a, b))/squares(b);
}

static bool is_same(const floats & a, const floats & b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size()*sizeof(float)) == 0 && std::isfinite(squares(a));
}

static bool is_near(const char * what, const floats & a, const floats & b, double tolerance) {
    const double found = distance(a, b);
    printf("%s differ by %.2g\n", what, found);
    return found <= tolerance; // not so for NaN
}

static bool near(double tolerance, const char * a, const char * b, const char * lora) {
    model_ptr model_a = need(a), model_b = need(b);
    const floats plain_a = logits_of(model_a.get()), plain_b = logits_of(model_b.get());
    bool good = is_near("logits", plain_a, plain_b, tolerance);
    if (lora) {
        const floats lora_a = logits_of(model_a.get(), 1, lora), lora_b = logits_of(model_b.get(), 1, lora);
        const double change = distance(lora_b, plain_b);
        printf("the adapter changes logits by %.2g\n", change);
        good = change > 100*tolerance && is_near("logits with the adapter", lora_a, lora_b, tolerance) && good;
    }
    return good;
}

static bool load(const char * file, const char * split) {
    const floats expected = logits_of(need(file).get());
    const bool read   = is_same(logits_of(need(file, LLAMA_LOAD_MODE_NONE).get()), expected);
    const bool direct = is_same(logits_of(need(file, LLAMA_LOAD_MODE_DIRECT_IO).get()), expected);
    const bool parts  = is_same(logits_of(need(split).get()), expected);
    printf("read: %d, by direct I/O: %d, split: %d\n", read, direct, parts);
    return read && direct && parts;
}

static bool save(const char * file, const char * out) {
    model_ptr model = need(file);
    llama_model_save_to_file(model.get(), out);
    return is_same(logits_of(need(out).get()), logits_of(model.get()));
}

static bool turns(const char * a, const char * b) {
    const char * const files[] = { a, b };
    floats alone[2];
    for (int i = 0; i < 2; ++i) {
        alone[i] = logits_of(need(files[i]).get());
    }
    model_ptr   models[] = { need(a), need(b) };
    context_ptr ctxs[]   = { context_of(models[0].get()), context_of(models[1].get()) };
    const std::vector<std::vector<llama_token>> seqs[] = { { tokens_of(models[0].get(), 1) }, { tokens_of(models[1].get(), 1) } };
    std::vector<floats> logits[] = { std::vector<floats>(1), std::vector<floats>(1) };
    const int prompt = N_TOKENS - 8; // as decode_all
    for (int i = 0; i < N_TOKENS; i = i == 0 ? prompt : i + 1) {
        for (int m = 0; m < 2; ++m) {
            decode(ctxs[m].get(), seqs[m], i, i == 0 ? prompt : 1, logits[m]);
        }
    }
    printf("the models differ by %.2g\n", distance(alone[0], alone[1]));
    return is_same(logits[0][0], alone[0]) && is_same(logits[1][0], alone[1]) && !is_same(alone[0], alone[1]);
}

static bool batch(double tolerance, const char * file) {
    model_ptr model = need(file);
    std::vector<std::vector<llama_token>> seqs;
    for (uint32_t s = 0; s < 4; ++s) {
        seqs.push_back(tokens_of(model.get(), s + 1));
    }
    context_ptr ctx = context_of(model.get(), (int) seqs.size());
    std::vector<floats> together;
    decode_all(ctx.get(), seqs, together);
    bool good = true;
    for (uint32_t s = 0; s < 4; ++s) {
        const std::string what = "logits of sequence " + std::to_string(s);
        good = is_near(what.c_str(), together[s], logits_of(model.get(), s + 1), tolerance) && good;
    }
    return good && !is_same(together[0], together[1]);
}

static bool refuse(const char * words, int n_files, char ** files) {
    const std::regex expression(words);
    bool good = true;
    for (int i = 0; i < n_files; ++i) {
        told.clear();
        const bool loaded = open(files[i], LLAMA_LOAD_MODE_MMAP, true) != nullptr;
        if (loaded || !std::regex_search(told, expression)) {
            printf("%s: %s, saying:\n%s\n", files[i], loaded ? "loaded" : "refused", told.c_str());
            good = false;
        }
    }
    printf("%d files\n", n_files);
    return good;
}

int main(int argc, char ** argv) {
    llama_log_set(remember, nullptr);
    llama_backend_init();
    const std::string command = argc > 1 ? argv[1] : "";
    bool good = false;
    if (command == "near" && (argc == 5 || argc == 6)) {
        good = near(atof(argv[2]), argv[3], argv[4], argc == 6 ? argv[5] : nullptr);
    } else if ((command == "same" || command == "differ") && argc == 4) {
        good = is_same(logits_of(need(argv[2]).get()), logits_of(need(argv[3]).get())) == (command == "same");
    } else if (command == "load" && argc == 4) {
        good = load(argv[2], argv[3]);
    } else if (command == "save" && argc == 4) {
        good = save(argv[2], argv[3]);
    } else if (command == "turns" && argc == 4) {
        good = turns(argv[2], argv[3]);
    } else if (command == "batch" && argc == 4) {
        good = batch(atof(argv[2]), argv[3]);
    } else if (command == "refuse" && argc > 3) {
        good = refuse(argv[2], argc - 3, argv + 3);
    } else {
        fprintf(stderr, "check_models: wrong usage\n");
        return 2;
    }
    llama_backend_free();
    return good ? 0 : 1;
}
