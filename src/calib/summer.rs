//! Who sums rows up: this processor, or a device where the work is worth the way to it. Either way the bits are the same, so nothing of it shows in
//! what is measured.

use std::borrow::Cow;
use std::sync::Arc;

use crate::device::SumRows;
use crate::error::DeviceError;

/// A device to sum rows up on, if there is one.
#[derive(Debug, Clone, Default)]
pub struct Summer(Option<Arc<dyn SumRows>>);

impl Summer {
    /// Lets a device do what is worth it.
    pub fn on(device: Arc<dyn SumRows>) -> Self {
        Self(Some(device))
    }

    /// Sums of channels of the rows of `data` that start at `offsets`: [`SumRows::channel_sums`].
    pub(super) fn channel_sums(
        &self,
        data: &[f32],
        offsets: &[usize],
        columns: usize,
    ) -> Result<Option<Vec<f32>>, DeviceError> {
        let Some(device) = &self.0 else { return Ok(None) };
        device.channel_sums(&gathered(data, offsets, columns, None), columns)
    }

    /// Products of channels of these rows, of some of their channels if they are named: [`SumRows::products`].
    pub(super) fn products(
        &self,
        data: &[f32],
        offsets: &[usize],
        columns: usize,
        channels: Option<&[u32]>,
    ) -> Result<Option<Vec<f32>>, DeviceError> {
        let Some(device) = &self.0 else { return Ok(None) };
        device.products(&gathered(data, offsets, columns, channels), columns)
    }
}

/// Rows one after the other: as they lie, if they lie so.
fn gathered<'a>(data: &'a [f32], offsets: &[usize], columns: usize, channels: Option<&[u32]>) -> Cow<'a, [f32]> {
    let first = offsets.first().copied().unwrap_or(0);
    match channels {
        Some(channels) => {
            let row = |&offset: &usize| channels.iter().map(move |&channel| data[offset + channel as usize]);
            Cow::Owned(offsets.iter().flat_map(row).collect())
        }
        None if offsets.iter().enumerate().all(|(row, &offset)| offset == first + row * columns) => {
            Cow::Borrowed(&data[first..first + offsets.len() * columns])
        }
        None => Cow::Owned(offsets.iter().flat_map(|&offset| &data[offset..offset + columns]).copied().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_gathered_where_they_do_not_follow_each_other() {
        let data: Vec<f32> = (0..12).map(|i| i as f32).collect();
        assert!(matches!(gathered(&data, &[4, 6], 2, None), Cow::Borrowed([4.0, 5.0, 6.0, 7.0])));
        assert_eq!(gathered(&data, &[6, 4], 2, None), [6.0, 7.0, 4.0, 5.0].as_slice());
        assert_eq!(gathered(&data, &[0, 8], 2, Some(&[3, 1])), [3.0, 1.0, 11.0, 9.0].as_slice());
        assert!(gathered(&data, &[], 2, None).is_empty());
    }
}
