//! One of several equal shares of some work, as `--shard 2/4` names it. What the work is, the callers know.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of several parts of a list: the items whose places leave `index` when divided by `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which part, from 0 on.
    pub index: u32,
    /// Parts in all.
    pub count: u32,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// More parts than this are a slip of the keyboard.
    pub const MOST: u32 = 1 << 16;

    /// Whether the item at this place is in this part.
    pub fn has(self, place: usize) -> bool {
        place % self.count as usize == self.index as usize
    }
}

/// Counted from one, as the files of a sharded model are.
impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", u64::from(self.index) + 1, self.count)
    }
}

/// What is wrong with the text of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected I/N, the number of a part from 1 on and the number of parts, for instance 2/4 (at most {})",
    Shard::MOST
)]
pub struct NoShard;

impl FromStr for Shard {
    type Err = NoShard;

    fn from_str(text: &str) -> Result<Self, NoShard> {
        let (number, count) = text.split_once('/').ok_or(NoShard)?;
        let parse = |text: &str| text.parse::<u32>().map_err(|_| NoShard);
        let (number, count) = (parse(number)?, parse(count)?);
        if (1..=Self::MOST).contains(&count) && (1..=count).contains(&number) {
            Ok(Self { index: number - 1, count })
        } else {
            Err(NoShard)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_from_one_and_cover_everything_once() {
        let parts: Vec<Shard> = (1..=3).map(|i| format!("{i}/3").parse().unwrap()).collect();
        assert_eq!(parts[2], Shard { index: 2, count: 3 });
        assert_eq!(parts[2].to_string(), "3/3");
        for place in 0..10 {
            assert_eq!(parts.iter().filter(|part| part.has(place)).count(), 1);
        }
        for bad in ["", "1", "0/2", "3/2", "1/0", "1/70000", "-1/2", "a/b", "1/2/3"] {
            assert_eq!(bad.parse::<Shard>(), Err(NoShard), "{bad}");
        }
    }
}
