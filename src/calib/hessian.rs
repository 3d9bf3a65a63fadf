//! The second moment of an input: H = Σ x xᵀ over its rows, in the basis in which the model has it.
//!
//! Only the part on and above the diagonal is kept. The rows of one call are summed in f32, in their order; calls are added up as whole multiples of
//! a unit, in 64 bits. Additions of whole numbers may come in any order, so neither threads nor the division of a text into shards change a bit, as
//! long as all shards count in the same unit. Inputs have a multiple of 32 channels.

use std::sync::Arc;

use rayon::prelude::*;

use crate::gguf::Source;
use crate::math::products::{LANES, Lane, TOGETHER, add_products};

/// The unit of an input of which nothing is known when its sum begins.
pub const USUAL_UNIT: Unit = Unit(-34);

/// Sums and what is added to them stay below this many units.
const LIMIT: f64 = (1u64 << 62) as f64;
/// Sums that a thread adds at a time.
const ADDED: usize = 1 << 16;

/// What sums count: 2 to this power.
///
/// 24 binary places below the mean square of the input at the beginning of the text: that keeps the mean of the diagonal to 33 places for each 512 rows,
/// and leaves room for sums of 2³⁸ times that mean square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit(i32);

impl Unit {
    /// Binary places below the mean square.
    const PLACES: i32 = 24;
    /// The powers that a unit may have: far beyond what activations need, and far from the limits of f64.
    const RANGE: std::ops::RangeInclusive<i32> = -200..=200;

    /// The unit of 2 to a power; `None` beyond ±200.
    pub fn new(power: i32) -> Option<Self> {
        Self::RANGE.contains(&power).then_some(Self(power))
    }

    /// The unit for rows like those of `data` that start at `offsets`; the usual one if they are zero or not finite.
    ///
    /// # Panics
    /// If a row does not lie inside `data`.
    pub fn of(data: &[f32], offsets: impl Iterator<Item = usize>, columns: usize) -> Self {
        let square = |offset: usize| data[offset..offset + columns].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        let (count, sum) = offsets.fold((0u64, 0.0), |(count, sum), offset| (count + 1, sum + square(offset)));
        let mean = sum / (count.max(1) * columns as u64) as f64;
        // The exponent as it stands in the bits: no logarithm, which other machines may round otherwise.
        let power = (mean.to_bits() >> 52 & 0x7ff) as i32 - 1023;
        if mean.is_normal() { Self::new(power - Self::PLACES).unwrap_or(USUAL_UNIT) } else { USUAL_UNIT }
    }

    /// The power of two.
    pub fn power(self) -> i32 {
        self.0
    }

    /// Its value.
    pub fn value(self) -> f64 {
        2f64.powi(self.0)
    }
}

/// Why rows could not be added: an input is not finite, or a sum grew beyond 2⁶² units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfRange;

/// The sum of x xᵀ over the rows of an input.
#[derive(Debug, Clone)]
pub struct Hessian {
    columns: usize,
    rows: u64,
    unit: Unit,
    sums: Sums,
}

/// The sums, band after band: 32 rows of the matrix, each from the column on at which the band's part of the diagonal begins.
#[derive(Debug, Clone)]
enum Sums {
    Own(Vec<i64>),
    /// In a mapped file: the tensor's index, and the first number within it.
    Mapped(Arc<Source>, usize, usize),
}

impl Hessian {
    /// The sum over no rows, for inputs of `columns` channels.
    ///
    /// # Panics
    /// If `columns` is not a multiple of 32.
    pub fn new(columns: usize, unit: Unit) -> Self {
        Self { columns, rows: 0, unit, sums: Sums::Own(vec![0; Self::len(columns)]) }
    }

    /// One that lies in tensor number `tensor` of a mapped file, from number `first` on.
    pub(super) fn mapped(
        columns: usize,
        rows: u64,
        unit: Unit,
        (file, tensor, first): (Arc<Source>, usize, usize),
    ) -> Self {
        Self { columns, rows, unit, sums: Sums::Mapped(file, tensor, first) }
    }

    /// How many numbers a sum has.
    ///
    /// # Panics
    /// If `columns` is not a multiple of 32.
    pub fn len(columns: usize) -> usize {
        assert!(columns.is_multiple_of(LANES), "{columns} columns are no multiple of {LANES}");
        band_start(columns / LANES, columns)
    }

