//! The shape of the network code in builds without it. Nobody gets here: `fetch` refuses before.

use std::io::Read;

use crate::Result;
use crate::corpus::cache::FetchOptions;
use crate::corpus::fetch::Wanted;
use crate::error::CorpusError;
use crate::util::progress::Progress;

fn refuse(wanted: &Wanted) -> Result<()> {
    let url = wanted.urls.first().copied().unwrap_or_default().to_owned();
    let (name, path) = (wanted.name.to_owned(), wanted.path.clone());
    Err(CorpusError::NotCached { name, why: "this build has no network code", url, path }.into())
}

pub(in crate::corpus) fn download(wanted: &Wanted, _: &FetchOptions, _: &dyn Progress) -> Result<()> {
    refuse(wanted)
}

pub(in crate::corpus) fn with_retries(
    wanted: &Wanted,
    _: &FetchOptions,
    _: &dyn Progress,
    _: impl FnMut(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    refuse(wanted)
}
