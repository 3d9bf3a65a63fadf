//! The values of GGUF keys: scalars, strings and flat arrays, decoded from their raw bytes on demand. Arrays of arrays do not exist here.

use std::borrow::Cow;

/// The type of a value, by its id in the file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names are GGUF's")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Str = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// Finds the type of an id.
    pub fn from_id(id: u32) -> Option<ValueType> {
        use ValueType as T;
        let all =
            [T::U8, T::I8, T::U16, T::I16, T::U32, T::I32, T::F32, T::Bool, T::Str, T::Array, T::U64, T::I64, T::F64];
        all.get(id as usize).copied()
    }

    /// Gives the name for messages.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::Str => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// Gives the bytes of a value; `None` for strings and arrays, whose length varies.
    pub fn size(self) -> Option<u64> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::Str | ValueType::Array => None,
        }
    }
}

/// A value of a key.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "the names are GGUF's")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Text. Bytes that are not UTF-8 are shown as replacement characters; they are carried over unchanged.
    Str(Cow<'a, str>),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A flat array of values of one type.
#[derive(Clone, PartialEq, Debug)]
pub struct Array<'a> {
    elem: ValueType,
    len: u64,
    bytes: Cow<'a, [u8]>,
}

/// Takes the first `N` bytes off `bytes`.
fn split<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<[u8; N]> {
    let (head, rest): (&'a [u8; N], _) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

/// Takes a length and as many bytes off `bytes`.
fn split_string<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(u64::from_le_bytes(split(bytes)?)).ok()?;
    let (head, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(head)
}

impl<'a> Value<'a> {
    /// Takes a value of type `ty` off `bytes`; `None` if they do not hold one.
    fn split(ty: ValueType, bytes: &mut &'a [u8]) -> Option<Value<'a>> {
        Some(match ty {
            ValueType::U8 => Value::U8(u8::from_le_bytes(split(bytes)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(split(bytes)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(split(bytes)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(split(bytes)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(split(bytes)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(split(bytes)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(split(bytes)?)),
            ValueType::Bool => Value::Bool(split::<1>(bytes)? != [0]),
            ValueType::Str => Value::Str(String::from_utf8_lossy(split_string(bytes)?)),
            ValueType::Array => {
                let elem = ValueType::from_id(u32::from_le_bytes(split(bytes)?))?;
                let len = u64::from_le_bytes(split(bytes)?);
                Value::Array(Array { elem, len, bytes: Cow::Borrowed(std::mem::take(bytes)) })
            }
            ValueType::U64 => Value::U64(u64::from_le_bytes(split(bytes)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(split(bytes)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(split(bytes)?)),
        })
    }

    /// Decodes the payload of a key: what stands behind its type id in the file.
    pub(super) fn decode(ty: ValueType, mut payload: &'a [u8]) -> Option<Value<'a>> {
        Value::split(ty, &mut payload)
    }

    /// Gives the type of this value.
    pub fn ty(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::Str(_) => ValueType::Str,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// Appends the payload: what stands behind the type id in the file.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => out.extend(v.to_le_bytes()),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::Str(v) => {
                out.extend((v.len() as u64).to_le_bytes());
                out.extend(v.as_bytes());
            }
            Value::Array(v) => {
                out.extend((v.elem as u32).to_le_bytes());
                out.extend(v.len.to_le_bytes());
                out.extend(&*v.bytes);
            }
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
        }
    }

    /// Gives any integer as an i128, which holds them all.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match self {
            Value::U8(v) => i128::from(*v),
            Value::I8(v) => i128::from(*v),
            Value::U16(v) => i128::from(*v),
            Value::I16(v) => i128::from(*v),
            Value::U32(v) => i128::from(*v),
            Value::I32(v) => i128::from(*v),
            Value::U64(v) => i128::from(*v),
            Value::I64(v) => i128::from(*v),
            _ => return None,
        })
    }

    /// Gives any number as an f64, integers beyond 2^53 rounded.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::F32(v) => Some(f64::from(*v)),
            Value::F64(v) => Some(*v),
            other => other.as_integer().map(|v| v as f64),
        }
    }

    /// Gives a text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Gives an array.
    pub fn as_array(&self) -> Option<&Array<'a>> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl Array<'_> {
    /// Encodes `values`, which all have the type `elem`.
    fn collect<'b>(elem: ValueType, values: impl ExactSizeIterator<Item = Value<'b>>) -> Array<'static> {
        let len = values.len() as u64;
        let mut bytes = Vec::with_capacity(values.len() * elem.size().unwrap_or(8) as usize);
        for value in values {
            value.encode(&mut bytes);
        }
        Array { elem, len, bytes: Cow::Owned(bytes) }
    }

    /// Gives the type of the elements.
    pub fn elem(&self) -> ValueType {
        self.elem
    }

    /// Gives the number of elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Tells whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Walks the elements.
    pub fn iter(&self) -> impl Iterator<Item = Value<'_>> {
        let (mut rest, elem) = (&*self.bytes, self.elem);
        let mut left = self.len;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            Value::split(elem, &mut rest)
        })
    }

    /// Gives the elements as i32; `None` if they are no integers or one does not fit.
    pub fn to_i32_vec(&self) -> Option<Vec<i32>> {
        self.iter().map(|value| i32::try_from(value.as_integer()?).ok()).collect()
    }

    /// Gives the elements as f64; `None` if they are no numbers.
    pub fn to_f64_vec(&self) -> Option<Vec<f64>> {
        self.iter().map(|value| value.as_f64()).collect()
    }

    /// Gives the elements as texts; `None` if they are none.
    pub fn to_string_vec(&self) -> Option<Vec<String>> {
        self.iter().map(|value| value.as_str().map(str::to_owned)).collect()
    }
}

macro_rules! from_scalar {
    ($($rust:ty => $variant:ident),*) => {
        $(
            impl From<$rust> for Value<'_> {
                fn from(value: $rust) -> Self {
                    Value::$variant(value)
                }
            }
            impl From<&[$rust]> for Value<'_> {
                fn from(values: &[$rust]) -> Self {
                    Value::Array(Array::collect(ValueType::$variant, values.iter().map(|value| Value::$variant(*value))))
                }
            }
        )*
    };
}