    /// Channels.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows summed.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// What the sums count.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// The sums in units: for each band of 32 rows, row after row from the band's first column on.
    pub fn sums(&self) -> &[i64] {
        match &self.sums {
            Sums::Own(sums) => sums,
            Sums::Mapped(file, tensor, first) => {
                let numbers: &[i64] = bytemuck::cast_slice(file.data(&file.tensors()[*tensor]));
                &numbers[*first..*first + Self::len(self.columns)]
            }
        }
    }

    fn own(&mut self) -> &mut Vec<i64> {
        if let Sums::Mapped(..) = self.sums {
            self.sums = Sums::Own(self.sums().to_vec());
        }
        match &mut self.sums {
            Sums::Own(sums) => sums,
            Sums::Mapped(..) => unreachable!("taken out of the file above"),
        }
    }

    /// Adds the rows of `data` that start at `offsets`; of their columns only `channels`, in that order, if there are any.
    ///
    /// # Errors
    /// [`OutOfRange`]; what was added is of no use then.
    ///
    /// # Panics
    /// If a row does not lie inside `data`, or the channels are not as many as the columns.
    pub fn add(&mut self, data: &[f32], offsets: &[usize], channels: Option<&[u32]>) -> Result<(), OutOfRange> {
        let (columns, per_unit) = (self.columns, 1.0 / self.unit.value());
        assert!(channels.is_none_or(|channels| channels.len() == columns));
        self.rows += offsets.len() as u64;
        let factors: Vec<Vec<[f32; TOGETHER]>> = cut(data, offsets, columns, channels);
        let values: Vec<Vec<Lane>> = cut(data, offsets, columns, channels);
        let fits = bands(self.own(), columns)
            .into_par_iter()
            .enumerate()
            .map(|(band, sums)| add_band(sums, &factors[band * LANES / TOGETHER..], &values[band..], per_unit));
        if fits.reduce(|| true, |a, b| a && b) { Ok(()) } else { Err(OutOfRange) }
    }

    /// Adds what a device has summed up over so many rows: [`crate::device::SumRows::products`]. The same bits as from [`Hessian::add`].
    ///
    /// # Errors
    /// As [`Hessian::add`].
    ///
    /// # Panics
    /// If the sums are of another number of channels.
    pub fn add_products(&mut self, rows: usize, products: &[f32]) -> Result<(), OutOfRange> {
        let per_unit = 1.0 / self.unit.value();
        assert_eq!(products.len(), Self::len(self.columns));
        self.rows += rows as u64;
        let parts = self.own().par_chunks_mut(ADDED).zip(products.par_chunks(ADDED));
        let fits = parts.map(|(sums, values)| add_units(sums, values, per_unit));
        if fits.reduce(|| true, |a, b| a && b) { Ok(()) } else { Err(OutOfRange) }
    }

    /// Adds the sums of further rows: the result is that of one run over all rows, whatever their order.
    ///
    /// # Errors
    /// [`OutOfRange`] if a sum grows beyond the range.
    ///
    /// # Panics
    /// If the number of channels or the unit differs.
    pub fn merge(&mut self, other: &Self) -> Result<(), OutOfRange> {
        assert_eq!((self.columns, self.unit), (other.columns, other.unit));
        self.rows += other.rows;
        let mut fits = true;
        for (a, &b) in self.own().iter_mut().zip(other.sums()) {
            let (sum, overflows) = a.overflowing_add(b);
            (*a, fits) = (sum, fits && !overflows);
        }
        if fits { Ok(()) } else { Err(OutOfRange) }
    }

    /// One element of the sum.
    pub fn at(&self, row: usize, column: usize) -> f64 {
        Triangle::new(self).at(row, column)
    }

    /// The whole matrix, row after row, divided by the number of rows.
    pub fn mean(&self) -> Vec<f32> {
        let mut full = vec![0.0; self.columns * self.columns];
        let (triangle, scale) = (Triangle::new(self), 1.0 / self.rows.max(1) as f64);
        full.par_chunks_exact_mut(self.columns).enumerate().for_each(|(i, row)| {
            row.iter_mut().enumerate().for_each(|(j, value)| *value = (triangle.at(i, j) * scale) as f32);
        });
        full
    }
}

