//! The keys of a GGUF file in their order, each with its raw bytes, so that what is not touched is written back byte for byte.

use std::borrow::Cow;

use super::cursor::Cursor;
use super::limits::{MAX_KEY_BYTES, MAX_KEYS};
use super::names::{first_duplicate, sorted_by_name};
use super::value::{Array, Value, ValueType};
use crate::error::GgufError;

/// Ordered keys with values.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Metadata {
    entries: Vec<Entry>,
    /// The indices of `entries`, sorted by key.
    order: Vec<u32>,
}

#[derive(Clone, PartialEq, Debug)]
struct Entry {
    key: Box<str>,
    ty: ValueType,
    /// What stands behind the type id in the file; checked, so that it decodes.
    payload: Box<[u8]>,
}

impl Metadata {
    /// Begins without keys.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// Reads `count` keys, a number that was checked against the bytes left.
    pub(super) fn read(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata, GgufError> {
        let mut entries = Vec::with_capacity(count as usize);
        for index in 0..count {
            entries.push(Entry::read(cursor, index)?);
        }
        let order = sorted_by_name(entries.len(), |index| &entries[index].key);
        if let Some(index) = first_duplicate(&order, |index| &entries[index].key) {
            return Err(GgufError::Duplicate { what: "key", name: entries[index].key.to_string() });
        }
        Ok(Metadata { entries, order })
    }

    /// Appends all keys as they stand in a file.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for entry in &self.entries {
            out.extend((entry.key.len() as u64).to_le_bytes());
            out.extend(entry.key.as_bytes());
            out.extend((entry.ty as u32).to_le_bytes());
            out.extend(&*entry.payload);
        }
    }

    /// Gives how many bytes [`Metadata::write`] appends.
    pub(super) fn written_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| 8 + entry.key.len() as u64 + 4 + entry.payload.len() as u64).sum()
    }

    /// Checks that the keys could be read back: their number and lengths.
    pub(super) fn check(&self) -> Result<(), GgufError> {
        let count = self.entries.len() as u64;
        if count > MAX_KEYS {
            return Err(GgufError::Limit { what: "a key count", found: count, limit: MAX_KEYS, offset: 16 });
        }
        for (index, key) in (0..).zip(self.keys()) {
            let found = key.len() as u64;
            if found == 0 {
                return Err(GgufError::EmptyName { what: "key", index, offset: 0 });
            }
            if found > MAX_KEY_BYTES {
                return Err(GgufError::Limit { what: "a key length", found, limit: MAX_KEY_BYTES, offset: 0 });
            }
        }
        Ok(())
    }

    /// Finds where `key` stands in `order`, or where it would.
    fn search(&self, key: &str) -> Result<usize, usize> {
        self.order.binary_search_by(|index| (*self.entries[*index as usize].key).cmp(key))
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        let place = self.search(key).ok()?;
        self.entries.get(*self.order.get(place)? as usize)
    }

    /// Gives the number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Tells whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tells whether `key` is there.
    pub fn contains(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// Gives the value of `key`.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let entry = self.entry(key)?;
        Value::decode(entry.ty, &entry.payload)
    }

    /// Gives the type of the value of `key`.
    pub fn value_type(&self, key: &str) -> Option<ValueType> {
        self.entry(key).map(|entry| entry.ty)
    }

    /// Gives the raw bytes of the value of `key`, as they stand behind its type id in the file.
    pub fn payload(&self, key: &str) -> Option<&[u8]> {
        self.entry(key).map(|entry| &*entry.payload)
    }

    /// Gives an integer of any width; `None` also if it is negative.
    pub fn get_u64(&self, key: &str) -> Option<u64> {
        u64::try_from(self.get(key)?.as_integer()?).ok()
    }

    /// Gives a number of any type.
    pub fn get_f64(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    /// Gives a bool.
    pub fn get_bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Gives a text.
    pub fn get_str(&self, key: &str) -> Option<Cow<'_, str>> {
        match self.get(key)? {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Gives an array.
    pub fn get_array(&self, key: &str) -> Option<Array<'_>> {
        match self.get(key)? {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    /// Gives an array of integers of any type as i32; `None` also if one does not fit.
    pub fn get_i32_array(&self, key: &str) -> Option<Vec<i32>> {
        self.get_array(key)?.to_i32_vec()
    }

    /// Sets `key`: in its place if it is there, as the last key otherwise. The limits of keys are checked when the file is planned.
    pub fn set<'v>(&mut self, key: &str, value: impl Into<Value<'v>>) {
        let value = value.into();
        let mut payload = Vec::new();
        value.encode(&mut payload);
        self.put(key, value.ty(), payload.into_boxed_slice());
    }

    /// Copies `key` from another file's keys, byte for byte; does nothing if it is not there.
    pub fn copy_from(&mut self, other: &Metadata, key: &str) {
        if let Some(entry) = other.entry(key) {
            self.put(key, entry.ty, entry.payload.clone());
        }
    }

    fn put(&mut self, key: &str, ty: ValueType, payload: Box<[u8]>) {
        match self.search(key) {
            Ok(place) => {
                let entry = &mut self.entries[self.order[place] as usize];
                (entry.ty, entry.payload) = (ty, payload);
            }
            Err(place) => {
                self.order.insert(place, self.entries.len() as u32);
                self.entries.push(Entry { key: key.into(), ty, payload });
            }
        }
    }

    /// Removes `key`; tells whether it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        let Ok(place) = self.search(key) else { return false };
        let index = self.order.remove(place);
        self.entries.remove(index as usize);
        for other in &mut self.order {
            *other -= u32::from(*other > index);
        }
        true
    }

    /// Walks the keys in their order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| &*entry.key)
    }

    /// Walks the keys with their values in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.entries.iter().filter_map(|entry| Some((&*entry.key, Value::decode(entry.ty, &entry.payload)?)))
    }
}

