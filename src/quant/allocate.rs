//! Chooses one of several sizes for each item so that the sum of the losses is least and the sum of the sizes within a budget: the multiple-choice
//! knapsack problem. Numbers in, indices out; what is allocated is no business of this module.
//!
//! Exact as long as no more than [`STATES`] partial choices have to be kept at a time, which the Lagrangian bound of Fisher (1981) makes few; beyond
//! that the best of them go on, and [`Allocation::lower_bound`] says how far from the optimum the result can be at most.

/// One way to take an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// What it takes of the budget.
    pub size: u64,
    /// What it loses; finite.
    pub loss: f64,
}

/// The chosen way of each item.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// For each item the index of its choice.
    pub chosen: Vec<usize>,
    /// The sum of the sizes.
    pub size: u64,
    /// The sum of the losses.
    pub loss: f64,
    /// No allocation within the budget loses less; equal to `loss` (but for rounding) where the search was complete.
    pub lower_bound: f64,
}

/// Partial choices that are kept at most.
const STATES: usize = 1 << 15;
/// Bisections of the multiplier.
const STEPS: usize = 200;
/// Sums of losses that differ by less, relatively, count as equal.
const EPSILON: f64 = 1e-12;

/// Choices for the items before some place.
#[derive(Debug, Clone, Copy)]
struct State {
    size: u64,
    loss: f64,
    /// The state that it extends, among those of the item before, and the choice that was added.
    from: usize,
    choice: usize,
}

/// Finds the allocation of least loss whose size is at most `budget`. Ties go to the smaller size, then to earlier choices.
///
/// # Errors
/// The least possible size, if that is above the budget.
///
/// # Panics
/// If an item has no choice, or a loss is not finite.
pub fn allocate(items: &[Vec<Choice>], budget: u64) -> Result<Allocation, u64> {
    assert!(items.iter().all(|item| !item.is_empty() && item.iter().all(|choice| choice.loss.is_finite())));
    let least: u64 = items.iter().map(|item| item.iter().map(|choice| choice.size).min().unwrap_or(0)).sum();
    if least > budget {
        return Err(least);
    }
    let multiplier = multiplier(items, budget);
    let start = greedy(items, budget, multiplier);
    Ok(search(items, budget, multiplier, start))
}

/// The index of the choice with the least loss plus `multiplier` times its size; of equals the smallest, then the first.
fn cheapest(item: &[Choice], multiplier: f64) -> usize {
    let price = |choice: &Choice| choice.loss + multiplier * choice.size as f64;
    let better = |a: &(usize, &Choice), b: &(usize, &Choice)| {
        price(a.1).total_cmp(&price(b.1)).then(a.1.size.cmp(&b.1.size)).then(a.0.cmp(&b.0))
    };
    item.iter().enumerate().min_by(better).map_or(0, |(index, _)| index)
}

fn size_of(items: &[Vec<Choice>], chosen: &[usize]) -> u64 {
    items.iter().zip(chosen).map(|(item, &choice)| item[choice].size).sum()
}

fn loss_of(items: &[Vec<Choice>], chosen: &[usize]) -> f64 {
    items.iter().zip(chosen).map(|(item, &choice)| item[choice].loss).sum()
}

/// The least multiplier at which the cheapest choices fit the budget, to many digits. Its bound is the best one.
fn multiplier(items: &[Vec<Choice>], budget: u64) -> f64 {
    let fits = |multiplier: f64| {
        let size: u64 = items.iter().map(|item| item[cheapest(item, multiplier)].size).sum();
        size <= budget
    };
    if fits(0.0) {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, 1e-30);
    while !fits(high) && high < 1e300 {
        (low, high) = (high, high * 4.0);
    }
    for _ in 0..STEPS {
        let middle = 0.5 * (low + high);
        if fits(middle) { high = middle } else { low = middle }
    }
    high
}

