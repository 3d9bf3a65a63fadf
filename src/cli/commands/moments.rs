//! Second moments for the commands that need them: measured in the run of the text that measures the statistics or in further ones, kept, read back.

use std::path::Path;
use std::sync::Mutex;

use super::statistics::{self, Run};
use crate::calib::moments_store::MomentsWriter;
use crate::calib::{InputMoments, MomentsFile, MomentsRequest, Statistics};
use crate::cli::Session;
use crate::convert::{Conversion, SecondMoments, moments_requests, single_run};
use crate::error::Result;
use crate::gguf::Source;
use crate::util::progress::Progress;

/// What second moments may take where `--memory` does not say.
pub(super) const MEMORY: u64 = 4 << 30;

/// An answer that waits for its question.
type Ready = (MomentsRequest, Option<InputMoments>);

/// Where second moments come from.
pub(super) enum Moments<'a> {
    /// From runs of the text; what was measured before is given out first.
    Run(&'a Run<'a>, Mutex<Vec<Ready>>),
    /// From a file.
    File(MomentsFile),
}

impl<'a> Moments<'a> {
    /// From runs of the text alone.
    pub(super) fn measured_anew(run: &'a Run<'a>) -> Self {
        Moments::Run(run, Mutex::default())
    }
}

impl SecondMoments for Moments<'_> {
    fn measure(&self, requests: &[MomentsRequest]) -> Result<Vec<Option<InputMoments>>> {
        match self {
            Moments::File(file) => Ok(requests.iter().map(|request| file.input(&request.weights)).collect()),
            Moments::Run(run, ready) => {
                let ready = ready.lock().map(|mut ready| std::mem::take(&mut *ready)).unwrap_or_default();
                if ready.iter().map(|(request, _)| request).eq(requests) {
                    return Ok(ready.into_iter().map(|(_, moments)| moments).collect());
                }
                run.second_moments(requests)
            }
        }
    }
}

/// Measures statistics, and second moments in the same run of the text if all of them fit into `memory`.
pub(super) fn measure<'a>(
    run: &'a Run<'a>,
    (source, plan): (&Source, &Conversion),
    memory: u64,
) -> Result<(Statistics, Moments<'a>)> {
    let Some(requests) = single_run(source, plan, memory) else {
        return Ok((run.statistics()?, Moments::measured_anew(run)));
    };
    let (statistics, moments) = run.both(&requests)?;
    Ok((statistics, Moments::Run(run, Mutex::new(requests.into_iter().zip(moments).collect()))))
}

/// A file to keep second moments in.
pub(super) struct Kept<'a> {
    pub(super) path: &'a Path,
    pub(super) force: bool,
    pub(super) memory: u64,
}

impl Kept<'_> {
    /// Whether there is a file to use: one of this run, and not to be replaced.
    ///
    /// # Errors
    /// If it is of another model, text or setting.
    pub(super) fn reuse(&self, run: &Run<'_>) -> Result<Option<MomentsFile>> {
        if self.force || !self.path.exists() {
            return Ok(None);
        }
        let file = MomentsFile::open(self.path)?;
        file.check_origin(&run.origin()?)?;
        Ok(Some(file))
    }

    /// Measures statistics and second moments, in one run of the text if all fits into memory, and keeps the second moments; or takes them from the file
    /// of an earlier run.
    pub(super) fn measure(
        &self,
        session: &Session,
        run: &Run<'_>,
        (source, plan): (&Source, &Conversion),
    ) -> Result<(Statistics, MomentsFile)> {
        if let Some(file) = self.reuse(run)? {
            session.progress.note(&format!("{}: second moments of this run are there, and used", self.path.display()));
            return Ok((run.statistics()?, file));
        }
        let batches = moments_requests(source, plan, self.memory);
        let inputs: Vec<&Path> = source.shards().collect();
        let writer = MomentsWriter::create(self.path, &run.origin()?, &batches.concat(), self.force, &inputs)?;
        let statistics = match &batches[..] {
            [all] => {
                let (statistics, moments) = run.both(all)?;
                write(&writer, 0, &moments)?;
                statistics
            }
            several => {
                let statistics = run.statistics()?;
                write_batches(&writer, run, several)?;
                statistics
            }
        };
        writer.commit()?;
        Ok((statistics, MomentsFile::open(self.path)?))
    }

    /// Measures second moments alone and keeps them.
    pub(super) fn write(&self, run: &Run<'_>, (source, plan): (&Source, &Conversion)) -> Result<MomentsFile> {
        let batches = moments_requests(source, plan, self.memory);
        let inputs: Vec<&Path> = source.shards().collect();
        let writer = MomentsWriter::create(self.path, &run.origin()?, &batches.concat(), self.force, &inputs)?;
        write_batches(&writer, run, &batches)?;
        writer.commit()?;
        MomentsFile::open(self.path)
    }
}

fn write_batches(writer: &MomentsWriter, run: &Run<'_>, batches: &[Vec<MomentsRequest>]) -> Result<()> {
    let mut first = 0;
    for batch in batches {
        write(writer, first, &run.second_moments(batch)?)?;
        first += batch.len();
    }
    Ok(())
}

fn write(writer: &MomentsWriter, first: usize, moments: &[Option<InputMoments>]) -> Result<()> {
    moments.iter().enumerate().try_for_each(|(index, moments)| writer.write(first + index, moments.as_ref()))
}

/// Reads second moments from a file and checks that they are of this model.
pub(super) fn load(session: &Session, path: &Path, source: &Source) -> Result<MomentsFile> {
    let file = MomentsFile::open(path)?;
    file.check_model(source, &statistics::fingerprint(source))?;
    let origin = file.origin();
    if !origin.is_whole() {
        let (some, all) = (origin.chunks.len(), origin.chunk_count);
        session
            .progress
            .note(&format!("{}: {some} of {all} chunks of the text: a part that was not merged", path.display()));
    }
    Ok(file)
}
