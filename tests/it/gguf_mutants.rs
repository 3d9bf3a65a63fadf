//! Files with random damage never make the reader panic or allocate much: flipped bits, cuts, overwritten numbers, spliced parts.

use proptest::prelude::*;
use tcq4::gguf::Source;

use crate::gguf_hostile::{open_measured, sound};
use crate::support::Dir;

/// One kind of damage; positions are fractions of the length.
#[derive(Debug, Clone)]
enum Damage {
    Flip { at: f64, bit: u8 },
    Cut { at: f64 },
    Number { at: f64, value: u64, wide: bool },
    Splice { from: f64, to: f64, length: usize },
    Insert { at: f64, bytes: Vec<u8> },
}

fn position() -> impl Strategy<Value = f64> {
    // Headers are what is parsed: half of all damage goes to the first fifth of the file.
    prop_oneof![0.0..0.2f64, 0.0..1.0f64]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..300u64,
        prop::sample::select(vec![u64::MAX, u64::MAX - 7, 1 << 63, (1 << 63) - 1, 1 << 32, u32::MAX as u64, 1 << 61]),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (position(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        1 => position().prop_map(|at| Damage::Cut { at }),
        4 => (position(), number(), any::<bool>()).prop_map(|(at, value, wide)| Damage::Number { at, value, wide }),
        2 => (position(), position(), 1..80usize).prop_map(|(from, to, length)| Damage::Splice { from, to, length }),
        1 => (position(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
    ]
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |fraction: f64| (fraction * bytes.len() as f64) as usize;
        match self {
            _ if bytes.is_empty() => {}
            Damage::Flip { at, bit } => {
                let at = place(*at);
                bytes[at] ^= 1 << bit;
            }
            Damage::Cut { at } => {
                let at = place(*at);
                bytes.truncate(at);
            }
            Damage::Number { at, value, wide } => {
                let (at, size) = (place(*at), if *wide { 8 } else { 4 });
                let end = (at + size).min(bytes.len());
                bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            }
            Damage::Splice { from, to, length } => {
                let (from, to) = (place(*from), place(*to));
                let part = bytes[from..(from + length).min(bytes.len())].to_vec();
                let end = (to + part.len()).min(bytes.len());
                bytes[to..end].copy_from_slice(&part[..end - to]);
            }
            Damage::Insert { at, bytes: new } => {
                let at = place(*at);
                bytes.splice(at..at, new.iter().copied());
            }
        }
    }
}

/// Uses everything that an opened file offers.
fn walk(source: &Source) -> usize {
    let mut total = 0;
    for (_, value) in source.metadata().iter() {
        total += value.as_array().map_or(1, |array| array.iter().count());
    }
    for tensor in source.tensors() {
        total += source.data(tensor).iter().map(|byte| *byte as usize).sum::<usize>();
        assert_eq!(source.tensor(&tensor.name), Some(tensor));
        if tensor.ty.is_float() {
            let mut row = vec![0.0; tensor.columns() as usize];
            source.read_rows(tensor, tensor.rows() - 1, &mut row).unwrap();
        }
    }
    total
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn damaged_files_do_no_harm(damages in prop::collection::vec(damage(), 1..5)) {
        let mut bytes = sound().bytes();
        for damage in &damages {
            damage.apply(&mut bytes);
        }
        let dir = Dir::in_memory();
        let path = dir.write("damaged.gguf", &bytes);
        match open_measured(&path, bytes.len() as u64) {
            Ok(source) => drop(walk(&source)),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
