// Activations in one pass: gather of channels, FWHT, the maximum and the codes.
//
// Maths: y = H x[perm]/16 of every 256 channels; scale by the rule (see tcq4_act.cuh) from the extreme of 32 or 256 values; codes = round(y/scale), ties to
// even; the sum of every 32 codes. Zeros (below 1e-10) get a scale of 1, a scale of NaN says that a value was not finite.
// Mapping: a warp a chunk, lane l holds values 8*l .. 8*l + 7: three stages of the FWHT in registers, five by shuffles, extremes by shuffles.
// Launch: blocks of 256 threads. staged = 0: ceil(tokens*chunks/8) blocks, channels read where they lie: few tokens, or no permutation. staged = 1: a block a
// token, whose row goes to dynamic shared memory first, since scattered reads of the L1 cache take a cycle for every lane: 1 channel a cycle and
// multiprocessor, where random banks of shared memory give about 9.
// Bound: memory; reads 4 (f16: 2) bytes and writes 1.25 (INT8), 0.75 (INT4), 0.625 (block4), 1.125 (block8) bytes a channel.
// Tolerance: none, codes and scales are the bits of tcq4_act_symmetric() and tcq4_act_signed().
// Predicted on an H200, not measured: INT8, permuted and staged: 75 to 90 % of copy bandwidth from 256 tokens on; 1 token of 4096 channels: 3 to 4 us with the launch.

#include "tcq4_act.cuh"

#define TCQ4_ROUND_KERNEL(name, rule, value, act) \
    TCQ4_KERNEL __launch_bounds__(256) name( \
            const value * __restrict__ x, const int32_t * __restrict__ perm, act * __restrict__ acts, int64_t tokens, int chunks, int staged) { \
        tcq4_round_tokens<rule>(x, perm, acts, tokens, chunks, staged); \
    }

TCQ4_ROUND_KERNEL(tcq4_round_int8_f32,       TCQ4_RULE_INT8,      float,    tcq4_act8)
TCQ4_ROUND_KERNEL(tcq4_round_int4_g32_f32,   TCQ4_RULE_INT4_G32,  float,    tcq4_act4)
TCQ4_ROUND_KERNEL(tcq4_round_int4_g256_f32,  TCQ4_RULE_INT4_G256, float,    tcq4_act4)
TCQ4_ROUND_KERNEL(tcq4_round_int4_fork_f32,  TCQ4_RULE_INT4_FORK, float,    tcq4_act4)
TCQ4_ROUND_KERNEL(tcq4_round_block_g256_f32, TCQ4_RULE_INT4_G256, float,    tcq4_block4)
TCQ4_ROUND_KERNEL(tcq4_round_block_fork_f32, TCQ4_RULE_INT4_FORK, float,    tcq4_block4)
TCQ4_ROUND_KERNEL(tcq4_round_wide_g256_f32,  TCQ4_RULE_INT4_G256, float,    tcq4_block8)
TCQ4_ROUND_KERNEL(tcq4_round_wide_fork_f32,  TCQ4_RULE_INT4_FORK, float,    tcq4_block8)
TCQ4_ROUND_KERNEL(tcq4_round_int8_f16,       TCQ4_RULE_INT8,      uint16_t, tcq4_act8)
TCQ4_ROUND_KERNEL(tcq4_round_int4_g32_f16,   TCQ4_RULE_INT4_G32,  uint16_t, tcq4_act4)
TCQ4_ROUND_KERNEL(tcq4_round_int4_g256_f16,  TCQ4_RULE_INT4_G256, uint16_t, tcq4_act4)
TCQ4_ROUND_KERNEL(tcq4_round_int4_fork_f16,  TCQ4_RULE_INT4_FORK, uint16_t, tcq4_act4)
TCQ4_ROUND_KERNEL(tcq4_round_block_g256_f16, TCQ4_RULE_INT4_G256, uint16_t, tcq4_block4)
TCQ4_ROUND_KERNEL(tcq4_round_block_fork_f16, TCQ4_RULE_INT4_FORK, uint16_t, tcq4_block4)
TCQ4_ROUND_KERNEL(tcq4_round_wide_g256_f16,  TCQ4_RULE_INT4_G256, uint16_t, tcq4_block8)
TCQ4_ROUND_KERNEL(tcq4_round_wide_fork_f16,  TCQ4_RULE_INT4_FORK, uint16_t, tcq4_block8)
