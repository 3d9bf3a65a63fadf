//! Builds GGUF files byte by byte, right or wrong. Independent of the crate's writer on purpose.

/// The type ids of values that the tests use.
pub mod ty {
    pub const U8: u32 = 0;
    pub const U16: u32 = 2;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const BOOL: u32 = 7;
    pub const STR: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
}

/// A file in the making. Counts are those of what was added unless they are set.
#[derive(Clone)]
pub struct Raw {
    pub magic: Vec<u8>,
    pub version: u32,
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
    pub alignment: usize,
    pub data: Vec<u8>,
    keys: Vec<u8>,
    keys_added: u64,
    tensors: Vec<u8>,
    tensors_added: u64,
}

impl Raw {
    /// Begins a version 3 file without keys and tensors.
    pub fn new() -> Raw {
        Raw {
            magic: b"GGUF".to_vec(),
            version: 3,
            tensor_count: None,
            key_count: None,
            alignment: 32,
            data: Vec::new(),
            keys: Vec::new(),
            keys_added: 0,
            tensors: Vec::new(),
            tensors_added: 0,
        }
    }

    /// Adds a key with a raw payload.
    pub fn key(mut self, key: &str, ty: u32, payload: &[u8]) -> Raw {
        self.keys.extend(string(key.as_bytes()));
        self.keys.extend(ty.to_le_bytes());
        self.keys.extend(payload);
        self.keys_added += 1;
        self
    }

    /// Adds a key with a u32.
    pub fn u32(self, key: &str, value: u32) -> Raw {
        self.key(key, ty::U32, &value.to_le_bytes())
    }

    /// Adds a key with a u16.
    pub fn u16(self, key: &str, value: u16) -> Raw {
        self.key(key, ty::U16, &value.to_le_bytes())
    }

    /// Adds a key with a text.
    pub fn text(self, key: &str, value: &str) -> Raw {
        self.key(key, ty::STR, &string(value.as_bytes()))
    }

    /// Adds raw bytes where keys stand.
    pub fn key_bytes(mut self, bytes: &[u8]) -> Raw {
        self.keys.extend(bytes);
        self.keys_added += 1;
        self
    }

    /// Adds a tensor's description.
    pub fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Raw {
        self.tensor_named(name.as_bytes(), dims, ty, offset)
    }

    /// Adds a tensor's description with any bytes as its name.
    pub fn tensor_named(mut self, name: &[u8], dims: &[u64], ty: u32, offset: u64) -> Raw {
        self.tensors.extend(string(name));
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        for dim in dims {
            self.tensors.extend(dim.to_le_bytes());
        }
        self.tensors.extend(ty.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensors_added += 1;
        self
    }

    /// Adds raw bytes where tensors are described.
    pub fn tensor_bytes(mut self, bytes: &[u8]) -> Raw {
        self.tensors.extend(bytes);
        self.tensors_added += 1;
        self
    }

    /// Sets the data section: `count` bytes that count up.
    pub fn data(mut self, count: usize) -> Raw {
        self.data = (0..count).map(|index| index as u8).collect();
        self
    }

    /// Gives the bytes before the padding of the data section.
    pub fn header(&self) -> Vec<u8> {
        let mut bytes = self.magic.clone();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors_added).to_le_bytes());
        bytes.extend(self.key_count.unwrap_or(self.keys_added).to_le_bytes());
        bytes.extend(&self.keys);
        bytes.extend(&self.tensors);
        bytes
    }

    /// Gives the whole file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        if !self.data.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend(&self.data);
        }
        bytes
    }
}

/// Encodes a length and as many bytes.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// Encodes an array of `count` elements of type `elem` with these bytes.
pub fn array(elem: u32, count: u64, bytes: &[u8]) -> Vec<u8> {
    [&elem.to_le_bytes(), &count.to_le_bytes()[..], bytes].concat()
}