/// The elements of a sum, for many look-ups.
#[derive(Clone, Copy)]
pub(super) struct Triangle<'h> {
    sums: &'h [i64],
    columns: usize,
    unit: f64,
}

impl<'h> Triangle<'h> {
    pub(super) fn new(hessian: &'h Hessian) -> Self {
        Self { sums: hessian.sums(), columns: hessian.columns, unit: hessian.unit.value() }
    }

    /// One element of the sum.
    #[inline]
    pub(super) fn at(&self, row: usize, column: usize) -> f64 {
        let (row, column) = (row.min(column), row.max(column));
        let band = row / LANES;
        let start = band_start(band, self.columns) + row % LANES * (self.columns - band * LANES);
        self.sums[start + column - band * LANES] as f64 * self.unit
    }
}

/// Where a band begins.
fn band_start(band: usize, columns: usize) -> usize {
    band * LANES * columns - LANES * LANES * (band * band.saturating_sub(1) / 2)
}

/// Cuts sums into their bands.
fn bands(mut sums: &mut [i64], columns: usize) -> Vec<&mut [i64]> {
    let mut bands = Vec::with_capacity(columns / LANES);
    for band in 0..columns / LANES {
        let (own, rest) = sums.split_at_mut(LANES * (columns - band * LANES));
        bands.push(own);
        sums = rest;
    }
    bands
}

/// Adds to a band of sums; whether all of it stays in range. The values of a block of columns serve all rows of the band while they are in the cache.
fn add_band(sums: &mut [i64], factors: &[Vec<[f32; TOGETHER]>], values: &[Vec<Lane>], per_unit: f64) -> bool {
    let width = values.len() * LANES;
    let mut fits = true;
    for (block, values) in values.iter().enumerate() {
        for (rows, factors) in sums.chunks_exact_mut(TOGETHER * width).zip(factors) {
            let mut tile = [[0.0; LANES]; TOGETHER];
            add_products(&mut tile, factors, values);
            for (row, tile) in rows.chunks_exact_mut(width).zip(&tile) {
                fits &= add_units(&mut row[block * LANES..][..LANES], tile, per_unit);
            }
        }
    }
    fits
}

/// Adds values as whole units; whether all of it stays in range.
fn add_units(sums: &mut [i64], values: &[f32], per_unit: f64) -> bool {
    let mut fits = true;
    for (sum, &value) in sums.iter_mut().zip(values) {
        let units = f64::from(value) * per_unit;
        let (new, overflows) = sum.overflowing_add(units as i64);
        fits &= units.abs() < LIMIT && !overflows; // false for NaN too
        *sum = new;
    }
    fits
}