from_scalar!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool, u64 => U64, i64 => I64, f64 => F64);

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::Str(Cow::Borrowed(text))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Value::Str(Cow::Owned(text))
    }
}

impl From<&[&str]> for Value<'_> {
    fn from(texts: &[&str]) -> Self {
        Value::Array(Array::collect(ValueType::Str, texts.iter().map(|text| Value::from(*text))))
    }
}

impl From<&[String]> for Value<'_> {
    fn from(texts: &[String]) -> Self {
        Value::Array(Array::collect(ValueType::Str, texts.iter().map(|text| Value::from(text.as_str()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(value: &Value<'_>) {
        let mut payload = Vec::new();
        value.encode(&mut payload);
        assert_eq!(Value::decode(value.ty(), &payload).as_ref(), Some(value));
        assert_eq!(ValueType::from_id(value.ty() as u32), Some(value.ty()));
    }

    #[test]
    fn every_type_is_decoded_as_it_was_encoded() {
        for value in [
            Value::U8(200),
            Value::I8(-2),
            Value::U16(60_000),
            Value::I16(-3),
            Value::U32(7),
            Value::I32(-7),
            Value::F32(1.5),
            Value::Bool(true),
            "text".into(),
            Value::U64(u64::MAX),
            Value::I64(i64::MIN),
            Value::F64(-0.1),
            [1i32, -2].as_slice().into(),
            ["a", "", "bc"].as_slice().into(),
            Value::from([true, false].as_slice()),
        ] {
            round_trip(&value);
        }
    }

    #[test]
    fn short_bytes_are_no_value() {
        assert_eq!(Value::decode(ValueType::U32, &[1, 2, 3]), None);
        assert_eq!(Value::decode(ValueType::Str, &[255; 9]), None);
    }

    #[test]
    fn integers_are_narrowed_only_when_they_fit() {
        let wide = Value::from([1u64, 1 << 40].as_slice());
        assert_eq!(wide.as_array().unwrap().to_i32_vec(), None);
        assert_eq!(wide.as_array().unwrap().to_f64_vec(), Some(vec![1.0, (1u64 << 40) as f64]));
        assert_eq!(Value::from("x").as_integer(), None);
    }
}