impl Entry {
    fn read(cursor: &mut Cursor<'_>, index: u64) -> Result<Entry, GgufError> {
        let key = cursor.name("key", index, MAX_KEY_BYTES)?;
        let ty = read_type(cursor, key)?;
        let start = cursor.offset();
        skip_value(cursor, key, ty)?;
        Ok(Entry { key: key.into(), ty, payload: cursor.since(start).into() })
    }
}

fn read_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, GgufError> {
    let offset = cursor.offset();
    let found = cursor.u32("a value type")?;
    ValueType::from_id(found).ok_or_else(|| GgufError::ValueType { key: key.to_owned(), found, offset })
}

/// Walks over a value and checks that it decodes.
fn skip_value(cursor: &mut Cursor<'_>, key: &str, ty: ValueType) -> Result<(), GgufError> {
    match ty {
        ValueType::Bool => skip_bools(cursor, key, 1),
        ValueType::Str => cursor.string("a string").map(drop),
        ValueType::Array => skip_array(cursor, key),
        scalar => cursor.take(scalar.size().unwrap_or(0), "a value").map(drop),
    }
}

fn skip_array(cursor: &mut Cursor<'_>, key: &str) -> Result<(), GgufError> {
    let offset = cursor.offset();
    let elem = read_type(cursor, key)?;
    let count = cursor.u64("an array length")?;
    let (least, left) = (elem.size().unwrap_or(8), cursor.left());
    if elem == ValueType::Array {
        return Err(GgufError::NestedArray { key: key.to_owned(), offset });
    }
    if count > left / least {
        let offset = cursor.offset();
        return Err(GgufError::Count { what: "array elements", count, offset, left, most: left / least });
    }
    match elem {
        ValueType::Bool => skip_bools(cursor, key, count),
        ValueType::Str => (0..count).try_for_each(|_| cursor.string("a string in an array").map(drop)),
        _ => cursor.take(count * least, "an array").map(drop),
    }
}

fn skip_bools(cursor: &mut Cursor<'_>, key: &str, count: u64) -> Result<(), GgufError> {
    let start = cursor.offset();
    let bytes = cursor.take(count, "a bool")?;
    match bytes.iter().position(|byte| *byte > 1) {
        None => Ok(()),
        Some(at) => Err(GgufError::Bool { key: key.to_owned(), found: bytes[at], offset: start + at as u64 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama");
        metadata.set("b.count", 3u32);
        metadata.set("a.eps", 1e-5f32);
        metadata.set("c.perm", [2i32, 0, 1].as_slice());
        metadata
    }

    #[test]
    fn values_are_replaced_in_place_and_appended_at_the_end() {
        let mut metadata = sample();
        metadata.set("b.count", 4u64);
        metadata.set("d", true);
        assert_eq!(metadata.keys().collect::<Vec<_>>(), ["general.architecture", "b.count", "a.eps", "c.perm", "d"]);
        assert_eq!(metadata.get_u64("b.count"), Some(4));
        assert_eq!(metadata.get_bool("d"), Some(true));
        assert_eq!(metadata.get_i32_array("c.perm"), Some(vec![2, 0, 1]));
    }

    #[test]
    fn removal_keeps_the_order_and_the_other_keys() {
        let mut metadata = sample();
        assert!(metadata.remove("b.count") && !metadata.remove("b.count"));
        assert_eq!(metadata.keys().collect::<Vec<_>>(), ["general.architecture", "a.eps", "c.perm"]);
        assert_eq!(metadata.get_f64("a.eps"), Some(f64::from(1e-5f32)));
        assert_eq!(metadata.get_str("general.architecture").as_deref(), Some("llama"));
    }

    #[test]
    fn wrong_types_are_none() {
        let metadata = sample();
        assert_eq!(metadata.get_u64("a.eps"), None);
        assert_eq!(metadata.get_str("b.count"), None);
        assert_eq!(metadata.get_i32_array("missing"), None);
    }

    #[test]
    fn written_keys_are_read_back() {
        let (metadata, mut bytes) = (sample(), Vec::new());
        metadata.write(&mut bytes);
        assert_eq!(bytes.len() as u64, metadata.written_bytes());
        assert_eq!(Metadata::read(&mut Cursor::new(&bytes), 4), Ok(metadata));
    }
}
