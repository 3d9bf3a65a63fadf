#pragma once

// What TCQ4_K32 files carry besides tensors, as keys of the GGUF: the permutations of the columns of their matrices, and which of them must
// not have INT4 activations.
//
//   tcq4.version                u32, the layout of the keys below, 1
//   tcq4.reorder.enabled        bool; where it is false, permutations are ignored
//   tcq4.<tensor>.perm          i32 array, one entry a column: column i of the stored matrix is column perm[i] of the matrix
//   tcq4.<tensor>.activations   string; int8 or none: the activations of this matrix have 8 bits on any path
//   tcq4.activations            string, the path that these marks were chosen for; it is only checked
//
// Other keys (tcq4.<tensor>.sha256, ...) are for other programs.

#include "llama.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

struct llama_model_loader;
struct llama_model;

using llama_tcq4_perms = std::map<std::string, std::vector<int32_t>>; // by tensor name

// as the model keeps its own tensors
using llama_ctxs_bufs = std::vector<std::pair<ggml_context_ptr, std::vector<ggml_backend_buffer_ptr>>>;

// Makes tensors of the permutations in the file, hangs them and the marks at the matrices that ml has created, and adds what owns them to
// ctxs_bufs. GGML_TCQ4_IGNORE_MARKS in the environment leaves the marks out. Throws if a permutation or a mark does not fit its matrix.
void llama_tcq4_load(llama_model_loader & ml, llama_split_mode split_mode, llama_ctxs_bufs & ctxs_bufs);

// Whether a key holds a permutation: there are hundreds of them, of thousands of numbers, so nobody wants to see them listed.
bool llama_tcq4_is_perm_key(const std::string & key);

// Writes the keys of a matrix that is saved as it is.
void llama_tcq4_save(gguf_context * ctx, const ggml_tensor * tensor);

// The type that llama-quantize gives to a matrix unless it is told otherwise.
ggml_type llama_tcq4_tensor_type(const ggml_tensor * tensor, bool is_output, bool is_token_embd);

// The permutations that llama-quantize applies.
class llama_tcq4_quantizer {
public:
    // Throws if the permutations or their names do not fit the model in ml.
    llama_tcq4_quantizer(const llama_model_loader & ml, const llama_model_quantize_params & params);

    // Where the tensor goes to type TCQ4_K32 and is permuted: its permutation, else null.
    const std::vector<int32_t> * perm_of(const ggml_tensor * tensor, ggml_type new_type) const;

    // Writes the keys of the tensors that go to type TCQ4_K32, in place of those that the source file had.
    void write_keys(gguf_context * ctx, const std::vector<std::pair<const ggml_tensor *, ggml_type>> & tensors) const;

private:
    llama_tcq4_perms perms;
};

// Permutes the columns of rows in place.
void llama_tcq4_permute_rows(float * rows, int64_t nrows, const std::vector<int32_t> & perm);
