//! A bounded walk over the header's bytes. Every read is checked against what is left before anything is allocated.

use super::limits::MAX_HEADER_BYTES;
use crate::error::GgufError;

/// A position in the bytes of a file.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte.
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Gives the offset of the next byte.
    pub(super) fn offset(&self) -> u64 {
        self.at as u64
    }

    /// Gives how many bytes are left.
    pub(super) fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// Gives the bytes from `start` (an earlier [`Cursor::offset`]) to here.
    pub(super) fn since(&self, start: u64) -> &'a [u8] {
        &self.bytes[start as usize..self.at]
    }

    /// Takes `count` bytes of `what`.
    pub(super) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let (offset, left) = (self.offset(), self.left());
        if count > left {
            return Err(GgufError::Truncated { what, offset, needed: count, left });
        }
        if offset + count > MAX_HEADER_BYTES {
            let found = offset + count;
            return Err(GgufError::Limit { what: "a header length", found, limit: MAX_HEADER_BYTES, offset });
        }
        let taken = &self.bytes[self.at..self.at + count as usize];
        self.at += count as usize;
        Ok(taken)
    }

    /// Takes `N` bytes of `what` as an array.
    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, what)?);
        Ok(bytes)
    }

    /// Takes a little-endian u32.
    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// Takes a little-endian u64.
    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Takes a length and as many bytes.
    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a [u8], GgufError> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    /// Takes the name of something: UTF-8, not empty, at most `limit` bytes; `index` is its number for messages.
    pub(super) fn name(&mut self, what: &'static str, index: u64, limit: u64) -> Result<&'a str, GgufError> {
        let offset = self.offset();
        let one = if what == "key" { "a key" } else { "a tensor name" };
        let length = self.u64(one)?;
        if length == 0 {
            return Err(GgufError::EmptyName { what, index, offset });
        }
        if length > limit && length <= self.left() {
            let what = if what == "key" { "a key length" } else { "a tensor name length" };
            return Err(GgufError::Limit { what, found: length, limit, offset });
        }
        let bytes = self.take(length, one)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { what, offset: offset + 8 })
    }

    /// Takes a count of things of at least `least` bytes each and checks that they can be there. The things start at `ahead` bytes from here.
    pub(super) fn count(&mut self, what: &'static str, least: u64, limit: u64, ahead: u64) -> Result<u64, GgufError> {
        let at = self.offset();
        let count = self.u64("the header")?;
        let left = self.left().saturating_sub(ahead);
        let most = left / least;
        if count > most {
            return Err(GgufError::Count { what, count, offset: self.offset() + ahead, left, most });
        }
        if count > limit {
            let what = if what == "keys" { "a key count" } else { "a tensor count" };
            return Err(GgufError::Limit { what, found: count, limit, offset: at });
        }
        Ok(count)
    }
}
