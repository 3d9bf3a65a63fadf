//! Input groups of tabled and of unknown architectures, and what keeps a group from being folded.

use tcq4::model::{Arch, InputGroup, Producer, Shape, groups};

/// A llama of one block: 8 query heads of 32 share 2 key-value heads; 512 hidden channels.
const LLAMA: [(&str, &[u64]); 12] = [
    ("token_embd.weight", &[256, 1000]),
    ("blk.0.attn_norm.weight", &[256]),
    ("blk.0.attn_q.weight", &[256, 256]),
    ("blk.0.attn_k.weight", &[256, 64]),
    ("blk.0.attn_v.weight", &[256, 64]),
    ("blk.0.attn_output.weight", &[256, 256]),
    ("blk.0.ffn_norm.weight", &[256]),
    ("blk.0.ffn_gate.weight", &[256, 512]),
    ("blk.0.ffn_up.weight", &[256, 512]),
    ("blk.0.ffn_down.weight", &[512, 256]),
    ("output_norm.weight", &[256]),
    ("output.weight", &[256, 1000]),
];

fn arch(name: &str) -> Arch {
    Arch { name: name.into(), blocks: 1, embedding: 256, heads: vec![8], kv_heads: vec![2], ..Arch::default() }
}

fn found(tensors: &[(&'static str, &'static [u64])], arch: &Arch) -> Vec<InputGroup> {
    groups(tensors.iter().map(|&(name, dims)| Shape { name, dims }), arch)
}

fn reason(groups: &[InputGroup], key: &str) -> Option<String> {
    let group = groups.iter().find(|group| group.key == key).unwrap_or_else(|| panic!("no group {key}"));
    group.producer.why_not_scaled().map(str::to_string)
}

#[test]
fn a_llama_has_five_groups_that_can_all_be_scaled() {
    let groups = found(&LLAMA, &arch("llama"));
    let keys: Vec<&str> = groups.iter().map(|group| group.key.as_str()).collect();
    assert_eq!(keys, ["blk.0.attn_in", "blk.0.attn_out", "blk.0.ffn_in", "blk.0.ffn_down", "output"]);
    assert!(groups.iter().all(|group| group.producer.why_not_scaled().is_none()));
    assert_eq!(groups[0].readers, ["blk.0.attn_k.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight"]);
    assert_eq!(groups[1].shared_makers().map(|makers| (makers[0], makers[127], makers[128])), Some((0, 31, 32)));
    assert!(groups[0].in_stream && !groups[1].in_stream && !groups[3].in_stream && groups[4].in_stream);
}

#[test]
fn an_unknown_tensor_in_a_block_keeps_the_block_from_being_folded() {
    let mut tensors = LLAMA.to_vec();
    tensors.push(("blk.0.surprise.weight", &[256, 256]));
    let groups = found(&tensors, &arch("llama"));
    for key in ["blk.0.attn_in", "blk.0.attn_out", "blk.0.ffn_in", "blk.0.ffn_down"] {
        assert!(reason(&groups, key).unwrap().contains("`blk.0.surprise.weight`"), "{key}");
    }
    assert_eq!(reason(&groups, "output"), None);
    assert!(reason(&groups, "blk.0.surprise.weight").is_some(), "it is a group of its own");
}

#[test]
fn a_tied_embedding_is_no_group() {
    let groups = found(&LLAMA[..11], &arch("llama"));
    assert!(groups.iter().all(|group| group.key != "output"));
}

#[test]
fn an_unknown_architecture_is_grouped_by_name_only() {
    let groups = found(&LLAMA, &arch("novel"));
    assert_eq!(groups.len(), 5);
    assert!(groups.iter().all(|group| !group.in_stream
        && matches!(&group.producer, Producer::Unknown { reason } if reason.contains("`novel`"))));
}

#[test]
fn shapes_that_do_not_fit_are_reasons_not_panics() {
    let with = |name: &str, dims: &'static [u64]| {
        let tensors: Vec<(&str, &[u64])> =
            LLAMA.iter().map(|&(n, d)| if n == name { (n, dims) } else { (n, d) }).collect();
        found(&tensors, &arch("llama"))
    };
    assert!(reason(&with("blk.0.attn_v.weight", &[256, 96]), "blk.0.attn_out").unwrap().contains("value rows"));
    assert!(reason(&with("blk.0.ffn_up.weight", &[256, 500]), "blk.0.ffn_down").unwrap().contains("512"));
    assert!(reason(&with("blk.0.ffn_norm.weight", &[255]), "blk.0.ffn_in").unwrap().contains("gains"));
    assert!(reason(&with("blk.0.attn_k.weight", &[128, 64]), "blk.0.attn_k.weight").unwrap().contains("differ"));
    let mut clamped = arch("llama");
    (clamped.clamps_values, clamped.clamps_up) = (true, true);
    let groups = found(&LLAMA, &clamped);
    assert!(reason(&groups, "blk.0.attn_out").is_some() && reason(&groups, "blk.0.ffn_down").is_some());
    assert!(reason(&groups, "blk.0.attn_in").is_none());
    let headless = Arch { heads: vec![], ..arch("llama") };
    assert!(reason(&found(&LLAMA, &headless), "blk.0.attn_out").unwrap().contains("heads"));
}
