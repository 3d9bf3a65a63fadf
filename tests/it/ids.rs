//! The numbers that other programs know TCQ4_K32 by are the same wherever they are written down.

use tcq4::gguf::GgmlType;
use tcq4::tcq::{FORK_FTYPE_ID, FORK_GGML_TYPE_ID, FTYPE_ID, GGML_TYPE_ID};

#[test]
fn the_readme_names_the_ids_of_the_code() {
    let readme = include_str!("../../README.md").replace('\n', " ");
    assert_eq!(GGML_TYPE_ID, FTYPE_ID, "the README gives one number for both");
    assert!(readme.contains(&format!("Tensor type and file type **{GGML_TYPE_ID}**")));
    assert!(readme.contains(&format!("`--compat llama.cpp-rrs` writes {FORK_GGML_TYPE_ID} and {FORK_FTYPE_ID}")));
}

#[test]
fn the_type_table_takes_its_ids_from_the_codec() {
    assert_eq!(GgmlType::TCQ4_K32, GgmlType(GGML_TYPE_ID));
    assert_eq!(GgmlType::FORK_TCQ4_K32, GgmlType(FORK_GGML_TYPE_ID));
}
