//! Name lookup for large lists without a hash map: a sorted index of four bytes an entry. It finds; it does not keep names.

/// Gives the indices `0..count`, sorted by their names (equal names in the order of the indices).
pub(super) fn sorted_by_name<'a>(count: usize, name: impl Fn(usize) -> &'a str) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.sort_unstable_by(|a, b| name(*a as usize).cmp(name(*b as usize)).then(a.cmp(b)));
    order
}

/// Finds two equal names in a sorted index and gives the later one's index.
pub(super) fn first_duplicate<'a>(order: &[u32], name: impl Fn(usize) -> &'a str) -> Option<usize> {
    let same = |pair: &&[u32]| name(pair[0] as usize) == name(pair[1] as usize);
    order.windows(2).find(same).map(|pair| pair[1] as usize)
}