/// A feasible allocation to begin with: the cheapest choices, then whatever still fits, the largest gain for its size first.
fn greedy(items: &[Vec<Choice>], budget: u64, multiplier: f64) -> Vec<usize> {
    let mut chosen: Vec<usize> = items.iter().map(|item| cheapest(item, multiplier)).collect();
    if size_of(items, &chosen) > budget {
        chosen = items.iter().map(|item| smallest(item)).collect();
    }
    loop {
        let left = budget - size_of(items, &chosen);
        let steps = items.iter().enumerate().flat_map(|(at, item)| {
            let now = item[chosen[at]];
            let gain = move |choice: &Choice| now.loss - choice.loss;
            let per_size = move |choice: &Choice| gain(choice) / choice.size.saturating_sub(now.size).max(1) as f64;
            let better = item.iter().enumerate().filter(move |(_, choice)| gain(choice) > 0.0);
            let better = better.filter(move |(_, choice)| choice.size <= now.size.saturating_add(left));
            better.map(move |(index, choice)| (at, index, per_size(choice)))
        });
        let best = steps.max_by(|a, b| a.2.total_cmp(&b.2).then(b.0.cmp(&a.0)).then(b.1.cmp(&a.1)));
        let Some((at, index, _)) = best else { return chosen };
        chosen[at] = index;
    }
}

fn smallest(item: &[Choice]) -> usize {
    let better = |a: &(usize, &Choice), b: &(usize, &Choice)| {
        a.1.size.cmp(&b.1.size).then(a.1.loss.total_cmp(&b.1.loss)).then(a.0.cmp(&b.0))
    };
    item.iter().enumerate().min_by(better).map_or(0, |(index, _)| index)
}

/// Goes through the items and keeps every partial choice that no other one beats in both size and loss, and that could still lead to less loss
/// than the best allocation known.
fn search(items: &[Vec<Choice>], budget: u64, multiplier: f64, start: Vec<usize>) -> Allocation {
    // What the items from each place on cost at least, sizes priced, and their least size.
    let mut rest = vec![(0.0, 0u64); items.len() + 1];
    for (at, item) in items.iter().enumerate().rev() {
        let choice = item[cheapest(item, multiplier)];
        let least = item[smallest(item)].size;
        rest[at] = (rest[at + 1].0 + choice.loss + multiplier * choice.size as f64, rest[at + 1].1 + least);
    }
    let bound = |size: u64, loss: f64, next: usize| loss + rest[next].0 - multiplier * (budget - size) as f64;
    let root_bound = bound(0, 0.0, 0);
    let known = loss_of(items, &start);
    let slack = EPSILON * (known.abs() + multiplier * budget as f64);
    let mut layers: Vec<Vec<State>> = vec![vec![State { size: 0, loss: 0.0, from: 0, choice: 0 }]];
    let mut complete = true;
    for (at, item) in items.iter().enumerate() {
        let mut next: Vec<State> = Vec::new();
        for (from, state) in layers[at].iter().enumerate() {
            for (choice, taken) in item.iter().enumerate() {
                let Some(size) = state.size.checked_add(taken.size) else { continue };
                let loss = state.loss + taken.loss;
                let fits = size.checked_add(rest[at + 1].1).is_some_and(|size| size <= budget);
                if fits && bound(size, loss, at + 1) <= known + slack {
                    next.push(State { size, loss, from, choice });
                }
            }
        }
        next.sort_by(|a, b| a.size.cmp(&b.size).then(a.loss.total_cmp(&b.loss)).then(a.from.cmp(&b.from)));
        let mut least = f64::INFINITY;
        next.retain(|state| {
            let kept = state.loss < least;
            least = least.min(state.loss);
            kept
        });
        if next.len() > STATES {
            complete = false;
            let place = |state: &State| bound(state.size, state.loss, at + 1);
            next.sort_by(|a, b| place(a).total_cmp(&place(b)));
            next.truncate(STATES);
            next.sort_by_key(|state| state.size);
        }
        layers.push(next);
    }
    let found = best(&layers).filter(|found| loss_of(items, found) <= known).unwrap_or(start);
    let (size, loss) = (size_of(items, &found), loss_of(items, &found));
    let lower_bound = if complete { loss } else { root_bound.min(loss) };
    Allocation { chosen: found, size, loss, lower_bound }
}

