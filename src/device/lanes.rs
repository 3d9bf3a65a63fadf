//! Queues with their buffers, for many threads at once: each takes one while it works, and leaves it for the next.

use std::sync::{Mutex, PoisonError};

use crate::error::DeviceError;

/// Queues that nobody uses at the moment.
#[derive(Debug)]
pub(super) struct Lanes<T>(Mutex<Vec<T>>);

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Lanes<T> {
    /// Works in an idle queue, or in one that is made for it. One in which something failed is given up.
    pub(super) fn with<R>(
        &self,
        make: impl FnOnce() -> Result<T, DeviceError>,
        work: impl FnOnce(&mut T) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        let idle = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = idle().pop();
        let mut lane = match own {
            Some(lane) => lane,
            None => make()?,
        };
        let result = work(&mut lane)?;
        idle().push(lane);
        Ok(result)
    }
}