/// Cuts rows into pieces of `N` columns; the pieces of the same columns lie together.
fn cut<const N: usize>(
    data: &[f32],
    offsets: &[usize],
    columns: usize,
    channels: Option<&[u32]>,
) -> Vec<Vec<[f32; N]>> {
    let piece = |at: usize, offset: usize| -> [f32; N] {
        match channels {
            Some(channels) => std::array::from_fn(|k| data[offset + channels[at + k] as usize]),
            None => std::array::from_fn(|k| data[offset + at + k]),
        }
    };
    let pieces = |at: usize| offsets.iter().map(|&offset| piece(at, offset)).collect();
    (0..columns).into_par_iter().step_by(N).map(pieces).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(count: usize, columns: usize) -> Vec<f32> {
        (0..count * columns).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 300.0).collect()
    }

    fn starts(count: usize, columns: usize) -> Vec<usize> {
        (0..count).map(|t| t * columns).collect()
    }

    #[test]
    fn it_is_the_mean_of_outer_products() {
        let (columns, count) = (96, 50);
        let (data, offsets) = (rows(count, columns), starts(count, columns));
        let unit = Unit::of(&data, offsets.iter().copied(), columns);
        let mut whole = Hessian::new(columns, unit);
        whole.add(&data, &offsets, None).unwrap();
        let mean = whole.mean();
        for i in 0..columns {
            for j in 0..columns {
                let product = |t: &usize| f64::from(data[t + i]) * f64::from(data[t + j]);
                let naive = offsets.iter().map(product).sum::<f64>() / count as f64;
                assert!((f64::from(mean[i * columns + j]) - naive).abs() < 1e-5, "{i}, {j}");
                assert_eq!(mean[i * columns + j], mean[j * columns + i]);
            }
        }
    }

    #[test]
    fn products_of_a_device_are_added_as_those_of_this_processor() {
        let (columns, count) = (96, 50);
        let (data, offsets) = (rows(count, columns), starts(count, columns));
        let unit = Unit::of(&data, offsets.iter().copied(), columns);
        let (mut own, mut given) = (Hessian::new(columns, unit), Hessian::new(columns, unit));
        let product = |i: usize, j: usize| offsets.iter().fold(0.0f32, |sum, t| sum + data[t + i] * data[t + j]);
        let products: Vec<f32> = (0..columns)
            .flat_map(|i| (i / 32 * 32..columns).map(move |j| (i, j)))
            .map(|(i, j)| product(i, j))
            .collect();
        for _ in 0..2 {
            own.add(&data, &offsets, None).unwrap();
            given.add_products(count, &products).unwrap();
        }
        assert_eq!((given.sums(), given.rows()), (own.sums(), own.rows()));
        let mut bad = products;
        bad[columns] = f32::NAN;
        assert_eq!(given.add_products(count, &bad), Err(OutOfRange));
    }

    #[test]
    fn channels_are_taken_in_their_order() {
        let (columns, count) = (96, 20);
        let (data, offsets) = (rows(count, columns), starts(count, columns));
        let (mut all, mut some) = (Hessian::new(96, USUAL_UNIT), Hessian::new(32, USUAL_UNIT));
        let channels: Vec<u32> = (0..32).map(|i| (i * 37 + 5) % 96).collect();
        all.add(&data, &offsets, None).unwrap();
        some.add(&data, &offsets, Some(&channels)).unwrap();
        for (i, &a) in channels.iter().enumerate() {
            for (j, &b) in channels.iter().enumerate() {
                assert_eq!(some.at(i, j), all.at(a as usize, b as usize));
            }
        }
    }

    #[test]
    fn the_unit_follows_the_rows() {
        // The mean square is 9, so the power of two below it 3.
        assert_eq!(Unit::of(&[3.0; 64], [0, 32].into_iter(), 32).power(), 3 - 24);
        for bad in [0.0, f32::NAN, f32::INFINITY] {
            assert_eq!(Unit::of(&[bad; 32], [0].into_iter(), 32), USUAL_UNIT);
        }
        assert_eq!(Unit::of(&[], std::iter::empty(), 32), USUAL_UNIT);
        assert!(Unit::new(201).is_none() && Unit::new(-201).is_none());
    }

    #[test]
    fn what_no_sum_can_hold_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, 1e19] {
            let mut data = rows(2, 64);
            data[70] = bad;
            let mut hessian = Hessian::new(64, Unit::of(&rows(1, 64), [0].into_iter(), 64));
            assert_eq!(hessian.add(&data, &[0, 64], None), Err(OutOfRange), "{bad}");
        }
    }

    proptest! {
        /// However rows that are summed in one call are dealt out to shards, and in whatever order the shards are added: the same sums.
        #[test]
        fn any_division_into_shards_gives_the_same_bits(owners in proptest::collection::vec(0usize..4, 1..12), first in 0usize..4) {
            let (columns, each) = (64, 7);
            let data = rows(each * owners.len(), columns);
            let call = |chunk: usize| (0..each).map(|t| (chunk * each + t) * columns).collect::<Vec<_>>();
            let unit = Unit::of(&data, call(0).into_iter(), columns);
            let mut whole = Hessian::new(columns, unit);
            let mut shards = vec![Hessian::new(columns, unit); 4];
            for (chunk, &owner) in owners.iter().enumerate() {
                whole.add(&data, &call(chunk), None).unwrap();
                shards[owner].add(&data, &call(chunk), None).unwrap();
            }
            let mut merged = Hessian::new(columns, unit);
            for shard in 0..4 {
                merged.merge(&shards[(first + shard) % 4]).unwrap();
            }
            prop_assert_eq!(merged.sums(), whole.sums());
            prop_assert_eq!(merged.rows(), whole.rows());
        }
    }
}