/// The choices that lead to the last state of least loss; `None` if there is no last state.
fn best(layers: &[Vec<State>]) -> Option<Vec<usize>> {
    let (last, before) = layers.split_last()?;
    let mut state = last.iter().min_by(|a, b| a.loss.total_cmp(&b.loss).then(a.size.cmp(&b.size)))?;
    let mut chosen = Vec::with_capacity(before.len());
    for layer in before.iter().rev() {
        chosen.push(state.choice);
        state = &layer[state.from];
    }
    chosen.reverse();
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items(of: &[&[(u64, f64)]]) -> Vec<Vec<Choice>> {
        of.iter().map(|item| item.iter().map(|&(size, loss)| Choice { size, loss }).collect()).collect()
    }

    /// Tries everything.
    fn oracle(items: &[Vec<Choice>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = items.split_first() else { return Some(0.0) };
        let with = |choice: &Choice| Some(choice.loss + oracle(rest, budget.checked_sub(choice.size)?)?);
        first.iter().filter_map(with).min_by(f64::total_cmp)
    }

    #[test]
    fn a_knapsack_by_hand() {
        // Gains 6, 5, 4 for sizes 5, 4, 3: greedy by gain per size takes 3 and 4, which is the best for a budget of 8.
        let three = items(&[&[(0, 6.0), (5, 0.0)], &[(0, 5.0), (4, 0.0)], &[(0, 4.0), (3, 0.0)]]);
        let found = allocate(&three, 8).unwrap();
        assert_eq!((found.chosen, found.size, found.loss), (vec![1, 0, 1], 8, 5.0));
        assert_eq!(allocate(&three, 12).unwrap().loss, 0.0);
        assert_eq!(allocate(&three, 2).unwrap().chosen, [0, 0, 0]);
    }

    #[test]
    fn what_cannot_fit_says_the_least_size() {
        assert_eq!(allocate(&items(&[&[(3, 1.0), (5, 0.0)], &[(4, 1.0)]]), 6), Err(7));
        assert_eq!(allocate(&[], 0).unwrap().size, 0);
    }

    #[test]
    fn nothing_is_spent_without_a_gain() {
        let found = allocate(&items(&[&[(4, 1.0), (5, 1.0), (6, 2.0)], &[(5, 0.0), (1, 0.0)]]), 100).unwrap();
        assert_eq!((found.chosen, found.size), (vec![0, 1], 5));
    }

    #[test]
    fn many_layers_of_a_few_shapes_are_solved_exactly_and_fast() {
        // 280 tensors of 4 shapes in 5 types with losses that fall by a factor of about 4 a bit.
        let item = |i: usize| {
            let weights = [3_145_728u64, 1_048_576, 8_388_608, 8_388_608][i % 4];
            let scale = 1e-4 * (1.0 + (i as f64 * 0.37).sin().abs() * 9.0);
            let bits = [4.625, 5.5, 6.5625, 8.5, 16.0];
            bits.map(|bits| Choice { size: (weights as f64 * bits / 8.0) as u64, loss: scale * 4f64.powf(4.6 - bits) })
                .to_vec()
        };
        let many: Vec<Vec<Choice>> = (0..280).map(item).collect();
        for bits in [4.7, 5.0, 5.5, 6.0, 8.0] {
            let weights: u64 = many.iter().map(|item| item[4].size / 2).sum();
            let budget = (weights as f64 * bits / 8.0) as u64;
            let found = allocate(&many, budget).unwrap();
            assert!(found.size <= budget && budget - found.size < 1 << 20, "{bits}: {} of {budget}", found.size);
            assert!(found.loss - found.lower_bound <= 1e-9 * found.loss, "{bits}: {found:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn never_above_the_budget_and_never_worse_than_trying_everything(
            given in prop::collection::vec(prop::collection::vec((0u64..40, 0u32..1000), 1..5), 0..7),
            budget in 0u64..160,
        ) {
            let items: Vec<Vec<Choice>> = given
                .iter()
                .map(|item| item.iter().map(|&(size, loss)| Choice { size, loss: f64::from(loss) / 7.0 }).collect())
                .collect();
            match (allocate(&items, budget), oracle(&items, budget)) {
                (Ok(found), Some(least)) => {
                    prop_assert!(found.size <= budget);
                    prop_assert_eq!(found.size, size_of(&items, &found.chosen));
                    prop_assert!((found.loss - least).abs() < 1e-9, "{} and {least}", found.loss);
                    prop_assert!(found.lower_bound <= found.loss);
                }
                (Err(size), None) => {
                    let smallest: u64 = items.iter().map(|item| item.iter().map(|c| c.size).min().unwrap()).sum();
                    prop_assert!(size == smallest && size > budget);
                }
                (found, least) => prop_assert!(false, "{found:?} and {least:?}"),
            }
        }
    }
}
